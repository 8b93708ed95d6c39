//! Durations of builds, learned from those that were seen: a log-normal estimate for each kind of work, one
//! for kinds that were never built, sums of several, and what is left of one that runs. Pure: it is told what
//! happened. An estimate decides who may go first, never whether an older request is delivered in time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::build::queue::Guess;

/// Builds of one kind that count.
const LATEST: usize = 5;
/// Kinds that are kept in mind; of more, the one that was built longest ago is forgotten.
const KINDS_MAX: usize = 100_000;
/// Errors of past guesses that count.
const ERRORS_MAX: usize = 1_000;
/// With fewer errors than this, guesses are taken to be as wrong as [`SPREAD_AT_FIRST`].
const ERRORS_MIN: usize = 20;
/// The standard deviation of the logarithm: 0.7 means that one in three is off by more than a factor of two.
const SPREAD_AT_FIRST: f64 = 0.7;
/// No guess is better than this.
const SPREAD_MIN: f64 = 0.05;
/// Number of builds that the average of everything counts for, beside those of the same kind.
const PRIOR_WEIGHT: f64 = 0.1;
/// Before the first builds of a few kinds were seen, so many are taken to be as different from each other as
/// [`FIRST_SPREAD`] says: the smallest and the largest packages of a set differ by a factor of a thousand.
const FIRST_WEIGHT: f64 = 3.0;
/// The standard deviation of the logarithm of what first builds take, before any was seen.
const FIRST_SPREAD: f64 = 1.5;
/// Standard deviations from the median to the 90th percentile of a normal distribution.
const Z_90: f64 = 1.282;
/// The spread of a guess at most: its 10th and 90th percentiles are a factor of a million apart.
const SPREAD_MAX: f64 = 5.4;
/// The shortest time that is told from nothing, in seconds.
const SECONDS_MIN: f64 = 0.001;
/// Standard deviations from the median to the 95th percentile of a normal distribution.
const Z_95: f64 = 1.645;

/// Kind of work that a build is: builds of one kind take about as long.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(String);

impl Kind {
    /// The kind of a derivation: its name without the version, the system it is built on, and the cores it
    /// may use.
    #[must_use]
    pub fn new(name: &str, system: &str, cores: u64) -> Self {
        Self(format!("{} {system} {cores}", without_version(name)))
    }

    /// A kind as [`as_str`](Self::as_str) gave it.
    #[must_use]
    pub fn from_text(text: String) -> Self {
        Self(text)
    }

    /// One line of text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The version begins after the first dash that no letter follows, as in Nix's `parseDrvName`.
fn without_version(name: &str) -> &str {
    let dashes = name.match_indices('-').map(|(at, _)| at);
    let version = |at: &usize| name[at + 1..].chars().next().is_some_and(|c| !c.is_ascii_alphabetic());
    &name[..dashes.into_iter().find(version).unwrap_or(name.len())]
}

/// A guess at how long one build takes: log-normal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// As likely shorter as longer, in seconds.
    median: f64,
    /// Standard deviation of the logarithm.
    spread: f64,
}

impl Estimate {
    /// The average of such builds, in seconds; the few that take much longer count.
    pub(in crate::build) fn mean(self) -> f64 {
        self.median * (self.spread * self.spread / 2.0).exp()
    }

    /// As durations.
    pub(in crate::build) fn guess(self) -> Guess {
        let Self { median, spread } = self;
        Guess { median: duration(median), p95: duration(median * (Z_95 * spread).exp()) }
    }

    /// The rest of a build that has run for so long. Past its estimate that grows: it turned out to be a long
    /// one.
    #[must_use]
    pub fn after(self, elapsed: Duration) -> Self {
        let elapsed = elapsed.as_secs_f64();
        let median = (self.median - elapsed).max(elapsed * self.spread / 2.0).max(SECONDS_MIN);
        // The error is that of the whole build, which is more in proportion to what is left of it.
        let spread = (self.spread * (self.median.max(elapsed) / median).sqrt()).min(2.0);
        Self { median, spread: spread.max(self.spread) }
    }
}

/// Work to be done one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    mean: f64,
    variance: f64,
    /// Builds that are not in the sum because nothing is known of them.
    pub unknown: usize,
    /// Of those, the ones that run already: their number, and the mean and variance of what is left of them.
    begun: (usize, f64, f64),
}

