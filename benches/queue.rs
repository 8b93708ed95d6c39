//! Gain of each order of builds, and of pre-building, on virtual time: the real queue and the real
//! estimates through thirty times six thousand requests, and thirty weeks, side by side with the targets.
//! Ends with status 1 when a target is missed.

#[path = "../tests/simulation/mod.rs"]
mod simulation;

use std::process::ExitCode;
use std::thread;

use ondine::build::queue::Policy;
use simulation::bump::{AROUND_THE_CLOCK, DAY, MOST_BY_DAY, random_week};
use simulation::idle::{ALWAYS, run_week, used};
use simulation::trace::{REQUESTS, random_trace};
use simulation::{Fate, Outcome, Rules, adversary, overtaking, run, yardstick};

const SEEDS: u64 = 30;
const SMALL_BUDGET: Policy = overtaking(300, 0);
const LARGE_BUDGET: Policy = overtaking(900, 10);
/// The policies, and what may make a request later than due.
const POLICIES: [(Policy, &str); 4] = [
    (Policy::Strict, "first come, first served"),
    (SMALL_BUDGET, "300 s"),
    (LARGE_BUDGET, "900 s + 10 %"),
    (Policy::Background, "background lane"),
];

/// The load of each week, and how many percent of the requests come by day.
const WEEKS: [(f64, u64); 4] =
    [(0.2, MOST_BY_DAY), (0.4, MOST_BY_DAY), (0.6, MOST_BY_DAY), (0.4, AROUND_THE_CLOCK)];

/// One number for each seed, side by side.
fn each_seed<T: Send>(of: impl Fn(u64) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let runs: Vec<_> = (0..SEEDS)
            .map(|seed| {
                scope.spawn({
                    let of = &of;
                    move || of(seed)
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().expect("a run comes to its end")).collect()
    })
}

fn runs(load: f64, rules: Rules) -> Vec<Outcome> {
    each_seed(|seed| {
        let (packages, trace) = random_trace(seed, load);
        run(&packages, &trace, rules)
    })
}

/// Mean waits in seconds, one for each seed. All have as many requests, so that their mean is that of all
/// requests.
fn waits(runs: &[Outcome]) -> Vec<f64> {
    runs.iter().map(|run| mean(run.fates.iter().map(Fate::wait)) / 1000.0).collect()
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value;
        count += 1.0;
    }
    sum / count
}

/// Something computed from the mean waits of several policies: from all requests, and for each seed.
fn pooled<const N: usize>(waits: [&[f64]; N], of: impl Fn([f64; N]) -> f64) -> (f64, Vec<f64>) {
    let seeds = (0..SEEDS as usize).map(|seed| of(waits.map(|waits| waits[seed]))).collect();
    (of(waits.map(|waits| mean(waits.iter().copied()))), seeds)
}

/// Share of the gain of shortest-first that a policy has.
fn gain([fifo, policy, shortest]: [f64; 3]) -> f64 {
    (fifo - policy) / (fifo - shortest)
}

/// The most that a request is later than its policy allows, in seconds: below 0 where there is room left.
fn beyond(policy: Policy, run: &Outcome) -> f64 {
    let late = run.fates.iter().map(|fate| fate.regret() - fate.bound(policy));
    late.fold(f64::NEG_INFINITY, f64::max) / 1000.0
}

/// The printed table, and whether everything in it is as it should be.
struct Table {
    all_held: bool,
}

impl Table {
    fn row(&mut self, check: &str, target: &str, measured: &str, worst: &str, held: bool) {
        self.all_held &= held;
        println!("| {check} | {target} | {measured} | {worst} | {} |", if held { "ok" } else { "MISSED" });
    }

    /// A bound on every request of all runs.
    fn bound(&mut self, check: &str, policy: Policy, runs: &[Outcome]) {
        let worst = runs.iter().map(|run| beyond(policy, run)).fold(f64::NEG_INFINITY, f64::max);
        let requests: usize = runs.iter().map(|run| run.fates.len()).sum();
        self.row(check, "<= 0 s", &format!("{requests} requests"), &format!("{worst:.3} s"), worst <= 0.0);
    }

