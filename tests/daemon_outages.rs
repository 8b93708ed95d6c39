//! The promise about a Nix daemon that is away for a while: what needs none is served, and the rest waits for it, told why.
//! Real daemons that are stopped and started again.

mod support;

use narinfo::{NarInfo, StoreDir};
use support::addresses::{base_name, narinfo_address};
use support::http::Streaming;
use support::{Cache, Ending, text};

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

/// The rest of an answer is the narinfo of a path.
#[track_caller]
fn assert_ends_in_narinfo(cache: &Cache, mut answer: Streaming, path: &std::path::Path) {
    let (rest, ending) = answer.read_to_end();
    assert_eq!(ending, Ending::Complete, "{}", String::from_utf8_lossy(&rest));
    let store_dir = StoreDir::new(text(&cache.store.store_dir())).expect("a store");
    let parsed = NarInfo::parse(&store_dir, &rest).expect("a narinfo");
    assert_eq!(parsed.store_path.to_string(), base_name(path));
}

// Builds.

#[test]
fn a_build_outlives_a_daemon_that_is_away_for_longer_than_three_attempts_take_and_its_client_is_told() {
    let mut cache = Cache::new(&["--hold", "0s", "--keep-alive", "1s"]);
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
