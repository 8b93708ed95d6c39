//! NARs as files: sent as they are, window by window, whatever becomes of the file meanwhile; plain copies of
//! those that are asked for without compression; small ones in memory. Every byte is held against what Nix
//! itself dumps.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::addresses::field;
use crate::support::derivations::{LARGE_FILE_BYTES, large_file, noise};
use crate::support::http::{Ending, Streaming};
use crate::support::process::memory_bytes;
use crate::support::{Cache, Derivation, Instantiated, wait_until};

/// Time limit of packing, or of copying.
const SOON: Duration = Duration::from_secs(60);
/// The most memory that the server may hold, in bytes, however many read from it slowly.
const SERVER_RSS_BYTES_MAX: u64 = 128 << 20;

/// Builds a path and waits until it is packed. Gives the addresses of its NAR: as zstd, and plain.
#[track_caller]
fn packed(cache: &Cache, built: &Instantiated) -> [String; 2] {
    let address = format!("/{}", field(&cache.narinfo(built.out()), "URL"));
    wait_until("it is packed", SOON, || cache.narinfo(built.out()).contains("FileSize: "));
    let plain = address.trim_end_matches(".zst").to_owned();
    [address, plain]
}

/// Where the zstd file of a NAR is.
fn file_of(cache: &Cache, address: &str) -> PathBuf {
    let name = address.trim_start_matches("/nar/");
    cache.ondine.state_dir().join("nar").join(&name[..2]).join(name)
}

/// The names of the plain copies that are complete.
fn copies(cache: &Cache) -> BTreeSet<String> {
    let folder = fs::read_dir(cache.ondine.state_dir().join("nar/plain")).expect("the folder of copies");
    let names = folder.map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".nar")).collect()
}

fn names(plain: &[&str]) -> BTreeSet<String> {
    plain.iter().map(|address| address.trim_start_matches("/nar/").to_owned()).collect()
}

/// Has Nix collect a path, once nothing holds it any more: what built it does for a moment.
#[track_caller]
fn collect(cache: &Cache, path: &Path) {
    wait_until("Nix collects it", SOON, || {
        cache.store.gc();
        !cache.store.is_valid(path)
    });
}

#[test]
fn a_range_over_the_borders_of_windows_is_the_slice_it_names() {
    const WINDOW: usize = 1 << 20;
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&noise("noise", 3 * WINDOW as u32));
    let [zstd, plain] = packed(&cache, &built);
    let (dump, file) = (cache.dump(built.out()), cache.http.get(&zstd).body);
    assert_eq!(zstd::decode_all(&file[..]).expect("a zstd file"), dump);
    let ranges = [
        WINDOW - 5..WINDOW + 5,
        WINDOW - 1..2 * WINDOW + 1,
        WINDOW..2 * WINDOW,
        7..dump.len().min(file.len()),
        2 * WINDOW + 1..2 * WINDOW + 9,
    ];
    // The first of the plain ones begins the copy, the next ones read along, the last ones read what is
    // complete.
    for (address, bytes) in [(&zstd, &file), (&plain, &dump), (&plain, &dump)] {
        for range in &ranges {
            let asked = format!("bytes={}-{}", range.start, range.end - 1);
            let answer = cache.http.get_with(address, &[("Range", &asked)]);
            assert_eq!(
                (answer.status, answer.body == bytes[range.clone()]),
                (206, true),
                "{asked} of {address}"
            );
        }
        assert!(cache.http.get(address).body == *bytes, "{address}");
        wait_until("the copy is complete", SOON, || address == &zstd || copies(&cache) == names(&[&plain]));
    }
}

#[test]
fn a_file_that_goes_while_it_is_sent_arrives_whole_and_one_that_shrinks_is_cut() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&large_file("large"));
    let [zstd, _] = packed(&cache, &built);
    let path = file_of(&cache, &zstd);
    let file = OpenOptions::new().write(true).open(&path).expect("the zstd file");
    let begun = || {
        let mut download = cache.http.open(&zstd, &[]);
        let first = download.next_piece().expect("the first bytes");
        (download, first)
    };
    let mut slow: Vec<(Streaming, Vec<u8>)> = (0..8).map(|_| begun()).collect();
    fs::remove_file(&path).expect("it was there");
    let (mut whole, mut body) = slow.pop().expect("one of eight");
    let (rest, ending) = whole.read_to_end();
    assert_eq!(ending, Ending::Complete);
    body.extend(rest);
    let plain = zstd::decode_all(&body[..]).expect("a complete zstd file");
    assert!(plain.len() as u64 > LARGE_FILE_BYTES && plain == cache.dump(built.out()));
    let memory = memory_bytes(cache.ondine.id(), "VmRSS").expect("it runs");
    assert!(memory < SERVER_RSS_BYTES_MAX, "{memory} bytes for eight readers");

    let server = cache.ondine.id();
    file.set_len(0).expect("it can be cut");
    for (mut download, _) in slow {
        let (_, ending) = download.read_to_end();
        assert!(matches!(ending, Ending::Cut(_)), "half a file looked whole");
    }
    assert_eq!((cache.http.get("/healthz").status, cache.ondine.id()), (200, server), "the server went, too");
}

