//! Clients that leave, or stay and take nothing: whatever they sent, their places in the queue and their
//! descriptors are given back, and those who only wait are left alone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support;
use crate::support::addresses::{field, narinfo_address};
use crate::support::cache::{assert_narinfo, status_of};
use crate::support::derivations::noise;
use crate::support::http::connect;
use crate::support::{Cache, Derivation, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Sends a request for a path and what comes after it, and gives the connection that stays open.
fn ask(cache: &Cache, path: &std::path::Path, version: &str, after: &[u8]) -> TcpStream {
    let mut stream = connect(cache.ondine.address());
    let mut request = format!("GET {} HTTP/{version}\r\nHost: x\r\n\r\n", narinfo_address(path)).into_bytes();
    request.extend(after);
    stream.write_all(&request).expect("sent");
    stream
}

#[test]
fn a_client_that_leaves_gives_up_its_place_whatever_it_sent_after_its_request() {
    for hold in ["20s", "0s"] {
        let cache = Cache::new(&["--hold", hold, "--keep-alive-interval", "120s", "--abandon-after", "1s"]);
        let gate = cache.store.gate();
        let running = cache.gated("running", &gate);
        let _waits = cache.ask_in_background(running.out());
        gate.wait_for_starts(1);
        let open = cache.ondine.open_descriptors();

        let another = b"GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n";
        let much = vec![b'x'; 50 * 1024];
        // More than is read ahead: such a client is cut where it is.
        let too_much = vec![b'x'; 200 * 1024];
        let sent: [&[u8]; 6] = [b"", b"X", b"\r\n", another, &much, &too_much];
        let mut clients = Vec::new();
        for version in ["1.0", "1.1"] {
            for (number, after) in sent.iter().enumerate() {
                let name = format!("left-{number}-{version}");
                let wanted = cache.store.instantiate(&Derivation::new(&name, "echo > $out"));
                clients.push(ask(&cache, wanted.out(), version, after));
            }
        }
        // Only the one that is cut by itself has gone by then.
        wait_until("the others wait", SOON, || {
            let queued = cache.queued();
            queued.len() >= 11 && queued.iter().all(|name| name == "running" || name.starts_with("left-"))
        });
        // Some close their sending side alone, which is all that the server sees of the others, too.
        let half_closed = clients.split_off(6);
        for client in &half_closed {
            // One has been cut by then.
            let _ = client.shutdown(Shutdown::Write);
        }
        drop(clients);
        cache.wait_for_queue(&["running"]);
        wait_until("the descriptors are free", SOON, || cache.ondine.open_descriptors() < open + 6);
        drop(half_closed);
        gate.open();
    }
}

#[test]
fn a_client_that_sent_more_and_waits_is_answered_and_then_gets_what_it_asked_for_next() {
    let cache = Cache::new(&["--hold", "0s", "--keep-alive-interval", "1s"]);
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let mut stream = ask(&cache, slow.out(), "1.1", b"GET /nix-cache-info HTTP/1.1\r\n");
    cache.wait_for_queue(&["slow"]);
    // The rest of the second request comes while the first one waits, in two pieces.
    stream.write_all(b"Connection: close\r\n").expect("sent");
    std::thread::sleep(Duration::from_secs(4));
    stream.write_all(b"Host: x\r\n\r\n").expect("sent");
    assert_eq!(cache.queued(), ["slow"], "a client that waits was taken to have left");
    gate.open();
    let mut answers = Vec::new();
    stream.set_read_timeout(Some(SOON)).expect("a valid time-out");
    stream.read_to_end(&mut answers).expect("both answers, then the end");
    let answers = String::from_utf8(answers).expect("text");
    assert!(answers.contains("StorePath: ") && answers.contains("WantMassQuery: "), "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}

#[test]
fn a_client_that_closes_its_sending_side_still_gets_what_needs_no_build() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&Derivation::new("built", "echo built > $out"));
    cache.store.realise(&built.drv);
    // In the Nix store alone, so that the answer is not there at once; then in memory.
    for _ in 0..2 {
        let mut stream = ask(&cache, built.out(), "1.1", b"");
        stream.shutdown(Shutdown::Write).expect("it is open");
        stream.set_read_timeout(Some(SOON)).expect("a valid time-out");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer, then the end");
        assert_eq!(status_of(&answer), 200);
        assert!(String::from_utf8_lossy(&answer).contains("StorePath: "));
    }
}

#[test]
fn clients_that_never_read_are_cut_and_their_descriptors_are_free() {
    const CLIENTS: usize = 300;
    let cache = Cache::new(&["--write-timeout", "2s", "--hold", "0s", "--keep-alive-interval", "1s"]);
    let large = cache.store.instantiate(&noise("large", 24 << 20));
    let url = field(&cache.narinfo(large.out()), "URL").to_owned();
    let plain = url.replace(".nar.zst", ".nar");
    // Stored in both forms, so that both are sent from files; and a log, which is sent from memory.
    for url in [&url, &plain] {
        assert_eq!(cache.http.get(&format!("/{url}")).status, 200);
    }
    let gate = cache.store.gate();
    let slow = cache.gated("slow", &gate);
    let waiting = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);
    let open = cache.ondine.open_descriptors();
    let mut clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|number| {
            let mut stream = connect(cache.ondine.address());
            let url = [&url, &plain][number % 2];
            write!(stream, "GET /{url} HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
            stream
        })
        .collect();
    wait_until("they are answered", SOON, || cache.ondine.open_descriptors() > open + CLIENTS);
    // Some more than before: the index has opened its own meanwhile.
    wait_until("the descriptors are free", SOON, || cache.ondine.open_descriptors() < open + 20);
    // Nor does the system hold what they never took.
    for client in &mut clients {
        client.set_read_timeout(Some(SOON)).expect("a valid time-out");
        let ended = std::io::copy(client, &mut std::io::sink());
        assert!(ended.is_err(), "an answer that nobody read came to its end: {ended:?}");
    }
    drop(clients);
    // Whoever waits in silence meanwhile has lost nothing, nor has one that reads slowly.
    gate.open();
    assert_narinfo(&waiting.answer(), slow.out());
}

#[test]
fn a_client_that_reads_slowly_gets_all_of_it() {
    let cache = Cache::new(&["--write-timeout", "3s"]);
    let large = cache.store.instantiate(&noise("large", 24 << 20));
    let url = field(&cache.narinfo(large.out()), "URL").replace(".nar.zst", ".nar");
    let mut answer = cache.http.open(&format!("/{url}"), &[]);
    assert_eq!(answer.status, 200);
    let mut received = 0;
    for _ in 0..6 {
        // Longer than the time-out in all, and never in one piece.
        std::thread::sleep(Duration::from_secs(1));
        for _ in 0..32 {
            received += answer.next_piece().expect("more of it").len();
        }
    }
    let (rest, ending) = answer.read_to_end();
    assert_eq!(ending, support::Ending::Complete);
    assert!(received + rest.len() > 24 << 20, "{received}");
}
