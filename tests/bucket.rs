//! NARs in a bucket of a real object store: what is built is stored there whole and served from there; copies
//! on the disk outlive the server; a bucket that is slow, away or cuts what is under way stops nothing else,
//! and nothing half is served or recorded.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::addresses::{field, narinfo_address};
use crate::support::derivations::{noise, text_file};
use crate::support::{
    Bucket, BucketFault, Cache, Client, FaultyProxy, Http, Instantiated, NixStore, Release, TestBucket,
    process, text, wait_until,
};

const SOON: Duration = Duration::from_secs(60);
/// Bytes that are put in parts.
const LARGE: u32 = 20 << 20;

/// A server whose NARs are in this bucket, with these arguments more.
#[track_caller]
fn cache(url: &str, arguments: &[&str]) -> Cache {
    let arguments = [&["--nar-store", url], arguments].concat();
    Cache::of(NixStore::new(Release::Host), &arguments, &Bucket::VARIABLES)
}

/// Builds a path; the address of its NAR.
#[track_caller]
fn built(cache: &Cache, path: &Instantiated) -> String {
    format!("/{}", field(&cache.narinfo(path.out()), "URL"))
}

/// Waits until paths are stored; the NARs that Nix makes of them.
#[track_caller]
fn stored<const N: usize>(cache: &Cache, paths: [&Instantiated; N]) -> [Vec<u8>; N] {
    let dumps = paths.map(|path| cache.dump(path.out()));
    wait_until("they are packed", SOON, || {
        paths.iter().all(|path| cache.narinfo(path.out()).contains("FileHash: "))
    });
    dumps
}

/// Has Nix collect them, too: what is served comes from the bucket.
#[track_caller]
fn packed<const N: usize>(cache: &Cache, paths: [&Instantiated; N]) -> [Vec<u8>; N] {
    let dumps = stored(cache, paths);
    wait_until("Nix collects them", SOON, || {
        cache.store.gc();
        !paths.iter().any(|path| cache.store.is_valid(path.out()))
    });
    dumps
}

/// Number of copies on the disk.
fn copies(cache: &Cache) -> usize {
    let folder = fs::read_dir(cache.ondine.state_dir().join("nar/cache")).expect("the folder of copies");
    let names = folder.map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".nar.zst")).count()
}

/// Whole, in both forms and in ranges.
#[track_caller]
fn assert_whole(http: &Http, address: &str, dump: &[u8]) {
    let file = http.get(address);
    assert_eq!(file.status, 200, "{}", file.text());
    assert!(zstd::decode_all(&file.body[..]).expect("a zstd file") == dump, "{address} has other bytes");
    let plain = address.trim_end_matches(".zst");
    assert!(http.get(plain).body == dump, "{plain} has other bytes");
    for (address, bytes) in [(address, &file.body[..]), (plain, dump)] {
        let (from, to) = (bytes.len() / 3, bytes.len() / 3 * 2);
        let range = http.get_with(address, &[("Range", &format!("bytes={from}-{}", to - 1))]);
        assert_eq!((range.status, range.body == bytes[from..to]), (206, true), "{address}");
    }
}

#[test]
fn what_is_built_is_stored_in_the_bucket_and_every_release_gets_it_from_there() {
    let Some(bucket) = Bucket::new() else { return };
    for (copy_bytes, expected) in [("0", 0), ("1GiB", 3)] {
        let cache = cache(&bucket.url(), &["--nar-cache-bytes", copy_bytes]);
        let paths = [text_file("small", "small"), noise("middle", 300_000), noise("large", LARGE)]
            .map(|derivation| cache.store.instantiate(&derivation));
        let addresses = paths.each_ref().map(|path| built(&cache, path));
        let dumps = packed(&cache, paths.each_ref());
        let mut keys = addresses.clone().map(|address| address.trim_start_matches('/').to_owned());
        keys.sort();
        assert_eq!(bucket.nars(), keys);
        for (address, dump) in addresses.iter().zip(&dumps) {
            assert!(zstd::decode_all(&bucket.get(&address[1..])[..]).expect("a zstd file") == *dump);
            assert_whole(&cache.http, address, dump);
            assert_eq!(cache.http.head(address).status, 200);
        }
        assert_eq!(copies(&cache), expected);
        for release in Release::all() {
            let client = Client::new(release, &cache.store.store_dir());
            let wanted = paths.each_ref().map(|path| path.out());
            client.fetch(&cache.ondine.substituter(), &wanted).must_succeed();
        }
        let state = cache.ondine.state_dir().join("nar");
        let files = fs::read_dir(&state).expect("the folder").count();
        assert!(fs::read_dir(state.join("tmp")).expect("uploads").next().is_none() && files < 8, "{files}");
        assert_eq!(bucket.uploads(), 0);
        let shown =
            [cache.ondine.log(), cache.http.get("/metrics").text(), cache.http.get("/api/v1/status").text()];
        assert!(!shown.iter().any(|text| text.contains(Bucket::SECRET)), "a secret shows");
    }
}