    fn at_least(&mut self, check: &str, target: f64, (pooled, seeds): (f64, Vec<f64>)) {
        let worst = seeds.into_iter().fold(f64::INFINITY, f64::min);
        let target_text = format!(">= {target:.2}");
        self.row(check, &target_text, &format!("{pooled:.3}"), &format!("{worst:.3}"), pooled >= target);
    }

    fn at_most(&mut self, check: &str, target: f64, (pooled, seeds): (f64, Vec<f64>)) {
        let worst = seeds.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let target_text = format!("<= {target:.2}");
        self.row(check, &target_text, &format!("{pooled:.3}"), &format!("{worst:.3}"), pooled <= target);
    }

    /// Intervals that should hold in so many cases, of the requests that had something ahead of them that was
    /// never built, or of the others.
    fn coverage(&mut self, check: &str, (least, most): (f64, f64), first: bool, runs: &[Outcome]) {
        let told = |run: &Outcome| -> Vec<(f64, (f64, f64))> {
            let fates = run.fates.iter().filter(|fate| fate.first == first);
            fates.filter_map(|fate| Some((fate.wait(), fate.eta?))).collect()
        };
        let held = |told: Vec<(f64, (f64, f64))>| {
            mean(told.iter().map(|(wait, (low, high))| f64::from(u8::from((low..=high).contains(&wait)))))
        };
        let pooled = held(runs.iter().flat_map(told).collect());
        let seeds: Vec<f64> = runs.iter().map(|run| held(told(run))).collect();
        let farthest = |a: &f64, b: &f64| (a - 0.8).abs().total_cmp(&(b - 0.8).abs());
        let worst = seeds.into_iter().max_by(farthest).expect("there are seeds");
        let waited = runs.iter().flat_map(|run| &run.fates);
        let waited = waited.filter(|fate| fate.wait() > 0.0 && fate.first == first).count();
        let told = runs.iter().map(|run| told(run).len()).sum::<usize>() as f64 / waited as f64;
        self.row(
            &format!("{check} ({:.0} % of those who waited were told one)", told * 100.0),
            &format!("{least:.2} to {most:.2}"),
            &format!("{pooled:.3}"),
            &format!("{worst:.3}"),
            (least..=most).contains(&pooled),
        );
    }
}

