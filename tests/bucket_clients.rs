//! A bucket and real clients of every release: they are redirected to it where that is set, and NARs of a
//! state directory that had no bucket before are moved into it while they are served.

use std::fs;
use std::time::Duration;

use crate::support::addresses::field;
use crate::support::derivations::{noise, text_file};
use crate::support::{
    Bucket, BucketFault, Cache, Client, FaultyProxy, Http, Instantiated, NixStore, Release, TestBucket,
    nar_digest, wait_until,
};

const SOON: Duration = Duration::from_secs(60);

/// Paths of all sizes that are treated differently: in memory, put at once, put in parts.
fn paths(cache: &Cache) -> [Instantiated; 3] {
    [text_file("small", "small"), noise("middle", 3 << 20), noise("large", 20 << 20)]
        .map(|derivation| cache.store.instantiate(&derivation))
}

/// Builds paths and waits until they are stored. Gives the addresses of their NARs.
#[track_caller]
fn stored(cache: &Cache, paths: &[Instantiated; 3]) -> [String; 3] {
    let addresses = paths.each_ref().map(|path| format!("/{}", field(&cache.narinfo(path.out()), "URL")));
    wait_until("they are packed", SOON, || {
        paths.iter().all(|path| cache.narinfo(path.out()).contains("FileHash: "))
    });
    addresses
}

/// Clients of every release fetch all paths, and have what was built.
#[track_caller]
fn assert_fetched_by_all(cache: &Cache, paths: &[Instantiated; 3], digests: &[String; 3]) {
    for release in Release::all() {
        let client = Client::new(release, &cache.store.store_dir());
        let wanted = paths.each_ref().map(|path| path.out());
        client.fetch(&cache.ondine.substituter(), &wanted).must_succeed();
        for (path, digest) in wanted.iter().zip(digests) {
            assert_eq!(&client.nar_digest(path), digest, "{}", path.display());
        }
    }
}

#[test]
fn clients_of_every_release_follow_to_the_bucket_where_they_are_redirected() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let url = bucket.url_through(proxy.address());
    for (networks, status) in [("127.0.0.0/8", 302), ("10.0.0.0/8", 200)] {
        let arguments = [
            "--nar-store",
            &url,
            "--serve-nars",
            "redirect",
            "--redirect-networks",
            networks,
            "--nar-cache-bytes",
            "0",
        ];
        let cache = Cache::of(NixStore::new(Release::Host), &arguments, &Bucket::VARIABLES);
        let paths = paths(&cache);
        let addresses = stored(&cache, &paths);
        let digests = paths.each_ref().map(|path| nar_digest(path.out()));
        let [small, middle, large] = addresses.each_ref().map(|address| cache.http.get(address));
        assert_eq!([small.status, middle.status, large.status], [200, status, status], "{networks}");
        let plain = cache.http.get(addresses[1].trim_end_matches(".zst"));
        assert_eq!(plain.status, 200, "there is no object of a plain NAR");
        if let Some(place) = large.header("location") {
            assert!(place.starts_with(&format!("http://{}/", proxy.address())), "{place}");
            assert!(place.contains("X-Amz-Signature=") && !place.contains(Bucket::SECRET), "{place}");
        }
        let connections = proxy.connections();
        assert_fetched_by_all(&cache, &paths, &digests);
        // The server has its connections already.
        assert!(status == 200 || proxy.connections() > connections, "nobody came to the bucket");
    }
}

#[test]
fn nars_of_a_directory_are_moved_to_a_bucket_while_they_are_served_also_over_a_crash() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = FaultyProxy::new(&bucket.address());
    let mut cache = Cache::of(NixStore::new(Release::Host), &[], &Bucket::VARIABLES);
    let paths = paths(&cache);
    let addresses = stored(&cache, &paths);
    let digests = paths.each_ref().map(|path| nar_digest(path.out()));
    wait_until("Nix collects them", SOON, || {
        cache.store.gc();
        !paths.iter().any(|path| cache.store.is_valid(path.out()))
    });
    let mut keys = addresses.each_ref().map(|address| address[1..].to_owned());
    keys.sort();
    let folder = cache.ondine.state_dir().join("nar");
    let files = || {
        let all = fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("a file").path());
        // Those of NARs are in folders of two characters.
        let shelves = all.filter(|path| path.file_name().is_some_and(|name| name.len() == 2));
        shelves.map(|shelf| fs::read_dir(shelf).expect("a folder").count()).sum::<usize>()
    };
    assert_eq!((files(), bucket.nars().len()), (3, 0));

    // The bucket is away at first, then slow, and the server is killed meanwhile.
    cache.ondine.sigterm();
    proxy.set(BucketFault::Unavailable);
    let url = bucket.url_through(proxy.address());
    cache.ondine.add_arguments(&["--nar-store", &url, "--nar-cache-bytes", "0"]);
    cache.ondine.start_again();
    cache.http = Http::new(&cache.ondine.url());
    assert_fetched_by_all(&cache, &paths, &digests);
    assert_eq!((files(), bucket.nars().len()), (3, 0));
    proxy.set(BucketFault::Slow(Duration::from_millis(2)));
    wait_until("the first one is moved", SOON, || !bucket.nars().is_empty());
    cache.ondine.crash_and_restart();
    proxy.set(BucketFault::None);
    wait_until("all are moved", SOON, || files() == 0);
    assert_eq!(bucket.nars(), keys);
    wait_until("no upload is left", SOON, || bucket.uploads() == 0);
    assert_fetched_by_all(&cache, &paths, &digests);
    let sound = cache.ondine.run("fsck", &["--verify"]).must_succeed().text();
    assert!(sound.contains("sound: 3 NARs"), "{sound}");
}
