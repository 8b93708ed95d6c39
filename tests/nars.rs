//! NARs over HTTP: whole or in parts, compressed or not, the moment they are built or years later, and over a
//! network that breaks. Every byte is held against what Nix itself dumps.

use std::path::Path;
use std::time::Duration;

use crate::support::addresses::{base_name, field};
use crate::support::cache::connections;
use crate::support::cutting_proxy::client_that_resumed;
use crate::support::derivations::{noise, noise_behind_a_file};
use crate::support::http::Response;
use crate::support::{Cache, HeldFile, Instantiated, nar_digest, wait_until};
use sha2::{Digest, Sha256};

/// Time limit of packing.
const SOON: Duration = Duration::from_secs(60);

/// Builds a path and waits until it is packed. Gives the addresses of its NAR: plain, and as zstd.
#[track_caller]
fn packed(cache: &Cache, path: &Path) -> (String, String) {
    let address = format!("/{}", field(&cache.narinfo(path), "URL"));
    wait_until("it is packed", SOON, || cache.narinfo(path).contains("FileSize: "));
    (address.trim_end_matches(".zst").to_owned(), address)
}

/// A NAR of some 256 KiB, packed, and its true bytes in both forms.
struct Served {
    cache: Cache,
    built: Instantiated,
    plain: (String, Vec<u8>),
    zstd: (String, Vec<u8>),
}

impl Served {
    fn new() -> Served {
        let cache = Cache::new(&[]);
        let built = cache.store.instantiate(&noise("noise", 256 * 1024));
        let (plain, zstd) = packed(&cache, built.out());
        let dump = cache.dump(built.out());
        let file = cache.http.get(&zstd).body;
        assert_eq!(zstd::decode_all(&file[..]).expect("a zstd file"), dump);
        Served { cache, built, plain: (plain, dump), zstd: (zstd, file) }
    }

    fn forms(&self) -> [&(String, Vec<u8>); 2] {
        [&self.plain, &self.zstd]
    }

    fn get(&self, address: &str, headers: &[(&str, &str)]) -> Response {
        self.cache.http.get_with(address, headers)
    }
}

#[test]
fn a_nar_is_served_whole_in_both_forms_and_may_be_kept_for_ever() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let answer = served.get(address, &[]);
        assert_eq!((answer.status, answer.body == *bytes), (200, true), "{address}");
        let head = served.cache.http.head(address);
        assert_eq!(head.status, 200);
        for answer in [&answer, &head] {
            assert_eq!(answer.header("content-length"), Some(&*bytes.len().to_string()), "{address}");
            assert_eq!(answer.header("cache-control"), Some("public, max-age=31536000, immutable"));
            assert_eq!(answer.header("accept-ranges"), Some("bytes"));
            assert_eq!(answer.header("content-encoding"), None, "a client could not resume it");
            let etag = answer.header("etag").expect("an ETag");
            assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 40, "{etag}");
        }
        assert_eq!(answer.header("etag"), head.header("etag"));
    }
    let etags = served.forms().map(|(address, _)| served.get(address, &[]).header("etag").map(str::to_owned));
    assert_ne!(etags[0], etags[1], "different bytes with one ETag");
    let narinfo = served.cache.narinfo(served.built.out());
    assert_eq!(field(&narinfo, "FileSize"), served.zstd.1.len().to_string());
    let hash: narinfo::NarHash = field(&narinfo, "FileHash").parse().expect("a hash");
    assert_eq!(hash.as_bytes()[..], Sha256::digest(&served.zstd.1)[..]);
}

