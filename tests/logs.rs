//! Logs of builders: a log can be followed while they say it, it is kept as they said it, and it is bounded.
//! Real daemon; builds stop at gates, so that a test knows what was said when it reads.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::addresses::{base_name, log_address};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::http::Streaming;
use crate::support::process::runs;
use crate::support::{Cache, Derivation, Ending, Gate, Http, Instantiated, text, wait_until};
use narinfo::StorePath;
use ondine::build::{LogSettings, Logs};

/// Time limit of the end of a short build.
const SOON: Duration = Duration::from_secs(30);

/// A derivation that says `first`, waits at the gate, says `second` and ends with these lines.
fn talking(cache: &Cache, name: &str, gate: &Gate, end: &str) -> Instantiated {
    let script = format!("echo first\n{}echo second\n{end}", gate.script(name));
    cache.store.instantiate(&Derivation::new(name, &script))
}

#[track_caller]
fn follow(cache: &Cache, drv: &Path) -> Streaming {
    let log = cache.http.open(&log_address(drv), &[]);
    assert_eq!(log.status, 200);
    log
}

/// The text that comes, up to these words.
#[track_caller]
fn read_to(log: &mut Streaming, words: &str) -> String {
    let mut read = String::new();
    while !read.contains(words) {
        match log.next_piece() {
            Ok(piece) => read += std::str::from_utf8(&piece).expect("whole lines of text"),
            Err(ending) => panic!("{ending:?} before {words:?}: {read}"),
        }
    }
    read
}

/// The rest, which must end as HTTP says that a body ends.
#[track_caller]
fn read_whole(log: &mut Streaming) -> String {
    let (rest, ending) = log.read_to_end();
    let rest = String::from_utf8(rest).expect("text");
    assert_eq!(ending, Ending::Complete, "{rest}");
    rest
}

// Following.

#[test]
fn a_running_build_is_followed_line_by_line_by_all_who_ask_to_its_end() {
    let cache = Cache::new(&[]);
    let (gate, last) = (cache.store.gate(), cache.store.gate());
    let end = format!("{}echo third\necho done > \"$out\"", last.script("last"));
    let slow = talking(&cache, "slow?name=odd", &gate, &end);
    let waiting = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);

    let mut early = follow(&cache, &slow.drv);
    let header = |name| early.header(name);
    assert_eq!(header("transfer-encoding"), Some("chunked"));
    assert_eq!(header("x-accel-buffering"), Some("no"));
    assert_eq!(header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(header("content-length"), None);
    assert_eq!(read_to(&mut early, "first\n"), "first\n");
    let head = cache.http.head(&log_address(&slow.drv));
    assert_eq!((head.status, head.header("content-length")), (200, None));
    assert_eq!(head.header("x-accel-buffering"), Some("no"));

    gate.open();
    assert_eq!(read_to(&mut early, "second\n"), "second\n");
    let mut late = follow(&cache, &slow.drv);
    assert_eq!(read_to(&mut late, "second\n"), "first\nsecond\n");
    last.open();
    for mut log in [early, late] {
        assert_eq!(read_whole(&mut log), "third\n");
    }
    assert_narinfo(&waiting.answer(), slow.out());

    let ended = cache.http.get(&log_address(&slow.drv));
    assert_eq!((ended.status, ended.header("content-length")), (200, Some("19")));
    assert_eq!(ended.text(), "first\nsecond\nthird\n");
    let head = cache.http.head(&log_address(&slow.drv));
    assert_eq!((head.status, head.header("content-length")), (200, Some("19")));
}

#[test]
fn the_log_of_a_build_that_fails_ends_with_the_reason_for_those_who_follow_and_those_who_come_later() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let broken = talking(&cache, "broken", &gate, "echo 'famous last words'\nexit 3");
    let waiting = cache.ask_in_background(broken.out());
    gate.wait_for_starts(1);
    let mut log = follow(&cache, &broken.drv);
    gate.open();
    let followed = read_whole(&mut log);
    let reason = followed.strip_prefix("first\nsecond\nfamous last words\n");
    assert!(reason.is_some_and(|reason| reason.contains("exit code 3")), "{followed}");
    assert_missing(&waiting.answer(), &["failed (permanent)", "exit code 3"]);
    assert_eq!(cache.http.get(&log_address(&broken.drv)).text(), followed);
}

#[test]
fn a_follower_stays_through_an_attempt_that_loses_its_daemon() {
    let mut cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let slow = talking(&cache, "slow", &gate, "echo done > \"$out\"");
    let waiting = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);
    let mut log = follow(&cache, &slow.drv);
    assert_eq!(read_to(&mut log, "first\n"), "first\n");
    cache.daemon.restart();
    gate.wait_for_starts(2);
    gate.open();
    let rest = read_whole(&mut log);
    assert_eq!(rest, "[the Nix daemon went away; the build begins anew]\nfirst\nsecond\n");
    assert_narinfo(&waiting.answer(), slow.out());
    assert_eq!(cache.http.get(&log_address(&slow.drv)).text(), format!("first\n{rest}"));
}

