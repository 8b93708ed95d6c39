//! A disk that is full, of bytes or of inodes: what is stored is served, what cannot be stored fails by
//! itself, and there is a way out. Each server has its state on a small file system in memory.

use std::path::Path;
use std::time::Duration;

use crate::support::addresses::{base_name, field};
use crate::support::cache::assert_narinfo;
use crate::support::derivations::noise;
use crate::support::http::Response;
use crate::support::uploads::{Uploads, nar};
use crate::support::upstream::stored_nars;
use crate::support::{Cache, Instantiated, process, text, wait_until};

const SOON: Duration = Duration::from_secs(60);
const MIB: u32 = 1024 * 1024;

/// Builds a path of so many bytes that do not compress, which Nix keeps, and waits until it is packed.
#[track_caller]
fn packed(cache: &Cache, bytes: u32) -> Instantiated {
    let path = cache.store.instantiate(&noise("noise", bytes));
    cache.store.root(&path.drv);
    assert_narinfo(&cache.ask(path.out()), path.out());
    wait_until_packed(cache, path.out());
    path
}

#[track_caller]
fn wait_until_packed(cache: &Cache, path: &Path) {
    wait_until("it is packed", SOON, || cache.narinfo(path).contains("FileSize: "));
}

/// The whole NAR is served.
#[track_caller]
fn assert_whole(cache: &Cache, narinfo: &str) {
    let nar = cache.http.get(&format!("/{}", field(narinfo, "URL")));
    assert_eq!(nar.status, 200, "{}", nar.text());
    let plain = zstd::decode_all(&nar.body[..]).expect("a zstd file");
    assert_eq!(plain.len().to_string(), field(narinfo, "NarSize"));
}

/// The output of `ondine gc --max-bytes 0`, once nothing counts as used any more, for a server with
/// `--eviction-grace 0s`.
#[track_caller]
fn gc(cache: &Cache) -> String {
    cache.ondine.end_all_uses();
    let mut gc = cache.ondine.command("gc");
    gc.args(["--max-bytes", "0", "--state-dir", text(&cache.ondine.state_dir())]);
    process::run(gc).must_succeed().text()
}

#[track_caller]
fn ready(cache: &Cache) -> Response {
    cache.http.get("/readyz")
}

#[track_caller]
fn wait_until_ready(cache: &Cache) {
    wait_until("it is ready", SOON, || ready(cache).status == 200);
}

fn drafts(cache: &Cache) -> usize {
    std::fs::read_dir(cache.ondine.state_dir().join("nar/tmp")).expect("the folder of drafts").count()
}

#[test]
fn a_full_disk_is_told_serves_what_it_has_and_is_emptied_by_gc() {
    let arguments = ["--min-free-bytes", "0", "--eviction-grace", "0s", "--transient-retry", "1s"];
    let cache = Cache::on_disks(&arguments, &[("", "size=64m")]);
    let stored = packed(&cache, 3 * MIB);
    let told = cache.narinfo(stored.out());
    wait_until_ready(&cache);
    let state_dir = cache.ondine.state_dir();
    wait_until("there is a reserve", SOON, || state_dir.join("reserve").exists());

    cache.ondine.disks()[0].fill();
    let refused = ready(&cache);
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("the disk is full"), "{}", refused.text());
    // What is there is served; what is not there cannot be stored, and leaves nothing behind.
    assert_whole(&cache, &told);
    let next = cache.store.instantiate(&noise("next", 2 * MIB));
    let answer = cache.ask(next.out());
    assert!([200, 404].contains(&answer.status), "{}", answer.text());
    if answer.status == 200 {
        assert_eq!(cache.http.get(&format!("/{}", field(&answer.text(), "URL"))).status, 404);
    }
    assert_eq!(drafts(&cache), 0);

    // Nothing that the system gives is free: only the reserve lets the index forget.
    assert_eq!(cache.ondine.disks()[0].free_bytes(), 0);
    let collected = gc(&cache);
    assert!(collected.contains(&format!("evicted: {}", base_name(stored.out()))), "{collected}");
    assert_eq!(stored_nars(&cache.ondine), [""; 0]);
    wait_until("it is ready", SOON, || ready(&cache).status == 200);
    assert_narinfo(&cache.ask(next.out()), next.out());
    wait_until_packed(&cache, next.out());
    cache.ondine.disks()[0].empty();
    // What went is had again.
    assert_narinfo(&cache.ask(stored.out()), stored.out());
    gc(&cache);
    assert!(state_dir.join("reserve").exists(), "the reserve is not made anew");
}

#[test]
fn a_server_starts_on_a_full_disk_and_heals_by_itself() {
    let mut cache = Cache::on_disks(&["--min-free-bytes", "0"], &[("", "size=64m")]);
    let stored = packed(&cache, 3 * MIB);
    let told = cache.narinfo(stored.out());
    wait_until("there is a reserve", SOON, || cache.ondine.state_dir().join("reserve").exists());
    cache.ondine.disks()[0].fill();
    cache.ondine.kill9();
    cache.ondine.start_again();
    assert_whole(&cache, &told);
    assert_eq!(ready(&cache).status, 503);
    cache.ondine.disks()[0].empty();
    wait_until_ready(&cache);
}

