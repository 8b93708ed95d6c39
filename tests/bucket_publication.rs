//! The bucket as a binary cache of its own: clients of every release read it without the server, with
//! signatures checked. A narinfo comes after its NAR and those of its references, and goes before its NAR,
//! whatever fails or is killed meanwhile.

use std::path::Path;
use std::time::Duration;

use crate::support::addresses::{base_name, field};
use crate::support::derivations::{Derivation, noise};
use crate::support::{
    Bucket, BucketFault, Cache, Client, FaultyProxy, Http, Instantiated, NixStore, Release, Substituter,
    process, text, wait_until,
};

const SOON: Duration = Duration::from_secs(60);

/// Arguments of a server that publishes in a bucket.
const PUBLISHES: [&str; 2] = ["--nar-store-publish", "narinfo"];

/// A server with its NARs in this bucket, and these arguments more.
#[track_caller]
fn cache(url: &str, arguments: &[&str]) -> Cache {
    let arguments = [&["--nar-store", url, "--nar-cache-bytes", "0"], arguments].concat();
    Cache::of(NixStore::new(Release::Host), &arguments, &Bucket::VARIABLES)
}

/// Two paths, of which the second refers to the first.
fn closure(cache: &Cache) -> [Instantiated; 2] {
    let below = noise("below", 300_000);
    let above = Derivation::new("above", "echo \"$below\" > \"$out\"").input("below", &below);
    [below, above].map(|derivation| cache.store.instantiate(&derivation))
}

/// Key of the narinfo of a path.
fn narinfo_key(path: &Path) -> String {
    format!("{}.narinfo", &base_name(path)[..32])
}

/// Key of the NAR of a path.
#[track_caller]
fn nar_key(cache: &Cache, path: &Path) -> String {
    field(&cache.narinfo(path), "URL").to_owned()
}

fn has(bucket: &Bucket, path: &Instantiated) -> bool {
    bucket.keys().contains(&narinfo_key(path.out()))
}

/// Asks for a path and all that it refers to, and waits until both narinfos are in the bucket.
#[track_caller]
fn published(cache: &Cache, bucket: &Bucket, paths: &[Instantiated; 2]) {
    cache.narinfo(paths[1].out());
    wait_until("they are published", SOON, || paths.iter().all(|path| has(bucket, path)));
}

/// Clients of every release get a path and its closure from the bucket alone.
#[track_caller]
fn assert_fetched_from(bucket: &Bucket, store_dir: &Path, key: &str, path: &Path) {
    let from = Substituter { url: bucket.public_url(), public_key: key.to_owned() };
    for release in Release::all() {
        let client = Client::new(release.clone(), store_dir);
        client.fetch(&from, &[path]).must_succeed();
        let wrong = Substituter { public_key: "other-1:".to_owned() + &"A".repeat(43) + "=", ..from.clone() };
        let distrusting = Client::new(release, store_dir);
        distrusting.fetch(&wrong, &[path]).must_fail();
    }
}

/// A server that was started again publishes these, which clients then get from the bucket.
#[track_caller]
fn assert_published(cache: &mut Cache, bucket: &Bucket, paths: &[Instantiated; 2]) {
    cache.http = Http::new(&cache.ondine.url());
    wait_until("they are published", SOON, || paths.iter().all(|path| has(bucket, path)));
    assert_fetched_from(bucket, &cache.store.store_dir(), cache.ondine.public_key(), paths[1].out());
}

#[test]
fn every_release_gets_a_closure_from_the_bucket_alone_with_its_signatures() {
    let Some(bucket) = Bucket::new() else { return };
    let mut cache = cache(&bucket.url(), &PUBLISHES);
    let paths = closure(&cache);
    published(&cache, &bucket, &paths);
    for path in &paths {
        let served = cache.narinfo(path.out());
        assert_eq!(String::from_utf8_lossy(&bucket.get(&narinfo_key(path.out()))), served);
        assert!(bucket.keys().contains(&nar_key(&cache, path.out())));
    }
    let info = String::from_utf8(bucket.get("nix-cache-info")).expect("text");
    assert!(info.contains(&format!("StoreDir: {}\n", cache.store.store_dir().display())), "{info}");
    let metrics = cache.http.get("/metrics").text();
    for line in ["ondine_published_narinfos_total 2", "ondine_publication_waiting 0"] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }
    let key = cache.ondine.public_key().to_owned();
    cache.ondine.sigterm();
    assert_fetched_from(&bucket, &cache.store.store_dir(), &key, paths[1].out());
}

