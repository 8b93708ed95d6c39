//! The promise about a miss: whoever asks for what was never built gets it, however long the build takes,
//! once for all who ask and in the order they asked. Real daemon, real clients; builds stop at gates, so that
//! a test knows what runs while it asks.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{field, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo, connections, status_of, without_wait_and_file};
use crate::support::derivations::failing;
use crate::support::http::{Response, connect, hang_up, raw};
use crate::support::{Cache, Client, Derivation, Ending, nar_digest, text, wait_until};

/// Time limit of what needs no build, or only a short one.
const SOON: Duration = Duration::from_secs(30);
/// An answer that waits for nothing, on a machine that builds and tests other things meanwhile.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Time in which a server that errs would start a build, or stop one: too short a time hides an error, and
/// fails no test.
const TIME_TO_ERR: Duration = Duration::from_secs(1);

// The wait.

#[test]
fn a_build_of_45_seconds_reaches_a_client_that_gives_up_after_25_seconds_of_silence() {
    let cache = Cache::new(&[]);
    let slow = cache.store.instantiate(&Derivation::new("slow", "sleep 45\necho done > \"$out\""));
    let client = cache.client(&[("stalled-download-timeout", "25")]);
    let fetch = client.start_fetch(&cache.ondine.substituter(), &[slow.out()]);
    let fetched = fetch.finish_within(Duration::from_secs(90)).must_succeed();
    assert!(fetched.elapsed >= Duration::from_secs(45), "it was there after {:?}", fetched.elapsed);
    assert_eq!(client.nar_digest(slow.out()), nar_digest(slow.out()));
}