impl Sum {
    /// Adds one build.
    pub fn add(&mut self, estimate: Option<Estimate>) {
        let Some(estimate) = estimate else {
            self.unknown += 1;
            return;
        };
        let (mean, spread) = (estimate.mean(), estimate.spread);
        self.mean += mean;
        self.variance += mean * mean * ((spread * spread).exp() - 1.0);
    }

    /// Adds one build that is unknown and runs already; `left` is judged by all others, if there are any.
    pub fn add_begun(&mut self, left: Option<Estimate>) {
        self.unknown += 1;
        let Some(left) = left else { return };
        let mut one = Self::default();
        one.add(Some(left));
        let (count, mean, variance) = &mut self.begun;
        (*count, *mean, *variance) = (*count + 1, *mean + one.mean, *variance + one.variance);
    }

    /// The same with what is unknown taken for an average first build. `None` where there is nothing to judge
    /// by.
    #[must_use]
    pub fn with_unknown(mut self, first: Option<Estimate>) -> Option<Self> {
        let (begun, mean, variance) = std::mem::take(&mut self.begun);
        let fresh = std::mem::take(&mut self.unknown) - begun;
        (self.mean, self.variance) = (self.mean + mean, self.variance + variance);
        if fresh > 0 {
            let first = first?;
            (0..fresh).for_each(|_| self.add(Some(first)));
        }
        Some(self)
    }

    /// The same work done by several at once, as if it could always be shared out evenly.
    #[must_use]
    pub fn shared_by(&self, workers: usize) -> Self {
        let workers = workers as f64;
        let Self { mean, variance, unknown, begun: (count, left, uncertain) } = *self;
        let squared = workers * workers;
        let begun = (count, left / workers, uncertain / squared);
        Self { mean: mean / workers, variance: variance / squared, unknown, begun }
    }

    /// The median of what is known, in seconds, and the standard deviation of its logarithm: the log-normal
    /// distribution with the same mean and variance.
    #[must_use]
    pub fn log_normal(&self) -> (f64, f64) {
        if self.mean <= 0.0 {
            return (0.0, 0.0);
        }
        let squared = (self.variance / (self.mean * self.mean)).ln_1p();
        (self.mean / (squared / 2.0).exp(), squared.sqrt())
    }

    /// The median of what is known.
    #[must_use]
    pub fn known(&self) -> Duration {
        duration(self.log_normal().0)
    }

    /// Duration of all of it; `None` when something of it is unknown.
    #[must_use]
    pub fn guess(&self) -> Option<Guess> {
        let (median, spread) = self.log_normal();
        (self.unknown == 0).then(|| Estimate { median, spread }.guess())
    }
}

/// A number of seconds that may be absurd.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Builds that were seen of one kind.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Logarithms of seconds, the latest last.
    built: VecDeque<f64>,
    /// Their median.
    median: f64,
    /// Since the last success, one was stopped after so long (a logarithm).
    at_least: Option<f64>,
    learned_at: u64,
}

/// Durations that were learned from all builds.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    kinds: BTreeMap<Kind, Seen>,
    by_age: BTreeMap<u64, Kind>,
    /// Logarithms of how much longer builds took than was guessed, the latest last.
    errors: VecDeque<f64>,
    /// The sum of their squares.
    squares: f64,
    /// Of all first builds of a kind: their number, and the mean and variance (times the number) of their
    /// logarithms.
    first: (f64, f64, f64),
    learned: u64,
}

impl Durations {
    /// Learns from a build that took so long, or that was stopped (or failed) then and would have taken
    /// longer.
    pub fn learn(&mut self, kind: &Kind, took: Duration, built: bool) {
        let log = took.as_secs_f64().max(SECONDS_MIN).ln();
        let guessed = self.kinds.get(kind).and_then(|seen| self.median_log(seen));
        self.touch(kind);
        let Some(seen) = self.kinds.get_mut(kind) else { return };
        if !built {
            seen.at_least = Some(seen.at_least.map_or(log, |other| other.max(log)));
            return;
        }
        seen.at_least = None;
        if seen.built.len() >= LATEST {
            seen.built.pop_front();
        }
        seen.built.push_back(log);
        seen.median = median(&seen.built);
        match guessed {
            Some(guessed) => {
                if self.errors.len() >= ERRORS_MAX
                    && let Some(oldest) = self.errors.pop_front()
                {
                    self.squares -= oldest * oldest;
                }
                self.errors.push_back(log - guessed);
                self.squares += (log - guessed) * (log - guessed);
            }
            None => {
                let (n, mean, squares) = self.first;
                let next = mean + (log - mean) / (n + 1.0);
                self.first = (n + 1.0, next, squares + (log - mean) * (log - next));
            }
        }
    }