#[test]
fn without_a_limit_a_part_of_the_disk_stays_free_and_plain_copies_go_first() {
    let min_free = (34 * MIB).to_string();
    let cache =
        Cache::on_disks(&["--min-free-bytes", &min_free, "--eviction-grace", "0s"], &[("", "size=64m")]);
    let first = packed(&cache, 8 * MIB);
    let plain = format!("/{}", field(&cache.narinfo(first.out()), "URL").trim_end_matches(".zst"));
    assert_eq!(cache.http.get(&plain).status, 200);
    let has_copy = || stored_nars(&cache.ondine).iter().any(|file| file.starts_with("plain/"));
    wait_until("there is a plain copy", SOON, has_copy);
    // What is packed takes 8 MiB each: with the copy, three of them are too many, without it four.
    let second = packed(&cache, 8 * MIB + 4);
    let third = packed(&cache, 8 * MIB + 8);
    wait_until("the copy has gone", SOON, || !has_copy());
    for path in [&first, &second, &third] {
        cache.assert_served(path.out());
    }
    let more: Vec<Instantiated> = (3..8).map(|number| packed(&cache, 8 * MIB + 4 * number)).collect();
    let disk = &cache.ondine.disks()[0];
    wait_until("there is room", SOON, || disk.free_bytes() >= u64::from(34 * MIB));
    cache.assert_served(more.last().expect("some").out());
    let metrics = cache.http.get("/metrics").text();
    assert!(metrics.contains(&format!("ondine_nar_store_min_free_bytes {min_free}")), "{metrics}");
    wait_until_ready(&cache);
}

#[test]
fn a_disk_without_inodes_is_told_and_emptied_by_gc() {
    let cache = Cache::on_disks(
        &["--min-free-bytes", "0", "--eviction-grace", "0s"],
        &[("", "size=64m,nr_inodes=400")],
    );
    let stored: Vec<Instantiated> = (1..=20).map(|number| packed(&cache, 4096 * number)).collect();
    let told = cache.narinfo(stored[0].out());
    wait_until_ready(&cache);
    cache.ondine.disks()[0].fill_inodes();
    let refused = ready(&cache);
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("inodes"), "{}", refused.text());
    assert_whole(&cache, &told);
    gc(&cache);
    wait_until_ready(&cache);
    let next = packed(&cache, MIB);
    cache.assert_served(next.out());
}

#[test]
fn an_index_that_cannot_be_written_is_told_and_heals() {
    let arguments = ["--eviction-grace", "0s", "--transient-retry", "1s"];
    let cache = Cache::on_disks(&arguments, &[("", "size=16m"), ("nar", "size=256m")]);
    let stored = packed(&cache, 3 * MIB);
    let told = cache.narinfo(stored.out());
    wait_until_ready(&cache);
    cache.ondine.disks()[0].fill();
    // The log of the index has room that it has had before: until that is used up, it can be written.
    let mut asked = 0;
    wait_until("a write is refused", SOON, || {
        asked += 1;
        let next = cache.store.instantiate(&noise("next", 4096 + 4 * asked));
        cache.ask(next.out()).status == 404 && ready(&cache).status == 503
    });
    assert!(ready(&cache).text().contains("the index cannot be written"), "{}", ready(&cache).text());
    assert_whole(&cache, &told);
    // It is tried again less and less often.
    let tries = cache.ondine.log().matches("cannot be kept within its limit").count();
    std::thread::sleep(Duration::from_secs(10));
    let more = cache.ondine.log().matches("cannot be kept within its limit").count() - tries;
    assert!(more <= 5, "{more} tries in ten seconds");
    cache.ondine.disks()[0].empty();
    wait_until_ready(&cache);
    let next = packed(&cache, 2 * MIB);
    cache.assert_served(next.out());
}

#[test]
fn what_was_built_waits_until_the_index_can_be_written_and_is_served_then() {
    let cache = Cache::on_disks(&[], &[("", "size=16m"), ("nar", "size=256m")]);
    packed(&cache, MIB);
    wait_until_ready(&cache);
    cache.ondine.disks()[0].fill();
    // The log of the index has room that it has had before: until that is used up, it can be written.
    let mut asked = 0;
    let waiting = loop {
        asked += 1;
        assert!(asked < 1_000, "no write is refused");
        let next = cache.store.instantiate(&noise("next", 4096 + 4 * asked));
        let waiting = cache.ask_in_background(next.out());
        wait_until("it is served or waits", SOON, || {
            waiting.is_answered()
                || cache.ondine.log().contains("lost the index; trying again until it is back")
        });
        if !waiting.is_answered() {
            break (next, waiting);
        }
        assert_narinfo(&waiting.answer(), next.out());
    };
    let (path, answer) = waiting;
    let status = cache.http.get("/api/v1/status").text();
    assert!(status.contains("waiting for the index"), "{status}");
    cache.ondine.disks()[0].empty();
    assert_narinfo(&answer.answer(), path.out());
}

#[test]
fn an_upload_that_a_full_disk_has_no_room_for_is_to_be_tried_again_later() {
    let uploads = Uploads::on_disks(&["--min-free-bytes", "0"], &[("", "size=64m")]);
    let small = nar(b"small");
    let name = uploads.upload(&small);
    uploads.cache.ondine.disks()[0].fill();
    for bytes in [1, 4 * MIB as usize] {
        let contents: Vec<u8> = nar(&vec![b'x'; bytes]);
        let (status, text) = uploads.put(&format!("/nar/{}.nar", "0".repeat(52)), &contents);
        assert!(status == 503 && text.contains("too little room"), "{bytes}: {text}");
        assert!(text.to_lowercase().contains("\r\nretry-after: "), "{bytes}: {text}");
    }
    let answer = uploads.cache.http.get("/readyz");
    assert!(answer.status == 503 && answer.header("retry-after").is_some(), "{}", answer.text());
    uploads.cache.ondine.disks()[0].empty();
    let (status, text) = uploads.put(&format!("/nar/{name}.nar"), &small);
    assert_eq!(status, 200, "{text}");
}