#[test]
fn plain_copies_are_bounded_go_by_their_last_use_and_do_not_outlive_the_server() {
    let mut cache = Cache::new(&["--plain-nar-cache-bytes", "700000"]);
    let built: Vec<Instantiated> = [260_000, 270_000, 280_000, 900_000, 1_000]
        .iter()
        .map(|bytes| cache.store.instantiate(&noise(&format!("noise-{bytes}"), *bytes)))
        .collect();
    let addresses: Vec<String> = built.iter().map(|built| packed(&cache, built)[1].clone()).collect();
    let dumps: Vec<Vec<u8>> = built.iter().map(|built| cache.dump(built.out())).collect();
    let [a, b, c, large, small] = [0, 1, 2, 3, 4];
    let right = |cache: &Cache, number: usize| {
        assert!(cache.http.get(&addresses[number]).body == dumps[number], "{number}");
        let tail = cache.http.get_with(&addresses[number], &[("Range", "bytes=-500")]);
        assert!(tail.status == 206 && tail.body == dumps[number][dumps[number].len() - 500..], "{number}");
    };
    let wait_for = |cache: &Cache, numbers: &[usize]| {
        let wanted = names(&numbers.iter().map(|number| &*addresses[*number]).collect::<Vec<_>>());
        wait_until(&format!("the copies are {numbers:?}"), SOON, || copies(cache) == wanted);
    };
    for (number, left) in [(a, &[a][..]), (b, &[a, b]), (a, &[a, b]), (c, &[a, c])] {
        right(&cache, number);
        wait_for(&cache, left);
    }
    // One that is too large, and one so small that it needs no copy.
    right(&cache, large);
    right(&cache, small);
    wait_for(&cache, &[a, c]);
    // One that somebody has deleted, is made anew.
    let copy = cache.ondine.state_dir().join("nar/plain").join(addresses[a].trim_start_matches("/nar/"));
    fs::remove_file(copy).expect("the copy");
    right(&cache, a);
    wait_for(&cache, &[a, c]);

    cache.ondine.kill9();
    cache.ondine.start_again();
    wait_for(&cache, &[]);
    right(&cache, c);
    wait_for(&cache, &[c]);
}

#[test]
fn a_plain_nar_that_is_not_packed_yet_comes_from_the_store_path_which_is_packed_afterwards() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&noise("noise", 3 << 20));
    let zstd = format!("/{}", field(&cache.narinfo(built.out()), "URL"));
    let plain = zstd.trim_end_matches(".zst");
    let dump = cache.dump(built.out());
    assert!(cache.http.get(plain).body == dump);
    wait_until("it is packed", SOON, || cache.narinfo(built.out()).contains("FileSize: "));
    let file = cache.http.get(&zstd);
    assert!(zstd::decode_all(&file.body[..]).expect("a zstd file") == dump);
    assert!(cache.http.get(plain).body == dump);
    wait_until("the copy is kept", SOON, || copies(&cache) == names(&[plain]));
}

#[test]
fn a_store_path_that_is_not_what_nix_registered_is_given_whole_in_no_form_and_then_not_promised_any_more() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&noise("noise", 3 << 20));
    cache.store.realise(&built.drv);
    // As long as it was, and one byte is another.
    fs::set_permissions(built.out(), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let file = OpenOptions::new().write(true).open(built.out()).expect("it is ours");
    file.write_all_at(b"x", 2 << 20).expect("written");
    let plain = format!("/{}", field(&cache.narinfo(built.out()), "URL").trim_end_matches(".zst"));
    for _ in 0..2 {
        let mut download = cache.http.open(&plain, &[]);
        let (body, ending) = download.read_to_end();
        assert!(
            download.status == 404 || matches!(ending, Ending::Cut(_)),
            "{} bytes looked whole",
            body.len()
        );
    }
    wait_until("it is not promised any more", SOON, || cache.ask(built.out()).status == 404);
    assert_eq!(cache.http.get(&plain).status, 404);
    assert_eq!(copies(&cache), BTreeSet::new());
}

#[test]
fn a_small_nar_is_given_from_memory_and_no_longer_once_it_is_forgotten() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&Derivation::new("small", "echo small > $out; :"));
    let [zstd, plain] = packed(&cache, &built);
    let first = cache.http.get(&zstd);
    fs::remove_file(file_of(&cache, &zstd)).expect("the zstd file");
    let again = cache.http.get(&zstd);
    assert_eq!((again.status, again.body == first.body), (200, true), "it is not in memory");
    assert_eq!(again.headers.get("etag"), first.headers.get("etag"));
    let part = cache.http.get_with(&zstd, &[("Range", "bytes=3-7")]);
    assert_eq!((part.status, &part.body[..]), (206, &first.body[3..8]));

    // Nothing is left of it but what is in memory. The plain form is not: this request finds out.
    collect(&cache, built.out());
    assert_eq!(cache.http.get(&plain).status, 404);
    assert_eq!(cache.http.get(&zstd).status, 404, "it was forgotten, and is given from memory");
}
