//! Evaluations that fail for what passes, or for one derivation alone: what was known stays, all else is as
//! the source has it, and it is tried again soon. Real evaluators and daemons, and a server that fails when
//! it is told to.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::addresses::base_name;
use crate::support::package_set::{EATS, api, must_be_had, refresh, small, wait_for_generation};
use crate::support::{Http, NixStore, Ondine, PackageSet, Release, programs, text, wait_until};

const SOON: Duration = Duration::from_secs(90);

/// A server whose every file is the number 1, unless it is told to fail.
struct Flaky {
    address: String,
    fails: Arc<AtomicBool>,
}

impl Flaky {
    fn start() -> Flaky {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let fails = Arc::<AtomicBool>::default();
        let told = fails.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let status = if told.load(Ordering::SeqCst) { "503 Service Unavailable" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 1\r\nConnection: close\r\n\r\n1");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Flaky { address, fails }
    }

    /// An attribute that needs a file of it.
    fn attribute(&self, name: &str, file: &str) -> (String, String) {
        let fetched =
            format!("${{builtins.readFile (builtins.fetchurl \"http://{}/{file}\")}}", self.address);
        let (name, nix) = small(name);
        (name.clone(), nix.replace(&format!("name = \"{name}\""), &format!("name = \"{name}-{fetched}\"")))
    }
}

fn look_up(ondine: &Ondine, name: &str) -> String {
    Http::new(&ondine.url()).get(&format!("/api/v1/catalogue/{name}")).text()
}

#[test]
fn an_attribute_that_fails_for_what_passes_stays_as_it_was_and_is_tried_again_soon() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let server = Flaky::start();
    let mut set = PackageSet::new([small("a"), server.attribute("f", "one")]);
    let ondine = set.serve(
        &store,
        "build-from = ['catalogue']",
        &format!("allowed-uris = ['http://{}']", server.address),
    );
    wait_for_generation(&ondine);
    assert!(look_up(&ondine, "pkgs/f").contains("-f-1.drv"), "{}", look_up(&ondine, "pkgs/f"));

    server.fails.store(true, Ordering::SeqCst);
    set.attributes =
        [small("a"), small("b"), server.attribute("f", "two"), server.attribute("new", "three")].into();
    set.write();
    refresh(&ondine).must_succeed();
    let told = api(&ondine);
    assert_eq!(told["generations"][0]["attributes"], 3, "{told:#}");
    assert_eq!(told["generations"][0]["errors"], 1, "{told:#}");
    let failure = told["failure"].as_str().expect("it is told");
    assert!(failure.contains("1 attributes") && failure.contains("503"), "{failure}");
    assert!(look_up(&ondine, "pkgs/f").contains("-f-1.drv"), "{}", look_up(&ondine, "pkgs/f"));
    assert!(look_up(&ondine, "pkgs/b").contains("-b.drv"));
    assert!(look_up(&ondine, "pkgs/new").contains("cannot be evaluated"));
    store.gc();

    // By hand it is refreshed no more, though that is its setting.
    server.fails.store(false, Ordering::SeqCst);
    wait_until("it is evaluated again", SOON, || look_up(&ondine, "pkgs/new").contains("-new-1.drv"));
    wait_until("all is well", SOON, || api(&ondine)["failure"].is_null());
    assert_eq!(api(&ondine)["errors"].as_array().expect("a list").len(), 0);
}

#[test]
fn what_runs_out_of_memory_stays_as_it_was_and_words_of_a_source_are_no_trouble_of_the_machine() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let mut set = PackageSet::new([small("a"), small("f"), small("w")]);
    let ondine = set.serve(&store, "", "max-memory-bytes = 268435456");
    wait_for_generation(&ondine);
    set.attributes = [
        small("b"),
        ("f".to_owned(), EATS.to_owned()),
        ("w".to_owned(), "abort \"cannot connect to socket: No space left on device\"".to_owned()),
    ]
    .into();
    set.write();
    let refreshed = refresh(&ondine).must_succeed();
    assert!(refreshed.text().contains("as they were") && refreshed.text().contains("memory"), "{refreshed}");
    assert!(look_up(&ondine, "pkgs/f").contains("-f.drv"), "{}", look_up(&ondine, "pkgs/f"));
    assert!(look_up(&ondine, "pkgs/b").contains("-b.drv"));
    assert!(look_up(&ondine, "pkgs/w").contains("No space left"));
    assert!(look_up(&ondine, "pkgs/a").contains("no a"));
}

