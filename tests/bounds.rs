//! Bounds of one client, one build and the queue, and the number of builds at once.

use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{base_name, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::process::runs;
use crate::support::{Cache, Derivation, wait_until};

/// Time limit of a build that is stopped, or of a short one.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn one_request_more_than_may_wait_is_refused_with_the_reason_and_joining_is_not() {
    for (setting, bound) in [("--max-queued", "max-queued"), ("--max-queued-per-client", "for this client")] {
        let cache = Cache::new(&[setting, "2"]);
        let gate = cache.store.gate();
        let names = ["first", "second", "third"];
        let wanted = names.map(|name| cache.gated(name, &gate));
        let mut asked = Vec::new();
        for number in 0..2 {
            asked.push(cache.ask_in_background(wanted[number].out()));
            cache.wait_for_queue(&names[..=number]);
        }
        assert_missing(&cache.ask(wanted[2].out()), &["refused: 2 builds wait", bound]);
        asked.push(cache.ask_in_background(wanted[1].out()));
        gate.open();
        for asked in asked {
            assert_eq!(asked.answer().status, 200);
        }
        assert_narinfo(&cache.ask(wanted[2].out()), wanted[2].out());
    }
}

#[test]
fn a_build_that_takes_too_long_or_says_nothing_is_stopped_and_the_next_one_runs() {
    for (setting, said) in [("--max-build-time", "took longer"), ("--max-silent-time", "said nothing")] {
        let cache = Cache::new(&[setting, "2s"]);
        let gate = cache.store.gate();
        let marker = format!("marker-{}", cache.ondine.id());
        // It talks all the time only where the other bound is the one to meet.
        let script = format!("while :; do {} sleep 0.2; done # {marker}", talk(setting));
        let endless = cache.store.instantiate(&Derivation::new("endless", &script));
        let next = cache.gated("next", &gate);
        gate.open();
        let begun = Instant::now();
        let asked = cache.ask_in_background(endless.out());
        cache.wait_for_queue(&["endless"]);
        wait_until("it runs", SOON, || runs(&marker));
        let after = cache.ask_in_background(next.out());
        let drv = base_name(&endless.drv);
        assert_missing(
            &asked.answer(),
            &["failed (transient)", drv, "timed out", said, setting.trim_matches('-')],
        );
        assert!(begun.elapsed() >= Duration::from_secs(2), "stopped after {:?}", begun.elapsed());
        assert_narinfo(&after.answer(), next.out());
        let log = cache.http.get(&format!("/log/{drv}")).text();
        assert!(log.contains("timed out"), "{log}");
        wait_until("no process of the build is left", SOON, || !runs(&marker));
    }
}

fn talk(setting: &str) -> &'static str {
    if setting == "--max-build-time" { "echo still here;" } else { "" }
}

#[test]
fn several_lanes_run_as_many_builds_at_once_started_in_order() {
    let cache = Cache::new(&["--lanes", "2"]);
    let (first, others) = (cache.store.gate(), cache.store.gate());
    let names = ["first", "second", "third"];
    let wanted =
        [cache.gated("first", &first), cache.gated("second", &others), cache.gated("third", &others)];
    let mut asked = Vec::new();
    for (number, wanted) in wanted.iter().enumerate() {
        asked.push(cache.ask_in_background(wanted.out()));
        cache.wait_for_queue(&names[..=number]);
    }
    first.wait_for_starts(1);
    others.wait_for_starts(1);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(others.starts(), ["second"], "two lanes are two builds");
    first.open();
    others.wait_for_starts(2);
    assert_eq!(others.starts(), ["second", "third"]);
    others.open();
    for (asked, wanted) in asked.into_iter().zip(&wanted) {
        assert_narinfo(&asked.answer(), wanted.out());
    }
}

#[test]
fn a_client_behind_a_trusted_proxy_has_a_limit_of_its_own_and_nobody_else_can_claim_to_be_one() {
    for (trusted, refused) in [("127.0.0.0/8", false), ("192.0.2.1", true)] {
        let arguments = ["--max-queued-per-client", "1", "--trusted-proxies", trusted, "--hold", "0s"];
        let cache = Cache::new(&arguments);
        let gate = cache.store.gate();
        let [first, second, third] = ["first", "second", "third"].map(|name| cache.gated(name, &gate));
        let from = |client: &str, path: &std::path::Path| {
            cache.http.open(&narinfo_address(path), &[("X-Forwarded-For", client)])
        };
        let mut waits = from("198.51.100.1", first.out());
        cache.wait_for_queue(&["first"]);
        let other = from("198.51.100.2", second.out());
        assert_eq!(other.status == 404, refused);
        assert_eq!(from("198.51.100.1", third.out()).status, 404, "it has one in the queue already");
        drop(other);
        gate.open();
        assert_eq!(waits.read_to_end().1, support::Ending::Complete);
    }
}
