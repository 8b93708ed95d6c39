//! Many small derivations that are asked for at once, for benchmarks.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::addresses::narinfo_address;
use super::cache::Cache;
use super::derivations::Derivation;
use super::http::connect;
use super::store::{NixStore, text};

/// Derivations in a store that are not built, each with its output: `script(n)` is that of number `n`.
#[track_caller]
pub fn instantiate(
    store: &NixStore,
    name: &str,
    count: usize,
    script: impl Fn(usize) -> String,
) -> Vec<(PathBuf, PathBuf)> {
    let one = |number| Derivation::new(&format!("{name}-{number}"), &script(number)).to_nix();
    let all: Vec<String> = (0..count).map(one).collect();
    let drvs = store.nix_instantiate(&format!("[ {} ]", all.join(" ")));
    let mut arguments = vec!["--query", "--outputs"];
    arguments.extend(drvs.iter().map(|drv| text(drv)));
    let outputs: Vec<PathBuf> = store.nix_store(&arguments).lines().map(PathBuf::from).collect();
    assert_eq!((drvs.len(), outputs.len()), (count, count));
    drvs.into_iter().zip(outputs).collect()
}

/// Time until the last of these is served, asked for all at once, each in its own connection.
#[track_caller]
pub fn asked_at_once(cache: &Cache, wanted: &[(PathBuf, PathBuf)]) -> Duration {
    let begun = Instant::now();
    let ask = |output: &PathBuf| {
        let mut stream = connect(cache.ondine.address());
        let address = narinfo_address(output);
        let request = format!("GET {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("a new connection takes a request");
        stream
    };
    let asked: Vec<_> = wanted.iter().map(|(_, output)| ask(output)).collect();
    for mut stream in asked {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\nStorePath: "), "{answer}");
    }
    begun.elapsed()
}

/// Time of `nix-store --realise` through the store's daemon, with these arguments.
#[track_caller]
pub fn realised(store: &NixStore, arguments: &[&str], wanted: &[(PathBuf, PathBuf)]) -> Duration {
    let mut all = vec!["--realise"];
    all.extend(arguments);
    all.extend(wanted.iter().map(|(drv, _)| text(drv)));
    let command = store.command_through_daemon("nix-store", &all);
    let begun = Instant::now();
    super::process::run(command).must_succeed();
    begun.elapsed()
}
