//! The promise about a no: it says why, and whoever hears it can go on. Failed, unknown, not to be built, or
//! no name at all: each with its reason, and nothing is built for it twice.

use std::time::{Duration, Instant};

use crate::support::addresses::{base_name, log_address, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo, status_of};
use crate::support::derivations::failing;
use crate::support::http::raw;
use crate::support::{Cache, Derivation, Ending, nar_digest, text};

/// Time limit of what needs no build, or only a short one.
const SOON: Duration = Duration::from_secs(30);
/// An answer that waits for nothing, on a machine that builds and tests other things meanwhile.
const AT_ONCE: Duration = Duration::from_secs(5);

// Failures.

#[test]
fn a_build_that_fails_within_the_hold_is_404_with_reason_class_and_log() {
    let cache = Cache::new(&[]);
    let broken = cache.store.instantiate(&failing("broken"));
    let drv = base_name(&broken.drv);
    let answer = cache.ask(broken.out());
    assert_missing(&answer, &["failed (permanent)", drv, "exit code 3", &format!("/log/{drv}")]);
    let log = cache.http.get(&log_address(&broken.drv));
    assert_eq!(log.status, 200);
    assert!(log.text().contains("the last words of a failing build"), "{}", log.text());
    assert_eq!(log.header("content-type"), Some("text/plain; charset=utf-8"));
}

#[test]
fn nix_log_shows_the_log_of_a_failed_build() {
    let cache = Cache::new(&[]);
    let broken = cache.store.instantiate(&failing("broken"));
    assert_eq!(cache.ask(broken.out()).status, 404);
    let client = cache.client(&[]);
    let log = client.run("nix", &["log", "--store", &cache.ondine.url(), text(&broken.drv)]).must_succeed();
    assert!(log.text().contains("the last words of a failing build"), "{log}");
}

#[test]
fn a_build_that_fails_after_the_hold_is_cut_and_the_next_request_hears_why() {
    let cache = Cache::new(&["--hold", "0s"]);
    let gate = cache.store.gate();
    let script = format!("{}exit 3", gate.script("broken"));
    let broken = cache.store.instantiate(&Derivation::new("broken", &script));
    let mut answer = cache.http.open(&narinfo_address(broken.out()), &[]);
    assert_eq!(answer.status, 200);
    gate.wait_for_starts(1);
    gate.open();
    let (body, ending) = answer.read_to_end();
    assert!(matches!(ending, Ending::Cut(_)), "a failure looked whole: {}", String::from_utf8_lossy(&body));
    let asked = Instant::now();
    assert_missing(&cache.ask(broken.out()), &["failed (permanent)", "exit code 3"]);
    assert!(asked.elapsed() < AT_ONCE, "it took {:?}", asked.elapsed());
    assert_eq!(gate.starts(), ["broken"], "built more than once");
}

#[test]
fn a_real_client_whose_build_fails_on_the_server_ends_and_says_what_it_lacks() {
    for hold in ["20s", "0s"] {
        let cache = Cache::new(&["--hold", hold]);
        let gate = cache.store.gate();
        let broken = cache.failing("broken", &gate, "sleep 1\nexit 3");
        let client = cache.client(&[]);
        let fetch = client.start_fetch(&cache.ondine.substituter(), &[broken.out()]);
        let refused = fetch.finish_within(SOON).must_fail();
        assert!(refused.stderr.contains(base_name(broken.out())), "{refused}");
        assert_eq!(gate.starts(), ["broken"], "built more than once");
    }
}

