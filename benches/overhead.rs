//! Overhead of building on demand: the same two hundred trivial derivations realised by `nix-store`
//! through the daemon, and asked of Ondine, turn by turn, each time new ones. Ends with status 1 when a
//! target is missed.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::addresses::narinfo_address;
use support::http::connect;
use support::{Cache, Derivation, text};

const BUILDS: usize = 200;
const ROUNDS: usize = 5;
/// Milliseconds that Ondine may add to a build.
const ADDED_MAX: f64 = 15.0;

/// New derivations, in the store and not built: each with its output.
fn instantiate(cache: &Cache, round: &str) -> Vec<(PathBuf, PathBuf)> {
    let trivial = |n| Derivation::new(&format!("trivial-{round}-{n}"), &format!("echo {n} > $out")).to_nix();
    let all: Vec<String> = (0..BUILDS).map(trivial).collect();
    let drvs = cache.store.nix_instantiate(&format!("[ {} ]", all.join(" ")));
    let mut arguments = vec!["--query", "--outputs"];
    arguments.extend(drvs.iter().map(|drv| text(drv)));
    let outputs: Vec<PathBuf> = cache.store.nix_store(&arguments).lines().map(PathBuf::from).collect();
    assert_eq!((drvs.len(), outputs.len()), (BUILDS, BUILDS));
    drvs.into_iter().zip(outputs).collect()
}

/// Time of `nix-store --realise`, told to build one at a time.
fn realised(cache: &Cache, wanted: &[(PathBuf, PathBuf)]) -> Duration {
    let mut arguments = vec!["--realise", "--max-jobs", "1"];
    arguments.extend(wanted.iter().map(|(drv, _)| text(drv)));
    let command = cache.store.command_through_daemon("nix-store", &arguments);
    let begun = Instant::now();
    support::process::run(command).must_succeed();
    begun.elapsed()
}

/// Time until the last of all is served, asked for all at once, each in its own connection.
fn asked_at_once(cache: &Cache, wanted: &[(PathBuf, PathBuf)]) -> Duration {
    let begun = Instant::now();
    let asked: Vec<_> = wanted
        .iter()
        .map(|(_, output)| {
            let mut stream = connect(cache.ondine.address());
            let address = narinfo_address(output);
            let request = format!("GET {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("sent");
            stream
        })
        .collect();
    for mut stream in asked {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\nStorePath: "), "{answer}");
    }
    begun.elapsed()
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
        nix.push(realised(&cache, &a));
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
