//! How the cache grows: the same questions to an index of ten thousand paths, of a hundred thousand and of a million, and from
//! one connection to ten thousand. `cargo bench --bench scale`; `-- --paths 10000,10000000` takes other sizes.

// Of what compares servers, this needs the load and the accounts.
#[allow(dead_code)]
#[path = "serving/mod.rs"]
mod serving;
#[path = "../tests/support/mod.rs"]
mod support;

#[path = "scale/grown.rs"]
mod grown;
#[allow(dead_code)]
#[path = "../tests/simulation/random.rs"]
mod random;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::json;

use grown::Grown;
use serving::load::{self, Times};
use serving::machine;
use serving::servers::{Running, Server};
use support::Cache;
use support::store::{Folder, write};

/// Connections under which requests are counted.
const CONNECTIONS: usize = 64;
/// From one client to very many.
const CROWDS: [usize; 4] = [1, CONNECTIONS, 1_000, 10_000];
/// Paths that everyone asks for: a cache serves many, and few of them to most.
const POPULAR: usize = 2_000;
/// Paths that are asked for once in a while: more than are kept in memory.
const RARE: usize = 100_000;
/// Hashes that nobody knows.
const UNKNOWN: usize = 100_000;
/// Answers of which each took its time, one after the other.
const ONE_BY_ONE: usize = 20_000;
/// Paths of one closure that is published, and how many are.
const CLOSURES: (usize, usize) = (50, 40);
/// Starts, of which the middle one counts.
const STARTS: usize = 5;
/// How long a server is left alone before its memory counts: what it does beside the start is done by then.
const SETTLED: Duration = Duration::from_secs(4);
const TIMES: Times = Times { warm_up: Duration::from_secs(1), counted: Duration::from_secs(2) };

/// How much worse the largest index may be than the smallest.
const GROWTH_MAX: f64 = 1.15;
/// Mebibytes with a million paths, and milliseconds to the first answer.
const MEMORY_MAX: f64 = 64.0;
const START_MAX: f64 = 8.0;