#[test]
fn a_bucket_that_was_filled_before_is_published_when_that_is_switched_on() {
    let Some(bucket) = Bucket::new() else { return };
    let mut cache = cache(&bucket.url(), &[]);
    let paths = closure(&cache);
    cache.narinfo(paths[1].out());
    wait_until("they are packed", SOON, || bucket.nars().len() == 2);
    assert!(!paths.iter().any(|path| has(&bucket, path)));
    cache.ondine.sigterm();
    cache.ondine.add_arguments(&PUBLISHES);
    cache.ondine.start_again();
    assert_published(&mut cache, &bucket, &paths);
}

#[test]
fn a_bucket_that_is_away_fails_nobody_and_gets_all_narinfos_when_it_is_back_also_over_a_crash() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let mut cache = cache(&bucket.url_through(proxy.address()), &PUBLISHES);
    wait_until("it is a binary cache", SOON, || bucket.keys().contains(&"nix-cache-info".to_owned()));
    proxy.set(BucketFault::Unavailable);
    let paths = closure(&cache);
    cache.narinfo(paths[1].out());
    assert_eq!(bucket.nars(), [""; 0]);
    // Killed between the NARs and their narinfos.
    proxy.set(BucketFault::Refuse(".narinfo HTTP"));
    wait_until("the NARs are stored, and a narinfo is tried", 2 * SOON, || {
        let is_packed = |path: &Instantiated| cache.narinfo(path.out()).contains("FileHash: ");
        proxy.cuts() > 0 && paths.iter().all(is_packed)
    });
    assert!(!paths.iter().any(|path| has(&bucket, path)));
    cache.ondine.crash_and_restart();
    proxy.set(BucketFault::None);
    assert_published(&mut cache, &bucket, &paths);
}

#[test]
fn a_narinfo_goes_before_its_nar_and_those_that_refer_to_it_before_that() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let arguments = [&PUBLISHES[..], &["--eviction-grace", "0s"]].concat();
    let cache = cache(&bucket.url_through(proxy.address()), &arguments);
    let paths = closure(&cache);
    published(&cache, &bucket, &paths);
    let keys = [
        narinfo_key(paths[1].out()),
        narinfo_key(paths[0].out()),
        nar_key(&cache, paths[1].out()),
        nar_key(&cache, paths[0].out()),
    ];
    cache.ondine.end_all_uses();
    let mut gc = cache.ondine.command("gc");
    gc.args(["--max-bytes", "1", "--state-dir", text(&cache.ondine.state_dir())]);
    process::run(gc).must_succeed();
    assert_eq!(bucket.nars(), [""; 0]);
    let deleted = proxy.requests("DELETE");
    let places = keys.map(|key| deleted.iter().position(|line| line.contains(&key)));
    let [above, below, nar_above, nar_below] = places.map(|place| place.expect("it was deleted"));
    assert!(above < below && above < nar_above && below < nar_below, "{deleted:?}");
}

#[test]
fn a_damaged_nar_goes_after_its_narinfo_and_both_come_back_when_it_is_stored_again() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let cache = cache(&bucket.url_through(proxy.address()), &PUBLISHES);
    let paths = closure(&cache);
    // Nix still has them, to be packed again.
    paths.iter().for_each(|path| cache.store.root(path.out()));
    published(&cache, &bucket, &paths);
    let key = nar_key(&cache, paths[0].out());
    let mut damaged = bucket.get(&key);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    bucket.put(&key, &damaged);
    let mut fsck = cache.ondine.command("fsck");
    fsck.args(["--verify", "--repair", "--state-dir", text(&cache.ondine.state_dir())]);
    process::run(fsck).must_succeed();
    let deleted = proxy.requests("DELETE");
    let [narinfo, nar] = [narinfo_key(paths[0].out()), key.clone()]
        .map(|key| deleted.iter().position(|line| line.contains(&key)).expect("it was deleted"));
    assert!(narinfo < nar, "{deleted:?}");
    wait_until("both are there again", SOON, || {
        paths.iter().all(|path| has(&bucket, path)) && bucket.nars().contains(&key)
    });
    assert!(bucket.get(&key) != damaged);
}

#[test]
fn publishing_without_a_bucket_is_refused_with_the_reason() {
    let store = NixStore::new(Release::Host);
    let file = store.folder().join("ondine.toml");
    std::fs::write(&file, "nar-store-publish = 'narinfo'\n").expect("written");
    let refused = process::run(store.ondine(&["check-config", text(&file)])).must_fail().stderr;
    for words in ["nar-store-publish", "set nar-store"] {
        assert!(refused.contains(words), "no {words:?} in {refused}");
    }
}