#[test]
fn copies_outlive_the_server_and_serve_while_the_bucket_is_away() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let mut cache = cache(&bucket.url_through(proxy.address()), &[]);
    let paths = [noise("first", 300_000), noise("second", 400_000)];
    let [first, second] = paths.map(|derivation| cache.store.instantiate(&derivation));
    let (address, lost) = (built(&cache, &first), built(&cache, &second));
    let [dump, second_dump] = packed(&cache, [&first, &second]);
    cache.ondine.sigterm();
    let folder = cache.ondine.state_dir().join("nar/cache");
    let copy = |address: &str| {
        let hash = address.trim_start_matches("/nar/").trim_end_matches(".nar.zst").to_owned();
        let mut files = fs::read_dir(&folder).expect("copies").map(|entry| entry.expect("a file").path());
        files.find(|file| text(file).contains(&hash)).expect("it has a copy")
    };
    fs::remove_file(copy(&lost)).expect("removed");
    proxy.set(BucketFault::Unavailable);
    cache.ondine.start_again();
    cache.http = Http::new(&cache.ondine.url());
    let begun = Instant::now();
    assert_whole(&cache.http, &address, &dump);
    // Narinfos, misses and builds go on, too.
    cache.assert_served(second.out());
    let third = cache.store.instantiate(&text_file("third", "third"));
    let built_meanwhile = built(&cache, &third);
    assert_eq!(cache.http.get(&built_meanwhile).status, 200);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // What is only in the bucket is waited for.
    let http = Http::new(&cache.ondine.url());
    let asked = {
        let lost = lost.clone();
        std::thread::spawn(move || http.get(&lost))
    };
    std::thread::sleep(Duration::from_secs(2));
    assert!(!asked.is_finished(), "a bucket that is away was answered at once");
    proxy.set(BucketFault::None);
    let answer = asked.join().expect("answered");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(zstd::decode_all(&answer.body[..]).expect("a zstd file") == second_dump);
    wait_until("what was built meanwhile is stored", SOON, || {
        bucket.nars().iter().any(|key| *key == built_meanwhile[1..])
    });
}

#[test]
fn cut_downloads_are_resumed_and_what_never_comes_whole_is_never_served_whole() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let cache = cache(&bucket.url_through(proxy.address()), &["--nar-cache-bytes", "0"]);
    let path = cache.store.instantiate(&noise("noise", 3 << 20));
    let address = built(&cache, &path);
    // Nix still has it, to be packed again.
    cache.store.root(path.out());
    let [dump] = stored(&cache, [&path]);
    // Each connection brings a part of it.
    proxy.set(BucketFault::CutDownloads(700_000));
    assert_whole(&cache.http, &address, &dump);
    assert!(proxy.cuts() > 0, "nothing was cut");
    let mut download = cache.http.open(&address, &[]);
    download.next_piece().expect("the first bytes");
    drop(download);
    // Of what has changed in the bucket, nothing is served as what it was.
    proxy.set(BucketFault::None);
    let whole = bucket.get(&address[1..]);
    bucket.put(&address[1..], &whole[..whole.len() / 2]);
    let client = Client::new(Release::Host, &cache.store.store_dir());
    client.fetch(&cache.ondine.substituter(), &[path.out()]).must_succeed();
    wait_until("it is stored again", SOON, || {
        bucket.nars() == [&address[1..]]
            && zstd::decode_all(&bucket.get(&address[1..])[..]).is_ok_and(|plain| plain == dump)
    });
    assert!(cache.ondine.log().contains("packing or fetching a stored NAR again"), "{}", cache.ondine.log());
}

#[test]
fn cut_uploads_are_sent_again_and_nothing_is_recorded_before_all_is_there() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let cache = cache(&bucket.url_through(proxy.address()), &[]);
    proxy.set(BucketFault::CutUploads(100_000));
    let paths = [noise("middle", 900_000), noise("large", LARGE)];
    let paths = paths.map(|derivation| cache.store.instantiate(&derivation));
    for path in &paths {
        let address = built(&cache, path);
        // Its client has it all the same.
        assert!(
            zstd::decode_all(&cache.http.get(&address).body[..]).expect("a zstd file")
                == cache.dump(path.out())
        );
    }
    wait_until("uploads are cut", SOON, || proxy.cuts() > 3);
    assert_eq!(bucket.nars(), [""; 0]);
    for path in &paths {
        let narinfo = cache.narinfo(path.out());
        assert!(!narinfo.contains("FileHash: "), "{narinfo}");
    }
    proxy.set(BucketFault::None);
    let dumps = stored(&cache, paths.each_ref());
    for (path, dump) in paths.iter().zip(&dumps) {
        let address = built(&cache, path);
        assert!(zstd::decode_all(&bucket.get(&address[1..])[..]).expect("a zstd file") == *dump);
    }
    wait_until("no upload is left", SOON, || bucket.uploads() == 0);
}

