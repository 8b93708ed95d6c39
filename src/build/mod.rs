//! Builds on demand: the scheduler, the worker that works for it, and the runners that build.
//! Must never build twice what two clients ask for, nor run more builds at once than it has lanes.

mod admission;
mod builder_metrics;
mod drained;
mod failures;
mod farm;
pub mod forecast;
mod log;
mod metrics;
mod plan;
pub mod prebuild;
pub mod queue;
mod runner;
mod scheduler;
mod verdict;
#[cfg(test)]
mod verdict_tests;
mod view;
mod worker;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::model::Failure;
pub use drained::DrainedBuilders;
pub use failures::Failures;
pub use farm::{BuilderSettings, Farm, FarmSettings, LOCAL, WEIGHT};
pub use log::{Log, Logs, Settings as LogSettings, entered_phase, plain_line};
use prebuild::allowance::Allowance;
pub use queue::{Overtaking, Policy};
pub use runner::{LocalRunner, MachineRunner, RemoteRunner};
pub use scheduler::{Cancellation, EndSignal, NoBuilder, NotQueued, Scheduler, Ticket};
pub use view::{
    BuilderState, BuilderView, Outlook, QueuePulse, QueueView, RequestState, RequestView, RunningView,
};
pub use worker::Worker;
#[cfg(test)]
pub(crate) use worker::simulated;

/// Order and bounds of builds.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Time for which a permanent failure is remembered.
    pub permanent_failure_ttl: Duration,
    /// Time for which a transient failure, or a refusal, is remembered.
    pub transient_failure_ttl: Duration,
    /// Time for which a lost Nix daemon is waited for, from its loss.
    pub transient_retry: Duration,
    /// Builds at a time, on all machines.
    pub lanes: NonZeroUsize,
    /// Policy by which requests may be built before older ones.
    pub policy: Policy,
    /// Derivations that may have to be built for one request.
    pub derivations_max: usize,
    /// Time for which a request keeps its place after its last client has left: one that only reconnects
    /// finds it again.
    pub abandon_after: Duration,
    /// Requests that may wait; one more is rejected.
    pub queued_max: usize,
    /// Requests of one address that may wait.
    pub queued_per_client_max: usize,
    /// Cores that one build may use; 0 is all.
    pub cores: u64,
    /// Duration of one build at most.
    pub build_max: Option<Duration>,
    /// Silence of one build at most.
    pub silent_max: Option<Duration>,
    /// True where each derivation is built on a second machine, too, to compare the outputs.
    pub repeat: bool,
    /// Hours and seconds a day in which something may be built before anyone asks, if ever.
    pub prebuild: Option<Allowance>,
}

/// Strict order on one lane, without bounds on builds; no failure is remembered, and no daemon waited for.
impl Default for Settings {
    fn default() -> Self {
        Self {
            permanent_failure_ttl: Duration::ZERO,
            transient_failure_ttl: Duration::ZERO,
            transient_retry: Duration::ZERO,
            lanes: NonZeroUsize::MIN,
            policy: Policy::Strict,
            derivations_max: 500,
            abandon_after: Duration::from_secs(60),
            queued_max: usize::MAX,
            queued_per_client_max: usize::MAX,
            cores: 0,
            build_max: None,
            silent_max: None,
            repeat: false,
            prebuild: None,
        }
    }
}

/// End of a request.
pub type Ending = Result<(), Arc<Failure>>;