#[test]
fn a_range_is_the_slice_it_names() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let length = bytes.len();
        for (range, start, end) in [
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=1000-199999".to_owned(), 1000, 200_000),
            ("bytes=77777-".to_owned(), 77_777, length),
            (format!("bytes={}-{}", length - 1, length - 1), length - 1, length),
            ("bytes=-5".to_owned(), length - 5, length),
            // RFC 9110, 14.1.2: a range that goes past the end, and a suffix longer than the file, are cut to
            // the file.
            (format!("bytes=5-{length}"), 5, length),
            (format!("bytes=5-{}", u64::MAX), 5, length),
            (format!("bytes=-{}", length + 1), 0, length),
            (format!("bytes=0-{}", length - 1), 0, length),
        ] {
            let answer = served.get(address, &[("Range", &range)]);
            assert_eq!(answer.status, 206, "{range} of {address}");
            assert!(
                answer.body == bytes[start..end],
                "{range} of {address} gave {} bytes",
                answer.body.len()
            );
            let of = format!("bytes {start}-{}/{length}", end - 1);
            assert_eq!(answer.header("content-range"), Some(&*of), "{range}");
            assert_eq!(answer.header("content-length"), Some(&*(end - start).to_string()), "{range}");
            assert_eq!(answer.header("etag"), served.get(address, &[]).header("etag"));
        }
    }
}

#[test]
fn a_range_without_a_byte_is_416_and_says_how_long_the_file_is() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let length = bytes.len();
        let past = [format!("bytes={length}-"), format!("bytes={}-{}", length + 5, length + 9)];
        // The last two: a first byte that no file has, and a range that ends before it begins.
        for range in past.into_iter().chain([format!("bytes={}-", u64::MAX), "bytes=5-4".to_owned()]) {
            let answer = served.get(address, &[("Range", &range)]);
            assert_eq!(answer.status, 416, "{range}");
            assert_eq!(answer.header("content-range"), Some(&*format!("bytes */{length}")), "{range}");
            assert!(answer.body.len() < 200 && answer.header("etag").is_none(), "{range}");
        }
    }
}

#[test]
fn several_ranges_and_what_is_no_range_give_the_whole_file() {
    let served = Served::new();
    let thousand = (0..1000).map(|n| format!("{}-{}", 2 * n, 2 * n)).collect::<Vec<_>>().join(",");
    for (address, bytes) in served.forms() {
        for range in [
            "bytes=0-0,5-6",
            "bytes=0-10,5-20",
            &format!("bytes={thousand}"),
            &format!("bytes={}", "0-,".repeat(1000).trim_end_matches(',')),
            // 2^64, which no file has.
            "bytes=18446744073709551616-",
            "bytes=0-18446744073709551616",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=-0",
            "lines=1-2",
            "nonsense",
        ] {
            let answer = served.get(address, &[("Range", range)]);
            let whole = answer.status == 200 && answer.body == *bytes;
            assert!(whole, "{range:.60}: {} with {} bytes", answer.status, answer.body.len());
            assert_eq!(answer.header("content-range"), None);
        }
    }
}

#[test]
fn if_range_gives_the_range_of_these_bytes_and_else_the_whole_file() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let etag = served.get(address, &[]).header("etag").expect("an ETag").to_owned();
        let right = served.get(address, &[("Range", "bytes=5-9"), ("If-Range", &etag)]);
        assert_eq!((right.status, &right.body[..]), (206, &bytes[5..10]));
        let weak = format!("W/{etag}");
        for wrong in ["\"another\"", &weak, "Tue, 24 Nov 2026 00:00:00 GMT"] {
            let whole = served.get(address, &[("Range", "bytes=5-9"), ("If-Range", wrong)]);
            assert_eq!((whole.status, whole.body == *bytes), (200, true), "{wrong}");
        }
    }
}

#[test]
fn if_none_match_is_304_for_these_bytes_and_else_the_whole_file() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let etag = served.get(address, &[]).header("etag").expect("an ETag").to_owned();
        for known in [etag.clone(), format!("W/{etag}"), format!("\"another\", {etag}"), "*".to_owned()] {
            let same = served.get(address, &[("If-None-Match", &known)]);
            assert_eq!((same.status, same.body.len()), (304, 0), "{known}");
            assert_eq!(same.header("etag"), Some(&*etag));
            assert_eq!(served.cache.http.head_with(address, &[("If-None-Match", &known)]).status, 304);
        }
        let other = served.get(address, &[("If-None-Match", "\"another\"")]);
        assert_eq!((other.status, other.body == *bytes), (200, true));
    }
}

