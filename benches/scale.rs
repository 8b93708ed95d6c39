//! Growth of the cache: the same questions to indexes of ten thousand paths, of a hundred thousand and of a
//! million, in turns, and from one connection to ten thousand. `cargo bench --bench scale`;
//! `-- --paths 10000,10000000` takes other sizes.

// Of what compares servers, this needs the load and the accounts.
#[allow(dead_code)]
#[path = "serving/mod.rs"]
mod serving;
#[path = "../tests/support/mod.rs"]
mod support;

#[path = "scale/grown.rs"]
mod grown;
// Of what several servers share, this needs nothing.
#[allow(dead_code)]
#[path = "scale/pinned.rs"]
mod pinned;
#[allow(dead_code)]
#[path = "../tests/simulation/random.rs"]
mod random;
#[path = "scale/table.rs"]
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;

use grown::Grown;
use pinned::Pinned;
use serving::load::{self, Times};
use serving::machine;
use serving::servers::{Running, Server};
use support::Cache;
use support::store::{Folder, write};
use table::{Table, Wanted};

/// Connections under which requests are counted.
const CONNECTIONS: usize = 64;
/// From one client to very many.
const CROWDS: [usize; 4] = [1, CONNECTIONS, 1_000, 10_000];
/// Paths that everyone asks for: a cache serves many, and few of them to most.
const POPULAR: usize = 2_000;
/// Paths that are asked for once in a while, by a server that keeps no narinfos in memory.
const RARE: usize = 100_000;
/// Hashes that nobody knows.
const UNKNOWN: usize = 100_000;
/// Answers of which each took its time, one after the other. The 99th percentile is what the kernel's clock
/// and other machines on this hardware make it: of fewer answers it would be a matter of chance.
const ONE_BY_ONE: usize = 100_000;
/// Paths of one closure that is published, and how many are.
const CLOSURES: (usize, usize) = (50, 20);
/// Starts in a round.
const STARTS: usize = 5;
const TIMES: Times = Times { warm_up: Duration::from_secs(1), counted: Duration::from_secs(2) };

/// Mebibytes with a million paths, and milliseconds to the first answer.
const MEMORY_MAX: f64 = 64.0;
const START_MAX: f64 = 8.0;

