//! Records of requests and answers, for those who run the server: numbers for Prometheus, and a line for each
//! request where the log is told to have them.

use std::time::Duration;

use crate::support::addresses::{field, narinfo_address};
use crate::support::cache::assert_missing;
use crate::support::derivations::failing;
use crate::support::http::hang_up;
use crate::support::{Cache, Derivation, NixStore, Release, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// A number of the metrics, 0 where it is not there.
fn metric(cache: &Cache, name: &str) -> f64 {
    let text = cache.http.get("/metrics").text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

fn requests(cache: &Cache, route: &str, outcome: &str) -> f64 {
    metric(cache, &format!("ondine_http_requests_total{{route=\"{route}\",outcome=\"{outcome}\"}}"))
}

#[test]
fn requests_are_counted_by_route_and_outcome_with_their_bytes_and_times() {
    let cache = Cache::new(&["--hold", "1s", "--keep-alive-interval", "1s"]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let waiting = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);
    // Longer than an answer is held.
    std::thread::sleep(Duration::from_millis(1500));
    gate.open();
    let narinfo = waiting.answer().text();
    let url = format!("/{}", field(&narinfo, "URL"));
    wait_until("the wait is counted", SOON, || requests(&cache, "narinfo", "built") == 1.0);
    let waited = metric(&cache, "ondine_http_request_seconds_sum{route=\"narinfo\"}");
    assert!((1.5..60.0).contains(&waited), "{waited} s");

    let mut bytes = 0;
    for _ in 0..3 {
        bytes += cache.ask(slow.out()).body.len();
    }
    cache.http.head(&narinfo_address(slow.out()));
    let hits = requests(&cache, "narinfo", "hit");
    assert_eq!(hits, 4.0);
    let counted = metric(&cache, "ondine_http_response_bytes_total{route=\"narinfo\"}");
    assert_eq!(counted as usize, bytes + narinfo.len());
    for number in 0..5 {
        assert_missing(&cache.http.get(&format!("/{number:032}.narinfo")), &["unknown"]);
    }
    assert_eq!(requests(&cache, "narinfo", "miss"), 5.0);
    let broken = cache.store.instantiate(&failing("broken"));
    assert_missing(&cache.ask(broken.out()), &["failed"]);
    assert_eq!(requests(&cache, "narinfo", "failed"), 1.0);

    let nar = cache.http.get(&url);
    wait_until("the NAR is counted", SOON, || requests(&cache, "nar", "hit") == 1.0);
    assert_eq!(metric(&cache, "ondine_http_response_bytes_total{route=\"nar\"}") as usize, nar.body.len());
    wait_until("the NAR is packed", SOON, || cache.http.head(&url).header("etag").is_some());
    let etag = cache.http.head(&url).header("etag").expect("a tag").to_owned();
    assert_eq!(cache.http.get_with(&url, &[("If-None-Match", &etag)]).status, 304);
    assert_eq!(requests(&cache, "nar", "not_modified"), 1.0);
    assert_eq!(cache.http.get("/no-such-thing").status, 404);
    assert_eq!(requests(&cache, "unknown", "miss"), 1.0);

    let gate = cache.store.gate();
    let left = cache.gated("left", &gate);
    let leaving = cache.stand_in_line(left.out());
    gate.wait_for_starts(1);
    hang_up(&leaving);
    wait_until("the leaving is counted", SOON, || requests(&cache, "narinfo", "cut") == 1.0);
    gate.open();
    let all = metric(&cache, "ondine_http_request_seconds_count{route=\"narinfo\"}");
    assert_eq!(all, 1.0 + 4.0 + 5.0 + 1.0 + 1.0);
}

#[test]
fn each_request_is_a_line_of_the_log_that_is_asked_for_and_only_there() {
    for (level, logged) in [("info", false), ("info,ondine::access=debug", true)] {
        let cache = Cache::of(NixStore::new(Release::Host), &[], &[("ONDINE_LOG", level)]);
        let built = cache.store.instantiate(&Derivation::new("built", "echo > $out"));
        let narinfo = cache.narinfo(built.out());
        cache.http.get(&format!("/{}", field(&narinfo, "URL")));
        cache.http.get("/x%1b%5b31m?token=secret");
        let address = narinfo_address(built.out());
        wait_until("the lines are there", SOON, || !logged || cache.ondine.log().contains("x%1b%5b31m"));
        let log = cache.ondine.log();
        let line = log.lines().find(|line| line.contains(&format!("{address:?}")));
        assert_eq!(line.is_some(), logged, "{log}");
        for words in ["method=GET", "status=200", "outcome=\"built\"", "milliseconds=", "127.0.0.1"] {
            assert!(line.is_none_or(|line| line.contains(words)), "no {words} in {line:?}");
        }
        assert!(!log.contains("secret"), "{log}");
        assert_eq!(log.contains("status=404"), logged);
    }
}