#[test]
fn nar_addresses_that_clients_remember_from_other_servers_are_answered() {
    let served = Served::new();
    let (plain, zstd) = (&served.plain.0, &served.zstd.0);
    let nar_hash = plain.trim_start_matches("/nar/").trim_end_matches(".nar");
    let path_hash = &base_name(served.built.out())[..32];
    let forms = [
        format!("/nar/{path_hash}-{nar_hash}.nar"),
        format!("/nar/{nar_hash}.nar?hash={path_hash}"),
        format!("/cached{plain}"),
    ];
    for address in &forms {
        let answer = served.get(address, &[]);
        assert_eq!((answer.status, answer.body == served.plain.1), (200, true), "{address}");
    }
    for address in [format!("/nar/{path_hash}-{nar_hash}.nar.zst"), format!("/cached{zstd}")] {
        let answer = served.get(&address, &[]);
        assert_eq!((answer.status, answer.body == served.zstd.1), (200, true), "{address}");
    }
}

// While it is packed, and over a bad network.

#[test]
fn a_range_asked_for_while_a_nar_is_packed_is_right() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&noise_behind_a_file("noise", 4 << 20));
    cache.store.realise(&built.drv);
    let mut held = HeldFile::hold(&built.out().join("first"));
    let address = format!("/{}", field(&cache.narinfo(built.out()), "URL"));
    let plain = address.trim_end_matches(".zst");
    held.wait_until_wanted();
    assert!(!cache.narinfo(built.out()).contains("FileSize"), "packed without the file that is held");
    // How long the file will be nobody knows yet; the NAR is as long as the narinfo says.
    let nar_size = field(&cache.narinfo(built.out()), "NarSize").to_owned();
    assert_eq!(cache.http.head(&address).header("content-length"), None);
    assert_eq!(cache.http.head(plain).header("content-length"), Some(&*nar_size));
    let http = &cache.http;
    let ranges = ["bytes=0-99", "bytes=2000000-2000999", "bytes=-100"];
    let early: Vec<Response> = std::thread::scope(|scope| {
        let asked = [&address, plain].into_iter().flat_map(|address| ranges.map(|range| (address, range)));
        let threads: Vec<_> = asked
            .map(|(address, range)| scope.spawn(move || http.get_with(address, &[("Range", range)])))
            .collect();
        // Each is asked for before it is packed.
        wait_until("all have asked", SOON, || connections(cache.ondine.address()) >= threads.len());
        assert!(threads.iter().all(|thread| !thread.is_finished()), "answered from nothing");
        held.let_go();
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    let (dump, file) = (cache.dump(built.out()), cache.http.get(&address).body);
    assert_eq!(zstd::decode_all(&file[..]).expect("a zstd file"), dump);
    for (number, answer) in early.iter().enumerate() {
        let bytes = if number < ranges.len() { &file } else { &dump };
        let slice = match number % ranges.len() {
            0 => &bytes[..100],
            1 => &bytes[2_000_000..2_001_000],
            _ => &bytes[bytes.len() - 100..],
        };
        assert_eq!((answer.status, answer.body == slice), (206, true), "request {number}");
    }
}

#[test]
fn a_client_resumes_a_broken_download() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&noise("noise", 4 * 1024 * 1024));
    packed(&cache, built.out());
    let client = client_that_resumed(&cache, built.out(), 1024 * 1024);
    assert_eq!(client.nar_digest(built.out()), nar_digest(built.out()));
}

#[test]
fn a_client_resumes_a_download_that_broke_while_the_nar_was_packed() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&noise_behind_a_file("noise", 4 << 20));
    cache.store.realise(&built.drv);
    let mut held = HeldFile::hold(&built.out().join("first"));
    let client = std::thread::scope(|scope| {
        let resuming = scope.spawn(|| client_that_resumed(&cache, built.out(), 1024 * 1024));
        held.wait_until_wanted();
        assert!(!cache.narinfo(built.out()).contains("FileSize"), "packed without the file that is held");
        held.let_go();
        resuming.join().expect("it has resumed")
    });
    assert_eq!(client.nar_digest(built.out()), nar_digest(built.out()));
}
