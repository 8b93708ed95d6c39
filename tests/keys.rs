//! The promise about signing keys: several may sign, one follows another without a client that notices, and
//! one that is lost or exchanged is refused at the start, before anyone fetches half of a closure.

use std::path::Path;
use std::time::Duration;

use crate::support;
use crate::support::addresses::narinfo_address;
use crate::support::derivations::closure_of_20;
use crate::support::process::run;
use crate::support::{Cache, Derivation, Finished, Http, Release, Substituter, text, wait_until};
use narinfo::{NarInfo, PublicKey, StoreDir};

/// A change in the background.
const SOON: Duration = Duration::from_secs(60);

/// `ondine key` with these arguments, on the state directory of the server.
fn key(cache: &Cache, arguments: &[&str]) -> Finished {
    cache.ondine.run("key", arguments)
}

/// The public key that a command prints.
fn printed(finished: &Finished) -> String {
    String::from_utf8_lossy(&finished.stdout).trim().to_owned()
}

/// The words with which a start is refused, where no server runs.
fn refusal(cache: &Cache) -> String {
    let mut server = cache.ondine.command("serve");
    server.args(["--listen", "127.0.0.1:0", "--state-dir", text(&cache.ondine.state_dir())]);
    run(server).must_fail().stderr
}

/// Names of the keys that have signed the narinfo of a path, each signature verified.
fn signers(cache: &Cache, path: &Path, keys: &[&str]) -> Vec<String> {
    let store_dir = StoreDir::new(text(path.parent().expect("a store path"))).expect("a store");
    let answer = Http::new(&cache.ondine.url()).get(&narinfo_address(path));
    let info = NarInfo::parse(&store_dir, &answer.body).expect("a narinfo");
    let keys: Vec<PublicKey> = keys.iter().map(|key| key.parse().expect("a key")).collect();
    let signed = info.path_info.fingerprint(&store_dir);
    let by = |signature: &narinfo::Signature| {
        let key = keys.iter().find(|key| key.verify(signature, &signed));
        key.unwrap_or_else(|| panic!("nobody made {signature}")).name().to_string()
    };
    info.path_info.signatures.iter().map(by).collect()
}

fn restart(cache: &mut Cache) {
    assert!(cache.ondine.sigterm().success());
    cache.ondine.start_again();
}

#[test]
fn a_key_follows_another_without_a_client_that_notices() {
    let mut cache = Cache::new(&["--key-name", "cache-1"]);
    let before = cache.store.instantiate(&closure_of_20("before"));
    let after = cache.store.instantiate(&Derivation::new("after", "echo after > $out"));
    cache.narinfo(before.out());
    let old = cache.ondine.public_key().to_owned();

    let new = printed(&key(&cache, &["rotate"]).must_succeed());
    assert!(new.starts_with("cache-2:"), "{new}");
    assert_eq!(cache.ondine.public_key(), old, "a running server keeps its keys");
    let early = key(&cache, &["retire", "cache-1"]).must_fail();
    assert!(early.stderr.contains("no server has run with cache-2 yet"), "{early}");
    restart(&mut cache);
    assert_eq!(cache.ondine.public_key(), new, "the new one is what clients are told to trust");

    assert_eq!(signers(&cache, before.out(), &[&old, &new]), ["cache-1", "cache-2"]);
    assert_eq!(signers(&cache, after.out(), &[&old, &new]), ["cache-2", "cache-1"]);
    for public_key in [&old, &new] {
        let from = Substituter { url: cache.ondine.url(), public_key: public_key.clone() };
        cache.client(&[]).fetch(&from, &[before.out(), after.out()]).must_succeed();
    }
    let listed = printed(&key(&cache, &["list"]).must_succeed());
    assert_eq!(listed.lines().collect::<Vec<_>>(), [&new, &old]);

    assert!(key(&cache, &["retire", "cache-2"]).must_fail().stderr.contains("ondine key rotate"));
    key(&cache, &["retire", "cache-1"]).must_succeed();
    restart(&mut cache);
    let third = cache.store.instantiate(&Derivation::new("third", "echo third > $out"));
    assert_eq!(signers(&cache, third.out(), &[&new]), ["cache-2"]);
    assert!(key(&cache, &["retire", "cache-1"]).must_fail().stderr.contains("no key is named cache-1"));
    let json = key(&cache, &["new", "c-1", "--json"]).must_succeed().text();
    assert!(json.starts_with("[\"c-1:"), "{json}");
}

