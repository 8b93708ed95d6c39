//! A circuit breaker: a peer that fails several times in a row is left alone for a while, longer each time,
//! and then asked once. Takes the time from outside.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// Failures in a row after which the upstream is not asked any more.
const FAILURES_MAX: u32 = 3;
/// Shortest rest.
const REST_MIN: Duration = Duration::from_secs(5);
/// Longest rest.
const REST_MAX: Duration = Duration::from_secs(60);
const RESTS: Backoff = Backoff::new(REST_MIN, REST_MAX);

/// So long an answer tells how an upstream is.
const LATELY: Duration = Duration::from_secs(10);

/// The breaker of one upstream.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// The first of them.
    since: Option<Instant>,
    rest: Option<BreakerPause>,
    /// The latest answer, or failure to answer: when, and whether it was one.
    latest: Option<(Instant, bool)>,
}

#[derive(Debug)]
struct BreakerPause {
    until: Instant,
    length: Duration,
    /// Rests after further failures.
    backoff: Backoff,
    /// The one attempt after it is under way.
    tried: bool,
}

impl BreakerPause {
    fn begin(now: Instant, mut backoff: Backoff) -> Self {
        let length = backoff.pause();
        Self { until: now + length, length, backoff, tried: false }
    }
}

impl Breaker {
    /// True if a request is allowed now. After a rest one attempt is let through, and the next only after as
    /// long a time.
    pub(super) fn may_ask(&self, now: Instant) -> bool {
        match &mut self.lock().rest {
            None => true,
            Some(rest) if now < rest.until => false,
            Some(rest) => {
                rest.tried = true;
                rest.until = now + rest.length;
                true
            }
        }
    }

    /// Pauses until a moment that the peer has named.
    pub(super) fn rest_until(&self, until: Instant) {
        let mut state = self.lock();
        let rest =
            state.rest.get_or_insert_with(|| BreakerPause { until, ..BreakerPause::begin(until, RESTS) });
        rest.until = rest.until.max(until);
    }

    /// There was an answer. Whether it had been resting.
    pub(super) fn answered(&self, now: Instant) -> bool {
        let before =
            std::mem::replace(&mut *self.lock(), State { latest: Some((now, true)), ..State::default() });
        before.rest.is_some()
    }

    /// The last answer or failure, as of a moment ago; `None` without a recent request.
    pub(super) fn answered_lately(&self, now: Instant) -> Option<bool> {
        let state = self.lock();
        match (&state.rest, state.latest) {
            (Some(rest), _) if now < rest.until => Some(false),
            (_, Some((at, answered))) if now.saturating_duration_since(at) < LATELY => Some(answered),
            _ => None,
        }
    }

    /// There was no answer. How long it rests from now on, where that is because of this.
    pub(super) fn failed(&self, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        state.since.get_or_insert(now);
        state.latest = Some((now, false));
        let backoff = match &state.rest {
            None if state.failures < FAILURES_MAX => return None,
            None => RESTS,
            Some(rest) if rest.tried => rest.backoff,
            // It was under way when the rest began.
            Some(_) => return None,
        };
        let rest = BreakerPause::begin(now, backoff);
        let length = rest.length;
        state.rest = Some(rest);
        Some(length)
    }

    /// Time for which every request has failed.
    pub(super) fn failing_for(&self, now: Instant) -> Duration {
        self.lock().since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// True if nothing was answered since the last failure.
    pub(super) fn is_failing(&self) -> bool {
        self.lock().failures > 0
    }

    /// True after too many failures without an answer since.
    pub(super) fn rests(&self) -> bool {
        self.lock().rest.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// One that has just begun its first rest.
    fn resting(now: Instant) -> Breaker {
        let breaker = Breaker::default();
        assert_eq!([1, 2, 3].map(|_| breaker.failed(now)), [None, None, Some(REST_MIN)]);
        breaker
    }

    #[test]
    fn failures_between_answers_do_not_count_together() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            assert!(breaker.may_ask(now));
            assert_eq!([breaker.failed(now), breaker.failed(now)], [None, None]);
            assert!(!breaker.answered(now));
        }
    }

    #[test]
    fn after_some_failures_in_a_row_nobody_asks_for_a_while() {
        let now = Instant::now();
        let breaker = resting(now);
        assert!(!breaker.may_ask(now) && !breaker.may_ask(now + REST_MIN - SECOND));
        assert_eq!(breaker.failed(now + SECOND), None, "it was under way when the rest began");
        assert!(breaker.may_ask(now + REST_MIN), "one attempt");
        assert!(!breaker.may_ask(now + REST_MIN), "one, not two");
    }

    #[test]
    fn rests_become_longer_up_to_a_bound_and_end_with_an_answer() {
        let mut now = Instant::now();
        let (breaker, mut length) = (resting(now), REST_MIN);
        for _ in 0..10 {
            now += length;
            assert!(breaker.may_ask(now));
            length = (length * 2).min(REST_MAX);
            assert_eq!(breaker.failed(now), Some(length));
        }
        now += length;
        assert!(breaker.may_ask(now) && breaker.answered(now));
        assert!(breaker.may_ask(now) && breaker.failed(now).is_none(), "it starts anew");
    }

    #[test]
    fn how_it_is_is_known_for_a_moment_and_while_it_rests() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        assert_eq!(breaker.answered_lately(now), None);
        breaker.answered(now);
        assert_eq!(breaker.answered_lately(now), Some(true));
        assert_eq!(breaker.answered_lately(now + LATELY), None);
        breaker.failed(now);
        assert_eq!(breaker.answered_lately(now), Some(false));
        let breaker = resting(now);
        assert_eq!(breaker.answered_lately(now + REST_MIN - SECOND), Some(false));
    }

    #[test]
    fn how_long_it_has_failed_counts_from_its_last_answer() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        assert_eq!(breaker.failing_for(now), Duration::ZERO);
        breaker.failed(now);
        breaker.failed(now + SECOND);
        assert_eq!(breaker.failing_for(now + 3 * SECOND), 3 * SECOND);
        breaker.answered(now + 4 * SECOND);
        assert_eq!(breaker.failing_for(now + 5 * SECOND), Duration::ZERO);
    }

    #[test]
    fn an_attempt_that_never_ended_is_followed_by_another() {
        let now = Instant::now();
        let breaker = resting(now);
        assert!(breaker.may_ask(now + REST_MIN));
        assert!(breaker.may_ask(now + REST_MIN * 2));
    }
}
