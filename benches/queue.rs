//! What each order of builds is worth, on virtual time: the real queue and the real estimates through thirty times six
//! thousand requests, side by side with the targets. Ends with status 1 when a target is missed.

#[path = "../tests/simulation/mod.rs"]
mod simulation;

use std::process::ExitCode;
use std::time::Duration;

use ondine::build::queue::{Overtaking, Policy};
use simulation::random::Random;
use simulation::trace::Packages;
use simulation::{Fate, MAIN_LANE_SPEED, Rules, run};

const SEEDS: u64 = 30;

const fn overtaking(seconds: u64, share_percent: u32) -> Policy {
    Policy::Overtaking(Overtaking { budget: Duration::from_secs(seconds), share_percent })
}

/// Shortest first without a bound, for scale: a budget that nobody can exhaust.
const SHORTEST_FIRST: Policy = overtaking(1_000_000_000, 0);

/// One policy at one load: what became of the requests of each seed.
struct Runs(Vec<Vec<Fate>>);

impl Runs {
    fn new(policy: Policy, load: f64, etas: bool) -> Self {
        let seed = |seed| {
            let mut random = Random(seed);
            let packages = Packages::random(&mut random);
            let trace = packages.trace(&mut random, load);
            run(&packages, &trace, Rules { policy, restart_every: None, etas })
        };
        Self((0..SEEDS).map(seed).collect())
    }

    /// Mean wait of all requests of all seeds, in seconds.
    fn mean(&self) -> f64 {
        mean(self.0.iter().flatten().map(Fate::wait)) / 1000.0
    }

    /// The mean waits of each seed.
    fn means(&self) -> impl Iterator<Item = f64> {
        self.0.iter().map(|fates| mean(fates.iter().map(Fate::wait)))
    }

    /// The most that a request was later than due, beyond what `allowed` gives it, in seconds.
    fn beyond(&self, allowed: impl Fn(&Fate) -> f64) -> f64 {
        let late = self.0.iter().flatten().map(|fate| fate.regret() - allowed(fate));
        late.fold(f64::NEG_INFINITY, f64::max) / 1000.0
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value;
        count += 1.0;
    }
    sum / count
}

/// How much of what shortest-first would save a policy saves: pooled, and for the worst seed.
fn gain(fifo: &Runs, policy: &Runs, shortest: &Runs) -> (f64, f64) {
    let of = |fifo: f64, policy: f64, shortest: f64| (fifo - policy) / (fifo - shortest);
    let seeds = fifo.means().zip(policy.means()).zip(shortest.means());
    let worst = seeds.map(|((fifo, policy), shortest)| of(fifo, policy, shortest)).fold(1.0, f64::min);
    (of(fifo.mean(), policy.mean(), shortest.mean()), worst)
}

/// The printed table, and whether everything in it is as it should be.
struct Table {
    all_held: bool,
}

impl Table {
    fn row(&mut self, check: &str, target: &str, measured: &str, held: bool) {
        self.all_held &= held;
        println!("| {check} | {target} | {measured} | {} |", if held { "holds" } else { "MISSED" });
    }

    /// A bound on every request, in seconds beyond what is allowed.
    fn bound(&mut self, check: &str, beyond: f64) {
        self.row(check, "<= 0 s", &format!("{beyond:.3} s"), beyond <= 0.0);
    }

    fn gain(&mut self, check: &str, least: f64, (pooled, worst): (f64, f64)) {
        let measured = format!("{pooled:.2} (worst seed {worst:.2})");
        self.row(check, &format!(">= {least:.2}"), &measured, pooled >= least);
    }
}

fn main() -> ExitCode {
    let mut table = Table { all_held: true };
    println!("{SEEDS} seeds, {} requests each, virtual time\n", simulation::trace::REQUESTS);
    println!("| check | target | measured | |\n|---|---|---|---|");
    let mut scale = Vec::new();
    for load in [0.5, 0.7, 0.9] {
        let fifo = Runs::new(Policy::Strict, load, false);
        let shortest = Runs::new(SHORTEST_FIRST, load, false);
        let small = Runs::new(overtaking(300, 0), load, false);
        let large = Runs::new(overtaking(900, 10), load, false);
        let background = Runs::new(Policy::Background, load, false);
        let at = |what: &str| format!("{what}, load {load}");
        table.bound(&at("first come, first served: latest beyond its due time"), fifo.beyond(|_| 0.0));
        if load == 0.7 {
            let own_turn = mean(fifo.0.iter().flat_map(|fates| own_turn_waits(fates))) / 1000.0;
            let ratio = fifo.mean() / own_turn;
            table.row(&at("mean wait / at its own turn"), "<= 0.97", &format!("{ratio:.3}"), ratio <= 0.97);
        }
        table.bound(&at("300 s: latest beyond that"), small.beyond(|_| 300_000.0));
        if load == 0.7 {
            table.gain(
                &at("300 s: share of what shortest-first saves"),
                0.35,
                gain(&fifo, &small, &shortest),
            );
        }
        if load == 0.9 {
            table.gain(
                &at("300 s: share of what shortest-first saves"),
                0.20,
                gain(&fifo, &small, &shortest),
            );
        }
        let share = |fate: &Fate| 900_000.0 + 0.1 * fate.backlog;
        table.bound(&at("900 s + 10 %: latest beyond that"), large.beyond(share));
        if load == 0.7 {
            table.gain(
                &at("900 s + 10 %: share of what shortest-first saves"),
                0.50,
                gain(&fifo, &large, &shortest),
            );
        }
        // To the tick of the clock: in two lanes work is no whole number of milliseconds.
        let weight = |fate: &Fate| (1.0 / MAIN_LANE_SPEED - 1.0) * fate.backlog + 1.0;
        table.bound(&at("background lane: latest beyond its weight"), background.beyond(weight));
        scale.push((load, [small, large, background, shortest].map(|runs| runs.mean() / fifo.mean())));
    }
    let coverage = coverage(&Runs::new(Policy::Strict, 0.7, true));
    table.row(
        "80 % intervals that held, load 0.7",
        "0.75 to 0.85",
        &format!("{coverage:.3}"),
        (0.75..=0.85).contains(&coverage),
    );
    println!("\nmean wait / first come, first served\n");
    println!(
        "| load | 300 s | 900 s + 10 % | background lane | shortest first, no bound |\n|---|---|---|---|---|"
    );
    for (load, ratios) in scale {
        println!("| {load} | {} |", ratios.map(|ratio| format!("{ratio:.2}")).join(" | "));
    }
    if table.all_held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The waits if everyone were served at their own turn: not before anyone who asked earlier, unless nothing had to be
/// built.
fn own_turn_waits(fates: &[Fate]) -> Vec<f64> {
    let mut turn: f64 = 0.0;
    let wait = |fate: &Fate| {
        turn = turn.max(fate.delivered);
        if fate.wait() == 0.0 { 0.0 } else { turn - fate.arrived }
    };
    fates.iter().map(wait).collect()
}

/// The part of all requests that were delivered within the time they were told.
fn coverage(runs: &Runs) -> f64 {
    let told = runs.0.iter().flatten().filter_map(|fate| Some((fate.wait(), fate.eta?)));
    mean(told.map(|(wait, (low, high))| if (low..=high).contains(&wait) { 1.0 } else { 0.0 }))
}
