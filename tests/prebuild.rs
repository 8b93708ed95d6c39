//! The promises of pre-building, held for weeks that begin with new versions of everything: it costs nobody a
//! second, stops the moment anyone waits for anything else, and keeps within what is allowed.

mod simulation;

use std::collections::BTreeSet;
use std::time::Duration;

use ondine::build::prebuild::allowance::{Allowance, Hours};
use simulation::bump::{AROUND_THE_CLOCK, DAY, HOUR, MOST_BY_DAY, Week, chains, random_week};
use simulation::idle::{ALWAYS, End, Span, run_week};
use simulation::trace::Drv;
use simulation::{Outcome, Rules, overtaking};

/// `cargo bench --bench queue` holds the first promise for thirty of each.
const WEEKS: [(u64, f64, u64); 5] = [
    (0, 0.2, MOST_BY_DAY),
    (1, 0.4, MOST_BY_DAY),
    (2, 0.4, AROUND_THE_CLOCK),
    (3, 0.6, MOST_BY_DAY),
    (4, 0.6, AROUND_THE_CLOCK),
];

fn weeks() -> impl Iterator<Item = Week> {
    WEEKS.into_iter().map(|(seed, load, by_day)| random_week(seed, load, by_day))
}

/// The first of them in which much is asked for, with and without pre-building.
fn one_week(allowance: Allowance) -> (Week, Outcome, Vec<Span>) {
    let week = weeks().nth(1).expect("a week");
    let (outcome, spans) = run_week(&week, Rules::default(), Some(allowance));
    assert!(spans.len() > 100, "only {} times something was pre-built", spans.len());
    (week, outcome, spans)
}

#[test]
fn no_request_is_delivered_after_its_due_time_nor_after_the_one_it_has_without_prebuilding() {
    let mut taken_over = 0;
    for week in weeks().chain((0..100).map(chains)) {
        let (without, _) = run_week(&week, Rules::default(), None);
        let (with, spans) = run_week(&week, Rules::default(), Some(ALWAYS));
        taken_over += spans.iter().filter(|span| span.end == End::TakenOver).count();
        for (request, (with, without)) in with.fates.iter().zip(&without.fates).enumerate() {
            assert!(with.regret() <= 0.0, "request {request}: {} ms late ({with:?})", with.regret());
            assert!(with.delivered <= without.due, "request {request}: {with:?}, without: {without:?}");
        }
    }
    println!("{taken_over} times what was pre-built was taken over");
    assert!(taken_over > 20, "so seldom that this shows little: {taken_over} times");
}

#[test]
fn prebuilding_adds_nothing_to_what_overtaking_and_restarts_may_cost() {
    let week = weeks().nth(1).expect("a week");
    for policy in [Rules::default().policy, overtaking(300, 0), overtaking(900, 10)] {
        for restart_every in [None, Some(20)] {
            let rules = Rules { policy, restart_every, etas: false };
            for fate in run_week(&week, rules, Some(ALWAYS)).0.fates {
                assert!(fate.regret() <= fate.bound(policy), "{policy:?}: {fate:?}");
            }
        }
    }
}

#[test]
fn nothing_is_prebuilt_while_anyone_waits() {
    let (_, outcome, spans) = one_week(ALWAYS);
    for span in spans {
        for fate in outcome.fates.iter().filter(|fate| !fate.hit()) {
            assert!(fate.delivered <= span.from || fate.arrived >= span.to, "{span:?} while {fate:?}");
        }
    }
}

#[test]
fn inputs_are_prebuilt_before_what_needs_them_and_nothing_is_built_twice() {
    // The simulation asserts the same whenever something is started, also of what was built for someone.
    let (week, _, spans) = one_week(ALWAYS);
    let mut prebuilt = BTreeSet::new();
    for Span { drv, .. } in spans.into_iter().filter(|span| span.end != End::Stopped) {
        let late = |other: &Drv| week.packages.inputs(*other).any(|input| input == drv);
        assert!(!prebuilt.iter().any(late), "{drv:?} is built after what needs it");
        assert!(prebuilt.insert(drv), "{drv:?} is built twice");
    }
}

#[test]
fn no_more_is_prebuilt_on_a_day_than_is_allowed_and_only_in_quiet_hours() {
    let cap = 3 * HOUR;
    let night: Hours = "22:00-06:00".parse().expect("hours");
    let (_, _, spans) = one_week(Allowance::new(night, Duration::from_millis(cap)));
    let mut days = [0.0; 8];
    for Span { from, to, .. } in spans {
        let (day, hour) = (DAY as f64, HOUR as f64);
        let (begin, end) = (from % day / hour, (to - from) / hour + from % day / hour);
        assert!(end <= 6.0 || (begin >= 22.0 && end <= 30.0), "from {begin} to {end} o'clock");
        let midnight = (from / day).floor() * day + day;
        days[(from / day) as usize] += to.min(midnight) - from;
        days[(midnight / day) as usize] += (to - midnight).max(0.0);
    }
    println!("hours pre-built each day: {:?}", days.map(|day| day / HOUR as f64));
    assert!(days.iter().all(|day| *day <= cap as f64), "{days:?}");
    assert!(days.iter().sum::<f64>() > 0.5 * 7.0 * cap as f64, "much of what is allowed is used: {days:?}");
}