fn main() -> ExitCode {
    let mut table = Table { all_held: true };
    println!("{SEEDS} seeds of {REQUESTS} requests each, on virtual time.");
    println!("Gain: (first come - policy) / (first come - shortest first), of mean waits.\n");
    println!("| check | target | measured (pooled) | worst seed | |\n|---|---|---|---|---|");
    for (policy, name) in POLICIES {
        let rules = Rules { policy, ..Rules::default() };
        let adversaries: Vec<Outcome> =
            adversary::traces().iter().map(|(packages, trace)| run(packages, trace, rules)).collect();
        table.bound(&format!("{name}: latest beyond its bound, adversaries"), policy, &adversaries);
        let restarts = runs(0.7, Rules { restart_every: Some(400), ..rules });
        table.bound(&format!("{name}: latest beyond its bound, restarts, load 0.7"), policy, &restarts);
    }
    let weeks = WEEKS.map(|(load, by_day)| prebuilt(load, by_day, &mut table));
    let scale = [0.5, 0.7, 0.9].map(|load| (load, at_load(load, &mut table)));
    println!("\nMean wait / first come, first served:\n");
    println!("| load | {} | shortest first, no bound |", POLICIES.map(|(_, name)| name).join(" | "));
    println!("|---|---|---|---|---|---|");
    for (load, ratios) in scale {
        let ratios: Vec<String> = ratios.into_iter().map(|ratio| format!("{ratio:.2}")).collect();
        println!("| {load} | {} |", ratios.join(" | "));
    }
    println!(
        "\nRequests that find everything built, in the week after new versions of everything, in percent:\n"
    );
    println!("| load | by day | first day | week | mean wait / without | pre-built time of use |");
    println!("|---|---|---|---|---|---|");
    for row in weeks {
        println!("{row}");
    }
    if table.all_held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The rows of one load, and the mean wait of each policy, and of shortest-first, in proportion to first
/// come's.
fn at_load(load: f64, table: &mut Table) -> Vec<f64> {
    let mut all = Vec::new();
    for (policy, name) in POLICIES {
        let runs = runs(load, Rules { policy, restart_every: None, etas: policy == Policy::Strict });
        table.bound(&format!("{name}: latest beyond its bound, load {load}"), policy, &runs);
        if policy == Policy::Strict {
            if load == 0.7 {
                let own: Vec<f64> = runs.iter().map(|run| mean(run.own_turn_waits()) / 1000.0).collect();
                let ratio = pooled([&waits(&runs), &own], |[early, own]| early / own);
                table.at_most(&format!("{name}: mean wait / at its own turn, load {load}"), 0.97, ratio);
            }
            for (first, of) in [(false, "all is known"), (true, "first builds")] {
                let check = format!("80 % intervals that held, {of}, load {load}");
                table.coverage(&check, (0.75, 0.85), first, &runs);
            }
        }
        all.push(waits(&runs));
    }
    all.push(each_seed(|seed| {
        let (packages, trace) = random_trace(seed, load);
        mean(yardstick::waits(&packages, &trace)) / 1000.0
    }));
    let [fifo, small, large, _, shortest] = &all[..] else { unreachable!("five were pushed") };
    // (Load, waits, target) of what is gated.
    for (at, policy, name, target) in
        [(0.7, small, "300 s", 0.35), (0.9, small, "300 s", 0.20), (0.7, large, "900 s + 10 %", 0.50)]
    {
        if load == at {
            let gain = pooled([fifo, policy, shortest], gain);
            table.at_least(&format!("{name}: gain, load {load}"), target, gain);
        }
    }
    let fifo = mean(fifo.iter().copied());
    all.iter().map(|waits| mean(waits.iter().copied()) / fifo).collect()
}

/// The rows of one kind of week, with and without pre-building, and what is to be printed of it for scale.
fn prebuilt(load: f64, by_day: u64, table: &mut Table) -> String {
    let weeks = each_seed(|seed| {
        let week = random_week(seed, load, by_day);
        let (with, spans) = run_week(&week, Rules::default(), Some(ALWAYS));
        (run_week(&week, Rules::default(), None).0, with, used(&week, &spans))
    });
    let (mut without, mut with, mut of_use) = (Vec::new(), Vec::new(), Vec::new());
    for (without_it, with_it, used) in weeks {
        without.push(without_it);
        with.push(with_it);
        of_use.push(used);
    }
    let name = format!("pre-building, load {load}, {by_day} % by day");
    table.bound(&format!("{name}: latest after its due time"), Policy::Strict, &with);
    // The same requests, with the due times that they have without.
    let same = |(with, without): (&Outcome, &Outcome)| {
        let fates = with.fates.iter().zip(&without.fates);
        let fates = fates.map(|(with, without)| Fate { delivered: with.delivered, ..*without }).collect();
        Outcome { fates, busy: with.busy }
    };
    let as_without: Vec<Outcome> = with.iter().zip(&without).map(same).collect();
    table.bound(&format!("{name}: latest after the one it has without"), Policy::Strict, &as_without);
    let [day, week] = [DAY as f64, f64::INFINITY].map(|end| {
        let hits = |runs: &[Outcome]| {
            let hit = |fate: &Fate| f64::from(u8::from(fate.hit())) * 100.0;
            mean(runs.iter().flat_map(|run| &run.fates).filter(|fate| fate.arrived < end).map(hit))
        };
        let seeds = with.chunks(1).zip(without.chunks(1)).map(|(with, without)| hits(with) - hits(without));
        (hits(&without), hits(&with), seeds.collect::<Vec<f64>>())
    });
    if (load, by_day) == (0.4, MOST_BY_DAY) {
        for (what, target, (without, with, seeds)) in
            [("first day", 14.0, day.clone()), ("week", 8.0, week.clone())]
        {
            table.at_least(&format!("{name}: points gained, {what}"), target, (with - without, seeds));
        }
    }
    let [day, week] = [day, week].map(|(without, with, _)| format!("{without:.1} -> {with:.1}"));
    let wait = mean(waits(&with)) / mean(waits(&without));
    format!("| {load} | {by_day} % | {day} | {week} | {wait:.2} | {:.0} % |", mean(of_use) * 100.0)
}
