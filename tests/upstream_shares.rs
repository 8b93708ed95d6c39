//! One slow cache and many who ask: a client that asks for thousands of paths takes no other client's turn,
//! and whoever waits while the narinfos of a closure are looked up is told how far that is.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{base_name, narinfo_address};
use crate::support::derivations::{row_of_outputs, text_file};
use crate::support::{Cache, Compression, Fault, NixStore, Release, Sample, Upstream, text};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

/// Delay of each answer of the upstream.
const LATE: Duration = Duration::from_millis(500);
/// Hashes that the greedy client asks for: with 32 at a time, they take ten seconds.
const GREEDY: usize = 640;
/// Time limit of an honest client's wait, on a machine that does much else.
const HONEST_WITHIN: Duration = Duration::from_secs(5);

/// A connection from this address of the loopback interface.
fn connection(from: Ipv4Addr, to: &str) -> TcpStream {
    let to: SocketAddr = to.parse().expect("an address");
    let own = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&own, &SocketAddr::from((from, 0))).expect("all of 127.0.0.0/8 is this machine");
    connect(&own, &to).expect("the server listens");
    own.into()
}

fn ask(stream: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a new connection takes a request");
}

#[test]
fn a_client_that_asks_for_very_much_takes_nobody_elses_turn() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &text_file("sample", "text"));
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect_with_derivation(&store);
    let cache = Cache::behind(store, &[upstream.table("")], &[]);
    upstream.server.fault(".narinfo", Fault::Late(LATE));

    let greedy = Ipv4Addr::new(127, 0, 0, 2);
    let greedy: Vec<TcpStream> = (0..GREEDY)
        .map(|number| {
            let mut stream = connection(greedy, cache.ondine.address());
            ask(&mut stream, &format!("/{number:0>32}.narinfo"));
            stream
        })
        .collect();
    support::wait_until("the upstream is busy", Duration::from_secs(30), || {
        upstream.server.seen().len() >= 32
    });
    let begun = Instant::now();
    let mut honest = connection(Ipv4Addr::new(127, 0, 0, 3), cache.ondine.address());
    ask(&mut honest, &narinfo_address(&sample.path));
    let mut answer = String::new();
    honest.read_to_string(&mut answer).expect("an answer");
    let took = begun.elapsed();
    assert!(answer.contains(" 200 ") && answer.contains("StorePath: "), "{answer}");
    let asked = upstream.server.seen_of(".narinfo").len();
    assert!(asked < GREEDY, "the greedy one was done in {took:?}: this shows nothing");
    assert!(took < HONEST_WITHIN, "{took:?}");
    drop(greedy);
}

#[test]
fn who_waits_for_the_narinfos_of_a_closure_is_told_how_far_that_is() {
    let store = NixStore::new(Release::Host);
    let drv = store.nix_instantiate(&row_of_outputs("row", 12).to_nix()).swap_remove(0);
    let last = store.nix_store(&["--query", "--binding", "o12", text(&drv)]);
    let sample = Sample::of(&store, drv, last.into());
    let upstream = Upstream::of(sample.copied(&store, Compression::Zstd));
    sample.collect(&store);
    let arguments = ["--hold", "1s", "--keep-alive-interval", "1s", "--build-from"];
    let cache = Cache::behind(store, &[upstream.table("")], &arguments);
    upstream.server.fault(".narinfo", Fault::Late(Duration::from_secs(1)));
    // One refers to the next: they are looked up one after the other.
    for cached in ["", "/cached"] {
        let begun = Instant::now();
        let mut asked = cache.http.open(&format!("{cached}{}", narinfo_address(&sample.path)), &[]);
        let (body, ending) = asked.read_to_end();
        let body = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(ending, support::Ending::Complete, "{body}");
        assert!(body.contains(base_name(&sample.path)), "{body}");
        let told = body.lines().filter(|line| line.contains("what it refers to")).count();
        // The second time it is served.
        let expected = if cached.is_empty() { 3 } else { 0 };
        assert!(told >= expected, "{:?}: {body}", begun.elapsed());
    }
}
