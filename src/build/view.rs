//! The queue as people and programs see it: plain types that the API gives as JSON.

use narinfo::StorePath;

use crate::model::{Failure, FailureClass};

/// `GET /api/v1/queue`.
#[derive(Clone, Debug)]
pub struct QueueView {
    /// Builds that run now.
    pub running: Vec<RunningView>,
    /// Number of all requests that wait.
    pub total: usize,
    /// The oldest requests, in order.
    pub requests: Vec<RequestView>,
    /// Reason why none of them goes on; null while they do.
    pub stalled: Option<String>,
}

/// Marks of the queue that change when something begins, waits or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePulse {
    /// Derivations of the builds that run now.
    pub running: Vec<StorePath>,
    /// Number of requests that wait.
    pub waiting: usize,
    /// Number of the request that ended last.
    pub ended: Option<u64>,
    /// Reason why none of them goes on.
    pub stalled: Option<String>,
}

/// A build that runs.
#[derive(Clone, Debug)]
pub struct RunningView {
    /// Base name of the derivation.
    pub derivation: String,
    /// Seconds since it was started.
    pub seconds: u64,
    /// Seconds that such a build takes on average, once one was seen.
    pub expected_seconds: Option<u64>,
    /// The request it is built for.
    pub request: Option<u64>,
    /// The machine that builds it.
    pub builder: Option<String>,
    /// True for a pre-build: it is for nobody yet, and stopped once someone waits for anything else.
    pub prebuild: bool,
}

/// State of a machine that builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuilderState {
    /// Builds, or would.
    Up,
    /// Not reached yet since the server was started.
    Connecting,
    /// Lost; it is tried again.
    Resting,
    /// Nothing more is built there; something still is.
    Draining,
    /// Nothing is built there.
    Drained,
}

/// A machine that builds.
#[derive(Clone, Debug)]
pub struct BuilderView {
    /// Its name.
    pub name: String,
    /// Login, or nothing for the local Nix daemon.
    pub address: Option<String>,
    /// State of it.
    pub state: BuilderState,
    /// Begin of that state, in Unix seconds.
    pub since: u64,
    /// Systems it builds for.
    pub systems: Vec<String>,
    /// Features it offers.
    pub features: Vec<String>,
    /// Features that whatever it builds must require.
    pub mandatory_features: Vec<String>,
    /// Builds at a time.
    pub slots: usize,
    /// Speed in comparison with others.
    pub speed: f64,
    /// Preference before others.
    pub weight: u32,
    /// Builds that run there.
    pub running: Vec<RunningView>,
    /// Builds that ended well there since the server was started.
    pub built: u64,
    /// Builds that failed there.
    pub failed: u64,
    /// Builds that were lost with it.
    pub lost: u64,
    /// Reason why it was last lost.
    pub last_error: Option<String>,
    /// Time of that, in Unix seconds.
    pub last_error_at: Option<u64>,
    /// Derivations that failed there and were built elsewhere, or the reverse.
    pub disagreements: u64,
    /// The latest of them, in words.
    pub last_disagreement: Option<String>,
    /// Release of Nix there.
    pub nix_version: Option<String>,
}

/// A request that waits.
#[derive(Clone, Debug)]
pub struct RequestView {
    /// Number of the request, which is never used again.
    pub id: u64,
    /// Base name of the derivation it is for.
    pub derivation: String,
    /// Time of the first ask, in Unix seconds.
    pub asked_at: u64,
    /// Time of its end, in Unix seconds; nothing while it waits.
    pub ended_at: Option<u64>,
    /// Number of clients that wait for it.
    pub clients: usize,
    /// The machine that alone may build what it wants.
    pub builder: Option<String>,
    /// Wait or end.
    pub state: RequestState,
    /// Outlook in the queue; nothing once the request has left it.
    pub outlook: Option<Outlook>,
}

/// Stage in the life of a request.
#[derive(Clone, Debug)]
pub enum RequestState {
    /// In the queue, nothing is being built for it now.
    Waiting,
    /// In the queue, and something is being built for it.
    Building {
        /// Base name of what is being built.
        building: String,
    },
    /// Complete; the outputs are being signed and published.
    Delivering,
    /// Ended well.
    Served,
    /// Ended by a failed build.
    Failed {
        /// Base name of the derivation whose build failed.
        cause: String,
        /// Words of the daemon.
        reason: String,
    },
    /// Ended before anything was built, because this server cannot or may not.
    Refused {
        /// Reason of the refusal.
        reason: String,
    },
    /// Dropped: nobody waited for it any more, and nothing of it was built yet.
    Dropped,
    /// Ended because it was cancelled.
    Cancelled,
}

impl From<&Failure> for RequestState {
    fn from(failure: &Failure) -> Self {
        let reason = failure.reason.clone();
        match failure.class {
            FailureClass::Refused => Self::Refused { reason },
            FailureClass::Permanent | FailureClass::Transient => {
                Self::Failed { cause: failure.cause.to_string(), reason }
            }
        }
    }
}

/// Outlook of a request in the queue.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// Place in the queue, 1 being the oldest.
    pub position: usize,
    /// Number of all requests.
    pub of: usize,
    /// Derivations built for it since it was planned; nothing until it is planned.
    pub built: Option<usize>,
    /// Derivations that it lacked when it was planned.
    pub lacked: Option<usize>,
    /// Seconds of work ahead of its delivery, as far as that is known; nothing until it is planned.
    pub known_seconds: Option<u64>,
    /// Derivations ahead of its delivery whose duration is unknown.
    pub unknown: Option<usize>,
    /// Seconds from now between which it is delivered, in eight cases of ten.
    pub eta_seconds: Option<(u64, u64)>,
}
