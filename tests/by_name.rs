//! Package sets by name: what an attribute is told to be, and downloads of it for those who have no Nix,
//! which build what is missing as any request does. Real evaluations and a real daemon.

use std::path::Path;
use std::time::Duration;

use crate::support::addresses::{base_name, narinfo_address};
use crate::support::cache::status_of;
use crate::support::http::{Response, raw};
use crate::support::package_set::{LOOPS, api, dump, get, start_refresh, told, wait_for_generation};
use crate::support::{
    Derivation, Http, NixStore, Ondine, PackageSet, Release, derivations, text, wait_until,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const CATALOGUE_ONLY: &str = "build-from = ['catalogue']";

fn text_file(name: &str, text: &str) -> (String, String) {
    (name.to_owned(), derivations::text_file(name, text).to_nix())
}

/// The contents that a download leads to.
#[track_caller]
fn follow(ondine: &Ondine, found: &Response) -> Response {
    assert_eq!(found.status, 302, "{}", found.text());
    let place = found.header("location").expect("a place");
    let contents = get(ondine, place.strip_prefix("../..").expect("from /get/<set>/<attribute>"));
    assert_eq!(contents.status, 200, "{place}: {}", contents.text());
    contents
}

#[track_caller]
fn assert_refused(ondine: &Ondine, name: &str, words: &[&str]) {
    let answer = get(ondine, &format!("/get/{name}"));
    assert_eq!(answer.status, 404, "{name}: {}", answer.text());
    for word in words {
        assert!(answer.text().contains(word), "{name}: no {word:?} in {}", answer.text());
    }
}

#[test]
fn a_name_is_told_of_and_leads_to_contents_that_are_built_when_asked_for() {
    let set = PackageSet::new([
        ("broken".to_owned(), "abort \"words of broken\"".to_owned()),
        ("failing".to_owned(), derivations::failing("failing").to_nix()),
        (
            "nested".to_owned(),
            format!("{{ recurseForDerivations = true; {} = {}; }}", "p", text_file("p", "1").1),
        ),
        ("several".to_owned(), derivations::multiple_outputs("several").to_nix()),
        text_file("secret", "denied"),
    ]);
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = set.serve(&store, CATALOGUE_ONLY, "deny = ['secret']");
    wait_for_generation(&ondine);
    let paths = set.all_paths(&store, &["nested.p", "several", "secret", "failing"]);
    let http = Http::new(&ondine.url());

    // Nothing is built by looking.
    let before = told(&ondine, "nested.p");
    let [(drv, out), (_, several), (secret, _), (failing, _)] = &paths[..] else {
        panic!("four were asked for")
    };
    assert_eq!(before["derivation"], base_name(drv));
    assert_eq!(before["generation"], api(&ondine)["generations"][0]["id"]);
    let output = &before["outputs"][0];
    assert_eq!(output["path"], base_name(out), "{before:#}");
    assert_eq!(output["narinfo"], narinfo_address(out));
    assert_eq!((&output["served"], &output["nar"]), (&json!(false), &Value::Null));
    assert_eq!(http.head("/get/pkgs/nested.p").status, 404);
    let cached = get(&ondine, "/cached/get/pkgs/nested.p");
    assert!(cached.status == 404 && cached.text().contains("not built yet"), "{}", cached.text());
    assert!(!store.is_valid(out));

    let contents = follow(&ondine, &get(&ondine, "/get/pkgs/nested.p"));
    assert_eq!(contents.body, dump(&store, out));
    let after = told(&ondine, "nested.p");
    assert_eq!(after["outputs"][0]["served"], true, "{after:#}");
    let nar = get(&ondine, after["outputs"][0]["nar"].as_str().expect("an address"));
    assert_eq!(nar.status, 200);
    let zstd = follow(&ondine, &get(&ondine, "/get/pkgs/nested.p?compression=zstd"));
    assert_eq!(zstd.body, nar.body);
    assert_eq!(http.head("/get/pkgs/nested.p").status, 302);

    // Outputs and systems.
    assert_eq!(follow(&ondine, &get(&ondine, "/get/pkgs/several")).body, dump(&store, several));
    let lib = store.nix_store(&["--query", "--references", text(several)]);
    let lib = Path::new(lib.lines().find(|path| path.ends_with("-lib")).expect("it refers to lib"));
    assert_eq!(follow(&ondine, &get(&ondine, "/get/pkgs/several^lib")).body, dump(&store, lib));
    let outputs = told(&ondine, "several")["outputs"].as_array().expect("a list").len();
    assert_eq!(outputs, 4);
    let system = before["system"].as_str().expect("a system").to_owned();
    assert_eq!(get(&ondine, &format!("/get/pkgs/several?system={system}")).status, 302);
    assert_refused(&ondine, "pkgs/several?system=pdp11-linux", &["evaluated for", &system]);
    assert_refused(&ondine, "pkgs/several^nope", &["no output nope", "dev, doc, lib, out"]);

    // A query that is not understood is told so, and a set is found without its slash, too.
    for (name, words) in [
        ("several?frob=1", "no parameter frob here, but system, compression, wait"),
        ("several?compression=gzip", "compression is none or zstd"),
        ("several?wait=1000", "wait is a number of seconds, 0 to 300"),
    ] {
        let answer = get(&ondine, &format!("/get/pkgs/{name}"));
        assert!(answer.status == 400 && answer.text().contains(words), "{name}: {}", answer.text());
    }
    let answer = get(&ondine, "/closure/pkgs/several.tar?frob=1");
    assert!(answer.status == 400 && answer.text().contains("but system"), "{}", answer.text());
    let narinfo = format!("{}?frob=1&wait=x", narinfo_address(several));
    assert_eq!(http.get(&narinfo).status, 200, "a client of Nix is not refused for a query");
    let redirect = get(&ondine, "/get/pkgs?q=several");
    assert_eq!((redirect.status, redirect.header("location")), (302, Some("pkgs/?q=several")));

    // What is not to be had says why.
    assert_refused(&ondine, "other/p", &["no package set other"]);
    assert_refused(&ondine, "pkgs/nope", &["no nope"]);
    assert_refused(&ondine, "pkgs/broken", &["cannot be evaluated", "words of broken"]);
    assert_refused(&ondine, "pkgs/secret", &["the package set pkgs denies", base_name(secret)]);
    assert_eq!(told(&ondine, "secret")["denied"], true);
    assert!(told(&ondine, "failing")["failure"].is_null());
    assert_refused(&ondine, "pkgs/failing", &["failed (permanent)", "/log/"]);
    assert_eq!(told(&ondine, "failing")["failure"]["cause"], base_name(failing));
    let log = told(&ondine, "failing")["failure"]["log"].as_str().expect("an address").to_owned();
    assert!(get(&ondine, &log).text().contains("the last words of a failing build"));
    // What is denied is not held: then all that is known is that it is denied.
    store.gc();
    assert!(!store.is_valid(secret), "nothing holds it");
    assert_refused(&ondine, "pkgs/secret", &["the package set pkgs denies"]);
    assert_eq!(told(&ondine, "secret")["outputs"], json!([]));
}

#[test]
fn a_download_by_name_waits_in_silence_for_the_one_build_of_all_who_ask() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gate = store.gate();
    let gated = |name: &str| {
        let script = format!("{}echo {name} > $out", gate.script(name));
        (name.to_owned(), Derivation::new(name, &script).to_nix())
    };
    let set = PackageSet::new([gated("first"), gated("second")]);
    let mut ondine =
        set.serve(&store, &format!("{CATALOGUE_ONLY}\nhold = '0s'\nkeep-alive-interval = '1s'"), "");
    wait_for_generation(&ondine);
    let (_, out) = set.paths(&store, "first");
    // The default of a tool that follows redirects: HTTP/1.1, and not a byte before the status.
    let request = b"GET /get/pkgs/first HTTP/1.1\r\nHost: x\r\n\r\n";
    let (nothing, closed) = raw(ondine.address(), request, Duration::from_millis(2500));
    assert_eq!((String::from_utf8_lossy(&nothing).as_ref(), closed), ("", false));
    assert_eq!(told(&ondine, "first")["queued"], true);
    std::thread::scope(|scope| {
        let by_name = scope.spawn(|| get(&ondine, "/get/pkgs/first"));
        let by_hash = scope.spawn(|| get(&ondine, &narinfo_address(&out)));
        gate.wait_for_starts(1);
        gate.open();
        let found = by_name.join().expect("an answer");
        assert_eq!(follow(&ondine, &found).body, dump(&store, &out));
        assert_eq!(by_hash.join().expect("an answer").status, 200);
    });
    assert_eq!(gate.starts(), ["first"]);

    // A server that stops says so, and the place in the queue is kept.
    gate.close();
    let address = ondine.address().to_owned();
    let asked =
        std::thread::spawn(move || raw(&address, b"GET /get/pkgs/second HTTP/1.1\r\nHost: x\r\n\r\n", SOON));
    gate.wait_for_starts(2);
    ondine.sigterm();
    let (answer, _) = asked.join().expect("an answer");
    assert_eq!(status_of(&answer), 503, "{}", String::from_utf8_lossy(&answer));
    ondine.start_again();
    assert_eq!(told(&ondine, "second")["queued"], true);
    gate.open();
    follow(&ondine, &get(&ondine, "/get/pkgs/second"));
}