#[test]
fn a_client_that_has_the_derivation_builds_it_itself_when_the_server_fails() {
    for hold in ["20s", "0s"] {
        let cache = Cache::new(&["--hold", hold]);
        let gate = cache.store.gate();
        // Fails without the mark, as a build may that needs what one machine has and another lacks.
        let mark = cache.store.folder().join("works-here");
        let script =
            format!("{}sleep 1\n[ -e '{}' ]\necho built > \"$out\"", gate.note("picky"), mark.display());
        let derivation = Derivation::new("picky", &script);
        let picky = cache.store.instantiate(&derivation);
        // Whether this is a 404 or is cut is the matter of other tests.
        cache.http.open(&narinfo_address(picky.out()), &[]).read_to_end();
        assert_missing(&cache.ask(picky.out()), &["failed (permanent)"]);
        std::fs::write(&mark, "").expect("the folder of a test can be written to");

        let client = cache.client(&[("max-jobs", "1")]);
        client.instantiate(&derivation);
        let fetch = client.start_fetch(&cache.ondine.substituter(), &[&picky.drv]);
        fetch.finish_within(SOON).must_succeed();
        assert!(client.has(picky.out()));
        assert_eq!(gate.starts(), ["picky", "picky"], "once on the server, once on the client");
    }
}

#[test]
fn a_passing_failure_is_tried_again_after_its_time_and_a_permanent_one_is_not() {
    let cache = Cache::new(&["--transient-failure-ttl", "3s"]);
    let (killed_gate, wrong_gate) = (cache.store.gate(), cache.store.gate());
    let killed = cache.failing("killed", &killed_gate, "kill -9 $$");
    let wrong = cache.failing("wrong", &wrong_gate, "exit 3");
    assert_missing(&cache.ask(wrong.out()), &["failed (permanent)"]);
    assert_missing(&cache.ask(killed.out()), &["failed (transient)", "signal 9"]);
    let failed = Instant::now();
    assert_missing(&cache.ask(killed.out()), &["failed (transient)", "signal 9"]);
    assert!(
        failed.elapsed() > Duration::from_secs(3) || killed_gate.starts().len() == 1,
        "tried again at once"
    );
    std::thread::sleep(Duration::from_millis(3500));
    assert_missing(&cache.ask(killed.out()), &["failed (transient)", "signal 9"]);
    assert_missing(&cache.ask(wrong.out()), &["failed (permanent)"]);
    assert_eq!((killed_gate.starts().len(), wrong_gate.starts().len()), (2, 1));
}

#[test]
fn a_failing_dependency_is_named_as_the_cause_and_its_log_is_served() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let note = |name: &str, rest: &str| format!("{}{rest}", gate.note(name));
    let below = Derivation::new("below", &note("below", "echo 'famous last words'\nexit 3"));
    let top = Derivation::new("top", &note("top", "echo \"$below\" > \"$out\"")).input("below", &below);
    let (below, top) = (cache.store.instantiate(&below), cache.store.instantiate(&top));
    let (cause, drv) = (base_name(&below.drv), base_name(&top.drv));
    let answer = cache.ask(top.out());
    assert_missing(
        &answer,
        &["failed (permanent)", drv, &format!("cause: {cause}"), &format!("/log/{cause}")],
    );
    let log = cache.http.get(&log_address(&below.drv));
    assert_eq!(log.status, 200);
    assert!(log.text().contains("famous last words"), "{}", log.text());
    assert_missing(&cache.http.get(&log_address(&top.drv)), &["no log"]);
    assert_missing(&cache.ask(below.out()), &["failed (permanent)", cause]);
    assert_eq!(gate.starts(), ["below"]);
}

// What never builds.

#[test]
fn head_and_cached_never_build() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let wanted = cache.gated("wanted", &gate);
    gate.open();
    let address = narinfo_address(wanted.out());
    let cached = format!("/cached{address}");
    assert_eq!(cache.http.head(&address).status, 404);
    assert_eq!(cache.http.head(&cached).status, 404);
    assert_missing(&cache.http.get(&cached), &["not built yet", base_name(&wanted.drv)]);
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.cached(), &[wanted.out()]).must_fail();
    assert_eq!((gate.starts().len(), cache.queued().len()), (0, 0), "something was built");

    assert_narinfo(&cache.ask(wanted.out()), wanted.out());
    assert_eq!(cache.http.head(&address).status, 200);
    assert_eq!(cache.http.head(&cached).status, 200);
    client.forget_answers();
    client.fetch(&cache.ondine.cached(), &[wanted.out()]).must_succeed();
    assert_eq!(client.nar_digest(wanted.out()), nar_digest(wanted.out()));
}

