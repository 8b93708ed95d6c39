//! Exponential backoff: pauses between attempts at something that fails transiently. Takes no time from any
//! clock: callers say how much is left, and sleep.

use std::time::Duration;

/// Pauses of which each is twice as long as the one before, up to a longest one.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
    pause_min: Duration,
    pause_max: Duration,
}

impl Backoff {
    /// Pauses that begin with `pause_min` and never exceed `pause_max`.
    #[must_use]
    pub const fn new(pause_min: Duration, pause_max: Duration) -> Self {
        Self { next: pause_min, pause_min, pause_max }
    }

    /// Length of the next pause; the one after it is twice as long.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.min(self.pause_max);
        self.next = pause.saturating_mul(2);
        pause
    }

    /// Length of the next pause, where another attempt can follow it within the time `left`; `None`, and no
    /// pause is used up, where it would be too late.
    pub fn pause_within(&mut self, left: Duration) -> Option<Duration> {
        (self.next.min(self.pause_max) <= left).then(|| self.pause())
    }

    /// Begins with the shortest pause again, after an attempt has succeeded.
    pub const fn reset(&mut self) {
        self.next = self.pause_min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pauses(mut backoff: Backoff, count: usize) -> Vec<u64> {
        (0..count).map(|_| backoff.pause().as_secs()).collect()
    }

    #[test]
    fn each_pause_is_twice_as_long_as_the_one_before_up_to_a_bound() {
        assert_eq!(pauses(Backoff::new(SECOND, 10 * SECOND), 7), [1, 2, 4, 8, 10, 10, 10]);
        assert_eq!(pauses(Backoff::new(20 * SECOND, 10 * SECOND), 2), [10, 10]);
        let mut endless = Backoff::new(SECOND, Duration::MAX);
        let longest = (0..200).map(|_| endless.pause()).max();
        assert_eq!(longest, Some(Duration::MAX), "doubling does not overflow");
    }

    #[test]
    fn a_success_begins_with_the_shortest_pause_again() {
        let mut backoff = Backoff::new(SECOND, 10 * SECOND);
        assert_eq!((backoff.pause(), backoff.pause()), (SECOND, 2 * SECOND));
        backoff.reset();
        assert_eq!(pauses(backoff, 2), [1, 2]);
    }

    /// Times of all attempts of someone whose patience is this long, each failing at once.
    fn attempts(patience: Duration, backoff: &mut Backoff) -> Vec<u64> {
        let (mut now, mut times) = (Duration::ZERO, vec![0]);
        while let Some(pause) = backoff.pause_within(patience.saturating_sub(now)) {
            now += pause;
            times.push(now.as_secs());
        }
        times
    }

    #[test]
    fn no_attempt_is_made_after_patience_is_over_and_a_pause_that_is_too_long_is_not_used_up() {
        let mut backoff = Backoff::new(SECOND, 4 * SECOND);
        assert_eq!(attempts(20 * SECOND, &mut backoff), [0, 1, 3, 7, 11, 15, 19]);
        backoff.reset();
        assert_eq!(attempts(7 * SECOND, &mut backoff), [0, 1, 3, 7], "an attempt at the very end");
        backoff.reset();
        assert_eq!(attempts(Duration::ZERO, &mut backoff), [0]);
        assert_eq!(backoff.pause(), SECOND);
    }
}
