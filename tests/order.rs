//! The promise of the order of builds, held for every single request, for every policy, and over restarts at
//! random moments: nobody is delivered later than the due time and what the policy may add to it.

mod simulation;

use ondine::build::queue::Policy;
use simulation::random::Random;
use simulation::trace::{Packages, REQUESTS, random_trace};
use simulation::{Fate, Outcome, Rules, adversary, overtaking, run};

const SEEDS: u64 = 30;

const SMALL_BUDGET: Policy = overtaking(300, 0);
const LARGE_BUDGET: Policy = overtaking(900, 10);

/// Fails when any request is delivered after its due time and what is allowed, by so much as a tick.
fn in_time(outcome: &Outcome, policy: Policy) {
    for (request, fate) in outcome.fates.iter().enumerate() {
        let (regret, bound) = (fate.regret(), fate.bound(policy));
        assert!(regret <= bound, "request {request}: {regret} ms late, {bound} ms are allowed ({fate:?})");
    }
}

/// Every seed at this load, in time.
fn hold(policy: Policy, load: f64, restart_every: Option<u64>) -> Vec<Outcome> {
    (0..SEEDS)
        .map(|seed| {
            let (packages, trace) = random_trace(seed, load);
            let outcome = run(&packages, &trace, Rules { policy, restart_every, etas: false });
            assert_eq!(outcome.fates.len(), REQUESTS);
            in_time(&outcome, policy);
            outcome
        })
        .collect()
}

#[test]
fn first_come_first_served_delivers_no_request_after_its_due_time() {
    let outcomes = hold(Policy::Strict, 0.7, None);
    let early: f64 = outcomes.iter().flat_map(|outcome| &outcome.fates).map(Fate::wait).sum();
    let own_turn: f64 = outcomes.iter().flat_map(Outcome::own_turn_waits).sum();
    let ratio = early / own_turn;
    println!("mean wait, delivered when complete / at its own turn: {ratio:.3}");
    assert!(ratio <= 0.97, "delivering early should save at least 3 %: {ratio:.3}");
}

#[test]
fn overtaking_makes_no_request_later_than_its_budget() {
    hold(SMALL_BUDGET, 0.7, None);
    hold(SMALL_BUDGET, 0.9, None);
}

#[test]
fn a_share_of_the_backlog_is_all_that_is_added_to_the_budget() {
    hold(LARGE_BUDGET, 0.7, None);
    hold(LARGE_BUDGET, 0.9, None);
}

#[test]
fn the_background_lane_takes_no_more_than_its_weight() {
    hold(Policy::Background, 0.7, None);
}

#[test]
fn restarts_cost_no_request_more_than_the_builds_they_interrupt() {
    for policy in [Policy::Strict, SMALL_BUDGET, LARGE_BUDGET, Policy::Background] {
        hold(policy, 0.7, Some(400));
    }
}

#[test]
fn no_adversary_makes_a_request_late() {
    for (packages, trace) in adversary::traces() {
        for policy in [Policy::Strict, SMALL_BUDGET, LARGE_BUDGET, overtaking(1, 50), Policy::Background] {
            for restart_every in [None, Some(5)] {
                in_time(&run(&packages, &trace, Rules { policy, restart_every, etas: false }), policy);
            }
        }
    }
}

// What the simulation is worth.

#[test]
fn the_simulated_builder_is_as_busy_as_was_asked_and_builds_nothing_twice() {
    for load in [0.5, 0.7, 0.9] {
        let (mut work, mut time) = (0.0, 0.0);
        for seed in 0..SEEDS {
            let (packages, trace) = random_trace(seed, load);
            let distinct = packages.work_of(trace.iter().map(|(_, drv)| *drv)) as f64;
            if seed < 3 {
                let busy = run(&packages, &trace, Rules::default()).busy;
                assert_eq!(busy, distinct, "seed {seed}: each derivation is built once");
            }
            work += distinct;
            time += trace.last().expect("there are requests").0 as f64;
        }
        println!("load {load}: measured {:.3}", work / time);
        assert!((work / time / load - 1.0).abs() < 0.02, "load {load} was asked, {} measured", work / time);
    }
}

/// Pollaczek and Khinchine: where jobs share nothing, the mean wait follows from the first two moments of
/// their durations. None is longer than ten minutes here: with a heavy tail the mean of 180,000 waits is
/// still a matter of luck.
#[test]
fn jobs_that_share_nothing_wait_as_long_as_theory_says() {
    let (mut measured, mut theory) = (0.0, 0.0);
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let packages = Packages::random_apart(&mut random, 600_000);
        let trace = packages.trace_apart(&mut random, 0.7);
        measured += run(&packages, &trace, Rules::default()).fates.iter().map(Fate::wait).sum::<f64>();
        let (first, second) = trace.iter().fold((0.0, 0.0), |(first, second), (_, drv)| {
            let millis = packages.millis(*drv) as f64;
            (first + millis, second + millis * millis)
        });
        let time = trace.last().expect("there are requests").0 as f64;
        theory += first + second / (2.0 * time * (1.0 - first / time)) * trace.len() as f64;
    }
    println!("{:.3} of the theoretical mean wait", measured / theory);
    assert!((measured / theory - 1.0).abs() < 0.05, "{:.3} of the theoretical mean wait", measured / theory);
}
