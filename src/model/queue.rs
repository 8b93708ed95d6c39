//! The queue as it is kept over a restart: requests in their order, and how long builds took.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use narinfo::StorePath;

use super::Failure;

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

/// Name of a server among those that share an index: random, and kept in its state directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub String);

/// Term of the leader among the servers that share an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Number of the term; later terms have higher ones.
    pub epoch: u64,
    /// The leader.
    pub holder: NodeId,
}

/// Outcome of a request that has left the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueOutcome {
    /// The outputs are served.
    Served,
    /// Failed, or refused.
    Failed(Failure),
    /// Nobody has waited for it any more.
    Dropped,
    /// Cancelled.
    Cancelled,
}

/// End of a request, for every server whose clients wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndingRow {
    /// Number of the request.
    pub request: u64,
    /// The derivation it was for.
    pub drv: StorePath,
    /// Outcome of the request.
    pub outcome: QueueOutcome,
}

/// Changes of a queue that several servers share.
#[derive(Clone, Debug, Default)]
pub struct QueueNews {
    /// New requests that have not ended, oldest first.
    pub requests: Vec<RequestRow>,
    /// The highest number that any request ever had.
    pub latest_request: u64,
    /// Requests that have ended, in the order of their ends.
    pub endings: Vec<EndingRow>,
    /// Position behind the last one of these.
    pub latest_ending: u64,
}
