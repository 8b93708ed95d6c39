//! The same promises on buckets of every service: S3, Google Cloud Storage and Azure Blob Storage. What is
//! built is stored there whole, outlives a restart, is published, checked, repaired and evicted there, and
//! clients are redirected to it where addresses can be signed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::addresses::{base_name, field};
use crate::support::derivations::{noise, text_file};
use crate::support::http::Response;
use crate::support::store::write;
use crate::support::{
    AzureContainer, Bucket, BucketFault, Cache, Client, FaultyProxy, Finished, GoogleBucket, Http,
    Instantiated, NixStore, Release, TestBucket, process, text, wait_until,
};

const SOON: Duration = Duration::from_secs(60);
/// Bytes that are put in parts.
const LARGE: u32 = 9 << 20;

/// A store whose folder has the credentials of a bucket; the file.
fn store(bucket: &dyn TestBucket) -> (NixStore, PathBuf) {
    let store = NixStore::new(Release::Host);
    let file = store.folder().join("credentials");
    write(&file, &bucket.credentials());
    (store, file)
}

/// A server whose NARs are in the bucket of this address, with these arguments and variables more.
#[track_caller]
fn cache(bucket: &dyn TestBucket, url: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Cache {
    let (store, file) = store(bucket);
    let usual = ["--nar-store", url, "--nar-store-credentials", text(&file), "--nar-cache-bytes", "0"];
    Cache::of(store, &[&usual, arguments].concat(), variables)
}

/// Builds paths and waits until they are stored; the keys of their NARs.
#[track_caller]
fn stored<const N: usize>(cache: &Cache, paths: &[Instantiated; N]) -> [String; N] {
    let keys = paths.each_ref().map(|path| field(&cache.narinfo(path.out()), "URL").to_owned());
    wait_until("they are stored", SOON, || {
        paths.iter().all(|path| cache.narinfo(path.out()).contains("FileHash: "))
    });
    keys
}

fn narinfo_key(path: &Instantiated) -> String {
    format!("{}.narinfo", &base_name(path.out())[..32])
}

fn sorted<const N: usize>(keys: &[String; N]) -> Vec<String> {
    let mut keys = keys.to_vec();
    keys.sort();
    keys
}

/// The life of NARs in a bucket.
#[track_caller]
fn assert_kept(bucket: &dyn TestBucket) {
    let arguments = ["--nar-store-publish", "narinfo", "--eviction-grace", "0s"];
    let mut cache = cache(bucket, &bucket.url(), &arguments, &[]);
    let paths = [text_file("small", "small"), noise("middle", 300_000), noise("large", LARGE)]
        .map(|derivation| cache.store.instantiate(&derivation));
    let keys = stored(&cache, &paths);
    let dumps = paths.each_ref().map(|path| cache.dump(path.out()));
    assert_eq!((bucket.nars(), bucket.uploads()), (sorted(&keys), 0));
    for (key, dump) in keys.iter().zip(&dumps) {
        assert!(zstd::decode_all(&bucket.get(key)[..]).expect("a zstd file") == *dump, "{key}");
    }
    wait_until("they are published", SOON, || {
        paths.iter().all(|path| bucket.keys().contains(&narinfo_key(path)))
    });
    let published = String::from_utf8(bucket.get(&narinfo_key(&paths[0]))).expect("text");
    assert_eq!(published, cache.narinfo(paths[0].out()));

    cache.ondine.sigterm();
    cache.ondine.start_again();
    cache.http = Http::new(&cache.ondine.url());
    for (key, dump) in keys.iter().zip(&dumps) {
        let file = cache.http.get(&format!("/{key}"));
        assert!(zstd::decode_all(&file.body[..]).expect("a zstd file") == *dump, "{key}");
        let (from, to) = (file.body.len() / 3, file.body.len() / 3 * 2);
        let range =
            cache.http.get_with(&format!("/{key}"), &[("Range", &format!("bytes={from}-{}", to - 1))]);
        assert_eq!((range.status, range.body == file.body[from..to]), (206, true), "{key}");
    }

    let sound = cache.ondine.run("fsck", &["--verify"]).must_succeed().text();
    assert!(sound.contains("sound: 3 NARs"), "{sound}");
    let mut damaged = bucket.get(&keys[1]);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    bucket.put(&keys[1], &damaged);
    cache.ondine.run("fsck", &["--verify"]).must_fail();
    cache.ondine.run("fsck", &["--verify", "--repair"]).must_succeed();
    assert_eq!(bucket.keys().iter().filter(|key| key.starts_with("quarantine/")).count(), 1);

    stored(&cache, &paths);
    cache.ondine.end_all_uses();
    cache.ondine.run("pin", &[text(paths[2].out())]).must_succeed();
    let gone = cache.ondine.run("gc", &["--max-bytes", "1"]).must_succeed().text();
    assert_eq!(bucket.nars(), [keys[2].clone()], "{gone}");
    assert!(
        !bucket.keys().contains(&narinfo_key(&paths[1])) && bucket.keys().contains(&narinfo_key(&paths[2]))
    );
    let shown =
        [cache.ondine.log(), cache.http.get("/metrics").text(), cache.http.get("/api/v1/status").text()];
    assert!(!shown.iter().any(|text| text.contains(&bucket.secret())), "a secret shows");
}

/// Where uploads are cut, nothing is recorded before all of it is there.
#[track_caller]
fn assert_whole_or_nothing(bucket: &dyn TestBucket) {
    let proxy = FaultyProxy::new(&bucket.address());
    let cache = cache(bucket, &bucket.url_through(proxy.address()), &[], &[]);
    proxy.set(BucketFault::CutUploads(100_000));
    let paths = [noise("middle", 900_000), noise("large", LARGE)];
    let paths = paths.map(|derivation| cache.store.instantiate(&derivation));
    paths.iter().for_each(|path| drop(cache.narinfo(path.out())));
    wait_until("uploads are cut", SOON, || proxy.cuts() > 3);
    assert_eq!(bucket.nars(), [""; 0]);
    proxy.set(BucketFault::None);
    let keys = stored(&cache, &paths);
    assert_eq!(bucket.nars(), sorted(&keys));
    for (key, path) in keys.iter().zip(&paths) {
        let plain = zstd::decode_all(&bucket.get(key)[..]).expect("a zstd file");
        assert!(plain == cache.dump(path.out()), "{key}");
    }
    wait_until("no upload is left", SOON, || bucket.uploads() == 0);
}

/// The address of a large NAR to which a client is redirected.
#[track_caller]
fn redirected(cache: &Cache, bucket: &dyn TestBucket) -> (Vec<u8>, String) {
    let path = cache.store.instantiate(&noise("large", LARGE));
    let [key] = stored(cache, &[path]);
    let answer: Response = cache.http.get(&format!("/{key}"));
    assert_eq!(answer.status, 302, "{}", answer.text());
    let place = answer.header("location").expect("an address").to_owned();
    assert!(place.contains(&key) && !place.contains(&bucket.secret()), "{place}");
    (bucket.get(&key), place)
}

/// The bytes at an address, and the status.
fn got(arguments: &[&str], place: &str) -> (Vec<u8>, bool) {
    let mut curl = std::process::Command::new("curl");
    curl.args(["-sf"]).args(arguments).arg(place);
    let finished = process::run(curl);
    let succeeded = finished.succeeded();
    (finished.stdout, succeeded)
}

/// Runs `ondine check-config` with these settings.
fn checked(store: &NixStore, settings: &[(&str, &str)]) -> Finished {
    let file = store.folder().join("ondine.toml");
    let lines = settings.iter().map(|(name, value)| format!("{name} = '{value}'\n"));
    let state = format!("state-dir = '{}'\n", store.folder().join("state").display());
    write(&file, &(state + &lines.collect::<String>()));
    process::run(store.ondine(&["check-config", text(&file)]))
}

#[test]
fn nars_in_a_bucket_of_google_are_kept_published_repaired_and_evicted() {
    assert_kept(&GoogleBucket::new());
}

#[test]
fn nars_in_a_container_of_azure_are_kept_published_repaired_and_evicted() {
    let Some(container) = AzureContainer::new() else { return };
    assert_kept(&container);
}

#[test]
fn cut_uploads_to_google_and_azure_leave_nothing_and_are_sent_again() {
    assert_whole_or_nothing(&GoogleBucket::new());
    let Some(container) = AzureContainer::new() else { return };
    assert_whole_or_nothing(&container);
}

#[test]
fn clients_are_redirected_to_a_container_of_azure() {
    let Some(container) = AzureContainer::new() else { return };
    let cache = cache(&container, &container.url(), &["--serve-nars", "redirect"], &[]);
    let (bytes, place) = redirected(&cache, &container);
    assert_eq!(got(&[], &place), (bytes, true));
    assert_eq!(got(&[], place.split_once('?').expect("a signature").0), (Vec::new(), false));
    let path = cache.store.instantiate(&noise("large", LARGE));
    for release in Release::all() {
        let client = Client::new(release, &cache.store.store_dir());
        client.fetch(&cache.ondine.substituter(), &[path.out()]).must_succeed();
    }
}

/// Addresses are signed for Google's own host, which is reached by a proxy here.
#[test]
fn clients_are_redirected_to_a_bucket_of_google() {
    let bucket = GoogleBucket::new();
    let proxy = format!("http://{}", bucket.address());
    let variables = [("http_proxy", &*proxy), ("no_proxy", "127.0.0.1")];
    let url = bucket.url_through("storage.googleapis.com");
    let cache = cache(&bucket, &url, &["--serve-nars", "redirect"], &variables);
    let (bytes, place) = redirected(&cache, &bucket);
    assert!(place.starts_with("http://storage.googleapis.com/"), "{place}");
    assert_eq!(got(&["--proxy", &proxy], &place), (bytes, true));
    let other = place.replace("X-Goog-Expires=900", "X-Goog-Expires=901");
    assert_eq!(got(&["--proxy", &proxy], &other), (Vec::new(), false));
}

/// Without a key, the metadata service and Google are to sign, and neither is there.
#[test]
fn clients_are_not_redirected_to_google_while_nobody_signs() {
    let bucket = GoogleBucket::new();
    let (proxy, token) = (format!("http://{}", bucket.address()), bucket.token());
    let nobody = "127.0.0.1:1";
    let variables = [
        ("http_proxy", &*proxy),
        ("no_proxy", "127.0.0.1"),
        ("GOOGLE_BEARER_TOKEN", &*token),
        ("GCE_METADATA_HOST", nobody),
        ("GCE_METADATA_IP", nobody),
    ];
    let url = bucket.url_through("storage.googleapis.com");
    let arguments = ["--nar-store", &url, "--nar-cache-bytes", "0", "--serve-nars", "redirect"];
    let cache = Cache::of(NixStore::new(Release::Host), &arguments, &variables);
    let path = cache.store.instantiate(&noise("large", LARGE));
    let [key] = stored(&cache, &[path]);
    let begun = Instant::now();
    for _ in 0..3 {
        let answer = cache.http.get(&format!("/{key}"));
        assert_eq!((answer.status, answer.body == bucket.get(&key)), (200, true));
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(cache.ondine.log().matches("cannot have addresses").count(), 1, "{}", cache.ondine.log());
}

#[test]
fn what_is_wrong_with_a_bucket_of_google_is_said_by_check_config() {
    let bucket = GoogleBucket::new();
    let (store, file) = store(&bucket);
    let _daemon = store.daemon();
    let credentials = ("nar-store-credentials", text(&file));
    let of_bucket = ("nar-store", &*bucket.url());
    checked(&store, &[of_bucket, credentials]).must_succeed();
    let missing = bucket.url().replace("/cache", "missing/cache");
    let refused = checked(&store, &[("nar-store", &missing), credentials]).must_fail().stderr;
    assert!(refused.contains("there is no such bucket"), "{refused}");
    let redirects = ("serve-nars", "redirect");
    let refused = checked(&store, &[of_bucket, credentials, redirects]).must_fail().stderr;
    assert!(refused.contains("signed for storage.googleapis.com"), "{refused}");
    let user = r#"{"type":"authorized_user","client_id":"a","client_secret":"b","refresh_token":"c"}"#;
    write(&file, user);
    let refused = checked(&store, &[of_bucket, credentials, redirects]).must_fail().stderr;
    assert!(refused.contains("serve-nars"), "{refused}");
    write(&file, r#"{"type":"external_account","audience":"secret-word"}"#);
    let refused = checked(&store, &[of_bucket, credentials]).must_fail().stderr;
    assert!(refused.contains("service account") && !refused.contains("secret-word"), "{refused}");
    // The key of another account.
    write(&file, &GoogleBucket::other_credentials());
    let refused = checked(&store, &[of_bucket, credentials]).must_fail().stderr;
    assert!(refused.contains("gs://") && !refused.contains("PRIVATE"), "{refused}");
}

#[test]
fn what_is_wrong_with_a_container_of_azure_is_said_by_check_config() {
    let Some(container) = AzureContainer::new() else { return };
    let (store, file) = store(&container);
    let _daemon = store.daemon();
    let credentials = ("nar-store-credentials", text(&file));
    let of_container = ("nar-store", &*container.url());
    let redirects = ("serve-nars", "redirect");
    checked(&store, &[of_container, credentials, redirects]).must_succeed();
    let missing = container.url().replace("/cache", "missing/cache");
    let refused = checked(&store, &[("nar-store", &missing), credentials]).must_fail().stderr;
    assert!(refused.contains("there is no such bucket"), "{refused}");
    // A signature is enough for all but redirects.
    write(&file, &AzureContainer::signed_credentials());
    checked(&store, &[of_container, credentials]).must_succeed();
    let refused = checked(&store, &[of_container, credentials, redirects]).must_fail().stderr;
    assert!(refused.contains("the key of the storage account"), "{refused}");
    write(&file, &container.credentials().replace("AccountName=acme;", ""));
    let refused = checked(&store, &[of_container, credentials]).must_fail().stderr;
    assert!(refused.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{refused}");
    write(&file, "AccountName=acme;AccountKey=bm90IHRoaXMgb25l");
    let refused = checked(&store, &[of_container, credentials]).must_fail().stderr;
    assert!(refused.contains("az://") && !refused.contains("bm90IHRoaXMgb25l"), "{refused}");
    assert!(refused.contains("refuses the credentials (nar-store-credentials"), "{refused}");
    // A signature that another key made.
    let signed = AzureContainer::signed_credentials();
    let (own, _) = signed.split_once("&sig=").expect("a signature");
    write(&file, &format!("{own}&sig=bm90IHRoaXMgb25l\n"));
    let refused = checked(&store, &[of_container, credentials]).must_fail().stderr;
    assert!(refused.contains("refuses the credentials (nar-store-credentials"), "{refused}");
}

/// S3 keeps the promises that the other services do.
#[test]
fn nars_in_a_bucket_of_s3_are_kept_published_repaired_and_evicted() {
    let Some(bucket) = Bucket::new() else { return };
    assert_kept(&bucket);
}
