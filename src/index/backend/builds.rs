//! Traits of what is kept of builds over a restart: failures, and the queue with its estimates.

use std::time::{Duration, SystemTime};

use narinfo::StorePath;

use super::BackendFuture;
use crate::model::{DemandRow, DurationRow, Failure, FailureClass, RequestRow};

/// Failures, until each expires.
pub trait FailureStore {
    /// The failure of a derivation, unless it has expired by `now`.
    fn failure(&self, drv: StorePath, now: SystemTime) -> BackendFuture<'_, Option<Failure>>;

    /// Remembers a failure in place of an older one, and drops those that have expired.
    fn remember_failure(&self, failure: Failure) -> BackendFuture<'_, ()>;

    /// The latest thousand failures that have not expired by `now`, the latest first.
    fn failures(&self, now: SystemTime) -> BackendFuture<'_, Vec<Failure>>;

    /// Forgets the failure of a derivation with its cause, and every failure that has either as its cause.
    /// Gives their derivations.
    fn forget_failure(&self, drv: StorePath) -> BackendFuture<'_, Vec<StorePath>>;

    /// Has a failure expire at `end` where it would later.
    fn end_failure_by(&self, drv: StorePath, end: SystemTime) -> BackendFuture<'_, ()>;

    /// Has every failure of a class expire `lifetime` after its try, and `lifetime` from `now` at the latest,
    /// where it would later. Drops those that have expired by `now`.
    fn shorten_failures(
        &self,
        class: FailureClass,
        lifetime: Duration,
        now: SystemTime,
    ) -> BackendFuture<'_, ()>;

    /// Forgets every refusal: this server may be able to build other derivations now.
    fn forget_refusals(&self) -> BackendFuture<'_, ()>;
}

/// Requests in their order, and durations of builds.
pub trait QueueLog {
    /// The requests that waited when the server ended, oldest first, and the highest number that any request
    /// ever had.
    fn requests(&self) -> BackendFuture<'_, (Vec<RequestRow>, u64)>;

    /// Records requests as they are now and durations of builds, and forgets the requests that are `gone`,
    /// and all but the latest few durations of each kind of work: all of it or nothing.
    fn record_queue(
        &self,
        requests: Vec<RequestRow>,
        gone: Vec<u64>,
        durations: Vec<DurationRow>,
    ) -> BackendFuture<'_, ()>;

    /// Durations of builds, oldest first.
    fn durations(&self) -> BackendFuture<'_, Vec<DurationRow>>;
}

/// Demand for attributes, and the time spent on building ahead of it.
pub trait DemandStore {
    /// Requests for attributes, in the order of the days.
    fn demand(&self) -> BackendFuture<'_, Vec<DemandRow>>;

    /// Records requests for attributes in place of those of the same days, and forgets the days before
    /// `first_day`.
    fn record_demand(&self, rows: Vec<DemandRow>, first_day: u64) -> BackendFuture<'_, ()>;

    /// Number of the latest day on which something was pre-built, and the time spent on that day, to the
    /// millisecond.
    fn prebuilt(&self) -> BackendFuture<'_, (u64, Duration)>;

    /// Records the time spent on pre-building on the latest day.
    fn record_prebuilt(&self, day: u64, spent: Duration) -> BackendFuture<'_, ()>;
}
