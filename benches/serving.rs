//! Speed and cost of serving, beside nginx with the same answers as static files: both in
//! turns, each started anew, through 64 connections, large downloads and a stock client.
//! `cargo bench --bench serving`.

// Of the numbers that a simulation needs, data needs a part.
#[allow(dead_code)]
#[path = "../tests/simulation/random.rs"]
mod random;
#[path = "serving/mod.rs"]
mod serving;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use serving::data::{Data, FULL, QUICK};
use serving::load::Times;
use serving::machine;
use serving::parts::{Bench, Part};
use serving::report::Report;
use serving::requests::Requests;
use serving::servers::{Server, need_nginx};
use support::store::Folder;
use support::{text, wait_until};

/// Time that a person has to start the peers.
const PEERS_WITHIN: Duration = Duration::from_secs(1800);
/// Length of each measurement.
const TIMES: Times = Times { warm_up: Duration::from_millis(500), counted: Duration::from_secs(2) };
const QUICK_TIMES: Times = Times { warm_up: Duration::from_millis(100), counted: Duration::from_millis(500) };

/// Measures how Ondine serves, beside nginx.
#[derive(Parser)]
struct Flags {
    /// Measure these alone
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Little data and short measurements: to see that all works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Rounds, in each of which all servers take their turn [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Fail when a target is missed
    #[arg(long)]
    strict: bool,
    /// Another server of the same paths; the run waits until it is started
    #[arg(long, value_name = "NAME=URL", value_parser = |peer: &str| Server::peer(peer).map(|_| peer.to_owned()))]
    peer: Vec<String>,
    /// Program of an earlier build, which takes its turn on a state of its own
    #[arg(long, value_name = "FILE")]
    earlier: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    need_nginx();
    let rounds = flags.rounds.unwrap_or(if flags.quick { 1 } else { 3 });
    let (size, times) = if flags.quick { (QUICK, QUICK_TIMES) } else { (FULL, TIMES) };
    let data = Data::make(size);
    let folder = Folder::new();
    let ondine = Server::ondine(&data.cache, &data.cache.ondine.state_dir(), &data.files, &[]);
    let mut servers = vec![ondine, Server::nginx(data.files.path(), &folder)];
    let earlier_state = folder.path().join("earlier");
    if let Some(program) = &flags.earlier {
        servers.push(Server::earlier(program, &data.cache, &earlier_state, &data.files));
    }
    servers.extend(flags.peer.iter().map(|peer| Server::peer(peer).expect("it was parsed before")));
    if !flags.peer.is_empty() {
        wait_for_peers(&data, &servers);
    }
    let peers = servers.iter().filter(|server| !server.starts()).map(|server| server.name.clone()).collect();
    let servers = servers
        .into_iter()
        .map(|server| {
            let requests = Requests::of(&server, &server.start(), &data);
            (server, requests)
        })
        .collect();
    let mut bench = Bench { data: &data, servers, times, report: Report::new(peers) };
    for part in Part::value_variants() {
        if flags.only.is_empty() || flags.only.contains(part) {
            for round in 1..=rounds {
                let begun = Instant::now();
                bench.round(*part);
                eprintln!("{part:?}, round {round} of {rounds}: {:.1?}", begun.elapsed());
            }
        }
    }
    println!("{}\n{}", machine::conditions(), data.describe());
    let met = bench.report.print();
    // Beside the folder that cargo gives to benchmarks.
    let json = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("serving.json");
    support::store::write(&json, &format!("{:#}\n", bench.report.json()));
    println!("\nEvery sample: {}", json.display());
    if met || !flags.strict { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells where the store is, and waits until all peers answer.
fn wait_for_peers(data: &Data, servers: &[Server]) {
    eprintln!("start the peers now, on the store that these variables name:");
    for (name, value) in data.cache.store.variables() {
        eprintln!("    {name}={}", value.to_string_lossy());
    }
    eprintln!("the small paths are the closure of {}; the others:", text(&data.closure));
    eprintln!("    {}\n    {}", text(&data.large), text(&data.many));
    for server in servers.iter().filter(|server| !server.starts()) {
        wait_until(&format!("{} answers at {}", server.name, server.url()), PEERS_WITHIN, || {
            server.answers()
        });
    }
}