/// Measures how the cache grows.
#[derive(Parser)]
struct Flags {
    /// Paths in the index, each more than the one before
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    paths: Vec<u64>,
    /// Fail when a target is missed
    #[arg(long)]
    strict: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A row of the table: a number for each size.
struct Row {
    name: &'static str,
    unit: &'static str,
    values: Vec<f64>,
    wanted: Wanted,
}

/// What is wanted of a row.
#[derive(Clone, Copy)]
enum Wanted {
    Nothing,
    /// That it stays as small as it is at the smallest size, within [`GROWTH_MAX`].
    FlatCost,
    /// That it stays as large.
    FlatSpeed,
    /// At most so much, up to so many paths.
    AtMost(f64, u64),
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    CROWDS.into_iter().for_each(support::crowd::raise_descriptor_limit);
    let mut cache = Cache::new(&[]);
    assert!(cache.ondine.sigterm().success());
    let logs = Folder::new();
    let server = Server::ondine(&cache, &cache.ondine.state_dir(), &logs);
    let mut rows: Vec<Row> = Vec::new();
    let mut grown = Grown::open(&cache);
    for paths in &flags.paths {
        grown.grow(*paths);
        eprintln!("{paths} paths: the index has {} MiB", grown.bytes() >> 20);
        measure(&server, &mut grown, &mut rows);
    }
    let crowds = crowds(&server, &grown);
    let met = print(&flags.paths, &rows, &crowds);
    if met || !flags.strict { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All rows at the size that `grown` has now.
fn measure(server: &Server, grown: &mut Grown, rows: &mut Vec<Row>) {
    let mut add =
        |name, unit, wanted, value| match rows.iter_mut().find(|row| (row.name, row.unit) == (name, unit)) {
            Some(row) => row.values.push(value),
            None => rows.push(Row { name, unit, values: vec![value], wanted }),
        };
    let mut starts: Vec<f64> =
        (0..STARTS).map(|_| server.start().to_first_answer.as_secs_f64() * 1e3).collect();
    starts.sort_unstable_by(f64::total_cmp);
    add("start to the first answer", "ms", Wanted::AtMost(START_MAX, u64::MAX), starts[STARTS / 2]);

    let running = server.start();
    std::thread::sleep(SETTLED);
    add("memory, idle", "MiB", Wanted::AtMost(MEMORY_MAX, 1_000_000), resident(&running));
    let narinfo = |hash: String| server.request(&format!("/{hash}.narinfo"), "");
    let popular: Vec<_> = grown.some(POPULAR).map(narinfo).collect();
    let rare: Vec<_> = grown.some(RARE).map(narinfo).collect();
    let unknown: Vec<_> =
        grown.unknown(UNKNOWN).map(|hash| server.request(&server.miss_address(&hash), "")).collect();
    for (what, requests, status, flat) in [
        ("hit, popular", &popular, *b"200", true),
        ("hit, rare", &rare, *b"200", false),
        ("miss", &unknown, *b"404", true),
    ] {
        let wanted = |wanted| if flat { wanted } else { Wanted::Nothing };
        let seen = load::measure(server.address, CONNECTIONS, requests, status, &running.processes, TIMES);
        let load::Seen { answers, used } = seen.expect("the server answers");
        add(what, "requests/s", wanted(Wanted::FlatSpeed), answers / used.seconds);
        add(what, "CPU µs/request", wanted(Wanted::FlatCost), used.server * 1e6 / answers);
        let taken = load::latencies(server.address, requests, status, |taken| taken < ONE_BY_ONE);
        let taken = taken.expect("the server answers");
        add(what, "µs, median", wanted(Wanted::FlatCost), micros(taken[ONE_BY_ONE / 2]));
        add(what, "µs, p99", Wanted::Nothing, micros(taken[ONE_BY_ONE * 99 / 100]));
    }
    add("memory, after all that", "MiB", Wanted::AtMost(MEMORY_MAX, 1_000_000), resident(&running));
    drop(running);
    let seconds = grown.publish(CLOSURES).as_secs_f64();
    add("closures published", "paths/s", Wanted::Nothing, (CLOSURES.0 * CLOSURES.1) as f64 / seconds);
}

/// The same few paths asked for on more and more connections: requests/s, CPU µs a request, and MiB that are resident.
fn crowds(server: &Server, grown: &Grown) -> Vec<(usize, f64, f64, f64)> {
    let requests: Vec<_> =
        grown.some(POPULAR).map(|hash| server.request(&format!("/{hash}.narinfo"), "")).collect();
    let of = |connections| {
        let running = server.start();
        let seen = load::measure(server.address, connections, &requests, *b"200", &running.processes, TIMES);
        let load::Seen { answers, used } = seen.expect("the server answers");
        (connections, answers / used.seconds, used.server * 1e6 / answers, resident(&running))
    };
    CROWDS.into_iter().map(of).collect()
}

fn resident(running: &Running) -> f64 {
    running.processes.memory().resident as f64 / f64::from(1 << 20)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Prints the tables, and leaves the same as JSON. Whether all targets are met.
fn print(sizes: &[u64], rows: &[Row], crowds: &[(usize, f64, f64, f64)]) -> bool {
    let columns: Vec<String> = sizes.iter().map(|paths| format!("{paths} paths")).collect();
    println!(
        "{}\n\n| | | {} | growth | |\n|---|---|{}---|---|",
        machine::conditions(),
        columns.join(" | "),
        "---|".repeat(sizes.len())
    );
    let mut met = true;
    for row in rows {
        let holds = row.holds(sizes);
        met &= holds != Some(false);
        let said = holds.map_or("", |holds| if holds { "ok" } else { "MISSED" });
        let values: Vec<String> = row.values.iter().map(|value| format!("{value:.1}")).collect();
        println!("| {} | {} | {} | {:.2} x | {said} |", row.name, row.unit, values.join(" | "), row.growth());
    }
    println!("\n| connections | requests/s | CPU µs/request | MiB |\n|---|---|---|---|");
    for (connections, rate, cost, memory) in crowds {
        println!("| {connections} | {rate:.0} | {cost:.1} | {memory:.1} |");
    }
    let listed = rows.iter().map(|row| {
        json!({"name": row.name, "unit": row.unit, "values": row.values, "growth": row.growth(), "holds": row.holds(sizes)})
    });
    let crowds = crowds.iter().map(|(connections, rate, cost, memory)| {
        json!({"connections": connections, "requests_per_second": rate, "cpu_micros": cost, "resident_mebibytes": memory})
    });
    let report = json!({
        "bench": "scale", "conditions": machine::conditions(), "paths": sizes, "rows": listed.collect::<Vec<_>>(), "crowds": crowds.collect::<Vec<_>>(),
    });
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("scale.json");
    write(&file, &format!("{report:#}\n"));
    println!("\nThe same as JSON: {}", file.display());
    met
}

impl Row {
    /// The largest size in proportion to the smallest.
    fn growth(&self) -> f64 {
        self.values.last().expect("there is a size") / self.values[0]
    }

    /// Whether it is as wanted, if something is wanted of it.
    fn holds(&self, sizes: &[u64]) -> Option<bool> {
        match self.wanted {
            Wanted::Nothing => None,
            Wanted::FlatCost => Some(self.growth() <= GROWTH_MAX),
            Wanted::FlatSpeed => Some(self.growth() >= 1.0 / GROWTH_MAX),
            Wanted::AtMost(most, paths) => {
                Some(self.values.iter().zip(sizes).all(|(value, size)| *size > paths || *value <= most))
            }
        }
    }
}
