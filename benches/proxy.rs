//! Cost and gain of a cache behind: a client with an empty store fetches two hundred paths straight from
//! an xz cache made by `nix copy`, then through Ondine that has never seen them, then through Ondine that
//! has, turn by turn. Ends with status 1 when a target is missed.

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::derivations::row_of_programs;
use support::{
    BinaryCache, Client, Compression, FileServer, NixStore, Ondine, Release, Sample, Substituter, text,
};

const PATHS: usize = 200;
const ROUNDS: usize = 5;
/// Of the time straight from the upstream.
const COLD_MAX: f64 = 1.15;
const WARM_MAX: f64 = 0.6;

/// Time that a client with an empty store takes to fetch the closure.
fn fetched(store: &NixStore, from: &Substituter, sample: &Sample) -> Duration {
    let client = Client::new(Release::Host, &store.store_dir());
    let begun = Instant::now();
    client.fetch(from, &[&sample.path]).must_succeed();
    let took = begun.elapsed();
    assert!(client.has(&sample.closure[0]), "the client does not have all of it");
    took
}

fn median(rounds: &[Duration]) -> f64 {
    let mut rounds = rounds.to_vec();
    rounds.sort_unstable();
    rounds[rounds.len() / 2].as_secs_f64()
}

fn spread(rounds: &[Duration]) -> String {
    let (min, max) = (rounds.iter().min(), rounds.iter().max());
    let seconds = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64);
    format!("{:.2}-{:.2}", seconds(min), seconds(max))
}

fn main() -> ExitCode {
    let store = NixStore::new(Release::Host);
    let drv = store.nix_instantiate(&row_of_programs("row", PATHS, 11).to_nix()).swap_remove(0);
    let last = store.nix_store(&["--query", "--binding", &format!("o{PATHS}"), text(&drv)]);
    let sample = Sample::of(&store, drv, last.into());
    assert_eq!(sample.closure.len(), PATHS);
    let bytes: u64 = sample.closure.iter().map(|path| file_bytes(path)).sum();
    let cache: BinaryCache = sample.copied(&store, Compression::Xz);
    sample.collect_with_derivation(&store);
    let _daemon = store.daemon();
    let server = FileServer::new(cache.folder());
    let upstream = Substituter { url: server.url(), public_key: cache.public_key() };
    let flag = format!("{} {}", upstream.url, upstream.public_key);

    let (mut straight, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        straight.push(fetched(&store, &upstream, &sample));
        let ondine = Ondine::start(&store, &["--upstream", &flag]);
        cold.push(fetched(&store, &ondine.substituter(), &sample));
        warm.push(fetched(&store, &ondine.substituter(), &sample));
    }
    let base = median(&straight);
    println!(
        "{PATHS} paths, {:.0} MiB, {ROUNDS} rounds: seconds, medians and spreads\n",
        bytes as f64 / 1_048_576.0
    );
    println!("| | s | of all rounds | ratio | target |\n|---|---|---|---|---|");
    println!("| straight from the xz cache | {base:.2} | {} | 1 | |", spread(&straight));
    let mut held = true;
    for (name, rounds, most) in [("Ondine, cold", &cold, COLD_MAX), ("Ondine, warm", &warm, WARM_MAX)] {
        let ratio = median(rounds) / base;
        held &= ratio <= most;
        let word = if ratio <= most { "holds" } else { "MISSED" };
        println!("| {name} | {:.2} | {} | {ratio:.2} | <= {most}: {word} |", median(rounds), spread(rounds));
    }
    let seconds = |rounds: &[Duration]| rounds.iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
    println!(
        "{}",
        serde_json::json!({ "straight_s": seconds(&straight), "cold_s": seconds(&cold), "warm_s": seconds(&warm) })
    );
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Bytes of the program's piece in a path.
fn file_bytes(path: &std::path::Path) -> u64 {
    std::fs::metadata(path.join("bin/program")).map_or(0, |file| file.len())
}
