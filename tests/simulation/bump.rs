//! A week that begins with new versions of everything, at midnight, after four such weeks: people ask for
//! what they asked for before, most of them by day, and nothing of it is built.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ondine::build::forecast::estimate::{Durations, Kind};
use ondine::build::prebuild::Prebuild;
use ondine::build::prebuild::demand::Demand;

use super::random::Random;
use super::trace::{Drv, Packages, Trace};

/// Milliseconds of an hour.
pub const HOUR: u64 = 3_600_000;
/// Milliseconds of a day.
pub const DAY: u64 = 24 * HOUR;
/// Milliseconds of a week.
const WEEK: u64 = 7 * DAY;
/// Weeks from which it is known what people ask for.
const WEEKS_BEFORE: u32 = 4;
/// Versions of everything: one for each of these weeks, and the new one.
const VERSIONS: usize = WEEKS_BEFORE as usize + 1;
/// Packages of a set: as many as a large distribution has.
const PACKAGES: u32 = 50_000;
/// The half of each day in which people work.
const DAYTIME: std::ops::Range<u64> = 8 * HOUR..20 * HOUR;
/// Number of a hundred requests that come by day, where people sleep.
pub const MOST_BY_DAY: u64 = 80;
/// The same where they come from all over the world.
pub const AROUND_THE_CLOCK: u64 = 50;

/// A week: its history, and what it brings.
pub struct Week {
    pub packages: Packages,
    /// The requests; times count from the beginning of the week.
    pub trace: Trace,
    pub durations: Durations,
    demand: Demand<Kind>,
}

/// The first hours of a week in which everyone needs one of two chains of builds, from somewhere on: many
/// need just what is being pre-built.
pub fn chains(seed: u64) -> Week {
    let mut random = Random(seed);
    let length = 50;
    let inputs = |n: u32| if n.is_multiple_of(length) { vec![] } else { vec![n - 1] };
    let millis: Vec<u64> = (0..2 * length).map(|_| 1_000 + random.below(600_000)).collect();
    let packages = Packages::versions((0..2 * length).map(inputs).collect(), vec![millis; VERSIONS]);
    let (mut durations, mut demand) = (Durations::default(), Demand::default());
    for (package, kind) in (0..).zip(packages.kinds()) {
        demand.asked(&kind, start(0));
        durations.learn(&kind, Duration::from_millis(packages.millis((0, package))), true);
    }
    let mut now = 0;
    let mut request = || {
        now += random.below(1_200_000);
        (now, (WEEKS_BEFORE, random.below(u64::from(2 * length)) as u32))
    };
    let trace = (0..60).map(|_| request()).collect();
    Week { packages, trace, durations, demand }
}

/// The week of a seed. In each of the weeks it takes `load` of the time to build what is asked for.
pub fn random_week(seed: u64, load: f64, by_day: u64) -> Week {
    let mut random = Random(seed);
    let packages = Packages::random(&mut random, PACKAGES, VERSIONS);
    let popular = shuffled(&mut random);
    let kinds = packages.kinds();
    let (mut durations, mut demand) = (Durations::default(), Demand::default());
    let week = |version: u32, random: &mut Random| {
        let (mut built, mut work, mut wanted) = (BTreeSet::new(), 0, Vec::new());
        while (work as f64) < load * WEEK as f64 {
            let drv = (version, popular[packages.popular(random) as usize]);
            let lacking = packages.lacking(drv, &built);
            work += lacking.keys().map(|drv| packages.millis(*drv)).sum::<u64>();
            built.extend(lacking.into_keys());
            wanted.push(drv);
        }
        (built, wanted)
    };
    for version in 0..WEEKS_BEFORE {
        let (built, wanted) = week(version, &mut random);
        for (_, package) in wanted {
            demand.asked(&kinds[package as usize], start(version));
        }
        for drv in built {
            durations.learn(&kinds[drv.1 as usize], Duration::from_millis(packages.millis(drv)), true);
        }
    }
    let (_, wanted) = week(WEEKS_BEFORE, &mut random);
    let mut times: Vec<u64> = wanted.iter().map(|_| moment(&mut random, by_day)).collect();
    times.sort_unstable();
    let trace = times.into_iter().zip(wanted).collect();
    Week { packages, trace, durations, demand }
}

/// Begin of a week, counted from the first one.
fn start(week: u32) -> Duration {
    Duration::from_millis(u64::from(week) * WEEK)
}

/// A moment of the week.
fn moment(random: &mut Random, by_day: u64) -> u64 {
    let daytime = random.below(100) < by_day;
    let begin = if daytime { DAYTIME.start } else { DAYTIME.end };
    let time = begin + random.below(DAY / 2);
    random.below(7) * DAY + time % DAY
}

impl Week {
    /// Derivations that are asked for in it, with their closures.
    pub fn needed(&self) -> BTreeSet<Drv> {
        let mut needed = BTreeSet::new();
        for (_, wanted) in &self.trace {
            needed.extend(self.packages.lacking(*wanted, &needed).into_keys());
        }
        needed
    }

    /// Candidates of pre-building when it begins.
    pub fn expected(&self) -> Prebuild<Drv> {
        let mut prebuild = Prebuild::default();
        let kinds = self.packages.kinds();
        let packages: BTreeMap<&Kind, u32> = kinds.iter().zip(0..).collect();
        let guess = |drv: &Drv| {
            let durations = &self.durations;
            durations.estimate(&kinds[drv.1 as usize]).or_else(|| durations.of_unknown())
        };
        // The day that begins has no requests yet.
        let yesterday = start(WEEKS_BEFORE) - Duration::from_millis(1);
        for (kind, asked) in self.demand.most_asked(yesterday) {
            let drv = (WEEKS_BEFORE, packages[kind]);
            prebuild.offer(&drv, asked, &self.packages.lacking(drv, &BTreeSet::new()), guess);
        }
        prebuild
    }
}

/// All packages, in an order that tells nothing about what they need.
fn shuffled(random: &mut Random) -> Vec<u32> {
    let mut all: Vec<u32> = (0..PACKAGES).collect();
    for n in (1..all.len()).rev() {
        all.swap(n, random.below(n as u64 + 1) as usize);
    }
    all
}
