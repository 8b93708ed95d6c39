//! The bucket as a binary cache of its own: clients of every release read it without the server, with
//! signatures checked. A narinfo comes after its NAR and those of its references, and goes before its NAR,
//! whatever fails or is killed meanwhile.

use std::path::Path;
use std::time::Duration;

use crate::support::addresses::{base_name, field};
use crate::support::derivations::{Derivation, noise};
use crate::support::{
    Bucket, BucketFault, Cache, Client, FaultyProxy, Http, Instantiated, NixStore, Release, Substituter,
    TestBucket, process, text, wait_until,
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
    numbered_closure(cache, 0)
}

/// Another closure for each number.
fn numbered_closure(cache: &Cache, number: u64) -> [Instantiated; 2] {
    let below = noise(&format!("below-{number}"), 300_000);
    let above = Derivation::new(&format!("above-{number}"), "echo \"$below\" > \"$out\"");
    let above = above.input("below", &below);
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

/// Keys of the narinfos of a closure, what refers first, and of their NARs.
#[track_caller]
fn keys_of(cache: &Cache, [below, above]: &[Instantiated; 2]) -> [String; 4] {
    let [above, below] = [above.out(), below.out()];
    [narinfo_key(above), narinfo_key(below), nar_key(cache, above), nar_key(cache, below)]
}

/// Places of the first deletions of these keys among all.
#[track_caller]
fn deletions<const N: usize>(proxy: &FaultyProxy, keys: [String; N]) -> [usize; N] {
    let deleted = proxy.requests("DELETE");
    keys.map(|key| {
        let place = deleted.iter().position(|line| line.contains(&key));
        place.unwrap_or_else(|| panic!("{key} was not deleted: {deleted:?}"))
    })
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

/// A published closure that Nix still has, to be packed again, and the key of the NAR of its first path.
#[track_caller]
fn published_and_kept(cache: &Cache, bucket: &Bucket) -> ([Instantiated; 2], String) {
    let paths = closure(cache);
    paths.iter().for_each(|path| cache.store.root(path.out()));
    published(cache, bucket, &paths);
    let key = nar_key(cache, paths[0].out());
    (paths, key)
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
    let keys = keys_of(&cache, &paths);
    cache.ondine.end_all_uses();
    cache.ondine.run("gc", &["--max-bytes", "1"]).must_succeed();
    assert_eq!(bucket.nars(), [""; 0]);
    let [above, below, nar_above, nar_below] = deletions(&proxy, keys);
    assert!(above < below && above < nar_above && below < nar_below);
}

#[test]
fn a_damaged_nar_goes_after_its_narinfo_and_both_come_back_when_it_is_stored_again() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let cache = cache(&bucket.url_through(proxy.address()), &PUBLISHES);
    let (paths, key) = published_and_kept(&cache, &bucket);
    let mut damaged = bucket.get(&key);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    bucket.put(&key, &damaged);
    cache.ondine.run("fsck", &["--verify", "--repair"]).must_succeed();
    let [narinfo, nar] = deletions(&proxy, [narinfo_key(paths[0].out()), key.clone()]);
    assert!(narinfo < nar);
    wait_until("both are there again", SOON, || {
        paths.iter().all(|path| has(&bucket, path)) && bucket.nars().contains(&key)
    });
    assert!(bucket.get(&key) != damaged);
}

#[test]
fn releases_that_know_buckets_read_it_by_its_s3_address_and_others_say_that_they_do_not() {
    let Some(bucket) = Bucket::new() else { return };
    let cache = cache(&bucket.url(), &PUBLISHES);
    let paths = closure(&cache);
    published(&cache, &bucket, &paths);
    let from = Substituter { url: bucket.nix_url(), public_key: cache.ondine.public_key().to_owned() };
    for release in Release::all() {
        let version = release.version();
        let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
        let client = Client::new(release, &cache.store.store_dir());
        let copied = client.copy(&from, &[paths[1].out()]);
        // Debian builds those before without the library that they need for it.
        if numbers < vec![2, 34] && copied.stderr.contains("don't know how to open Nix store") {
            continue;
        }
        copied.must_succeed();
        assert!(paths.iter().all(|path| client.has(path.out())), "{version}");
        let wrong = Substituter { public_key: "other-1:".to_owned() + &"A".repeat(43) + "=", ..from.clone() };
        client.empty();
        client.copy(&wrong, &[paths[1].out()]).must_fail();
    }
}

#[test]
fn a_nar_that_was_deleted_by_hand_takes_narinfos_along_at_the_next_start_and_comes_back_by_fsck() {
    let Some(bucket) = Bucket::new() else { return };
    let mut cache = cache(&bucket.url(), &PUBLISHES);
    let (paths, key) = published_and_kept(&cache, &bucket);
    cache.ondine.sigterm();
    bucket.delete(&key);
    cache.ondine.start_again();
    wait_until("they are withdrawn", SOON, || !paths.iter().any(|path| has(&bucket, path)));
    wait_until("it is told", SOON, || cache.ondine.log().contains("have no NAR there"));
    let repaired = cache.ondine.run("fsck", &["--repair"]).must_succeed().text();
    assert!(repaired.contains("its file is missing"), "{repaired}");
    assert_published(&mut cache, &bucket, &paths);
}

#[test]
fn a_request_for_a_nar_that_was_deleted_by_hand_does_not_wait_until_narinfos_can_be_withdrawn() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let cache = cache(&bucket.url_through(proxy.address()), &PUBLISHES);
    let (paths, key) = published_and_kept(&cache, &bucket);
    bucket.delete(&key);
    proxy.set(BucketFault::Refuse("DELETE /"));
    assert_eq!(cache.http.get(&format!("/{key}")).status, 200);
    proxy.set(BucketFault::None);
    wait_until("all of it is there again", SOON, || {
        bucket.nars().contains(&key) && paths.iter().all(|path| has(&bucket, path))
    });
}