#[test]
fn a_hash_that_nobody_knows_is_said_to_be_unknown() {
    let cache = Cache::new(&[]);
    for address in
        ["/0123456789abcdfghijklmnpqrsvwxyz.narinfo", "/cached/0123456789abcdfghijklmnpqrsvwxyz.narinfo"]
    {
        assert_missing(&cache.http.get(address), &["unknown"]);
        assert_eq!(cache.http.head(address).status, 404);
    }
    assert_missing(&cache.http.get(&format!("/nar/{}.nar.zst", "0".repeat(52))), &["unknown"]);
    assert_missing(&cache.http.get("/log/0123456789abcdfghijklmnpqrsvwxyz-x.drv"), &["no log"]);
}

#[test]
fn with_an_empty_build_from_it_serves_and_builds_nothing() {
    let cache = Cache::new(&["--build-from"]);
    let gate = cache.store.gate();
    let [there, missing] = ["there", "missing"].map(|name| cache.gated(name, &gate));
    gate.open();
    cache.store.realise(&there.drv);
    assert_narinfo(&cache.ask(there.out()), there.out());
    assert_missing(&cache.ask(missing.out()), &["only serves", base_name(&missing.drv)]);
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &[there.out()]).must_succeed();
    client.fetch(&cache.ondine.substituter(), &[missing.out()]).must_fail();
    assert_eq!(gate.starts(), ["there"], "the server has built");
}

#[test]
fn names_that_cannot_be_are_404_and_the_server_lives() {
    let cache = Cache::new(&[]);
    let hash = "0123456789abcdfghijklmnpqrsvwxyz";
    let mut names: Vec<String> =
        ["", ".", "..", "%2e%2e%2f", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%00", "%252e%252e%252f"]
            .map(str::to_owned)
            .into();
    names.extend([&hash[1..], "%ff", "%", "%zz", "../../../etc/passwd"].map(str::to_owned));
    names.extend([format!("{hash}a"), hash.to_uppercase(), format!("{hash}%00"), format!("%2e%2e/{hash}")]);
    names.extend(["e", "o", "t", "u"].map(|letter| hash.replace('0', letter)));
    names.push("a".repeat(60_000));
    for name in &names {
        for address in [
            format!("/{name}.narinfo"),
            format!("/cached/{name}.narinfo"),
            format!("/nar/{name}.nar.zst"),
            format!("/nar/{name}.nar"),
            format!("/log/{name}"),
            format!("/log/{name}-x.drv"),
        ] {
            let request = format!("GET {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let (answer, _) = raw(cache.ondine.address(), request.as_bytes(), SOON);
            assert_eq!(status_of(&answer), 404, "{:.200}", address);
        }
    }
    for length in [64 * 1024, 1024 * 1024] {
        let request = format!("GET /{}.narinfo HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(length));
        let (answer, _) = raw(cache.ondine.address(), request.as_bytes(), SOON);
        assert!((400..500).contains(&status_of(&answer)), "{length} bytes: {}", status_of(&answer));
    }
    assert_eq!(cache.http.get("/nix-cache-info").status, 200);
    assert!(!cache.ondine.log().contains("panic"), "{}", cache.ondine.log());
}

#[test]
fn what_would_change_something_is_405_or_needs_a_token() {
    let cache = Cache::new(&[]);
    let hash = "0123456789abcdfghijklmnpqrsvwxyz";
    for method in ["POST", "PUT", "DELETE", "PATCH", "FROBNICATE"] {
        for address in
            ["/nix-cache-info", &format!("/{hash}.narinfo"), &format!("/nar/{}.nar.zst", "0".repeat(52))]
        {
            let request = format!(
                "{method} {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
            );
            let (answer, closed) = raw(cache.ondine.address(), request.as_bytes(), SOON);
            let expected = if method == "PUT" { 401 } else { 405 };
            assert_eq!((status_of(&answer), closed), (expected, true), "{method} {address}");
            let allows = String::from_utf8_lossy(&answer).to_lowercase().contains("allow: get, head");
            assert_eq!(allows, expected == 405, "{method} {address}");
        }
    }
}