#[test]
fn the_end_of_the_server_cuts_those_who_follow_at_once() {
    let mut cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let slow = talking(&cache, "slow", &gate, "echo done > \"$out\"");
    let _waiting = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);
    let mut log = follow(&cache, &slow.drv);
    read_to(&mut log, "first\n");
    let begun = Instant::now();
    cache.ondine.start_stopping();
    let (rest, ending) = log.read_to_end();
    assert!(matches!(ending, Ending::Cut(_)), "half a log looked whole: {rest:?}");
    assert!(cache.ondine.wait_stopped().success());
    // The time that open answers are given is 30 s.
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
}

#[test]
fn a_follower_that_does_not_read_holds_up_no_build_and_takes_no_memory() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let line = "x".repeat(999);
    let end = format!("for ((i = 0; i < 20000; i++)); do echo {line}; done\necho done > \"$out\"");
    let loud = talking(&cache, "loud", &gate, &end);
    let waiting = cache.ask_in_background(loud.out());
    gate.wait_for_starts(1);
    let mut log = follow(&cache, &loud.drv);
    read_to(&mut log, "first\n");
    let before = cache.ondine.rss_bytes();
    gate.open();
    assert_narinfo(&waiting.answer(), loud.out());
    let taken = cache.ondine.peak_rss_bytes().saturating_sub(before);
    assert!(taken < 10_000_000, "{taken} bytes, for a log of 20,000,000");
    let rest = read_whole(&mut log);
    assert_eq!(rest.len(), "second\n".len() + 20_000_000);
    assert!(rest.lines().skip(1).all(|read| read == line));
}

// What is kept.

#[test]
fn escape_codes_are_kept_in_the_log_and_removed_from_its_last_lines() {
    let cache = Cache::new(&[]);
    let script = "printf 'plain\\n\\033[31;1mred\\033[0m\\tword\\n' >&2\necho done > \"$out\"";
    let colourful = cache.store.instantiate(&Derivation::new("colourful", script));
    cache.narinfo(colourful.out());
    let log = cache.http.get(&log_address(&colourful.drv)).text();
    assert_eq!(log, "plain\n\u{1b}[31;1mred\u{1b}[0m\tword\n");
    let settings = LogSettings { log_bytes_max: 1024, logs_bytes_max: 1024 };
    let logs = Logs::open(&cache.ondine.state_dir().join("log"), settings).expect("the server's logs");
    let drv = StorePath::parse(base_name(&colourful.drv)).expect("a store path");
    assert_eq!(logs.last_lines(&drv, 9).expect("readable"), ["plain", "red word"]);
    assert_eq!(logs.last_lines(&drv, 1).expect("readable"), ["red word"]);
}

#[test]
fn a_build_that_writes_without_end_is_stopped_and_the_next_one_runs() {
    let cache = Cache::new(&["--max-build-log-bytes", "100000"]);
    let marker = format!("marker-{}", cache.ondine.id());
    let flood = cache.store.instantiate(&Derivation::new("flood", &format!("yes {marker}")));
    let next = cache.store.instantiate(&Derivation::new("next", "echo next > \"$out\""));
    let asked = cache.ask_in_background(flood.out());
    cache.wait_for_queue(&["flood"]);
    let after = cache.ask_in_background(next.out());
    let reason = "its log has more than 100000 bytes (setting max-build-log-bytes)";
    assert_missing(&asked.answer(), &["failed (permanent)", base_name(&flood.drv), reason]);
    assert_narinfo(&after.answer(), next.out());
    wait_until("no process of the build is left", SOON, || !runs(&marker));
    let log = cache.http.get(&log_address(&flood.drv)).text();
    let kept = log.strip_suffix(&format!("{reason}\n")).expect("a line that says why it ends");
    let length = marker.len() + 1;
    assert!(kept.len() <= 100_000 && kept.len() > 100_000 - length, "{} bytes were kept", kept.len());
    assert!(kept.lines().take(100_000 / length).all(|line| line == marker));
    // Remembered: nobody has it flood the log again.
    assert_missing(&cache.ask(flood.out()), &["failed (permanent)", reason]);
}

#[test]
fn the_oldest_logs_go_when_all_together_are_too_long() {
    let cache = Cache::new(&["--max-build-log-bytes", "4096", "--max-total-log-bytes", "9000"]);
    let script = |name: &str| format!("echo {}\necho {name} > \"$out\"", "x".repeat(3999));
    let built = ["first", "second", "third"].map(|name| {
        let built = cache.store.instantiate(&Derivation::new(name, &script(name)));
        cache.narinfo(built.out());
        built
    });
    let http = Http::new(&cache.ondine.url());
    // Of what the daemon keeps of them nothing is left.
    std::fs::remove_dir_all(cache.store.folder().join("log/drvs")).expect("the daemon's own logs");
    let [first, second, third] = built.map(|built| log_address(&built.drv));
    wait_until("the oldest log is deleted", SOON, || http.get(&first).status == 404);
    assert_missing(&http.get(&first), &["no log", "deleted"]);
    for log in [second, third] {
        assert_eq!(http.get(&log).body.len(), 4000, "{log}");
    }
    let file = cache.ondine.state_dir().join("log");
    assert_eq!(std::fs::read_dir(&file).expect("the folder of logs").count(), 2, "{}", text(&file));
}
