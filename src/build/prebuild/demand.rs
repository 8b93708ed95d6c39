//! Demand for each thing in the last four weeks: by what a new version does not change, such as its name in a
//! package set, so that it tells what will be asked for once there is one. Pure: it is told the time.

use std::collections::BTreeMap;
use std::time::Duration;

/// Days that count, the present one among them.
pub const DAYS: usize = 28;
/// Things that are kept in mind; of more, one is forgotten that was asked for longest ago.
const THINGS_MAX: usize = 20_000;

/// Requests for things that `K` names. Times are durations since any midnight.
#[derive(Clone, Debug)]
pub struct Demand<K>(BTreeMap<K, AskCounts>);

/// Requests for one thing.
#[derive(Clone, Copy, Debug)]
struct AskCounts {
    /// Of each day, at its number modulo [`DAYS`].
    days: [u32; DAYS],
    /// The latest day that counts.
    today: u64,
}

impl AskCounts {
    /// Forgets what is no longer among the last days.
    fn advance(&mut self, today: u64) {
        for day in self.today.max(today.saturating_sub(DAYS as u64)) + 1..=today {
            self.days[place(day)] = 0;
        }
        self.today = self.today.max(today);
    }

    fn lately(mut self, today: u64) -> u32 {
        self.advance(today);
        self.days.into_iter().fold(0, u32::saturating_add)
    }
}

fn place(day: u64) -> usize {
    (day % DAYS as u64) as usize
}

impl<K> Default for Demand<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Clone + Ord> Demand<K> {
    /// Someone asked for this. Gives how often it was asked for today.
    pub fn asked(&mut self, thing: &K, now: Duration) -> u32 {
        self.add(thing, super::day(now), 1)
    }

    /// Adds so many requests on a day; days are added in their order. Gives the number of that day.
    pub fn add(&mut self, thing: &K, day: u64, times: u32) -> u32 {
        if self.0.len() >= THINGS_MAX
            && !self.0.contains_key(thing)
            && let Some(oldest) =
                self.0.iter().min_by_key(|(_, asked)| asked.today).map(|(thing, _)| thing.clone())
        {
            self.0.remove(&oldest);
        }
        let asked = self.0.entry(thing.clone()).or_insert(AskCounts { days: [0; DAYS], today: day });
        asked.advance(day);
        let count = &mut asked.days[place(day)];
        *count = count.saturating_add(times);
        *count
    }

    /// Number of requests for a thing.
    #[must_use]
    pub fn asked_lately(&self, thing: &K, now: Duration) -> u32 {
        self.0.get(thing).copied().map_or(0, |asked| asked.lately(super::day(now)))
    }

    /// Things that were asked for, each with its number of requests, most often first.
    #[must_use]
    pub fn most_asked(&self, now: Duration) -> Vec<(&K, u32)> {
        let today = super::day(now);
        let mut things: Vec<(&K, u32)> =
            self.0.iter().map(|(thing, asked)| (thing, asked.lately(today))).collect();
        things.retain(|(_, asked)| *asked > 0);
        things.sort_by_key(|(_, asked)| std::cmp::Reverse(*asked));
        things
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::forecast::estimate::Kind;

    fn kind(name: &str) -> Kind {
        Kind::new(name, "system", 0)
    }

    fn on_day(day: u32) -> Duration {
        super::super::DAY * day
    }

    fn names(demand: &Demand<Kind>, day: u32) -> Vec<(&str, u32)> {
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
            assert_eq!(demand.asked_lately(&kind("hello"), on_day(day)), count);
        }
        assert_eq!(names(&demand, 55), []);
        assert_eq!(demand.asked_lately(&kind("tree"), on_day(0)), 0);
        demand.asked(&kind("hello"), on_day(1000));
        assert_eq!(names(&demand, 1000), [("hello system 0", 1)]);
    }

    #[test]
    fn what_was_recorded_counts_as_if_it_were_asked_for_again() {
        let (mut demand, mut restored) = (Demand::default(), Demand::default());
        for (day, times) in [(0, 1), (3, 2), (20, 1)] {
            for today in 1..=times {
                assert_eq!(demand.asked(&kind("hello"), on_day(day)), today);
            }
            restored.add(&kind("hello"), u64::from(day), times);
        }
        for day in [20, 28, 31, 48] {
            assert_eq!(names(&restored, day), names(&demand, day), "day {day}");
        }
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut demand = Demand::default();
        for n in 0..=THINGS_MAX {
            demand.asked(&kind(&format!("p{n}")), on_day(u32::from(n > 0)));
        }
        assert_eq!(demand.0.len(), THINGS_MAX);
        assert!(!demand.0.contains_key(&kind("p0")), "it was asked for longest ago");
    }
}
