//! Failed builds, how long they are remembered, and the ways out: on real daemons, by builds that really
//! fail.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::base_name;
use crate::support::cache::{assert_missing, assert_narinfo, status_of};
use crate::support::http::raw;
use crate::support::process::{Signal, memory_bytes, run, signal, tree_of};
use crate::support::{Cache, Derivation, Instantiated, NixStore, Release, text, wait_until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Remembered failures.
fn failures(cache: &Cache) -> Vec<Value> {
    let answer = cache.http.get("/api/v1/failures");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    serde_json::from_slice(&answer.body).expect("a list as JSON")
}

/// The remembered failure of a derivation.
fn failure_of(cache: &Cache, drv: &Path) -> Option<Value> {
    failures(cache).into_iter().find(|failure| failure["derivation"] == base_name(drv))
}

/// The output of a command of the program, run beside the server.
fn ondine(cache: &Cache, command: &str, arguments: &[&str]) -> support::Finished {
    let mut program = cache.ondine.command(command);
    program.args(arguments).arg("--state-dir").arg(cache.ondine.state_dir());
    run(program)
}

// Classes.

#[test]
fn every_release_reports_what_is_told_apart() {
    let fixed = |derivation: Derivation| {
        derivation
            .attribute("outputHashMode", "\"flat\"")
            .attribute("outputHashAlgo", "\"sha256\"")
            .attribute("outputHash", "\"0000000000000000000000000000000000000000000000000000\"")
    };
    let plain = |name: &str, script: &str| Derivation::new(name, script);
    let dependency = "builtins.toFile \"dependency\" \"x\"";
    let make = "echo 'make: *** [Makefile:3: x.o] Error 1'";
    let cases = [
        ("permanent", "exit code 3", plain("exit", "exit 3")),
        ("permanent", "produce output path", plain("nothing", "true")),
        ("permanent", "cycle detected", plain("cycle", "echo $b > $a; echo $a > $b").outputs(&["a", "b"])),
        (
            "permanent",
            "not allowed to refer",
            plain("refers", "echo $dependency > $out")
                .attribute("dependency", dependency)
                .attribute("allowedReferences", "[]"),
        ),
        ("permanent", "hash mismatch", fixed(plain("other", "echo other > $out"))),
        ("permanent", "unsupported type", plain("fifo", "mkfifo $out")),
        ("permanent", "signal 11", plain("crash", "kill -SEGV $$")),
        (
            "permanent",
            "exit code 1",
            plain("quotes", "echo 'write: No space left on device ... ok'; echo 'sum ... FAILED'; exit 1"),
        ),
        ("transient", "signal 9", plain("kill", "kill -KILL $$")),
        ("transient", "signal 15", plain("term", "kill -TERM $$")),
        ("transient", "exit code 137", plain("child-kill", "bash -c 'kill -KILL $$'")),
        ("transient", "exit code 143", plain("child-term", "bash -c 'kill -TERM $$'")),
        (
            "transient",
            "exit code 2",
            plain(
                "gcc",
                &format!("echo 'gcc: fatal error: Killed signal terminated program cc1'; {make}; exit 2"),
            ),
        ),
        ("transient", "exit code 1", plain("memory", "echo 'fork: Cannot allocate memory' >&2; exit 1")),
        ("transient", "exit code 1", plain("disk", "dd if=/dev/zero of=/dev/full bs=1 count=1 || exit 1")),
        ("transient", "exit code 1", fixed(plain("download", "exit 1"))),
    ];
    for release in Release::all() {
        let name = release.name().to_owned();
        let cache = Cache::of(NixStore::new(release), &[], &[]);
        for (class, words, derivation) in &cases {
            let failing = cache.store.instantiate(derivation);
            let drv = base_name(&failing.drv);
            let answer = cache.ask(failing.out());
            assert_missing(&answer, &[&format!("failed ({class}): {drv}"), words]);
            let failure = failure_of(&cache, &failing.drv);
            let remembered = failure.unwrap_or_else(|| panic!("{name}: {drv} is not remembered"));
            let lifetime = remembered["until"].as_u64().zip(remembered["since"].as_u64()).map(|(u, s)| u - s);
            let expected = if *class == "permanent" { 24 * 3600 } else { 300 };
            assert_eq!(
                (&remembered["class"], lifetime, &remembered["cause"]),
                (&(*class).into(), Some(expected), &drv.into()),
                "{name}"
            );
        }
    }
}

#[test]
fn a_daemon_that_is_told_to_stop_with_its_workers_and_builders_makes_no_build_wrong() {
    let mut cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let asked = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);
    // As systemd stops a service.
    let daemon = cache.daemon.id();
    signal(&tree_of(daemon), Signal::Term);
    cache.daemon.restart();
    gate.open();
    assert_narinfo(&asked.answer(), slow.out());
    assert_eq!(failures(&cache), [] as [Value; 0]);
}

