//! Failures, the queue and the demand in memory.

use std::time::{Duration, SystemTime};

use narinfo::StorePath;

use super::{MemoryBackend, done};
use crate::index::backend::{BackendFuture, DemandStore, FailureStore, QueueLog};
use crate::model::{DemandRow, DurationRow, Failure, FailureClass, RequestRow};

/// Failures that are listed at most.
const LISTED_MAX: usize = 1_000;
/// Durations that are kept of each kind of work.
const DURATIONS_KEPT: usize = 5;

impl FailureStore for MemoryBackend {
    fn failure(&self, drv: StorePath, now: SystemTime) -> BackendFuture<'_, Option<Failure>> {
        done(self.state().failures.get(&drv).filter(|failure| failure.expires_at > now).cloned())
    }

    fn remember_failure(&self, failure: Failure) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        state.failures.retain(|_, other| other.expires_at > failure.failed_at);
        state.failures.insert(failure.drv.clone(), failure);
        done(())
    }

    fn failures(&self, now: SystemTime) -> BackendFuture<'_, Vec<Failure>> {
        let state = self.state();
        let mut found: Vec<_> =
            state.failures.values().filter(|failure| failure.expires_at > now).cloned().collect();
        found.sort_by_key(|failure| std::cmp::Reverse(failure.failed_at));
        found.truncate(LISTED_MAX);
        done(found)
    }

    fn forget_failure(&self, drv: StorePath) -> BackendFuture<'_, Vec<StorePath>> {
        let mut state = self.state();
        let mut causes = vec![drv.clone()];
        causes.extend(state.failures.get(&drv).map(|failure| failure.cause.clone()));
        let goes = |failure: &Failure| causes.contains(&failure.drv) || causes.contains(&failure.cause);
        let forgotten: Vec<_> = state
            .failures
            .values()
            .filter(|failure| goes(failure))
            .map(|failure| failure.drv.clone())
            .collect();
        forgotten.iter().for_each(|drv| drop(state.failures.remove(drv)));
        done(forgotten)
    }

    fn end_failure_by(&self, drv: StorePath, end: SystemTime) -> BackendFuture<'_, ()> {
        if let Some(failure) = self.state().failures.get_mut(&drv) {
            failure.expires_at = failure.expires_at.min(end);
        }
        done(())
    }

    fn shorten_failures(
        &self,
        class: FailureClass,
        lifetime: Duration,
        now: SystemTime,
    ) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        for failure in state.failures.values_mut().filter(|failure| failure.class == class) {
            for end in [failure.failed_at, now].into_iter().filter_map(|from| from.checked_add(lifetime)) {
                failure.expires_at = failure.expires_at.min(end);
            }
        }
        state.failures.retain(|_, failure| failure.expires_at > now);
        done(())
    }

    fn forget_refusals(&self) -> BackendFuture<'_, ()> {
        self.state().failures.retain(|_, failure| failure.class != FailureClass::Refused);
        done(())
    }
}

impl QueueLog for MemoryBackend {
    fn requests(&self) -> BackendFuture<'_, (Vec<RequestRow>, u64)> {
        let state = self.state();
        done((state.requests.values().cloned().collect(), state.last_request))
    }

    fn record_queue(
        &self,
        requests: Vec<RequestRow>,
        gone: Vec<u64>,
        durations: Vec<DurationRow>,
    ) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        for request in requests {
            state.last_request = state.last_request.max(request.id);
            state.requests.insert(request.id, request);
        }
        gone.iter().for_each(|id| drop(state.requests.remove(id)));
        for duration in durations {
            let work = duration.work.clone();
            state.durations.push(duration);
            let kept = state.durations.iter().filter(|other| other.work == work).count();
            if kept > DURATIONS_KEPT
                && let Some(oldest) = state.durations.iter().position(|other| other.work == work)
            {
                state.durations.remove(oldest);
            }
        }
        done(())
    }

    fn durations(&self) -> BackendFuture<'_, Vec<DurationRow>> {
        done(self.state().durations.clone())
    }
}

impl DemandStore for MemoryBackend {
    fn demand(&self) -> BackendFuture<'_, Vec<DemandRow>> {
        done(self.state().demand.clone())
    }

    fn record_demand(&self, rows: Vec<DemandRow>, first_day: u64) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        let replaced = |old: &DemandRow| rows.iter().any(|row| (row.day, &row.name) == (old.day, &old.name));
        state.demand.retain(|old| old.day >= first_day && !replaced(old));
        state.demand.extend(rows);
        state.demand.sort_by_key(|row| row.day);
        done(())
    }

    fn prebuilt(&self) -> BackendFuture<'_, (u64, Duration)> {
        done(self.state().prebuilt)
    }

    fn record_prebuilt(&self, day: u64, spent: Duration) -> BackendFuture<'_, ()> {
        self.state().prebuilt = (day, spent);
        done(())
    }
}