#[test]
fn a_further_key_signs_what_is_served_already_and_that_is_stored() {
    let mut cache = Cache::new(&["--key-name", "a-1"]);
    let built = cache.store.instantiate(&closure_of_20("built"));
    cache.narinfo(built.out());
    let new = printed(&key(&cache, &["new", "b-1"]).must_succeed());
    assert!(key(&cache, &["new", "b-1"]).must_fail().stderr.contains("already"));
    restart(&mut cache);
    let first = cache.ondine.public_key().to_owned();
    assert!(first.starts_with("a-1:"), "{first}");

    let complete = || {
        let record = std::fs::read(cache.ondine.state_dir().join("signers.json")).expect("a record");
        let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
        let keys = record.as_array().expect("a list");
        assert_eq!(keys.len(), 2, "{record}");
        keys.iter().all(|key| key["complete"] == true)
    };
    wait_until("every path is signed by both", SOON, complete);
    for path in cache.closure(&[built.out()]) {
        assert_eq!(signers(&cache, &path, &[&first, &new]), ["a-1", "b-1"], "{}", path.display());
    }
    let status: serde_json::Value =
        serde_json::from_slice(&cache.http.get("/api/v1/status").body).expect("JSON");
    assert_eq!(status["public_keys"], serde_json::json!([first, new]));
}

#[test]
fn a_key_that_is_lost_or_exchanged_is_refused_at_the_start() {
    let mut cache = Cache::new(&["--key-name", "a-1"]);
    let built = cache.store.instantiate(&Derivation::new("built", "echo built > $out"));
    cache.narinfo(built.out());
    assert!(cache.ondine.sigterm().success());
    let file = cache.ondine.state_dir().join("signing-key");
    let good = std::fs::read(&file).expect("the key");

    for (name, words) in [("a-1", "another key named a-1"), ("other-1", "ondine key retire a-1")] {
        let key = narinfo::SecretKey::generate(name.parse().expect("a name"));
        std::fs::write(&file, key.to_secret_string().as_bytes()).expect("written");
        let refused = refusal(&cache);
        assert!(refused.contains(words), "{name}: {refused}");
    }
    // Nobody trusts it any more: the key of the other name takes over, and signs all.
    key(&cache, &["retire", "a-1"]).must_succeed();
    cache.ondine.start_again();
    let other = cache.ondine.public_key().to_owned();
    let from = Substituter { url: cache.ondine.url(), public_key: other };
    cache.client(&[]).fetch(&from, &[built.out()]).must_succeed();
    assert!(cache.ondine.sigterm().success());
    std::fs::write(&file, good).expect("written");
    assert!(refusal(&cache).contains("ondine key retire other-1"));
}

#[test]
fn the_setting_names_several_key_files_of_which_the_first_is_shown() {
    let store = support::NixStore::new(Release::Host);
    let files: Vec<_> = ["x-1", "y-1"]
        .map(|name| {
            let file = store.folder().join(name);
            let key = narinfo::SecretKey::generate(name.parse().expect("a name"));
            std::fs::write(&file, key.to_secret_string().as_bytes()).expect("written");
            (file, key.public_key().to_string())
        })
        .into();
    let named = format!("{},{}", files[0].0.display(), files[1].0.display());
    let mut cache = Cache::of(store, &["--signing-key", &named], &[]);
    assert_eq!(cache.ondine.public_key(), files[0].1);
    assert!(!cache.ondine.state_dir().join("signing-key").exists(), "a key was made that nobody asked for");
    let built = cache.store.instantiate(&Derivation::new("built", "echo built > $out"));
    cache.narinfo(built.out());
    assert_eq!(signers(&cache, built.out(), &[&files[0].1, &files[1].1]), ["x-1", "y-1"]);
    // Without the setting the state directory has no key, and none is made beside what is signed.
    assert!(cache.ondine.sigterm().success());
    assert!(refusal(&cache).contains("is missing, though this cache has signed paths with it"));
}
