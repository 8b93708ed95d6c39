//! Cost and gain of builders over ssh: the time that a remote lane adds to a trivial build beside that of
//! Nix's own build hook, four builders beside one, and copies of inputs by several connections. Ends with
//! status 1 when a target is missed. With `-- --builds N` the second part has fewer builds, and `-- --copies`
//! does the copies alone.

#[path = "farm/copying.rs"]
mod copying;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::builder::settings;
use support::burst::{asked_at_once, instantiate, realised};
use support::{Builder, Cache, NixStore, Release, wait_until};

const ROUNDS: usize = 5;
/// Trivial builds of a round.
const TRIVIAL: usize = 40;
/// The same through the build hook, which takes more than a second for each.
const THROUGH_HOOK: usize = 4;
/// Milliseconds that a remote lane may add to a trivial build.
const ADDED_MAX: f64 = 50.0;
/// Builds of a second each.
const SECONDS: usize = 200;
const BUILDERS: usize = 4;
/// Speed of so many builders in proportion to one.
const GAIN_MIN: f64 = 3.6;

/// A server that builds on these machines alone.
fn serve(store: NixStore, builders: &[Builder]) -> Cache {
    let tables: String = builders.iter().map(|builder| builder.table("")).collect();
    let file = settings(&store, &format!("lanes = 0\n{tables}"));
    let cache = Cache::of(store, &["--config", &file, "--max-queued-per-client", "1000"], &[]);
    wait_until("all builders answer", Duration::from_secs(60), || {
        let listed = cache.http.get("/api/v1/builders").text();
        listed.matches("\"up\"").count() == builders.len()
    });
    cache
}

fn milliseconds(took: Duration, builds: usize) -> f64 {
    took.as_secs_f64() * 1000.0 / builds as f64
}

/// The middle one, the least and the most.
fn spread(mut rounds: Vec<f64>) -> (f64, f64, f64) {
    rounds.sort_unstable_by(f64::total_cmp);
    (rounds[rounds.len() / 2], rounds[0], rounds[rounds.len() - 1])
}

/// Milliseconds of a trivial build: on this machine, on a remote lane, and through the build hook.
fn trivial() -> [(f64, f64, f64); 3] {
    let store = NixStore::new(Release::Host);
    let builder = Builder::start(&store, &Release::Host, "far");
    let hook = format!("ssh-ng://root@127.0.0.1 x86_64-linux - {TRIVIAL} 1");
    let options = builder.ssh_options();
    let cache = serve(store, std::slice::from_ref(&builder));
    let (mut here, mut lane, mut by_hook) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let new = |of: &str, count| {
            instantiate(&cache.store, &format!("{of}{round}"), count, |n| format!("echo {n} > $out"))
        };
        let (local, remote, hooked) = (new("a", TRIVIAL), new("b", TRIVIAL), new("c", THROUGH_HOOK));
        here.push(milliseconds(realised(&cache.store, &["--max-jobs", "1"], &local), TRIVIAL));
        lane.push(milliseconds(asked_at_once(&cache, &remote), TRIVIAL));
        by_hook.push(milliseconds(through_hook(&cache, &hook, &options, &hooked), THROUGH_HOOK));
    }
    [here, lane, by_hook].map(spread)
}

/// Time of `nix-store --realise` by Nix's build hook, one build at a time.
fn through_hook(cache: &Cache, builders: &str, options: &str, wanted: &[(PathBuf, PathBuf)]) -> Duration {
    let begun = Instant::now();
    for (drv, _) in wanted {
        let arguments = ["--realise", "--max-jobs", "0", "--builders", builders, support::text(drv)];
        let mut command = cache.store.command("nix-store", &arguments);
        command.env("NIX_SSHOPTS", options);
        support::process::run(command).must_succeed();
    }
    begun.elapsed()
}

/// Seconds for all of the builds of a second each.
fn seconds_over(builders: usize, builds: usize) -> f64 {
    let store = NixStore::new(Release::Host);
    let machines: Vec<Builder> =
        (0..builders).map(|number| Builder::start(&store, &Release::Host, &format!("m{number}"))).collect();
    let cache = serve(store, &machines);
    let wanted =
        instantiate(&cache.store, "second", builds, |number| format!("sleep 1\necho {number} > $out"));
    asked_at_once(&cache, &wanted).as_secs_f64()
}

/// Number after a flag.
fn number_after(flag: &str) -> Option<usize> {
    std::env::args().skip_while(|word| word != flag).nth(1)?.parse().ok()
}

/// Prints the time of copies by several connections.
fn print_copies(copies: &[(u64, Vec<(usize, f64)>)]) {
    for (delay_ms, by_connections) in copies {
        let by: Vec<String> = by_connections.iter().map(|(n, took)| format!("{n}: {took:.2} s")).collect();
        let megabytes = copying::megabytes();
        println!(
            "| {megabytes} MiB to a builder {delay_ms} ms away, by connections | {} | | |",
            by.join(", ")
        );
    }
}

fn main() -> ExitCode {
    if std::env::args().any(|word| word == "--copies") {
        print_copies(&copying::seconds());
        return ExitCode::SUCCESS;
    }
    let builds = number_after("--builds").unwrap_or(SECONDS);
    let [(here, ..), (lane, lane_min, lane_max), (hook, hook_min, hook_max)] = trivial();
    let added = lane - here;
    let one = seconds_over(1, builds);
    let all = seconds_over(BUILDERS, builds);
    let gain = one / all;
    let word = |held: bool| if held { "" } else { "missed" };
    println!(
        "{ROUNDS} rounds of {TRIVIAL} trivial builds ({THROUGH_HOOK} by the hook), one at a time; medians\n"
    );
    println!("| | measured | wanted | |\n|---|---|---|---|");
    println!("| a trivial build by the daemon of this machine | {here:.0} ms | | |");
    println!(
        "| the same on another machine, over ssh | {lane:.0} ms ({lane_min:.0} to {lane_max:.0}), {added:.0} ms \
         more | ≤ {ADDED_MAX:.0} ms more | {} |",
        word(added <= ADDED_MAX)
    );
    println!("| the same by Nix's build hook | {hook:.0} ms ({hook_min:.0} to {hook_max:.0}) | | |");
    println!(
        "| {builds} builds of 1 s on {BUILDERS} builders, beside one | {all:.1} s beside {one:.1} s: {gain:.2} \
         times as fast | ≥ {GAIN_MIN} | {} |",
        word(gain >= GAIN_MIN)
    );
    let copies = copying::seconds();
    print_copies(&copies);
    println!(
        "{}",
        serde_json::json!({
            "bench": "farm", "local_ms": here, "lane_ms": lane, "hook_ms": hook, "builds": builds,
            "one_s": one, "all_s": all, "gain": gain, "copies": copies,
        })
    );
    if added <= ADDED_MAX && gain >= GAIN_MIN { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