// How long.

/// A fixed-output derivation that notes its tries and fails until the file `there` is there, and what needs
/// it.
fn download(gate: &support::Gate, there: &Path) -> Derivation {
    let script = format!("{}[ -e '{}' ] || exit 1; printf x > $out", gate.note("download"), there.display());
    Derivation::new("download", &script)
        .attribute("outputHashMode", "\"flat\"")
        .attribute("outputHashAlgo", "\"sha256\"")
        .attribute("outputHash", "builtins.hashString \"sha256\" \"x\"")
}

#[test]
fn a_download_that_failed_is_tried_once_more_when_its_time_is_over_whoever_keeps_coming() {
    let cache = Cache::new(&["--transient-failure-ttl", "6s"]);
    let gate = cache.store.gate();
    let there = cache.store.folder().join("there");
    let download = download(&gate, &there);
    let cause = cache.store.instantiate(&download);
    let dependant = |number: usize| {
        let script = "cat $download > $out";
        let derivation = Derivation::new(&format!("needs-{number}"), script).input("download", &download);
        cache.store.instantiate(&derivation)
    };
    assert_missing(&cache.ask(dependant(0).out()), &["failed (transient)", base_name(&cause.drv)]);
    let first = failure_of(&cache, &cause.drv).expect("remembered");
    std::fs::write(&there, "").expect("the folder can be written to");
    let begun = Instant::now();
    let mut number = 0;
    let served = loop {
        number += 1;
        let wanted = dependant(number);
        let answer = cache.ask(wanted.out());
        if answer.status == 200 {
            break wanted;
        }
        assert_missing(&answer, &["failed (transient)", base_name(&cause.drv)]);
        assert!(begun.elapsed() < SOON, "it is never tried again");
        for drv in [&cause.drv, &wanted.drv] {
            if let Some(failure) = failure_of(&cache, drv) {
                let times = |failure: &Value| (failure["since"].clone(), failure["until"].clone());
                assert_eq!(times(&failure), times(&first), "an answer has moved its end");
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    assert_narinfo(&cache.ask(served.out()), served.out());
    assert_eq!(gate.starts().len(), 2, "the try that failed, and the one after its time");
    assert!(number > 2, "dependants came while it was remembered");
    assert_eq!(failures(&cache), [] as [Value; 0], "what is no longer true is forgotten");
}

#[test]
fn two_who_need_a_build_that_fails_have_it_tried_once() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let below = Derivation::new("below", &format!("{}exit 3", gate.script("below")));
    let needs = |name: &str| {
        cache.store.instantiate(&Derivation::new(name, "echo $below > $out").input("below", &below))
    };
    let wanted = ["one", "two"].map(needs);
    let asked = [cache.ask_in_background(wanted[0].out()), cache.ask_in_background(wanted[1].out())];
    gate.wait_for_starts(1);
    wait_until("both wait", SOON, || cache.queued().len() == 2);
    gate.open();
    for asked in asked {
        assert_missing(&asked.answer(), &["failed (permanent)", "cause:", "-below.drv"]);
    }
    assert_missing(&cache.ask(needs("three").out()), &["failed (permanent)", "-below.drv"]);
    assert_eq!(gate.starts(), ["below"]);
    let ends: Vec<Value> = failures(&cache).iter().map(|failure| failure["until"].clone()).collect();
    assert!(ends.len() == 4 && ends.iter().all(|end| *end == ends[0]), "{ends:?}");
}

// The ways out.

/// A derivation that fails until `there` is, and one that needs it; both have failed.
fn failed_pair(cache: &Cache, gate: &support::Gate, there: &Path) -> (Instantiated, Instantiated) {
    let script = format!("{}[ -e '{}' ] || exit 3; echo 1 > $out", gate.note("below"), there.display());
    let below = Derivation::new("below-1.0", &script);
    let top =
        cache.store.instantiate(&Derivation::new("top-1.0", "echo $below > $out").input("below", &below));
    let below = cache.store.instantiate(&below);
    assert_missing(&cache.ask(top.out()), &["failed (permanent)", base_name(&below.drv)]);
    (below, top)
}

#[test]
fn a_failure_is_listed_and_retried_by_whatever_names_it() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let there = cache.store.folder().join("there");
    let (below, top) = failed_pair(&cache, &gate, &there);
    let (below_drv, top_drv) = (base_name(&below.drv), base_name(&top.drv));
    let table = ondine(&cache, "failures", &[]).must_succeed().text();
    for words in [below_drv, top_drv, "permanent", &format!("cause: {below_drv}"), "exit code 3"] {
        assert!(table.contains(words), "no {words:?} in {table}");
    }
    // The names that the queue and the list of failures show are those that are explained.
    for name in ["top", "top-1.0", top_drv] {
        let why = ondine(&cache, "why", &[name]);
        assert!(!why.succeeded() && why.text().contains("failed") && why.text().contains(below_drv), "{why}");
    }
    // What was not begun has no log: that of its cause is the one to read.
    let log = cache.http.get(&format!("/log/{top_drv}"));
    assert!(log.status == 404 && log.text().contains(&format!("ondine log {below_drv}")), "{}", log.text());
    // Its reason is still there: tried again, and remembered again.
    let tries = |count: usize| {
        wait_until("it is tried again", SOON, || gate.starts().len() == count && failures(&cache).len() == 2);
    };
    let output = base_name(top.out());
    for (number, name) in [top_drv, output, &output[..32], "top", "top-1.0"].into_iter().enumerate() {
        let told = ondine(&cache, "retry", &[name]).must_succeed().text();
        for words in [&format!("forgotten: {top_drv}"), &format!("forgotten: {below_drv}"), "queued: "] {
            assert!(told.contains(words), "no {words:?} in {told}");
        }
        tries(number + 2);
    }
    // Only forgotten, by its cause's name: the next request builds it, and nothing before.
    let told = ondine(&cache, "retry", &["below", "--forget-only"]).must_succeed().text();
    assert!(told.contains(top_drv) && !told.contains("queued"), "{told}");
    assert_eq!(failures(&cache), [] as [Value; 0]);
    std::fs::write(&there, "").expect("the folder can be written to");
    assert_narinfo(&cache.ask(top.out()), top.out());
    assert_eq!(gate.starts().len(), 7);
    let refused = ondine(&cache, "retry", &["top"]);
    assert!(!refused.succeeded() && refused.stderr.contains("no failure of top"), "{refused}");
    // Everyone may look, and nobody from outside may retry.
    let post =
        format!("POST /api/v1/failures/{top_drv}/retry HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(status_of(&raw(cache.ondine.address(), post.as_bytes(), SOON).0), 401);
}

#[test]
fn what_is_built_by_hand_is_served_and_so_is_what_failed_because_of_it() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let there = cache.store.folder().join("there");
    let (below, top) = failed_pair(&cache, &gate, &there);
    std::fs::write(&there, "").expect("the folder can be written to");
    cache.store.realise(&below.drv);
    assert_narinfo(&cache.ask(top.out()), top.out());
    assert_narinfo(&cache.ask(below.out()), below.out());
    assert_eq!(gate.starts().len(), 2, "it was built by hand alone");
    assert_eq!(failures(&cache), [] as [Value; 0]);
}

#[test]
fn a_restart_with_shorter_settings_forgets_what_they_no_longer_remember() {
    let store = NixStore::new(Release::Host);
    let file = store.folder().join("ondine.toml");
    std::fs::write(&file, "permanent-failure-ttl = \"24h\"\n").expect("the folder can be written to");
    let config = text(&file).to_owned();
    let mut cache = Cache::of(store, &["--config", &config], &[]);
    let gate = cache.store.gate();
    let there = cache.store.folder().join("there");
    let (_, top) = failed_pair(&cache, &gate, &there);
    std::fs::write(&there, "").expect("the folder can be written to");
    cache.ondine.crash_and_restart();
    assert_missing(&cache.ask(top.out()), &["failed (permanent)"]);
    cache.ondine.kill9();
    std::fs::write(&file, "permanent-failure-ttl = \"0s\"\n").expect("the folder can be written to");
    cache.ondine.start_again();
    assert_narinfo(&cache.ask(top.out()), top.out());
}

// A log without end.

/// The most memory that a process below the daemon holds, looked at until `done`.
fn largest_worker(cache: &Cache, done: impl Fn() -> bool) -> u64 {
    let mut largest = 0;
    while !done() {
        for id in tree_of(cache.daemon.id()) {
            largest = largest.max(memory_bytes(id, "VmRSS").unwrap_or(0));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    largest
}

#[test]
fn one_line_without_end_is_stopped_for_what_it_is_and_takes_no_memory() {
    for release in Release::all() {
        for trusted in [true, false] {
            let name = format!("{}, trusted: {trusted}", release.name());
            let users = if trusted { "root" } else { "nobody-at-all" };
            let store = NixStore::with_settings(release.clone(), &[("trusted-users", users)]);
            let cache = Cache::of(store, &["--max-build-log-bytes", "1000000", "--hold", "240s"], &[]);
            let gate = cache.store.gate();
            // A daemon that does not trust us passes nothing on before the line ends.
            let bytes = if trusted { 600_000_000 } else { 20_000_000 };
            let script = format!("head -c {bytes} /dev/zero | tr '\\0' x\n{}exit 1", gate.note("written"));
            let endless = cache.store.instantiate(&Derivation::new("endless", &script));
            let before = cache.ondine.rss_bytes();
            let asked = cache.ask_in_background(endless.out());
            cache.wait_for_queue(&["endless"]);
            let worker = largest_worker(&cache, || cache.queued().is_empty());
            let reason = "its log has more than 1000000 bytes (setting max-build-log-bytes)";
            assert_missing(&asked.answer(), &["failed (permanent)", base_name(&endless.drv), reason]);
            let taken = cache.ondine.peak_rss_bytes().saturating_sub(before);
            assert!(taken < 32 << 20, "{name}: the server took {taken} bytes");
            let told = cache.ondine.log().contains("set max-build-log-size in its nix.conf");
            // Nix 2.8 does not say whom it trusts.
            assert!(release == Release::Host || told != trusted, "{name}: {}", cache.ondine.log());
            if trusted {
                assert_eq!(gate.starts(), [""; 0], "{name}: it was not stopped");
                assert!(worker < 128 << 20, "{name}: the daemon took {worker} bytes");
            }
            let log = cache.http.get(&format!("/log/{}", base_name(&endless.drv))).text();
            assert!(
                log.ends_with(&format!("{reason}\n")) && log.len() < 1_100_000,
                "{name}: {} bytes",
                log.len()
            );
        }
    }
}
