//! Delivery of a request: an interval that holds eight times of ten, made of the errors of the last thousand
//! forecasts (conformal prediction). Pure, like the estimates it is made of.

use std::collections::VecDeque;
use std::time::Duration;

use super::estimate::{Durations, Sum, duration};

/// Finished requests that count. Those that wait for the same long build are wrong in the same way: among a
/// few hundred there are too few others to tell how wrong the next ones will be.
const FINISHED_MAX: usize = 1_000;
/// With fewer than this the interval is that of a normal distribution.
const FINISHED_MIN: usize = 30;
/// Standard deviations from the median to the 90th percentile of a normal distribution.
const Z_90: f64 = 1.282;
/// No interval is narrower than this (the standard deviation of a logarithm).
const SPREAD_MIN: f64 = 0.05;
/// The ends of an interval of a first build are at most this factor apart where it tells anything.
const FACTOR_MAX: f64 = 20.0;
/// Shorter times are not told apart, in seconds.
const SECONDS_TOLD: f64 = 1.0;
/// The part of all requests that may be earlier than their forecast, and the part that may be later.
const LEFT_OUT: f64 = 0.1;

/// Delivery that is expected from work alone: the median in seconds from then, and the standard deviation of
/// its logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    median: f64,
    spread: f64,
    /// True when anything of it was never built: estimates of that are wrong in ways of their own.
    first: bool,
}

impl Expected {
    /// Delivery after this work; what is unknown of it is taken for a first build. `None` when there is
    /// nothing to judge by.
    #[must_use]
    pub fn after(work: Sum, durations: &Durations) -> Option<Self> {
        let first = work.unknown > 0;
        let (median, spread) = work.with_unknown(durations.of_first(Duration::ZERO))?.log_normal();
        (median > 0.0).then_some(Self { median, spread: spread.max(SPREAD_MIN), first })
    }
}

/// Interval in which a delivery is promised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    expected: Expected,
    /// Lower end, counted from the forecast.
    pub earliest: Duration,
    /// Upper end.
    pub latest: Duration,
}

impl Forecast {
    /// Whole seconds of the interval. `None` where work that was never built makes it so wide that it tells
    /// nothing: too few builds were seen, or they differ too much.
    #[must_use]
    pub fn told(&self) -> Option<(u64, u64)> {
        let (earliest, latest) = (self.earliest.as_secs_f64().max(SECONDS_TOLD), self.latest.as_secs_f64());
        let is_telling = !self.expected.first || latest <= earliest * FACTOR_MAX;
        is_telling.then(|| (self.earliest.as_secs(), up_to_seconds(self.latest)))
    }
}

/// Whole seconds that are not over before the duration is.
fn up_to_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// Errors of past forecasts: of work that is known, and of work that counted first builds.
#[derive(Clone, Debug, Default)]
pub struct Etas {
    known: Errors,
    first: Errors,
}

#[derive(Clone, Debug)]
struct Errors {
    /// Standard deviations by which requests were later than expected, the latest last.
    latest: VecDeque<f64>,
    /// The errors between which eight of ten are.
    ends: (f64, f64),
}

impl Default for Errors {
    fn default() -> Self {
        Self { latest: VecDeque::new(), ends: (-Z_90, Z_90) }
    }
}

impl Etas {
    /// Learns from a request that was delivered so long after this forecast.
    pub fn finished(&mut self, forecast: Forecast, actual: Duration) {
        let expected = forecast.expected;
        let errors = if expected.first { &mut self.first } else { &mut self.known };
        errors.add((actual.as_secs_f64().max(0.001) / expected.median).ln() / expected.spread);
    }

    /// The interval in which eight of ten requests are delivered that are expected thus.
    #[must_use]
    pub fn forecast(&self, expected: Expected) -> Forecast {
        let (low, high) = if expected.first { self.first.ends } else { self.known.ends };
        let at = |z: f64| duration(expected.median * (z * expected.spread).exp());
        Forecast { expected, earliest: at(low), latest: at(high) }
    }
}

impl Errors {
    fn add(&mut self, late: f64) {
        if self.latest.len() >= FINISHED_MAX {
            self.latest.pop_front();
        }
        self.latest.push_back(late);
        self.ends = self.quantiles();
    }

    fn quantiles(&self) -> (f64, f64) {
        if self.latest.len() < FINISHED_MIN {
            return (-Z_90, Z_90);
        }
        let mut sorted: Vec<f64> = self.latest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        // One more than there are, as the next one is among them: that is what makes it hold.
        let rank = |part: f64| ((sorted.len() + 1) as f64 * part) as usize;
        (sorted[rank(LEFT_OUT).saturating_sub(1)], sorted[rank(1.0 - LEFT_OUT).min(sorted.len() - 1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::forecast::estimate::Kind;

    #[test]
    fn the_interval_learns_from_how_wrong_it_was() {
        let (mut etas, expected) = (Etas::default(), Expected { median: 100.0, spread: 0.1, first: false });
        let first = etas.forecast(expected);
        let hundred = Duration::from_secs(100);
        assert!(first.earliest < hundred && hundred < first.latest && first.latest.as_secs() < 120);
        // From 50 s to 349 s, in no order.
        for n in 0..3000u64 {
            let forecast = etas.forecast(expected);
            etas.finished(forecast, Duration::from_secs(50 + n * 7 % 300));
        }
        let Forecast { earliest, latest, .. } = etas.forecast(expected);
        assert!(
            (70..90).contains(&earliest.as_secs()) && (310..330).contains(&latest.as_secs()),
            "{earliest:?} {latest:?}"
        );
    }

    #[test]
    fn an_interval_of_a_first_build_is_told_once_it_tells_something() {
        let told = |first, spread| Etas::default().forecast(Expected { median: 100.0, spread, first }).told();
        assert_eq!(told(true, 1.0), Some((27, 361)));
        assert_eq!(told(true, 1.5), None, "15 s to 684 s");
        assert_eq!(told(false, 1.5), Some((14, 685)), "what is known may vary");
        let short = Expected { median: 1.0, spread: 2.0, first: true };
        assert_eq!(Etas::default().forecast(short).told(), Some((0, 13)), "it is soon in any case");
    }

    #[test]
    fn what_is_long_past_counts_no_more() {
        let (mut etas, expected) = (Etas::default(), Expected { median: 100.0, spread: 0.1, first: false });
        for seconds in [1000, 100] {
            (0..FINISHED_MAX)
                .for_each(|_| etas.finished(etas.forecast(expected), Duration::from_secs(seconds)));
            let Forecast { earliest, latest, .. } = etas.forecast(expected);
            assert_eq!(
                (earliest.as_secs_f64().round(), latest.as_secs_f64().round()),
                (seconds as f64, seconds as f64)
            );
        }
        assert_eq!(etas.known.latest.len(), FINISHED_MAX, "the memory is bounded");
    }

    #[test]
    fn what_is_unknown_counts_as_a_first_build() {
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
