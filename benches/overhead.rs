//! Overhead of building on demand: the same two hundred trivial derivations realised by `nix-store`
//! through the daemon, and asked of Ondine, turn by turn, each time new ones. Ends with status 1 when a
//! target is missed.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::Cache;
use support::burst::{self, asked_at_once, realised};

const BUILDS: usize = 200;
const ROUNDS: usize = 5;
/// Milliseconds that Ondine may add to a build.
const ADDED_MAX: f64 = 15.0;

/// New derivations, in the store and not built: each with its output.
fn instantiate(cache: &Cache, round: &str) -> Vec<(PathBuf, PathBuf)> {
    burst::instantiate(&cache.store, &format!("trivial-{round}"), BUILDS, |n| format!("echo {n} > $out"))
}

/// Time to ask for one after the other.
fn asked_in_turn(cache: &Cache, wanted: &[(PathBuf, PathBuf)]) -> Duration {
    let begun = Instant::now();
    for (_, output) in wanted {
        assert_eq!(cache.ask(output).status, 200);
    }
    begun.elapsed()
}

/// Milliseconds of one build, in the middle of all rounds.
fn median(mut rounds: Vec<Duration>) -> f64 {
    rounds.sort_unstable();
    rounds[rounds.len() / 2].as_secs_f64() * 1000.0 / BUILDS as f64
}

fn main() -> ExitCode {
    let cache = Cache::new(&[]);
    let (mut nix, mut at_once, mut in_turn) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let new = |of: &str| instantiate(&cache, &format!("{of}{round}"));
        let (a, b, c) = (new("a"), new("b"), new("c"));
        nix.push(realised(&cache.store, &["--max-jobs", "1"], &a));
        at_once.push(asked_at_once(&cache, &b));
        in_turn.push(asked_in_turn(&cache, &c));
    }
    let (nix, at_once, in_turn) = (median(nix), median(at_once), median(in_turn));
    let added = at_once - nix;
    println!("{BUILDS} trivial builds, {ROUNDS} rounds, medians in milliseconds a build\n");
    println!("| | ms a build | added |\n|---|---|---|");
    println!("| nix-store --realise, through the daemon, one at a time | {nix:.1} | |");
    println!("| Ondine, all asked for at once | {at_once:.1} | {added:.1} |");
    println!("| Ondine, one after the other | {in_turn:.1} | {:.1} |", in_turn - nix);
    let held = added < ADDED_MAX;
    println!(
        "\nadded by the queue: {added:.1} ms, target < {ADDED_MAX} ms: {}",
        if held { "holds" } else { "MISSED" }
    );
    println!("{}", serde_json::json!({ "nix_ms": nix, "at_once_ms": at_once, "in_turn_ms": in_turn }));
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