#[test]
fn a_narinfo_that_was_deleted_by_hand_comes_back_after_fsck() {
    let Some(bucket) = Bucket::new() else { return };
    let cache = cache(&bucket.url(), &PUBLISHES);
    let paths = closure(&cache);
    published(&cache, &bucket, &paths);
    bucket.delete(&narinfo_key(paths[0].out()));
    cache.ondine.run("fsck", &[]).must_succeed();
    wait_until("it is back", SOON, || paths.iter().all(|path| has(&bucket, path)));
}

#[test]
fn what_an_index_that_is_lost_had_published_is_withdrawn_in_order_and_then_collected() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let mut cache = cache(&bucket.url_through(proxy.address()), &PUBLISHES);
    let paths = closure(&cache);
    published(&cache, &bucket, &paths);
    let keys = keys_of(&cache, &paths);
    // By `nix copy`, say: neither the index nor a server has ever known it.
    let foreign = format!("{}.narinfo", "0".repeat(32));
    bucket.put(&foreign, b"StorePath: of somebody else\n");
    cache.ondine.kill9();
    for name in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
        let _ = std::fs::remove_file(cache.ondine.state_dir().join(name));
    }
    std::fs::remove_dir_all(cache.ondine.state_dir().join("ledger")).expect("there was one");
    cache.ondine.start_again();
    // At once, while the bucket is being compared.
    cache.ondine.run("gc", &[]).must_succeed();
    assert_eq!(bucket.nars(), [""; 0]);
    let [above, below, nar_above, nar_below] = deletions(&proxy, keys);
    assert!(above < below && below < nar_above.min(nar_below));
    assert!(bucket.keys().contains(&foreign));
}

#[test]
fn a_further_key_signs_what_is_published_and_nothing_is_withdrawn_meanwhile() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let mut cache = cache(&bucket.url_through(proxy.address()), &PUBLISHES);
    let paths = closure(&cache);
    published(&cache, &bucket, &paths);
    let old = cache.ondine.public_key().to_owned();
    cache.ondine.run("key", &["rotate"]).must_succeed();
    cache.ondine.sigterm();
    cache.ondine.start_again();
    cache.http = Http::new(&cache.ondine.url());
    let is_published = |path: &Instantiated| {
        let published = bucket.get(&narinfo_key(path.out()));
        String::from_utf8_lossy(&published) == cache.narinfo(path.out())
    };
    wait_until("both keys have signed", SOON, || paths.iter().all(is_published));
    assert_eq!(proxy.requests("DELETE"), [""; 0]);
    for key in [&old, cache.ondine.public_key()] {
        assert_fetched_from(&bucket, &cache.store.store_dir(), key, paths[1].out());
    }
}

/// Nothing in the bucket of a server that does not run points at nothing.
#[track_caller]
fn assert_whole(bucket: &Bucket) {
    let keys = bucket.keys();
    for key in keys.iter().filter(|key| key.ends_with(".narinfo")) {
        let narinfo = String::from_utf8(bucket.get(key)).expect("text");
        let nar = field(&narinfo, "URL").to_owned();
        assert!(keys.contains(&nar), "{key} has no NAR: {keys:?}");
        for reference in field(&narinfo, "References").split_whitespace() {
            let its = format!("{}.narinfo", &reference[..32]);
            assert!(keys.contains(&its), "{key} lacks {reference}: {keys:?}");
        }
    }
}

#[test]
fn whenever_a_server_is_killed_no_narinfo_points_at_nothing_and_the_next_one_mends_the_rest() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let arguments = [&PUBLISHES[..], &["--eviction-grace", "0s"]].concat();
    let mut cache = cache(&bucket.url_through(proxy.address()), &arguments);
    // Each request takes long enough for a kill in its middle.
    proxy.set(BucketFault::Slow(Duration::from_millis(15)));
    let mut last = None;
    for round in 0..8 {
        let paths = numbered_closure(&cache, round);
        cache.http = Http::new(&cache.ondine.url());
        cache.narinfo(paths[1].out());
        let evicting = (round % 2 == 1).then(|| {
            cache.ondine.end_all_uses();
            process::Background::start(cache.ondine.command_here("gc", &["--max-bytes", "1"]))
        });
        std::thread::sleep(Duration::from_millis(40 * (1 + round * 7 % 8)));
        cache.ondine.kill9();
        drop(evicting);
        // What the proxy has read of a request arrives.
        std::thread::sleep(Duration::from_millis(300));
        assert_whole(&bucket);
        cache.ondine.start_again();
        last = Some(paths);
    }
    proxy.set(BucketFault::None);
    let last = last.expect("there were some");
    cache.http = Http::new(&cache.ondine.url());
    cache.narinfo(last[1].out());
    wait_until("the last are published", SOON, || last.iter().all(|path| has(&bucket, path)));
    cache.ondine.sigterm();
    assert_whole(&bucket);
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
