//! Lazy package sets: an attribute is evaluated when it is first asked for by its name, and what came of it
//! is kept as long as the generation is. Real evaluations and a real daemon; nothing but package sets is
//! built from.

use std::time::{Duration, Instant};

use crate::support::addresses::{base_name, narinfo_address};
use crate::support::http::Response;
use crate::support::package_set::{LOOPS, api, links, must_be_had, refresh, wait_for_generation};
use crate::support::{
    Derivation, Http, NixStore, Ondine, PackageSet, Release, derivations, text, wait_until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
const CATALOGUE_ONLY: &str = "build-from = ['catalogue']";
const LAZY: &str = "index = 'lazy'\ndeny = ['secret-*']\nattribute-timeout = '3s'";

fn text_file(name: &str, text: &str) -> (String, String) {
    (name.to_owned(), derivations::text_file(name, text).to_nix())
}

fn get(ondine: &Ondine, address: &str) -> Response {
    Http::new(&ondine.url()).get(address)
}

fn look_up(ondine: &Ondine, name: &str) -> Response {
    get(ondine, &format!("/api/v1/catalogue/{name}"))
}

#[track_caller]
fn derivation(ondine: &Ondine, name: &str) -> String {
    let told = look_up(ondine, name);
    assert_eq!(told.status, 200, "{name}: {}", told.text());
    let told: Value = serde_json::from_str(&told.text()).expect("JSON");
    told["derivation"].as_str().expect("a name").to_owned()
}

#[track_caller]
fn assert_refused(ondine: &Ondine, name: &str, words: &str) {
    let told = look_up(ondine, name);
    assert!(told.status == 404 && told.text().contains(words), "{name}: {}", told.text());
}

#[test]
fn an_attribute_is_evaluated_when_it_is_asked_for_by_name_and_then_known_by_hash() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let below = derivations::text_file("below", "below");
    let user = Derivation::new("user", "echo $below > $out").input("below", &below).to_nix();
    let mut set = PackageSet::new([
        ("broken".to_owned(), "abort \"words of broken\"".to_owned()),
        ("loops".to_owned(), LOOPS.to_owned()),
        // A full walk would not go in here.
        ("nested".to_owned(), format!("{{ \"x.y\" = {}; }}", text_file("x", "x").1)),
        ("number".to_owned(), "3".to_owned()),
        text_file("secret-thing", "denied"),
        ("user".to_owned(), user),
    ]);
    let mut ondine = set.serve(&store, CATALOGUE_ONLY, LAZY);
    wait_for_generation(&ondine);
    let told = api(&ondine);
    assert_eq!(
        (&told["index"], &told["generations"][0]["attributes"]),
        (&"lazy".into(), &0.into()),
        "{told:#}"
    );
    let (drv, out) = set.paths(&store, "user");
    let unknown = get(&ondine, &narinfo_address(&out));
    assert!(unknown.status == 404 && unknown.text().contains("unknown"), "{}", unknown.text());

    assert_eq!(derivation(&ondine, "pkgs/user"), base_name(&drv));
    let (x, _) = set.paths(&store, "nested.\"x.y\"");
    assert_eq!(derivation(&ondine, "pkgs/nested.%22x.y%22"), base_name(&x));
    assert_eq!(derivation(&ondine, "pkgs/secret-thing"), base_name(&set.paths(&store, "secret-thing").0));
    store.gc();
    assert!(store.is_valid(&drv) && store.is_valid(&x), "what was evaluated is held");
    // What it needs is known, too, and the denied one is known to be that.
    let needed = store.nix_store(&["--query", "--references", text(&drv)]);
    let needed = needed.lines().find(|path| path.ends_with("-below.drv")).expect("it needs one");
    let needed = store.nix_store(&["--query", "--outputs", needed]);
    must_be_had(&ondine, needed.trim().as_ref());
    must_be_had(&ondine, &out);
    let denied = get(&ondine, &narinfo_address(&set.paths(&store, "secret-thing").1));
    assert!(denied.text().contains("the package set pkgs denies"), "{}", denied.text());
    assert_refused(&ondine, "pkgs/nope", "no nope");
    assert_refused(&ondine, "pkgs/user.nope", "no user.nope");
    assert_refused(&ondine, "pkgs/number", "it is no derivation");
    assert_refused(&ondine, "pkgs/broken", "words of broken");
    // Who asks for the same shares an evaluation, and its bounds.
    let asked = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_refused(&ondine, "pkgs/loops", "attribute-timeout"));
        }
    });
    assert!(asked.elapsed() < 3 * Duration::from_secs(3), "four evaluations: {:?}", asked.elapsed());
    let told = api(&ondine);
    let size = |name: &str| told["generations"][0][name].clone();
    assert_eq!(
        [size("attributes"), size("denied"), size("errors"), size("derivations")],
        [3, 1, 3, 3],
        "{told:#}"
    );

    // All of it is remembered, also over a restart, until a refresh finds what the source is now.
    set.attributes = [text_file("broken", "whole"), text_file("user", "another")].into();
    set.write();
    ondine.crash_and_restart();
    assert_eq!(derivation(&ondine, "pkgs/user"), base_name(&drv));
    assert_refused(&ondine, "pkgs/broken", "words of broken");
    refresh(&ondine).must_succeed();
    let (new, _) = set.paths(&store, "user");
    assert_eq!(derivation(&ondine, "pkgs/user"), base_name(&new));
    assert_eq!(derivation(&ondine, "pkgs/broken"), base_name(&set.paths(&store, "broken").0));
    assert_refused(&ondine, "pkgs/nested.%22x.y%22", "no nested");
    let roots = ondine.state_dir().join("catalogue");
    wait_until("each generation holds its own", SOON, || links(&roots).len() == 2);
    store.gc();
    assert!(store.is_valid(&drv) && store.is_valid(&new));
    must_be_had(&ondine, &out);
    // What is asked for by name is downloaded as from any set.
    assert_eq!(get(&ondine, "/get/pkgs/user").status, 302);
}

