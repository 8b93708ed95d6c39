//! When a request will be delivered: an interval that holds eight times of ten, widened or narrowed by how wrong the last
//! few hundred were. Pure, like the guesses it is made of.

use std::collections::VecDeque;
use std::time::Duration;

use super::estimate::{Durations, Sum, duration};

/// Finished requests that count.
const FINISHED_MAX: usize = 300;
/// With fewer than this the interval is that of a normal distribution.
const FINISHED_MIN: usize = 30;
/// Standard deviations from the median to the 90th percentile of a normal distribution.
const Z_90: f64 = 1.282;
/// No interval is narrower than this (the standard deviation of a logarithm).
const SPREAD_MIN: f64 = 0.05;

/// When a request was expected: the median in seconds from then, and the standard deviation of its logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    median: f64,
    spread: f64,
}

impl Expected {
    /// After this work; what is unknown of it is taken for an average build. `None` when there is nothing to judge by.
    #[must_use]
    pub fn after(mut work: Sum, durations: &Durations) -> Option<Self> {
        let unknown = std::mem::take(&mut work.unknown);
        if unknown > 0 {
            let average = durations.of_unknown()?;
            (0..unknown).for_each(|_| work.add(Some(average)));
        }
        let (median, spread) = work.log_normal();
        (median > 0.0).then_some(Self { median, spread: spread.max(SPREAD_MIN) })
    }
}

/// How expectations came out.
#[derive(Clone, Debug, Default)]
pub struct Etas {
    /// How many standard deviations later than expected requests were delivered, the latest last.
    errors: VecDeque<f64>,
}

impl Etas {
    /// A request was delivered so long after it was expected thus.
    pub fn finished(&mut self, expected: Expected, actual: Duration) {
        if self.errors.len() >= FINISHED_MAX {
            self.errors.pop_front();
        }
        let late = (actual.as_secs_f64().max(0.001) / expected.median).ln() / expected.spread;
        self.errors.push_back(late);
    }

    /// The time within which eight of ten requests are delivered that are expected thus: no sooner than the first, no
    /// later than the second.
    #[must_use]
    pub fn interval(&self, expected: Expected) -> (Duration, Duration) {
        let (low, high) = self.quantiles();
        let at = |z: f64| duration(expected.median * (z * expected.spread).exp());
        (at(low), at(high))
    }

    fn quantiles(&self) -> (f64, f64) {
        if self.errors.len() < FINISHED_MIN {
            return (-Z_90, Z_90);
        }
        let mut sorted: Vec<f64> = self.errors.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        // One more than there are, as the next one is among them: that is what makes it hold.
        let rank = |part: f64| ((sorted.len() + 1) as f64 * part) as usize;
        (sorted[rank(0.1).saturating_sub(1)], sorted[rank(0.9).min(sorted.len() - 1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::estimate::Kind;

    #[test]
    fn the_interval_learns_from_how_wrong_it_was() {
        let (mut etas, expected) = (Etas::default(), Expected { median: 100.0, spread: 0.1 });
        let (low, high) = etas.interval(expected);
        assert!(low < Duration::from_secs(100) && Duration::from_secs(100) < high && high.as_secs() < 120);
        for n in 0..300u32 {
            etas.finished(expected, Duration::from_secs((50 + n).into()));
        }
        let (low, high) = etas.interval(expected);
        assert_eq!((low.as_secs_f64().round(), high.as_secs_f64().round()), (79.0, 320.0));
    }

    #[test]
    fn what_is_unknown_counts_as_an_average_build() {
        let mut durations = Durations::default();
        let mut work = Sum::default();
        work.add(None);
        assert_eq!(Expected::after(work, &durations), None);
        durations.learn(&Kind::new("a", "s", 0), Duration::from_secs(40), true);
        let expected = Expected::after(work, &durations).expect("one was seen");
        assert!((39.0..60.0).contains(&expected.median), "{expected:?}");
        assert_eq!(Expected::after(Sum::default(), &durations), None, "nothing is left to do");
    }
}
