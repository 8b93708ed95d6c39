//! The promise about a Nix daemon that is away for a while: what needs none is served, and the rest waits for
//! it, told why. Real daemons that are stopped and started again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{base_name, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::derivations::text_file;
use crate::support::http::Streaming;
use crate::support::{Cache, Derivation, Ending, NixStore, Release, Sample, Upstream, text, wait_until};
use narinfo::{NarInfo, StoreDir};

/// An answer that waits for nothing, on a machine that builds and tests other things meanwhile.
const AT_ONCE: Duration = Duration::from_secs(5);
/// The end of a short build, and what else takes its time.
const SOON: Duration = Duration::from_secs(60);

/// Reads lines about the wait up to one that `shows` what is waited for.
#[track_caller]
fn wait_for_line(answer: &mut Streaming, shows: impl Fn(&str) -> bool) {
    loop {
        match answer.next_piece() {
            Ok(piece) if shows(&String::from_utf8_lossy(&piece)) => return,
            Ok(_) => {}
            Err(ending) => panic!("{ending:?} while waiting"),
        }
    }
}

/// For how many seconds the daemon is waited for, as a line about the wait tells.
fn seconds_away(line: &str) -> Option<u64> {
    line.split_once("waiting for the Nix daemon for ")?.1.split(' ').next()?.parse().ok()
}

/// The queue's reason why all wait.
fn stalled(cache: &Cache) -> Option<String> {
    let queue = cache.http.get("/api/v1/queue").text();
    let queue: serde_json::Value = serde_json::from_str(&queue).expect("JSON");
    queue["stalled"].as_str().map(str::to_owned)
}

/// The rest of an answer is the narinfo of a path.
#[track_caller]
fn assert_ends_in_narinfo(cache: &Cache, mut answer: Streaming, path: &Path) {
    let (rest, ending) = answer.read_to_end();
    assert_eq!(ending, Ending::Complete, "{}", String::from_utf8_lossy(&rest));
    let store_dir = StoreDir::new(text(&cache.store.store_dir())).expect("a store");
    let parsed = NarInfo::parse(&store_dir, &rest).expect("a narinfo");
    assert_eq!(parsed.path_info.path.to_string(), base_name(path));
}

// Builds.

#[test]
fn a_build_outlives_a_daemon_that_is_away_for_longer_than_three_attempts_take_and_its_client_is_told() {
    let mut cache = Cache::new(&["--hold", "0s", "--keep-alive-interval", "1s"]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let mut answer = cache.http.open(&narinfo_address(slow.out()), &[]);
    gate.wait_for_starts(1);
    cache.daemon.stop();
    wait_for_line(&mut answer, |line| seconds_away(line).is_some_and(|seconds| seconds >= 7));
    cache.daemon.restart();
    gate.wait_for_starts(2);
    wait_for_line(&mut answer, |line| line.contains("building slow"));
    gate.open();
    assert_ends_in_narinfo(&cache, answer, slow.out());
    assert_eq!(gate.starts().len(), 2, "the build that was lost, and one more");
}

#[test]
fn a_build_that_is_asked_for_while_the_daemon_is_away_waits_for_its_return() {
    for release in Release::all() {
        let mut cache =
            Cache::of(NixStore::new(release), &["--hold", "0s", "--keep-alive-interval", "1s"], &[]);
        let gate = cache.store.gate();
        let slow = cache.gated("slow", &gate);
        gate.open();
        cache.daemon.stop();
        let mut answer = cache.http.open(&narinfo_address(slow.out()), &[]);
        wait_for_line(&mut answer, |line| seconds_away(line).is_some());
        assert!(stalled(&cache).is_some_and(|stalled| stalled.contains("cannot connect to the Nix daemon")));
        cache.daemon.restart();
        assert_ends_in_narinfo(&cache, answer, slow.out());
        assert_eq!((gate.starts(), stalled(&cache)), (vec!["slow".to_owned()], None));
    }
}

#[test]
fn a_server_that_starts_before_its_daemon_says_so_and_builds_once_that_is_there() {
    let store = NixStore::new(Release::Host);
    let wanted = store.instantiate(&text_file("wanted", "wanted"));
    let mut cache = Cache::of(store, &["--hold", "0s", "--keep-alive-interval", "1s"], &[]);
    cache.daemon.stop();
    cache.ondine.crash_and_restart();
    wait_until("it is said", SOON, || cache.ondine.log().contains("the Nix daemon does not answer"));
    let mut answer = cache.http.open(&narinfo_address(wanted.out()), &[]);
    wait_for_line(&mut answer, |line| seconds_away(line).is_some());
    cache.daemon.restart();
    assert_ends_in_narinfo(&cache, answer, wanted.out());
    assert!(cache.ondine.log().contains("the Nix daemon answers again"), "{}", cache.ondine.log());
}

#[test]
fn a_daemon_that_does_not_come_back_in_time_is_a_passing_failure_with_its_reason() {
    let mut cache = Cache::new(&["--transient-retry", "2s"]);
    let wanted = cache.store.instantiate(&text_file("wanted", "wanted"));
    cache.daemon.stop();
    let begun = Instant::now();
    assert_missing(&cache.ask(wanted.out()), &["failed (transient)", "cannot connect to the Nix daemon"]);
    assert!(begun.elapsed() < SOON / 2, "it took {:?}", begun.elapsed());
}

// What is there.

/// A path in the store that no derivation makes.
fn source(store: &NixStore) -> PathBuf {
    let file = store.folder().join("source");
    support::store::write(&file, "a source\n");
    PathBuf::from(store.nix_store(&["--add", text(&file)]))
}

#[test]
fn what_an_upstream_has_is_served_while_the_daemon_is_away() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &text_file("there", "there"));
    let both = Sample::new(&store, &Derivation::new("both", "echo both > \"$out\""));
    let upstream = Upstream::new(&store, &[&sample.path, &both.path]);
    store.root(&both.path);
    sample.collect(&store);
    let mut cache = Cache::behind(store, &[upstream.table("")], &[]);
    cache.http.wait_until_ready();
    cache.daemon.stop();
    // The second one is in the store, too, from where nothing can be adopted now.
    for sample in [&sample, &both] {
        let begun = Instant::now();
        sample.assert_served_by(&cache.ondine);
        assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
    }
    assert_missing(&cache.ask(Path::new("/nix/store/00000000000000000000000000000000-x")), &["unknown"]);
}

