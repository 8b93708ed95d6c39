//! The promise of the order of builds, held for every single request, for every policy, and over restarts at random
//! moments: nobody is delivered later than the due time and what the policy may add to it.

mod simulation;

use std::time::Duration;

use ondine::build::queue::{Overtaking, Policy};
use simulation::random::Random;
use simulation::trace::{Packages, REQUESTS, Trace};
use simulation::{Fate, MAIN_LANE_SPEED, Rules, run};

const SEEDS: u64 = 30;

const SMALL_BUDGET: Policy = overtaking(300, 0);
const LARGE_BUDGET: Policy = overtaking(900, 10);

const fn overtaking(seconds: u64, share_percent: u32) -> Policy {
    Policy::Overtaking(Overtaking { budget: Duration::from_secs(seconds), share_percent })
}

/// How much later than due a policy may deliver a request, in milliseconds.
fn bound(policy: Policy, fate: &Fate) -> f64 {
    // What a restart interrupts has to be done again.
    let work = fate.backlog + fate.lost;
    match policy {
        Policy::Strict => 0.0,
        Policy::Overtaking(Overtaking { budget, share_percent }) => {
            budget.as_millis() as f64 + work * f64::from(share_percent) / 100.0
        }
        // Its work is no whole number of milliseconds: to the tick of the clock.
        Policy::Background => (1.0 / MAIN_LANE_SPEED - 1.0) * work + 1.0,
    }
}

/// Fails when any request is delivered after its due time and what is allowed, by so much as a tick.
fn in_time(fates: &[Fate], policy: Policy) {
    for (request, fate) in fates.iter().enumerate() {
        let (regret, bound) = (fate.regret(), bound(policy, fate));
        assert!(regret <= bound, "request {request}: {regret} ms late, {bound} ms are allowed ({fate:?})");
    }
}

/// Every seed at this load, in time.
fn hold(policy: Policy, load: f64, restart_every: Option<u64>) -> Vec<Vec<Fate>> {
    (0..SEEDS)
        .map(|seed| {
            let mut random = Random(seed);
            let packages = Packages::random(&mut random);
            let trace = packages.trace(&mut random, load);
            let fates = run(&packages, &trace, Rules { policy, restart_every, etas: false });
            assert_eq!(fates.len(), REQUESTS);
            in_time(&fates, policy);
            fates
        })
        .collect()
}

#[test]
fn first_come_first_served_delivers_no_request_after_its_due_time() {
    let (mut early, mut own_turn) = (0.0, 0.0);
    for fates in hold(Policy::Strict, 0.7, None) {
        let mut turn: f64 = 0.0;
        for fate in fates {
            // At its own turn: not before anyone who asked earlier, unless nothing had to be built for it.
            turn = turn.max(fate.delivered);
            early += fate.wait();
            own_turn += if fate.wait() == 0.0 { 0.0 } else { turn - fate.arrived };
        }
    }
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

/// Traces made to hurt: everyone at once, a giant in front of many small ones, chains that overlap at their ends.
#[test]
fn no_adversary_makes_a_request_late() {
    let chain = |length: u32| {
        let giant = |n| if n == length / 2 { 4 * 3_600_000 } else { 1 + u64::from(n % 7) };
        let inputs = (0..length).map(|n: u32| n.checked_sub(1).into_iter().collect()).collect();
        Packages::new(inputs, (0..length).map(giant).collect())
    };
    let chain = chain(100);
    let all_at_once: Trace = (0..100).map(|n| (0, (0, n * 37 % 100))).collect();
    let from_the_top: Trace = (0..100).map(|n| (u64::from(n), (0, 99 - n))).collect();
    let from_below: Trace = (0..100).map(|n| (u64::from(n), (0, n))).collect();
    let while_the_giant_runs: Trace =
        (0..100).map(|n| (300 + u64::from(n) * 60_000, (0, (n * 13 + 50) % 100))).collect();
    let apart = Packages::new(vec![Vec::new(); 50], (0..50).map(|n| 1 << (n % 20)).collect());
    let giants_first: Trace = (0..50).rev().map(|n| (u64::from(50 - n), (0, n))).collect();
    for policy in [Policy::Strict, SMALL_BUDGET, LARGE_BUDGET, overtaking(1, 50), Policy::Background] {
        for restart_every in [None, Some(5)] {
            let rules = Rules { policy, restart_every, etas: false };
            for trace in [&all_at_once, &from_the_top, &from_below, &while_the_giant_runs] {
                in_time(&run(&chain, trace, rules), policy);
            }
            in_time(&run(&apart, &giants_first, rules), policy);
        }
    }
}
