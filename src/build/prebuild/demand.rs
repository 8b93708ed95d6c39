//! How often each kind of derivation was asked for in the last four weeks: by what a new version does not change, so that it
//! tells what will be asked for once there is one. Pure: it is told the time.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::build::estimate::Kind;

/// Days that count, the present one among them.
const DAYS: usize = 28;
/// Kinds that are kept in mind; of more, one is forgotten that was asked for longest ago.
const KINDS_MAX: usize = 20_000;

/// Requests for kinds of derivations. Times are durations since any midnight.
#[derive(Clone, Debug, Default)]
pub struct Demand(BTreeMap<Kind, Asked>);

/// How often one kind was asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Of each day, at its number modulo [`DAYS`].
    days: [u32; DAYS],
    /// The latest day that counts.
    today: u64,
}

impl Asked {
    /// Forgets what is no longer among the last days.
    fn advance(&mut self, today: u64) {
        for day in self.today.max(today.saturating_sub(DAYS as u64)) + 1..=today {
            self.days[place(day)] = 0;
        }
        self.today = self.today.max(today);
    }
}

fn place(day: u64) -> usize {
    (day % DAYS as u64) as usize
}

impl Demand {
    /// Someone asked for a derivation of this kind.
    pub fn asked(&mut self, kind: &Kind, now: Duration) {
        let today = super::day(now);
        if self.0.len() >= KINDS_MAX
            && !self.0.contains_key(kind)
            && let Some(oldest) =
                self.0.iter().min_by_key(|(_, asked)| asked.today).map(|(kind, _)| kind.clone())
        {
            self.0.remove(&oldest);
        }
        let asked = self.0.entry(kind.clone()).or_insert(Asked { days: [0; DAYS], today });
        asked.advance(today);
        let count = &mut asked.days[place(today)];
        *count = count.saturating_add(1);
    }

    /// How often each kind was asked for that was asked for at all, most often first.
    #[must_use]
    pub fn most_asked(&self, now: Duration) -> Vec<(&Kind, u32)> {
        let lately = |mut asked: Asked| {
            asked.advance(super::day(now));
            asked.days.into_iter().fold(0, u32::saturating_add)
        };
        let mut kinds: Vec<(&Kind, u32)> =
            self.0.iter().map(|(kind, asked)| (kind, lately(*asked))).collect();
        kinds.retain(|(_, asked)| *asked > 0);
        kinds.sort_by_key(|(_, asked)| std::cmp::Reverse(*asked));
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Kind {
        Kind::new(name, "system", 0)
    }

    fn on_day(day: u32) -> Duration {
        super::super::DAY * day
    }

    fn names(demand: &Demand, day: u32) -> Vec<(&str, u32)> {
        demand.most_asked(on_day(day)).into_iter().map(|(kind, asked)| (kind.as_str(), asked)).collect()
    }

    #[test]
    fn versions_of_one_package_count_together() {
        let mut demand = Demand::default();
        for name in ["hello-1.0", "tree-2.0", "hello-1.1"] {
            demand.asked(&kind(name), on_day(3));
        }
        assert_eq!(names(&demand, 3), [("hello system 0", 2), ("tree system 0", 1)]);
    }

    #[test]
    fn only_the_last_four_weeks_count() {
        let mut demand = Demand::default();
        for day in [0, 0, 20, 27] {
            demand.asked(&kind("hello"), on_day(day));
        }
        for (day, count) in [(27, 4), (28, 2), (47, 2), (48, 1), (54, 1)] {
            assert_eq!(names(&demand, day), [("hello system 0", count)], "day {day}");
        }
        assert_eq!(names(&demand, 55), []);
        demand.asked(&kind("hello"), on_day(1000));
        assert_eq!(names(&demand, 1000), [("hello system 0", 1)]);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut demand = Demand::default();
        for n in 0..=KINDS_MAX {
            demand.asked(&kind(&format!("p{n}")), on_day(u32::from(n > 0)));
        }
        assert_eq!(demand.0.len(), KINDS_MAX);
        assert!(!demand.0.contains_key(&kind("p0")), "it was asked for longest ago");
    }
}
