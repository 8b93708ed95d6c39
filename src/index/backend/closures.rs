//! Traits of what people look at: closures, and the use of the server hour by hour.

use narinfo::{StorePath, StorePathHash};

use super::BackendFuture;
use crate::model::{HourRow, PathRow};

/// References between served paths.
pub trait Closures {
    /// The served path with this hash and all that it refers to, itself first, the nearest before the others;
    /// at most `max`. Empty where it is not served.
    fn closure(&self, hash: StorePathHash, max: u32) -> BackendFuture<'_, Vec<PathRow>>;

    /// Served paths that refer to the one with this hash, itself excepted, in the order of their hashes; at
    /// most `max`.
    fn referrers(&self, hash: StorePathHash, max: u32) -> BackendFuture<'_, Vec<StorePath>>;
}

/// Use of the server hour by hour.
pub trait History {
    /// Records an hour: totals as they are now, and events in addition to those on record. Forgets the hours
    /// before `first`.
    fn record_hour(&self, row: HourRow, first: u64) -> BackendFuture<'_, ()>;

    /// Hours from `first` on, in their order.
    fn hours(&self, first: u64) -> BackendFuture<'_, Vec<HourRow>>;
}