    /// Durations of the latest builds of this kind, the oldest first.
    #[must_use]
    pub fn latest(&self, kind: &Kind) -> Vec<Duration> {
        let built = self.kinds.get(kind).map(|seen| &seen.built);
        built.into_iter().flatten().map(|log| duration(log.exp())).collect()
    }

    /// Duration of a build of this kind; `None` when none was seen that came to its end.
    #[must_use]
    pub fn estimate(&self, kind: &Kind) -> Option<Estimate> {
        let seen = self.kinds.get(kind)?;
        let log = self.median_log(seen)?;
        let spread = self.spread();
        // One that was stopped took longer than that: it is taken to be as long again as guesses are wrong.
        let at_least = seen.at_least.map(|log| log + spread);
        Some(Estimate { median: log.max(at_least.unwrap_or(log)).exp(), spread })
    }

    /// Duration of a build of which nothing is known, judging by all others; `None` until one was seen.
    #[must_use]
    pub fn of_unknown(&self) -> Option<Estimate> {
        let (n, mean, squares) = self.first;
        (n > 0.0).then(|| Estimate { median: mean.exp(), spread: (squares / n).sqrt().max(SPREAD_AT_FIRST) })
    }

    /// Rest of a build of a kind that was never built, which has run for so long; `None` until one was seen.
    /// Its 10th and 90th percentiles are those of all first builds that take longer than that. The tail is
    /// that of a log-logistic distribution: the longer it has run, the longer it is expected to go on. Of one
    /// that runs the lower end is the 5th: a short build is looked at near its end as often as a long one,
    /// though there are fewer such moments.
    #[must_use]
    pub fn of_first(&self, elapsed: Duration) -> Option<Estimate> {
        let (n, mean, squares) = self.first;
        if n < 1.0 {
            return None;
        }
        let weight = FIRST_WEIGHT + n;
        let variance = (FIRST_WEIGHT * FIRST_SPREAD * FIRST_SPREAD + squares) / weight;
        // Neither the mean nor the spread of a few is that of all: Student's distribution, nearly.
        let spread = (variance * (1.0 + 1.0 / n)).sqrt() * (1.0 + 0.85 / (weight - 1.0));
        let (median, elapsed) = (mean.exp(), elapsed.as_secs_f64());
        // Its scale gives it the 90th percentile of the normal one.
        let scale = Z_90 * spread / 9f64.ln();
        let longer = |part: f64| {
            let rest = part / (1.0 + (elapsed / median).powf(1.0 / scale));
            (median * ((1.0 - rest) / rest).powf(scale) - elapsed).max(SECONDS_MIN)
        };
        let (low, high) = (longer(if elapsed > 0.0 { 0.95 } else { 0.9 }), longer(0.1));
        let spread = ((high / low).ln() / (2.0 * Z_90)).clamp(SPREAD_MIN, SPREAD_MAX);
        Some(Estimate { median: (low * high).sqrt(), spread })
    }

    fn median_log(&self, seen: &Seen) -> Option<f64> {
        let (n, (_, prior, _)) = (seen.built.len() as f64, self.first);
        (n > 0.0).then(|| (seen.median * n + prior * PRIOR_WEIGHT) / (n + PRIOR_WEIGHT))
    }

    fn spread(&self) -> f64 {
        if self.errors.len() < ERRORS_MIN {
            return SPREAD_AT_FIRST;
        }
        (self.squares.max(0.0) / self.errors.len() as f64).sqrt().max(SPREAD_MIN)
    }

    /// Makes room for a kind, and makes it the latest.
    fn touch(&mut self, kind: &Kind) {
        self.learned += 1;
        let learned = self.learned;
        let seen = self.kinds.entry(kind.clone()).or_default();
        self.by_age.remove(&seen.learned_at);
        seen.learned_at = learned;
        self.by_age.insert(learned, kind.clone());
        if self.by_age.len() > KINDS_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.kinds.remove(&oldest);
        }
    }
}

