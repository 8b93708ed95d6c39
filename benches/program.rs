//! A program over plain HTTP (`/bin/<program>`), warm, beside nginx with the same file: the time to the first
//! byte of the contents, and the rate of a download, in turns. `cargo bench --bench program`. Ends with
//! status 1 when a target is missed.

// Of what compares servers, this needs the servers and the sink.
#[allow(dead_code)]
#[path = "../tests/simulation/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "serving/mod.rs"]
mod serving;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serving::machine;
use serving::requests::Wanted;
use serving::servers::{Server, need_nginx};
use serving::sink;
use serving::usage::Processes;
use support::addresses::narinfo_address;
use support::package_set::wait_for_generation;
use support::store::Folder;
use support::{Derivation, Http, NixStore, PackageSet, Release, wait_until};

/// Bytes of the program.
const BYTES: usize = 20 * 1024 * 1024;
/// Rounds, in each of which both take their turn, and samples of each in a round.
const ROUNDS: usize = 5;
const FIRST_BYTES: usize = 200;
const DOWNLOADS: usize = 60;
/// The time to the first byte at most, and the rate at least, as a part of that of nginx.
const FIRST_BYTE_MAX: Duration = Duration::from_millis(5);
const RATE_RATIO_MIN: f64 = 0.8;
/// Time limit of an answer.
const LIMIT: Duration = Duration::from_secs(60);

/// A server, and the address of the program there.
struct Contender {
    name: &'static str,
    address: SocketAddr,
    request: Vec<u8>,
    processes: Processes,
    first_bytes: Vec<Duration>,
    /// Bytes a second of each download, and the median of each round.
    rates: Vec<f64>,
    round_rates: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, address: SocketAddr, path: &str, server: u32) -> Contender {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").into_bytes();
        let processes = Processes { server, helpers: Vec::new() };
        let (first_bytes, rates, round_rates) = Default::default();
        Contender { name, address, request, processes, first_bytes, rates, round_rates }
    }

    fn round(&mut self) {
        for _ in 0..FIRST_BYTES {
            self.first_bytes.push(first_byte(self.address, &self.request));
        }
        let wanted = Wanted { request: self.request.clone(), nar_bytes: BYTES as u64 };
        let download = || sink::once(self.address, &wanted, &self.processes).expect("the program comes");
        let rates: Vec<f64> =
            (0..DOWNLOADS).map(|_| download()).map(|seen| BYTES as f64 / seen.used.seconds).collect();
        self.round_rates.push(median(&rates));
        self.rates.extend(rates);
    }
}

/// Time from the request to the first byte of the contents, on a connection of its own that is there before.
fn first_byte(address: SocketAddr, request: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_nodelay(true).expect("set");
    stream.set_read_timeout(Some(LIMIT)).expect("set");
    let begun = Instant::now();
    stream.write_all(request).expect("sent");
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut buffer).expect("an answer");
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&head));
        head.extend_from_slice(&buffer[..read]);
        let end = head.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        if end.is_some_and(|end| head.len() > end) {
            break;
        }
    }
    let took = begun.elapsed();
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head[..200.min(head.len())]));
    took
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn percentile(times: &[Duration], part: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[(times.len() - 1) * part / 100]
}

fn main() -> ExitCode {
    need_nginx();
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let script = format!(
        "mkdir -p $out/bin $out/share; head -c {BYTES} /dev/urandom > $out/bin/program; chmod +x $out/bin/program; \
         head -c 5000000 /dev/urandom > $out/share/more"
    );
    let set = PackageSet::new([("program".to_owned(), Derivation::new("program", &script).to_nix())]);
    let ondine = set.serve(&store, "build-from = ['catalogue']", "");
    wait_for_generation(&ondine);
    let http = Http::new(&ondine.url());
    let program = http.get("/bin/program");
    assert_eq!((program.status, program.body.len()), (200, BYTES));
    let narinfo = narinfo_address(&set.paths(&store, "program").1);
    wait_until("it is packed", LIMIT, || http.get(&narinfo).text().contains("FileSize: "));
    // Its uncompressed copy is made for the first request after that.
    assert_eq!(http.get("/bin/program").body, program.body);
    let (files, folder) = (Folder::new(), Folder::new());
    std::fs::write(files.path().join("program"), &program.body).expect("written");
    // What a server is asked for to see that it has started.
    std::fs::write(files.path().join("nix-cache-info"), "StoreDir: /nix/store\n").expect("written");
    let nginx = Server::nginx(files.path(), &folder);
    let running = nginx.start();
    let mut both = [
        Contender::new("Ondine", ondine.address().parse().expect("an address"), "/bin/program", ondine.id()),
        Contender::new("nginx", nginx.address, "/program", running.processes.server),
    ];
    for _ in 0..ROUNDS {
        both.iter_mut().for_each(Contender::round);
    }
    println!("{}\n", machine::conditions());
    println!("| a program of 20 MiB, warm | Ondine | nginx | wanted | |\n|---|---|---|---|---|");
    let [ours, theirs] = &both;
    let first = [ours, theirs].map(|it| [50, 99].map(|part| percentile(&it.first_bytes, part)));
    let cell = |[median, late]: [Duration; 2]| {
        format!("{:.2} / {:.2} ms", median.as_secs_f64() * 1e3, late.as_secs_f64() * 1e3)
    };
    let is_soon = first[0][0] <= FIRST_BYTE_MAX;
    println!(
        "| first byte, median / 99th percentile | {} | {} | median ≤ 5 ms | {} |",
        cell(first[0]),
        cell(first[1]),
        if is_soon { "met" } else { "missed" }
    );
    let ratios: Vec<f64> =
        ours.round_rates.iter().zip(&theirs.round_rates).map(|(ours, theirs)| ours / theirs).collect();
    let ratio = median(&ratios);
    let is_fast = ratio >= RATE_RATIO_MIN;
    let range =
        ratios.iter().fold((f64::MAX, f64::MIN), |(low, high), ratio| (low.min(*ratio), high.max(*ratio)));
    println!(
        "| rate of a download | {:.2} GB/s | {:.2} GB/s | ≥ 0.8 × nginx | {ratio:.2} ({:.2} to {:.2}), {} |",
        median(&ours.rates) / 1e9,
        median(&theirs.rates) / 1e9,
        range.0,
        range.1,
        if is_fast { "met" } else { "missed" }
    );
    for Contender { name, first_bytes, rates, .. } in &both {
        eprintln!("{name}: {} first bytes, {} downloads", first_bytes.len(), rates.len());
    }
    if is_soon && is_fast { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