#[test]
fn what_fails_for_good_takes_the_place_of_what_was() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let mut set = PackageSet::new([small("a"), small("f")]);
    let ondine = set.serve(&store, "", "");
    wait_for_generation(&ondine);
    set.attributes.insert("f".to_owned(), "throw \"gone for good\"".to_owned());
    set.write();
    refresh(&ondine).must_succeed();
    assert!(look_up(&ondine, "pkgs/f").contains("gone for good"));
    assert!(api(&ondine)["failure"].is_null());
}

#[test]
fn a_first_evaluation_that_fails_as_a_whole_is_tried_again_soon() {
    let store = NixStore::new(Release::Host);
    let mut daemon = store.daemon();
    daemon.stop();
    let set = PackageSet::new([small("a")]);
    let ondine = set.serve(&store, "", "");
    wait_until("it has failed", SOON, || !api(&ondine)["failure"].is_null());
    daemon.restart();
    wait_until("there is a generation", SOON, || api(&ondine)["generations"][0]["current"] == true);
    must_be_had(&ondine, &set.paths(&store, "a").1);
}

#[test]
fn a_derivation_that_makes_no_sense_spoils_nothing_else() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gone = format!("{}/{}-gone.drv", store.store_dir().display(), "0".repeat(32));
    let named = |name: &str| small("x").1.replace("name = \"x\"", &format!("name = \"{name}\""));
    let fake = |drv: &str| {
        format!("{{ type = \"derivation\"; name = \"fake\"; drvPath = \"{drv}\"; outPath = \"/x\"; }}")
    };
    let set = PackageSet::new([
        small("a"),
        ("dots".to_owned(), named("..")),
        ("gone".to_owned(), fake(&gone)),
        ("nowhere".to_owned(), fake("/nowhere/x.drv")),
        small("z"),
    ]);
    for index in ["full", "lazy"] {
        let ondine = set.serve(&store, "build-from = ['catalogue']", &format!("index = '{index}'"));
        wait_for_generation(&ondine);
        for (name, words) in
            [("dots", "cannot be read"), ("gone", "is not in the Nix store"), ("nowhere", "no derivation")]
        {
            let told = look_up(&ondine, &format!("pkgs/{name}"));
            assert!(told.contains("cannot be evaluated") && told.contains(words), "{index} {name}: {told}");
        }
        for name in ["a", "z"] {
            assert!(look_up(&ondine, &format!("pkgs/{name}")).contains(&format!("-{name}.drv")), "{index}");
            must_be_had(&ondine, &set.paths(&store, name).1);
        }
        let told = api(&ondine);
        assert_eq!(told["generations"][0]["attributes"], 2, "{index}: {told:#}");
        assert_eq!(told["generations"][0]["errors"], 3, "{index}: {told:#}");
        assert_eq!(told["errors"].as_array().expect("a list").len(), 3, "{index}: {told:#}");
        assert!(told["failure"].is_null(), "{index}: {told:#}");
    }
}

#[test]
fn an_error_is_explained_when_it_is_asked_for_and_begins_with_its_words() {
    for release in Release::all() {
        let store = NixStore::new(release);
        let _daemon = store.daemon();
        let name = store.release().name();
        let throws = |number: u32| (format!("t{number:02}"), format!("throw \"words of {number:02}\""));
        let mut set = PackageSet::new((0..60).map(throws));
        set.attributes.extend([small("a")]);
        set.write();
        let settings = set.settings("", "");
        let path = programs::path(&store);
        let ondine = Ondine::start_with(&store, &["--config", text(&settings)], &[("PATH", &path)]);
        wait_for_generation(&ondine);
        let listed =
            |number: usize| api(&ondine)["errors"][number]["error"].as_str().expect("a text").to_owned();
        assert!(listed(0).starts_with("error: words of 00"), "{name}: {}", listed(0));
        assert!(listed(57).contains("when it is asked for by name"), "{name}: {}", listed(57));
        let told = look_up(&ondine, "pkgs/t57");
        assert!(told.contains("reason: error: words of 57"), "{name}: {told}");
        assert!(!told.contains("«string»"), "{name}: {told}");
        assert!(listed(57).starts_with("error: words of 57"), "{name}: {}", listed(57));
        // Kept, whatever the source is now.
        set.attributes.insert("t57".to_owned(), "throw \"other words\"".to_owned());
        set.write();
        let got = Http::new(&ondine.url()).get("/get/pkgs/t57");
        assert!(got.status == 404 && got.text().contains("words of 57"), "{name}: {}", got.text());
        assert!(base_name(&set.paths(&store, "a").0).ends_with("-a.drv"));
    }
}