#[test]
fn what_only_the_store_has_is_waited_for_with_its_client_told_and_without_building_too() {
    let store = NixStore::new(Release::Host);
    let [path, another] = [source(&store), store.instantiate(&text_file("x", "x")).drv];
    let arguments = ["--hold", "0s", "--keep-alive-interval", "1s"];
    let mut cache = Cache::of(store, &arguments, &[]);
    cache.http.wait_until_ready();
    cache.daemon.stop();
    let mut answer = cache.http.open(&narinfo_address(&path), &[]);
    let cached = format!("/cached{}", narinfo_address(&another));
    let mut without_building = cache.http.open(&cached, &[]);
    for answer in [&mut answer, &mut without_building] {
        wait_for_line(answer, |line| seconds_away(line).is_some());
    }
    let head = cache.http.head(&narinfo_address(&path));
    assert_eq!(head.status, 404, "it is not known within the hold");
    cache.daemon.restart();
    assert_ends_in_narinfo(&cache, answer, &path);
    assert_ends_in_narinfo(&cache, without_building, &another);
}

#[test]
fn a_client_that_was_cut_because_the_daemon_stayed_away_hears_why_at_once() {
    let store = NixStore::new(Release::Host);
    let path = source(&store);
    let arguments = ["--hold", "0s", "--keep-alive-interval", "1s", "--transient-retry", "8s"];
    let mut cache = Cache::of(store, &arguments, &[]);
    cache.http.wait_until_ready();
    cache.daemon.stop();
    let mut answer = cache.http.open(&narinfo_address(&path), &[]);
    assert!(matches!(answer.read_to_end().1, Ending::Cut(_)), "it looked whole");
    let begun = Instant::now();
    assert_missing(&cache.ask(&path), &["unavailable", "cannot connect to the Nix daemon"]);
    assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
    cache.daemon.restart();
    assert_narinfo(&cache.ask(&path), &path);
}

#[test]
fn a_realisation_is_held_no_longer_than_any_silent_miss_while_the_daemon_is_away() {
    let mut cache = Cache::new(&["--hold", "2s"]);
    cache.http.wait_until_ready();
    cache.daemon.stop();
    let address = format!("/realisations/sha256:{}!out.doi", "0".repeat(64));
    for _ in 0..2 {
        let begun = Instant::now();
        let answer = cache.http.get(&address);
        assert!(answer.status == 404 && answer.text().contains("daemon"), "{}", answer.text());
        assert!(begun.elapsed() < Duration::from_secs(2) + AT_ONCE, "it took {:?}", begun.elapsed());
    }
}