#[test]
fn a_name_is_what_the_current_generation_has_during_and_after_a_bump() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gate = store.gate();
    let slow = |version: &str| {
        let script = format!("{}echo {version} > $out", gate.script(version));
        ("slow".to_owned(), Derivation::new("slow", &script).to_nix())
    };
    let mut set = PackageSet::new([
        text_file("breaks", "1"),
        text_file("changes", "1"),
        text_file("goes", "1"),
        text_file("stays", "1"),
        slow("old"),
    ]);
    let ondine = set.serve(&store, CATALOGUE_ONLY, "attribute-timeout = '5s'");
    wait_for_generation(&ondine);
    let names = ["breaks", "changes", "goes", "stays"];
    let old = set.all_paths(&store, &names);
    let (_, old_slow) = set.paths(&store, "slow");
    let derivation =
        |attribute: &str| told(&ondine, attribute)["derivation"].as_str().expect("a name").to_owned();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get(&ondine, "/get/pkgs/slow"));
        gate.wait_for_starts(1);
        set.attributes = [
            ("breaks".to_owned(), "abort \"words of breaks\"".to_owned()),
            text_file("changes", "2"),
            ("loops".to_owned(), LOOPS.to_owned()),
            text_file("stays", "1"),
            slow("new"),
        ]
        .into();
        set.write();
        let mut bump = start_refresh(&ondine);
        // It is kept busy for some seconds by the attribute that loops.
        wait_until("the bump is half way", SOON, || {
            api(&ondine)["state"].as_str().is_some_and(|state| state.contains("1 attributes"))
        });
        for (name, (drv, _)) in names.iter().zip(&old) {
            assert_eq!(derivation(name), base_name(drv));
        }
        assert!(bump.is_running(), "the bump was over too early to show anything");
        bump.finish().must_succeed();
        let new = set.all_paths(&store, &["changes", "stays"]);
        assert_ne!(new[0], old[1]);
        assert_eq!(
            (derivation("changes"), derivation("stays")),
            (base_name(&new[0].0).to_owned(), base_name(&old[3].0).to_owned())
        );
        assert_refused(&ondine, "pkgs/goes", &["no goes"]);
        assert_refused(&ondine, "pkgs/breaks", &["words of breaks"]);
        gate.open();
        // Who asked before the bump gets what that meant then.
        assert_eq!(follow(&ondine, &waiting.join().expect("an answer")).body, dump(&store, &old_slow));
        let (_, new_slow) = set.paths(&store, "slow");
        assert_eq!(follow(&ondine, &get(&ondine, "/get/pkgs/slow")).body, dump(&store, &new_slow));
        assert_eq!(follow(&ondine, &get(&ondine, "/get/pkgs/changes")).body, dump(&store, &new[0].1));
        // By hash, what the older generation had is had still.
        assert_eq!(get(&ondine, &narinfo_address(&old[2].1)).status, 200);
    });
}
