//! A week that begins with new versions of most packages, after four weeks that began the same way: what is asked for is as
//! popular as it was before, and little of it is built.

use std::collections::BTreeSet;
use std::time::Duration;

use ondine::build::estimate::Durations;
use ondine::build::prebuild::Prebuild;
use ondine::build::prebuild::demand::Demand;

use super::random::Random;
use super::trace::{Drv, Packages, Trace};

/// Milliseconds of a day.
pub const DAY: u64 = 24 * 3_600_000;
/// Milliseconds of a week.
pub const WEEK: u64 = 7 * DAY;
/// Weeks from which it is known what people ask for.
const WEEKS_BEFORE: u32 = 4;
/// Packages of a set.
const PACKAGES: u32 = 20_000;
/// One package in so many is changed by itself at a bump; with it changes all that needs it.
const CHANGED: u64 = 5;

/// What is known when the week begins, and what it brings.
pub struct Week {
    pub packages: Packages,
    /// The requests; times count from the beginning of the week.
    pub trace: Trace,
    /// What did not change, and was built in the weeks before.
    pub built: BTreeSet<Drv>,
    pub durations: Durations,
    pub demand: Demand,
}

/// The week of a seed. In each of the weeks what is asked for, and not built yet, takes `load` of the time to build.
pub fn random_week(seed: u64, load: f64) -> Week {
    let mut random = Random(seed);
    let packages = Packages::random(&mut random, PACKAGES, WEEKS_BEFORE as usize + 1);
    let popular = shuffled(&mut random);
    let kinds = packages.kinds();
    let (mut durations, mut demand) = (Durations::default(), Demand::default());
    let mut before = BTreeSet::new();
    for week in 0..=WEEKS_BEFORE {
        let changed = changed(&packages, &mut random);
        let unchanged = before.iter().filter(|(_, package)| !changed[*package as usize]);
        let at_first: BTreeSet<Drv> = unchanged.map(|(_, package)| (week, *package)).collect();
        let (mut built, mut work, mut wanted) = (at_first.clone(), 0.0, Vec::new());
        while work < load * WEEK as f64 {
            let drv = (week, popular[packages.popular(&mut random) as usize]);
            wanted.push(drv);
            let lacking = packages.lacking(drv, &built).into_keys();
            for drv in lacking {
                work += packages.millis(drv) as f64;
                built.insert(drv);
            }
        }
        if week == WEEKS_BEFORE {
            let mut times: Vec<u64> = wanted.iter().map(|_| random.below(WEEK)).collect();
            times.sort_unstable();
            let trace = times.into_iter().zip(wanted).collect();
            return Week { packages, trace, built: at_first, durations, demand };
        }
        for (_, package) in wanted {
            demand.asked(&kinds[package as usize], Duration::from_millis(u64::from(week) * WEEK));
        }
        for drv in built.difference(&at_first) {
            durations.learn(&kinds[drv.1 as usize], Duration::from_millis(packages.millis(*drv)), true);
        }
        before = built;
    }
    unreachable!("the last week returns")
}

impl Week {
    /// What could be pre-built when it begins.
    pub fn expected(&self) -> Prebuild<Drv> {
        let mut prebuild = Prebuild::default();
        let kinds = self.packages.kinds();
        let guess = |drv: &Drv| {
            let durations = &self.durations;
            durations.estimate(&kinds[drv.1 as usize]).or_else(|| durations.of_unknown())
        };
        for (kind, asked) in self
            .demand
            .most_asked(Duration::from_millis(u64::from(WEEKS_BEFORE) * WEEK) - Duration::from_millis(1))
        {
            let package = kinds.iter().position(|other| other == kind).expect("a package") as u32;
            let drv = (WEEKS_BEFORE, package);
            prebuild.offer(&drv, asked, &self.packages.lacking(drv, &self.built), guess);
        }
        prebuild
    }
}

/// All packages, in an order that tells nothing about them.
fn shuffled(random: &mut Random) -> Vec<u32> {
    let mut all: Vec<u32> = (0..PACKAGES).collect();
    for n in (1..all.len()).rev() {
        all.swap(n, random.below(n as u64 + 1) as usize);
    }
    all
}

/// Whether each package is another one than before: itself, or something that it needs.
fn changed(packages: &Packages, random: &mut Random) -> Vec<bool> {
    let mut changed: Vec<bool> = Vec::new();
    for n in 0..packages.len() as u32 {
        let by_input = packages.inputs((0, n)).any(|(_, input)| changed[input as usize]);
        changed.push(random.below(CHANGED) == 0 || by_input);
    }
    changed
}