#[test]
fn a_flake_and_a_folder_may_be_lazy_and_a_source_in_trouble_is_nobodys_error() {
    let store = NixStore::new(Release::Host);
    let mut daemon = store.daemon();
    let file = |name: &str| text_file(name, name).1;
    let flake = store.folder().join("flake");
    std::fs::create_dir_all(&flake).expect("a folder");
    let system = store.nix(&["eval", "--impure", "--raw", "--expr", "builtins.currentSystem"]);
    let pure = |name: &str| file(name).replace("builtins.currentSystem", &format!("{system:?}"));
    let outputs = format!(
        "{{ outputs = {{ self }}: {{ packages.{system}.p = {}; legacyPackages.{system}.l = {}; }}; }}",
        pure("p"),
        pure("l")
    );
    std::fs::write(flake.join("flake.nix"), outputs).expect("written");
    let folder = store.folder().join("folder");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("a.nix"), format!("{{ system }}: {}", file("a"))).expect("written");
    let linked = store.instantiate(&derivations::text_file("linked", "linked"));
    std::os::unix::fs::symlink(&linked.drv, folder.join("linked.drv")).expect("linked");
    let settings = store.folder().join("settings.toml");
    let table = |name: &str, source: String| {
        format!(
            "[[catalogue]]\nname = '{name}'\nindex = 'lazy'\nrefresh = 'manual'\nsource = {{ {source} }}\n"
        )
    };
    let sets = table("f", format!("flake = 'path:{}'", flake.display()))
        + &table("d", format!("directory = '{}'", folder.display()));
    std::fs::write(&settings, format!("{CATALOGUE_ONLY}\n{sets}")).expect("written");
    let ondine = Ondine::start(&store, &["--config", text(&settings)]);
    for set in ["f", "d"] {
        wait_until("there is a generation", SOON, || {
            look_up(&ondine, set).text().contains("\"current\": true")
        });
    }
    let drv = |name: &str| store.instantiate(&derivations::text_file(name, name)).drv;
    for (set, name) in [("f", "p"), ("f", "l"), ("d", "a"), ("d", "linked")] {
        assert_eq!(derivation(&ondine, &format!("{set}/{name}")), base_name(&drv(name)));
    }
    assert_refused(&ondine, "f/nope", "no nope");
    // Without a daemon nothing can be evaluated: that is told, and not remembered.
    std::fs::write(folder.join("b.nix"), file("b")).expect("written");
    daemon.stop();
    let untold = look_up(&ondine, "d/b");
    assert!(untold.status == 503 && untold.text().contains("could not be evaluated"), "{}", untold.text());
    daemon.restart();
    assert_eq!(derivation(&ondine, "d/b"), base_name(&drv("b")));
}