/// There is at least one.
fn median(logs: &VecDeque<f64>) -> f64 {
    let mut sorted: Vec<f64> = logs.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn kind(name: &str) -> Kind {
        Kind::new(name, "x86_64-linux", 0)
    }

    /// Two hundred kinds built six times each, never off by more than a tenth.
    fn experienced() -> Durations {
        let mut durations = Durations::default();
        for round in 0..6 {
            for n in 0..200 {
                let noise = 1.0 + f64::from((n * 7 + round * 13) % 21 - 10) / 100.0;
                durations.learn(&kind(&format!("p{n}")), seconds(f64::from(n + 1) * noise), true);
            }
        }
        durations
    }

    #[test]
    fn a_version_is_no_part_of_a_kind() {
        for (name, without) in [
            ("openssl-3.0.14", "openssl"),
            ("nix-eval-jobs-2.24", "nix-eval-jobs"),
            ("python3.11-foo", "python3.11-foo"),
            ("a--b", "a"),
            ("hello", "hello"),
            ("ends-", "ends-"),
        ] {
            assert_eq!(without_version(name), without);
        }
        assert_eq!(kind("hello-2.12"), kind("hello-2.13"));
        assert_ne!(kind("hello-2.12"), Kind::new("hello-2.12", "aarch64-linux", 0));
    }

    #[test]
    fn what_was_built_before_is_known_and_nothing_else_is() {
        let durations = experienced();
        let Estimate { median, spread } = durations.estimate(&kind("p99-1.1")).expect("seen");
        assert!((90.0..110.0).contains(&median), "{median}");
        assert!(spread < 0.15, "guesses were good: {spread}");
        assert_eq!(durations.estimate(&kind("never")), None);
        assert!(durations.of_unknown().expect("others were seen").spread > 0.5);
        assert_eq!(Durations::default().of_unknown(), None);
    }

    #[test]
    fn one_slow_build_among_five_changes_little() {
        let mut durations = experienced();
        durations.learn(&kind("p9"), seconds(1000.0), true);
        let median = durations.estimate(&kind("p9")).expect("seen").median;
        assert!((9.0..12.0).contains(&median), "{median}");
    }

    #[test]
    fn a_build_that_was_stopped_would_have_taken_longer() {
        let mut durations = experienced();
        durations.learn(&kind("p9"), seconds(60.0), false);
        assert!(durations.estimate(&kind("p9")).expect("seen").median > 60.0);
        durations.learn(&kind("new"), seconds(60.0), false);
        assert_eq!(durations.estimate(&kind("new")), None, "how much longer nobody knows");
        durations.learn(&kind("p9"), seconds(10.0), true);
        assert!(durations.estimate(&kind("p9")).expect("seen").median < 12.0, "it was no lasting change");
    }

    #[test]
    fn a_sum_is_less_uncertain_than_its_parts_and_knows_what_it_does_not_know() {
        let durations = experienced();
        let mut sum = Sum::default();
        for n in 90..100 {
            sum.add(durations.estimate(&kind(&format!("p{n}"))));
        }
        let Guess { median, p95 } = sum.guess().expect("all are known");
        assert!((900..1010).contains(&median.as_secs()), "{median:?}");
        assert!(p95 > median && p95 < median.mul_f64(1.1), "{p95:?}");
        sum.add(None);
        assert_eq!((sum.guess(), sum.unknown), (None, 1));
        assert_eq!(sum.known(), median);
        assert_eq!(Sum::default().guess().expect("nothing to do").p95, Duration::ZERO);
    }

    #[test]
    fn what_is_left_shrinks_at_first_and_grows_past_the_estimate() {
        let estimate = experienced().estimate(&kind("p99")).expect("seen");
        let left = |elapsed: f64| estimate.after(seconds(elapsed)).median;
        assert!(left(50.0) < left(10.0) && left(10.0) < estimate.median);
        assert!(left(200.0) > left(150.0) && left(150.0) > 0.0);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut durations = Durations::default();
        for n in 0..=KINDS_MAX {
            durations.learn(&kind(&format!("p{n}")), seconds(1.0), true);
        }
        assert_eq!(durations.kinds.len(), KINDS_MAX);
        assert_eq!(durations.estimate(&kind("p0")), None, "the oldest is forgotten");
        assert!(durations.estimate(&kind("p1")).is_some());
    }
}