#[test]
fn damage_in_the_bucket_is_found_and_what_exceeds_the_limit_is_evicted_there() {
    let Some(bucket) = Bucket::new() else { return };
    let arguments = ["--nar-cache-bytes", "0", "--eviction-grace", "0s"];
    let cache = cache(&bucket.url(), &arguments);
    let paths = [noise("first", 300_000), noise("second", 400_000), noise("third", 500_000)];
    let paths = paths.map(|derivation| cache.store.instantiate(&derivation));
    let addresses = paths.each_ref().map(|path| built(&cache, path));
    // Nix still has it, to be packed again.
    paths.iter().for_each(|path| cache.store.root(path.out()));
    stored(&cache, paths.each_ref());
    let sound = cache.ondine.run("fsck", &["--verify"]).must_succeed().text();
    assert!(sound.contains("sound: 3 NARs"), "{sound}");

    let mut damaged = bucket.get(&addresses[0][1..]);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    bucket.put(&addresses[0][1..], &damaged);
    bucket.delete(&addresses[1][1..]);
    bucket.put("nar/0000000000000000000000000000000000000000000000000000.nar.zst", b"nobody's");
    let found = cache.ondine.run("fsck", &["--verify"]).must_fail().text();
    for words in ["its file is damaged", "its file is missing", "failed: 3 wrong"] {
        assert!(found.contains(words), "no {words:?} in {found}");
    }
    cache.ondine.run("fsck", &["--verify", "--repair"]).must_succeed();
    assert_eq!(bucket.keys().iter().filter(|key| key.starts_with("quarantine/")).count(), 1);
    // What is lost is packed again, and what is nobody's is gone.
    stored(&cache, paths.each_ref());
    let mut keys = addresses.each_ref().map(|address| address[1..].to_owned());
    keys.sort();
    assert_eq!(bucket.nars(), keys);

    cache.ondine.end_all_uses();
    cache.ondine.run("pin", &[text(paths[2].out())]).must_succeed();
    let gone = cache.ondine.run("gc", &["--max-bytes", "1"]).must_succeed().text();
    assert_eq!(bucket.nars(), [addresses[2][1..].to_owned()], "{gone}");
}

#[test]
fn an_index_that_is_lost_is_made_anew_from_the_ledger_and_the_bucket() {
    let Some(bucket) = Bucket::new() else { return };
    let mut cache = cache(&bucket.url(), &[]);
    let paths = [noise("there", 300_000), noise("gone", 400_000)];
    let [there, gone] = paths.map(|derivation| cache.store.instantiate(&derivation));
    let addresses = [built(&cache, &there), built(&cache, &gone)];
    let dumps = packed(&cache, [&there, &gone]);
    cache.ondine.sigterm();
    for ending in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(cache.ondine.state_dir().join(format!("index.sqlite{ending}")));
    }
    bucket.delete(&addresses[1][1..]);
    cache.ondine.start_again();
    cache.http = Http::new(&cache.ondine.url());
    assert!(cache.ondine.log().contains("recovered: 1 path with 1 NAR,"), "{}", cache.ondine.log());
    cache.assert_served(there.out());
    assert_whole(&cache.http, &addresses[0], &dumps[0]);
    let answer = cache.http.get(&format!("/cached{}", narinfo_address(gone.out())));
    assert_eq!(answer.status, 404);
}

#[test]
fn what_is_wrong_with_a_bucket_is_said_by_check_config() {
    let Some(bucket) = Bucket::new() else { return };
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let file = store.folder().join("ondine.toml");
    let check = |nar_store: &str, variables: &[(&str, &str)]| {
        let state = store.folder().join("state");
        let lines = format!("state-dir = '{}'\nnar-store = '{nar_store}'\n", state.display());
        fs::write(&file, lines).expect("written");
        let mut check = store.ondine(&["check-config", text(&file)]);
        check.envs(variables.iter().copied());
        process::run(check)
    };
    check(&bucket.url(), &Bucket::VARIABLES).must_succeed();
    let wrong = [("AWS_ACCESS_KEY_ID", "AKTEST"), ("AWS_SECRET_ACCESS_KEY", "not-this-one")];
    let refused = check(&bucket.url(), &wrong).must_fail().stderr;
    assert!(refused.contains("s3://") && !refused.contains("not-this-one"), "{refused}");
    let secret = check("s3://user:secret-word@bucket", &Bucket::VARIABLES).must_fail().stderr;
    assert!(secret.contains("nar-store") && !secret.contains("secret-word"), "{secret}");
}