/// Measures how the cache grows.
#[derive(Parser)]
struct Flags {
    /// Paths in the index, each more than the one before; ten million take 9 GB of disk, and minutes to make
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    paths: Vec<u64>,
    /// Rounds, in each of which all sizes take their turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure the server alone, and publish nothing: the index may be that of another program
    /// (ONDINE_TEST_PROGRAM), with a schema that this one does not know
    #[arg(long)]
    served: bool,
    /// Fail when a target is missed
    #[arg(long)]
    strict: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// An index, and who serves it.
struct Sized {
    grown: Grown,
    /// With the settings that it has by itself.
    server: Server,
    /// The same without narinfos in memory: each hit is read from the index.
    forgetful: Server,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    CROWDS.into_iter().for_each(support::crowd::raise_descriptor_limit);
    let mut cache = Cache::new(&[]);
    assert!(cache.ondine.sigterm().success());
    let logs = Folder::new();
    let mut sizes: Vec<Sized> = flags.paths.iter().map(|paths| Sized::new(&cache, *paths, &logs)).collect();
    let mut table = Table::new(&flags.paths);
    for round in 1..=flags.rounds {
        for (size, sized) in sizes.iter().enumerate() {
            let begun = Instant::now();
            let mut add = |name, unit, wanted, value| table.add(name, unit, wanted, size, value);
            sized.measure(&mut add);
            eprintln!(
                "{} paths, round {round} of {}: {:.1?}",
                flags.paths[size],
                flags.rounds,
                begun.elapsed()
            );
        }
    }
    let crowds = sizes.last().expect("there is a size").crowds();
    let publishing = if flags.served { 0 } else { flags.rounds };
    for _ in 0..publishing {
        for (size, sized) in sizes.iter_mut().enumerate() {
            table.add("closures published", "paths/s", Wanted::FlatSpeed, size, sized.published_rate());
        }
    }
    println!("{}\n", machine::conditions());
    let met = table.print();
    println!("\n| connections | requests/s | CPU µs/request | MiB |\n|---|---|---|---|");
    for (connections, rate, cost, memory) in &crowds {
        println!("| {connections} | {rate:.0} | {cost:.1} | {memory:.1} |");
    }
    let crowds = crowds.iter().map(|(connections, rate, cost, memory)| {
        json!({"connections": connections, "requests_per_second": rate, "cpu_micros": cost, "resident_mebibytes": memory})
    });
    let report = json!({
        "bench": "scale", "conditions": machine::conditions(), "paths": flags.paths, "rows": table.json(),
        "crowds": crowds.collect::<Vec<_>>(),
    });
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("scale.json");
    write(&file, &format!("{report:#}\n"));
    println!("\nEvery sample: {}", file.display());
    if met || !flags.strict { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Sized {
    fn new(cache: &Cache, paths: u64, logs: &Folder) -> Sized {
        let begun = Instant::now();
        let grown = Grown::new(cache, paths);
        eprintln!(
            "{paths} paths: the index has {} MiB, made in {:.1?}",
            grown.bytes() >> 20,
            begun.elapsed()
        );
        let server = |arguments: &[&str]| Server::ondine(cache, grown.state_dir(), logs, arguments);
        let (server, forgetful) = (server(&[]), server(&["--narinfo-memory-bytes", "0"]));
        Sized { grown, server, forgetful }
    }

    /// All rows of a server, once.
    fn measure(&self, add: &mut impl FnMut(&'static str, &'static str, Wanted, f64)) {
        for _ in 0..STARTS {
            let millis = self.server.start().to_first_answer.as_secs_f64() * 1e3;
            add("start to the first answer", "ms", Wanted::AtMost(START_MAX, u64::MAX), millis);
        }
        let running = self.server.settled();
        add("memory, idle", "MiB", Wanted::AtMost(MEMORY_MAX, 1_000_000), resident(&running));
        let popular = self.narinfos(&self.server, POPULAR);
        let unknown = self.grown.unknown(UNKNOWN).map(|hash| self.server.miss_address(&hash));
        let unknown: Vec<_> = unknown.map(|address| self.server.request(&address, "")).collect();
        serve(&self.server, &running, "hit, popular", &popular, *b"200", true, add);
        serve(&self.server, &running, "miss", &unknown, *b"404", true, add);
        add("memory, after both", "MiB", Wanted::AtMost(MEMORY_MAX, 1_000_000), resident(&running));
        drop(running);

        let rare = self.narinfos(&self.forgetful, RARE);
        let running = self.forgetful.settled();
        serve(&self.forgetful, &running, "hit, from the index", &rare, *b"200", false, add);
    }

    /// Paths a second that are published, by this build's library.
    fn published_rate(&mut self) -> f64 {
        (CLOSURES.0 * CLOSURES.1) as f64 / self.grown.publish(CLOSURES).as_secs_f64()
    }

    /// Requests for so many paths that are there.
    fn narinfos(&self, server: &Server, count: usize) -> Vec<Vec<u8>> {
        self.grown.some(count).map(|hash| server.request(&format!("/{hash}.narinfo"), "")).collect()
    }

    /// The same few paths asked for on more and more connections: requests/s, CPU µs a request, and MiB that
    /// are resident.
    fn crowds(&self) -> Vec<(usize, f64, f64, f64)> {
        let requests = self.narinfos(&self.server, POPULAR);
        let of = |connections| {
            let running = self.server.settled();
            let processes = &running.processes;
            let seen =
                load::measure(&[self.server.address], connections, &requests, *b"200", processes, TIMES);
            let load::Seen { answers, used } = seen.expect("the server answers");
            (connections, answers / used.seconds, used.server * 1e6 / answers, resident(&running))
        };
        CROWDS.into_iter().map(of).collect()
    }
}

/// The rate and the cost of these requests on many connections, and what they take one after the other on one
/// core.
fn serve(
    server: &Server,
    running: &Running,
    what: &'static str,
    requests: &[Vec<u8>],
    status: [u8; 3],
    flat: bool,
    add: &mut impl FnMut(&'static str, &'static str, Wanted, f64),
) {
    let wanted = |wanted| if flat { wanted } else { Wanted::Nothing };
    let seen = load::measure(&[server.address], CONNECTIONS, requests, status, &running.processes, TIMES);
    let load::Seen { answers, used } = seen.expect("the server answers");
    add(what, "requests/s", wanted(Wanted::FlatSpeed), answers / used.seconds);
    add(what, "CPU µs/request", wanted(Wanted::FlatCost), used.server * 1e6 / answers);
    let alone = Pinned::together(&running.processes);
    let taken = load::latencies(server.address, requests, status, |taken| taken < ONE_BY_ONE);
    drop(alone);
    let taken = taken.expect("the server answers");
    add(what, "µs, median", wanted(Wanted::FlatCost), micros(taken[ONE_BY_ONE / 2]));
    add(what, "µs, p99", wanted(Wanted::FlatCost), micros(taken[ONE_BY_ONE * 99 / 100]));
}

fn resident(running: &Running) -> f64 {
    running.processes.memory().resident as f64 / f64::from(1 << 20)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