#[test]
fn a_silent_server_is_given_up_by_that_client() {
    // The control of the test above: the setting works, and only the lines about the wait keep the client.
    let cache = Cache::new(&["--hold", "250s"]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let client = cache.client(&[("stalled-download-timeout", "1"), ("download-attempts", "1")]);
    let fetch = client.start_fetch(&cache.ondine.substituter(), &[slow.out()]);
    fetch.finish_within(SOON).must_fail();
    assert_eq!(gate.starts(), ["slow"]);
}

#[test]
fn nothing_is_sent_while_the_answer_is_held() {
    let cache = Cache::new(&["--hold", "2s"]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", narinfo_address(slow.out()));
    let (nothing, closed) = raw(cache.ondine.address(), request.as_bytes(), Duration::from_millis(1800));
    assert_eq!(String::from_utf8_lossy(&nothing), "");
    assert!(!closed, "the connection was closed within the hold");
    let mut answer = cache.http.open(&narinfo_address(slow.out()), &[]);
    assert_eq!(answer.status, 200);
    answer.next_piece().expect("a line about the wait");
}

#[test]
fn after_the_hold_lines_about_the_wait_come_until_the_narinfo_does() {
    let cache = Cache::new(&["--hold", "1s", "--keep-alive-interval", "1s"]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let asked = Instant::now();
    let mut answer = cache.http.open(&narinfo_address(slow.out()), &[]);
    let headers_after = asked.elapsed();
    assert!(headers_after >= Duration::from_secs(1), "answered within the hold, after {headers_after:?}");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    assert_eq!(answer.header("content-type"), Some("text/x-nix-narinfo"));

    let mut body = Vec::new();
    let mut times = Vec::new();
    for _ in 0..4 {
        let line = answer.next_piece().expect("a line about the wait");
        times.push(asked.elapsed());
        let words = String::from_utf8(line.clone()).expect("text");
        assert!(line.len() >= 64 && words.starts_with("X-Ondine-Wait: position 1 of 1"), "{words:?}");
        assert!(words.ends_with('\n') && words.matches('\n').count() == 1, "not one line: {words:?}");
        body.extend(line);
    }
    // A busy machine may delay a line, and nothing sends one early.
    for (number, time) in (1..).zip(&times) {
        assert!(*time >= Duration::from_secs(number), "more than one a second: {times:?}");
    }
    assert!(times[3] < SOON, "not one every second: {times:?}");

    gate.open();
    let (rest, ending) = answer.read_to_end();
    assert_eq!(ending, Ending::Complete);
    body.extend(rest);
    let whole = Response { status: 200, headers: answer.headers.clone(), body };
    assert_narinfo(&whole, slow.out());
    // What comes after the wait is what everyone gets who asks now.
    let told = whole.text();
    let (told, now) = (without_wait_and_file(&told), cache.ask(slow.out()).text());
    assert_eq!(told, without_wait_and_file(&now));
}

#[test]
fn an_http_1_0_client_hears_nothing_until_the_true_status() {
    let cache = Cache::new(&["--hold", "0s"]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let script = format!("{}exit 3", gate.script("broken"));
    let broken = cache.store.instantiate(&Derivation::new("broken", &script));
    let request = |path: &Path| format!("GET {} HTTP/1.0\r\n\r\n", narinfo_address(path)).into_bytes();
    let address = cache.ondine.address().to_owned();
    let (nothing, closed) = raw(&address, &request(slow.out()), Duration::from_millis(1500));
    assert_eq!((String::from_utf8_lossy(&nothing).as_ref(), closed), ("", false));

    let [good, bad] = [slow.out(), broken.out()].map(|path| {
        let (address, request) = (address.clone(), request(path));
        std::thread::spawn(move || raw(&address, &request, SOON))
    });
    cache.wait_for_queue(&["slow", "broken"]);
    gate.open();
    let (good, closed) = good.join().expect("an answer");
    assert_eq!((status_of(&good), closed), (200, true));
    let good = String::from_utf8(good).expect("text");
    let (head, body) = good.split_once("\r\n\r\n").expect("a head and a body");
    assert!(!head.to_lowercase().contains("chunked"), "{head}");
    assert_eq!(field(body, "StorePath"), text(slow.out()));
    let (bad, closed) = bad.join().expect("an answer");
    assert_eq!((status_of(&bad), closed), (404, true));
    assert!(String::from_utf8_lossy(&bad).contains("failed (permanent)"));
}

// Many who ask.

#[test]
fn twenty_clients_at_once_have_one_build_and_get_the_same_narinfo() {
    let cache = Cache::new(&["--hold", "1s", "--keep-alive-interval", "1s"]);
    let gate = cache.store.gate();
    let wanted = cache.gated("wanted", &gate);
    let clients: Vec<Client> = (0..20).map(|_| cache.client(&[])).collect();
    let substituter = cache.ondine.substituter();
    let fetching: Vec<_> =
        clients.iter().map(|client| client.start_fetch(&substituter, &[wanted.out()])).collect();
    let asking: Vec<_> = (0..4).map(|_| cache.ask_in_background(wanted.out())).collect();
    gate.wait_for_starts(1);
    wait_until("all are connected", SOON, || connections(cache.ondine.address()) >= 24);
    assert_eq!(cache.queued(), ["wanted"]);
    gate.open();
    let answers: Vec<String> = asking
        .into_iter()
        .map(|asked| {
            let answer = asked.answer();
            assert_narinfo(&answer, wanted.out());
            answer.text()
        })
        .collect();
    for answer in &answers[1..] {
        assert_eq!(without_wait_and_file(answer), without_wait_and_file(&answers[0]));
    }
    for (client, fetch) in clients.iter().zip(fetching) {
        fetch.finish().must_succeed();
        assert_eq!(client.nar_digest(wanted.out()), nar_digest(wanted.out()));
    }
    assert_eq!(gate.starts(), ["wanted"], "built more than once");
}

#[test]
fn builds_run_one_after_the_other_in_the_order_asked_for() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let names = ["first", "second", "third"];
    let wanted = names.map(|name| cache.gated(name, &gate));
    let mut asked = Vec::new();
    for (number, wanted) in wanted.iter().enumerate() {
        asked.push(cache.ask_in_background(wanted.out()));
        cache.wait_for_queue(&names[..=number]);
    }
    gate.wait_for_starts(1);
    std::thread::sleep(TIME_TO_ERR);
    assert_eq!(gate.starts(), ["first"]);
    gate.open();
    for (asked, wanted) in asked.into_iter().zip(&wanted) {
        assert_narinfo(&asked.answer(), wanted.out());
    }
    assert_eq!(gate.starts(), names);
}

#[test]
fn what_is_there_is_answered_at_once_while_a_slow_build_runs() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let served = cache.store.instantiate(&Derivation::new("served", "echo served > \"$out\""));
    let valid = cache.store.instantiate(&Derivation::new("valid", "echo valid > \"$out\""));
    let broken = cache.store.instantiate(&failing("broken"));
    let narinfo = cache.ask(served.out()).text();
    assert_eq!(cache.ask(broken.out()).status, 404);
    cache.store.realise(&valid.drv);
    let waiting = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);

    let begun = Instant::now();
    assert_narinfo(&cache.ask(served.out()), served.out());
    assert_narinfo(&cache.ask(valid.out()), valid.out());
    assert_eq!(cache.http.get(&format!("/{}", field(&narinfo, "URL"))).status, 200);
    assert_missing(&cache.ask(broken.out()), &["failed (permanent)"]);
    assert_missing(&cache.http.get("/0123456789abcdfghijklmnpqrsvwxyz.narinfo"), &["unknown"]);
    assert_eq!(cache.http.get("/nix-cache-info").status, 200);
    assert!(begun.elapsed() < AT_ONCE, "six answers took {:?}", begun.elapsed());

    gate.open();
    assert_narinfo(&waiting.answer(), slow.out());
}

#[test]
fn two_outputs_of_one_derivation_share_one_build() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let script = format!("{}echo out > \"$out\"\necho lib > \"$lib\"", gate.script("both"));
    let both = cache.store.instantiate(&Derivation::new("both", &script).outputs(&["out", "lib"]));
    let asked = ["out", "lib"].map(|output| cache.ask_in_background(both.output(output)));
    gate.wait_for_starts(1);
    wait_until("both are connected", SOON, || connections(cache.ondine.address()) >= asked.len());
    std::thread::sleep(TIME_TO_ERR);
    assert_eq!(cache.queued(), ["both"]);
    gate.open();
    for (asked, output) in asked.into_iter().zip(["out", "lib"]) {
        assert_narinfo(&asked.answer(), both.output(output));
    }
    assert_eq!(gate.starts(), ["both"]);
}

