//! Forecasts for those who wait: their place, how long it will take, and what runs; in the lines of the wait,
//! the headers and the API. And what that knowledge is used for: a short build may go first, within its
//! bound.

use std::time::Duration;

use crate::support::addresses::{base_name, narinfo_address};
use crate::support::cache::assert_narinfo;
use crate::support::derivations::failing;
use crate::support::{Cache, Derivation, Ending, Instantiated, wait_until};
use serde_json::Value;

/// Last words of a failing derivation.
const LAST_WORDS: &str = "the last words of a failing build";

const SOON: Duration = Duration::from_secs(60);

fn json(cache: &Cache, address: &str) -> Value {
    let answer = cache.http.get(address);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// A derivation of this name that sleeps so long.
fn sleeper(cache: &Cache, name: &str, seconds: &str) -> Instantiated {
    let script = format!("sleep {seconds}; echo {name} > \"$out\"");
    cache.store.instantiate(&Derivation::new(name, &script))
}

#[test]
fn once_a_package_was_built_its_next_version_has_an_estimate_also_after_a_restart() {
    let mut cache = Cache::new(&["--hold", "0s", "--keep-alive-interval", "1s"]);
    let gate = cache.store.gate();
    assert_narinfo(
        &cache.ask(sleeper(&cache, "known-1.0", "3").out()),
        sleeper(&cache, "known-1.0", "3").out(),
    );
    wait_until("it is recorded", SOON, || cache.queued().is_empty());
    cache.ondine.crash_and_restart();

    let next = cache.gated("known-1.1", &gate);
    let unknown = cache.gated("unknown-1.0", &gate);
    let mut first = cache.http.open(&narinfo_address(next.out()), &[]);
    let mut second = cache.http.open(&narinfo_address(unknown.out()), &[]);
    cache.wait_for_queue(&["known-1.1", "unknown-1.0"]);
    gate.wait_for_starts(1);
    assert_eq!(second.header("x-ondine-position"), Some("2"));
    wait_until("it is known what both lack", SOON, || {
        let queue = json(&cache, "/api/v1/queue");
        (0..2).all(|n| queue["requests"][n]["lacked"] == 1)
    });
    let queue = json(&cache, "/api/v1/queue");
    let [known, other] = [&queue["requests"][0], &queue["requests"][1]];
    assert_eq!(
        (&known["position"], &known["of"], &known["state"]),
        (&1.into(), &2.into(), &"building".into())
    );
    assert_eq!((&known["unknown"], &known["clients"]), (&0.into(), &1.into()));
    assert!(known["known_seconds"].as_u64().is_some_and(|seconds| seconds <= 4), "{known}");
    assert!(known["eta_seconds"][1].as_u64().is_some_and(|latest| latest >= 1), "{known}");
    assert_eq!((&other["unknown"], &other["state"]), (&1.into(), &"waiting".into()), "{other}");
    assert_eq!(queue["running"][0]["derivation"], base_name(&next.drv));

    // The first line may come before it is known what has to be built.
    let mut lines =
        std::iter::from_fn(|| second.next_piece().ok()).map(|line| String::from_utf8(line).expect("text"));
    let told = lines.find(|line| line.contains("known work ahead")).expect("a line about the work");
    for part in
        ["position 2 of 2", "known work ahead", ", 1 unknown", "time left unknown", "building known-1.1"]
    {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
    gate.open();
    assert_eq!(first.read_to_end().1, Ending::Complete);
    assert_eq!(second.read_to_end().1, Ending::Complete);
}

#[test]
fn the_time_left_of_a_first_build_is_unknown_while_nothing_was_ever_built_and_grows_with_it_then() {
    let cache = Cache::new(&["--hold", "0s", "--keep-alive-interval", "1s"]);
    let gate = cache.store.gate();
    let first = cache.gated("first-1.0", &gate);
    let mut answer = cache.http.open(&narinfo_address(first.out()), &[]);
    gate.wait_for_starts(1);
    let mut lines = std::iter::from_fn(|| answer.next_piece().ok());
    let told = lines.find_map(|line| {
        let line = String::from_utf8(line).expect("text");
        line.contains("0 of 1 built").then_some(line)
    });
    let told = told.expect("a line about the work");
    assert!(told.contains("1 unknown; time left unknown") && !told.contains("ready in"), "{told}");
    assert_eq!(json(&cache, "/api/v1/queue")["requests"][0]["eta_seconds"], Value::Null);
    gate.open();
    assert_eq!(answer.read_to_end().1, Ending::Complete);
    // Shorter than the next one is.
    for name in ["a-1.0", "b-1.0", "c-1.0"] {
        let built = sleeper(&cache, name, "0.1");
        assert_narinfo(&cache.ask(built.out()), built.out());
    }
    gate.close();
    let next = cache.gated("next-1.0", &gate);
    let mut answer = cache.http.open(&narinfo_address(next.out()), &[]);
    gate.wait_for_starts(2);
    let never_ends_before = |seconds: u64| {
        wait_until("it has run for so long", SOON, || {
            json(&cache, "/api/v1/queue")["running"][0]["seconds"].as_u64().is_some_and(|s| s >= seconds)
        });
        let queue = json(&cache, "/api/v1/queue");
        // Longer than all others: the time is unknown, or long, and not said to be over at once.
        let eta = &queue["requests"][0]["eta_seconds"];
        assert!(eta.is_null() || eta[1].as_u64().is_some_and(|latest| latest >= seconds), "{queue}");
    };
    never_ends_before(4);
    never_ends_before(12);
    gate.open();
    assert_eq!(answer.read_to_end().1, Ending::Complete);
}

#[test]
fn a_request_can_be_asked_about_by_its_number_while_it_waits_and_after_its_end() {
    let cache = Cache::new(&["--hold", "0s"]);
    let gate = cache.store.gate();
    let script = format!("printf '\\033[31mred\\033[0m <b>\\n'; {}echo slow > $out", gate.script("slow"));
    let slow = cache.store.instantiate(&Derivation::new("slow", &script));
    let mut answer = cache.http.open(&narinfo_address(slow.out()), &[]);
    gate.wait_for_starts(1);
    let id = answer.header("x-ondine-build").expect("a number").to_owned();
    let address = format!("/api/v1/builds/{id}");
    let waiting = json(&cache, &address);
    assert_eq!((&waiting["state"], &waiting["position"]), (&"building".into(), &1.into()), "{waiting}");
    assert_eq!(waiting["building"], base_name(&slow.drv));
    wait_until("the line is there", SOON, || json(&cache, &address)["log"] == serde_json::json!(["red <b>"]));
    gate.open();
    assert_eq!(answer.read_to_end().1, Ending::Complete);
    let served = json(&cache, &address);
    assert_eq!((&served["state"], &served["derivation"]), (&"served".into(), &base_name(&slow.drv).into()));

    let broken = cache.store.instantiate(&failing("broken"));
    let mut answer = cache.http.open(&narinfo_address(broken.out()), &[]);
    let next = answer.header("x-ondine-build").expect("a number").to_owned();
    assert!(matches!(answer.read_to_end().1, Ending::Cut(_)));
    assert!(next.parse::<u64>().expect("a number") > id.parse().expect("a number"));
    let failed = json(&cache, &format!("/api/v1/builds/{next}"));
    assert_eq!(failed["state"], "failed");
    assert_eq!((&failed["cause"], &failed["log"][0]), (&base_name(&broken.drv).into(), &LAST_WORDS.into()));
    assert!(failed["reason"].as_str().is_some_and(|reason| reason.contains("exit code 3")), "{failed}");
    assert_eq!(cache.http.get("/api/v1/builds/999").status, 404);
}

#[test]
fn metrics_count_what_was_asked_for_and_what_became_of_it() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let asked = [cache.ask_in_background(slow.out()), cache.ask_in_background(slow.out())];
    gate.wait_for_starts(1);
    let has = |lines: &[&str]| {
        let answer = cache.http.get("/metrics");
        assert!(
            answer
                .header("content-type")
                .is_some_and(|value| value.starts_with("application/openmetrics-text"))
        );
        let text = answer.text();
        lines.iter().all(|line| text.lines().any(|other| other == *line))
    };
    wait_until("both wait", SOON, || has(&["ondine_queue_clients 2"]));
    assert!(has(&["ondine_queue_requests 1", "ondine_queue_derivations 1", "ondine_builds_running 1"]));
    assert!(has(&[
        "ondine_queue_asked_total{outcome=\"joined\"} 1",
        "ondine_queue_asked_total{outcome=\"new\"} 1"
    ]));
    gate.open();
    for asked in asked {
        assert_narinfo(&asked.answer(), slow.out());
    }
    assert!(has(&[
        "ondine_build_seconds_count{outcome=\"built\"} 1",
        "ondine_request_seconds_count{outcome=\"served\"} 1",
        "ondine_queue_clients 0",
    ]));
}

#[test]
fn with_a_budget_what_is_known_to_be_short_goes_first_and_is_stopped_when_it_is_not() {
    let cache = Cache::new(&["--overtake-budget", "3s"]);
    let order = cache.store.gate();
    let of = |name: &str, seconds: &str| {
        let script = format!("{}sleep {seconds}; echo {name} > \"$out\"", order.note(name));
        cache.store.instantiate(&Derivation::new(name, &script))
    };
    // Learns what is short.
    for name in ["short-1.0", "liar-1.0"] {
        let built = of(name, "0.1");
        assert_narinfo(&cache.ask(built.out()), built.out());
    }
    let gate = cache.store.gate();
    let first = cache.gated("first", &gate);
    let (long, liar, short) = (of("long-1.0", "1"), of("liar-1.1", "8"), of("short-1.1", "0.1"));
    let mut asked = vec![cache.ask_in_background(first.out())];
    gate.wait_for_starts(1);
    let names = ["first", "long-1.0", "liar-1.1", "short-1.1"];
    for (number, wanted) in [&long, &liar, &short].into_iter().enumerate() {
        asked.push(cache.ask_in_background(wanted.out()));
        cache.wait_for_queue(&names[..number + 2]);
    }
    wait_until("it is known what all of them lack", SOON, || {
        let queue = json(&cache, "/api/v1/queue");
        (0..4).all(|n| queue["requests"][n]["lacked"] == 1)
    });
    gate.open();
    for (asked, wanted) in asked.into_iter().zip([&first, &long, &liar, &short]) {
        assert_narinfo(&asked.answer(), wanted.out());
    }
    // The two that were short are as short as each other; the liar is stopped and comes again in its turn.
    let starts = order.starts();
    assert_eq!(starts.iter().filter(|name| *name == "liar-1.1").count(), 2, "{starts:?}");
    let at = |name: &str| starts.iter().rposition(|other| other == name).expect("it was built");
    assert!(at("long-1.0") < at("liar-1.1"), "{starts:?}");
    let log = cache.http.get(&format!("/log/{}", base_name(&liar.drv))).text();
    assert!(!log.contains("stopped"), "the log is that of the build that came to its end: {log}");
}
