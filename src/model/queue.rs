//! The queue as it is kept over a restart: requests in their order, and how long builds took.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use narinfo::StorePath;

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRow {
    /// Number in the order of arrival; never used twice.
    pub id: u64,
    /// The derivation it is for.
    pub drv: StorePath,
    /// True once something was built for it.
    pub started: bool,
    /// The time it was made.
    pub asked_at: SystemTime,
    /// Address of the client that made it.
    pub asked_by: Option<IpAddr>,
    /// See `build::queue`.
    pub due_owner: Option<u64>,
    /// See `build::queue`; to the millisecond.
    pub charged: Duration,
    /// See `build::queue`; to the millisecond.
    pub earned: Duration,
    /// Name of the builder that alone may build it; `None` for any.
    pub builder: Option<String>,
}

/// Duration of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurationRow {
    /// The kind of work: see `build::estimate`.
    pub work: String,
    /// Time it took, to the millisecond.
    pub took: Duration,
    /// False where it failed or was stopped, and would have taken longer.
    pub built: bool,
}