#[test]
fn a_client_that_leaves_the_queue_does_not_disturb_the_build_before_it() {
    let cache = Cache::new(&["--hold", "0s"]);
    let gate = cache.store.gate();
    let [first, second] = ["first", "second"].map(|name| cache.gated(name, &gate));
    let waiting = cache.ask_in_background(first.out());
    gate.wait_for_starts(1);
    let mut leaving = cache.http.open(&narinfo_address(second.out()), &[]);
    leaving.next_piece().expect("a line about the wait");
    cache.wait_for_queue(&["first", "second"]);
    drop(leaving);
    gate.open();
    assert_narinfo(&waiting.answer(), first.out());
    assert_narinfo(&cache.ask(second.out()), second.out());
    assert_eq!(gate.starts(), ["first", "second"]);
}

#[test]
fn a_running_build_is_finished_though_its_client_has_left() {
    for hold in ["20s", "0s"] {
        let cache = Cache::new(&["--hold", hold]);
        let gate = cache.store.gate();
        let slow = cache.gated("slow", &gate);
        let mut stream = connect(cache.ondine.address());
        let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", narinfo_address(slow.out()));
        std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
        gate.wait_for_starts(1);
        hang_up(&stream);
        drop(stream);
        wait_until("the server sees that the client has left", SOON, || {
            connections(cache.ondine.address()) == 0
        });
        std::thread::sleep(TIME_TO_ERR);
        gate.open();
        // Nobody asks: nothing but the build itself can end it.
        wait_until("the build ends", SOON, || cache.queued().is_empty());
        assert_narinfo(&cache.http.get(&format!("/cached{}", narinfo_address(slow.out()))), slow.out());
        assert_eq!(gate.starts(), ["slow"]);
    }
}

// The daemon.

#[test]
fn a_build_whose_daemon_is_killed_is_tried_again_and_delivered() {
    let mut cache = Cache::new(&["--hold", "1s", "--keep-alive-interval", "1s"]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let client = cache.client(&[]);
    let fetch = client.start_fetch(&cache.ondine.substituter(), &[slow.out()]);
    let waiting = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);
    cache.daemon.restart();
    gate.wait_for_starts(2);
    gate.open();
    assert_narinfo(&waiting.answer(), slow.out());
    fetch.finish_within(SOON * 2).must_succeed();
    assert_eq!(gate.starts().len(), 2, "the build that was killed, and one more");
}

#[test]
fn without_a_daemon_a_request_ends_with_a_reason_and_the_next_works_once_it_is_back() {
    let mut cache = Cache::new(&["--transient-failure-ttl", "1s", "--transient-retry", "1s"]);
    let gate = cache.store.gate();
    let [slow, never_asked] = ["slow", "never-asked"].map(|name| cache.gated(name, &gate));
    let served = cache.store.instantiate(&Derivation::new("served", "echo served > \"$out\""));
    assert_narinfo(&cache.ask(served.out()), served.out());
    let waiting = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);
    cache.daemon.stop();
    let begun = Instant::now();
    assert_missing(
        &waiting.answer(),
        &["failed (transient)", support::addresses::base_name(&slow.drv), "daemon"],
    );
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());

    let begun = Instant::now();
    assert_narinfo(&cache.ask(served.out()), served.out());
    assert_missing(&cache.ask(never_asked.out()), &["daemon"]);
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    assert_eq!(cache.http.get("/readyz").status, 503);
    assert_eq!(cache.http.get("/healthz").status, 200);

    cache.daemon.restart();
    gate.open();
    std::thread::sleep(Duration::from_millis(1500));
    assert_narinfo(&cache.ask(slow.out()), slow.out());
    assert_narinfo(&cache.ask(never_asked.out()), never_asked.out());
}
