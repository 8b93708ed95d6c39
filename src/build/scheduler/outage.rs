//! Waiting for a lost runner or an unavailable index: attempts are made again, more and more rarely, until it
//! is back or has been away for too long. The loss is an event of the queue, which tells those who wait; what
//! was under way has not failed by it.

use std::time::Duration;

use narinfo::StorePath;
use tokio::time::Instant;

use super::{Scheduler, Shared, State};
use crate::backoff::Backoff;

/// Attempts that are made in any case: the bound is one of time, and a build may have run for longer than
/// that.
const ATTEMPTS_MIN: u32 = 3;
/// Shortest pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause: a daemon that is back is noticed within it.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The Nix daemon, for those who wait for it.
pub(in crate::build) const DAEMON: &str = "the Nix daemon";
/// The index, for those who wait for it.
pub(in crate::build) const INDEX: &str = "the index";
/// The storage of NARs, for those who wait for it.
pub(in crate::build) const NAR_STORE: &str = "the NAR store";

/// The loss of the daemon, or of the index, while something waits for it.
pub(super) struct Outage {
    since: Instant,
    /// [`DAEMON`], [`INDEX`] or [`NAR_STORE`].
    lost: &'static str,
    /// Reason of the latest attempt.
    reason: String,
    /// Number of those who wait for its end.
    waiting: usize,
}

/// One of those who wait for the end of an outage, as long as it exists.
struct OutageGuard<'a>(&'a Shared);

impl Scheduler {
    /// Runs `attempt` until it succeeds, fails for good, or has lost the daemon for as long as
    /// `transient-retry` says. `lost` gives the reason where an error is such a loss.
    pub(in crate::build) async fn patiently<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        drv: &StorePath,
        attempt: impl Fn() -> F,
        lost: impl Fn(&E) -> Option<String>,
    ) -> Result<T, E> {
        self.patiently_for(drv, attempt, |error| lost(error).map(|reason| (DAEMON, reason))).await
    }

    /// Does as [`Scheduler::patiently`] for a loss of [`DAEMON`], [`INDEX`] or [`NAR_STORE`]; `lost` says
    /// of which.
    pub(in crate::build) async fn patiently_for<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        drv: &StorePath,
        attempt: impl Fn() -> F,
        lost: impl Fn(&E) -> Option<(&'static str, String)>,
    ) -> Result<T, E> {
        let (mut attempts, mut backoff) = (1, Backoff::new(PAUSE_MIN, PAUSE_MAX));
        let mut lost_at = None;
        let mut guard = None;
        loop {
            let error = match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let Some((lost, reason)) = lost(&error) else { return Err(error) };
            let since = *lost_at.get_or_insert_with(Instant::now);
            let left = self.0.settings.transient_retry.saturating_sub(since.elapsed());
            let pause = match backoff.pause_within(left) {
                Some(pause) => pause,
                None if attempts < ATTEMPTS_MIN => backoff.pause(),
                None => return Err(error),
            };
            if guard.is_none() {
                tracing::warn!(%drv, %reason, "lost {lost}; trying again until it is back");
            }
            self.0.lock().note_outage(lost, reason, guard.is_none());
            guard.get_or_insert_with(|| OutageGuard(&self.0));
            attempts += 1;
            tokio::time::sleep(pause).await;
        }
    }

    /// The daemon answers: nobody waits for it any more.
    pub(in crate::build) fn daemon_answers(&self) {
        self.0.lock().outage = None;
    }
}

impl State {
    fn note_outage(&mut self, lost: &'static str, reason: String, another: bool) {
        let outage = self.outage.get_or_insert_with(|| Outage {
            since: Instant::now(),
            lost,
            reason: String::new(),
            waiting: 0,
        });
        (outage.lost, outage.reason) = (lost, reason);
        outage.waiting += usize::from(another);
    }

    /// Why nothing goes on at the moment, for those who wait.
    pub(super) fn stalled(&self) -> Option<String> {
        let Some(Outage { since, lost, reason, .. }) = &self.outage else { return self.lacks_machine() };
        Some(format!("waiting for {lost} for {} s: {reason}", since.elapsed().as_secs()))
    }
}

impl Drop for OutageGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let over = state.outage.as_mut().is_none_or(|outage| {
            outage.waiting = outage.waiting.saturating_sub(1);
            outage.waiting == 0
        });
        if over {
            state.outage = None;
        }
    }
}
