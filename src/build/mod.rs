//! Builds on demand: who waits for what, and the worker that has the Nix daemon build it in the order of the queue.
//! Must never build twice what two clients ask for, nor run more builds at once than it has lanes.

mod admission;
mod builder;
pub mod estimate;
pub mod eta;
mod failures;
mod foresight;
mod hold;
mod idle;
mod log;
mod metrics;
mod outcome;
mod plan;
pub mod prebuild;
pub mod queue;
mod record;
mod retry;
mod verdict;
#[cfg(test)]
mod verdict_tests;
mod view;
mod waiting;
mod worker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use narinfo::StorePath;
use tokio::sync::{Notify, watch};

use crate::index::{self, DurationRow, Failure, Index};
pub use builder::Builder;
pub use failures::Failures;
use foresight::Foresight;
use hold::Holding;
use idle::Idle;
pub use log::{Log, Logs, Settings as LogSettings};
use metrics::{Asked, Ended, Metrics};
use prebuild::allowance::Allowance;
pub use queue::{Overtaking, Policy};
use queue::{Queue, RequestId};
use retry::Outage;
use view::Board;
pub use view::{Outlook, QueueView, RequestState, RequestView, RunningView};
use waiting::{Everyone, Waiting};
pub use worker::Worker;

/// How builds are ordered and bounded.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long the failure of a build that is itself wrong is remembered.
    pub remember_permanent: Duration,
    /// How long a failure of the machine, or a refusal, is remembered.
    pub remember_passing: Duration,
    /// How long a lost Nix daemon is waited for, from when it was lost.
    pub transient_retry: Duration,
    /// Builds at a time. More than one is for a daemon with remote builders.
    pub lanes: NonZeroUsize,
    /// Who may be built before older requests.
    pub policy: Policy,
    /// Derivations that may have to be built for one request.
    pub derivations_max: usize,
    /// How long a request keeps its place after its last client has left, so that one which only reconnects finds it again.
    pub abandon_after: Duration,
    /// Requests that may wait; one more is refused.
    pub queued_max: usize,
    /// Requests of one address that may wait.
    pub queued_per_client_max: usize,
    /// Cores that one build may use; 0 is all.
    pub cores: u64,
    /// How long one build may take.
    pub build_max: Option<Duration>,
    /// How long a build may say nothing.
    pub silent_max: Option<Duration>,
    /// When and for how long something may be built before anyone asks, if ever.
    pub prebuild: Option<Allowance>,
}

#[cfg(test)]
impl Settings {
    /// Strict order on one lane, without bounds on builds; no failure is remembered, and no daemon waited for.
    fn strict() -> Self {
        Self {
            remember_permanent: Duration::ZERO,
            remember_passing: Duration::ZERO,
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
            prebuild: None,
        }
    }
}

/// How a request ended.
pub type Ending = Result<(), Arc<Failure>>;

/// Why nothing more may be asked for.
#[derive(Debug, thiserror::Error)]
pub enum QueueFull {
    /// Too many wait.
    #[error("{0} builds wait already (setting max-queued); ask again when some are done")]
    ForAll(usize),
    /// Too many of one client wait.
    #[error(
        "{0} builds wait for this client already (setting max-queued-per-client); ask again when some are done"
    )]
    ForClient(usize),
}

/// The queue, as those who ask see it; clones share it.
#[derive(Clone)]
pub struct Builds(Arc<Shared>);

struct Shared {
    settings: Settings,
    metrics: Metrics,
    state: Mutex<State>,
    /// A request may be planned.
    asked: Notify,
    /// There is a derivation to hold, or one to let go.
    to_hold: Notify,
    /// How far the derivations of requests are held.
    holding: watch::Sender<Holding>,
    /// There may be something to build.
    work: Notify,
    /// There is something to record.
    changed: Notify,
    /// There is something to count, or a pre-build has ended.
    noted: Notify,
    /// Someone is planned: what runs may have to stop. How many were.
    planned: watch::Sender<u64>,
    /// How many of the changes are recorded.
    recorded: watch::Sender<u64>,
    /// The moment that the queue's times count from.
    epoch: Instant,
}

struct State {
    queue: Queue<StorePath>,
    /// Requests whose derivation is not held yet, oldest first.
    unheld: VecDeque<RequestId>,
    /// Derivations of requests that have ended.
    let_go: Vec<StorePath>,
    /// Requests that are held and that nobody has planned yet, oldest first.
    unplanned: VecDeque<RequestId>,
    waiting: Everyone,
    /// What the worker builds, since when.
    running: BTreeMap<StorePath, Instant>,
    held: Vec<Held>,
    /// What is pre-built; only where something is.
    idle: Option<Idle>,
    foresight: Foresight,
    /// Why nothing goes on, while the daemon is lost.
    outage: Option<Outage>,
    /// What was learned and is not recorded yet.
    learned: Vec<DurationRow>,
    /// How everyone stood a moment ago.
    board: Option<Board>,
    /// The latest requests that have ended, oldest first.
    past: VecDeque<RequestView>,
    /// Requests that ended and may still be on record.
    ended: BTreeSet<u64>,
    /// How many requests were made.
    asked: u64,
}

/// Outputs that must not be collected, for as long as these requests have not ended.
struct Held {
    outputs: Vec<StorePath>,
    needed_by: BTreeSet<RequestId>,
}

impl Builds {
    /// The queue as it was when the server ended.
    ///
    /// # Errors
    /// When the index cannot tell.
    pub async fn open(settings: Settings, index: &Index) -> Result<Self, index::Error> {
        let idle = match settings.prebuild {
            Some(allowance) => Some(Idle::open(allowance, index).await?),
            None => None,
        };
        let (durations, (waiting, last_id)) = tokio::try_join!(index.durations(), index.requests())?;
        let state = State {
            queue: Queue::new(settings.policy),
            unheld: VecDeque::new(),
            let_go: Vec::new(),
            unplanned: VecDeque::new(),
            waiting: Everyone::default(),
            running: BTreeMap::new(),
            held: Vec::new(),
            idle,
            foresight: Foresight::new(durations),
            outage: None,
            learned: Vec::new(),
            board: None,
            past: VecDeque::new(),
            ended: BTreeSet::new(),
            asked: 0,
        };
        let builds = Self(Arc::new(Shared {
            settings,
            metrics: Metrics::new(),
            state: Mutex::new(state),
            asked: Notify::new(),
            to_hold: Notify::new(),
            holding: watch::channel(Holding::default()).0,
            work: Notify::new(),
            changed: Notify::new(),
            noted: Notify::new(),
            planned: watch::channel(0).0,
            recorded: watch::channel(0).0,
            epoch: Instant::now(),
        }));
        builds.restore(waiting, last_id);
        Ok(builds)
    }

    /// Joins the request for this derivation, or makes it. Returns once it would survive the end of the server, and its derivation
    /// a garbage collection; where the daemon does not answer, the ticket says that it is waited for.
    ///
    /// # Errors
    /// When too many wait already.
    pub async fn ask(&self, drv: &StorePath, client: Option<IpAddr>) -> Result<Ticket, QueueFull> {
        self.note(drv);
        let entered = self.enter(drv, client);
        self.0.metrics.asked(match &entered {
            Ok(Entered { new: true, .. }) => Asked::New,
            Ok(Entered { new: false, .. }) => Asked::Joined,
            Err(_) => Asked::Refused,
        });
        let Entered { ticket, change, .. } = entered?;
        // An error means that the worker is gone: then nobody waits much longer.
        let _ = self.0.recorded.subscribe().wait_for(|recorded| *recorded >= change).await;
        let _ = self.0.holding.subscribe().wait_for(|holding| holding.has(ticket.id)).await;
        Ok(ticket)
    }

    fn enter(&self, drv: &StorePath, client: Option<IpAddr>) -> Result<Entered, QueueFull> {
        let mut state = self.0.lock();
        if state.queue.request_for(drv).is_none() {
            let Settings { queued_max, queued_per_client_max, .. } = self.0.settings;
            if state.queue.len() >= queued_max {
                return Err(QueueFull::ForAll(queued_max));
            }
            if client.is_some_and(|client| state.waiting.of_client(client) >= queued_per_client_max) {
                return Err(QueueFull::ForClient(queued_per_client_max));
            }
        }
        let (id, new) = state.queue.ask(drv);
        if new {
            state.asked += 1;
            state.unheld.push_back(id);
        }
        let change = state.asked;
        let waiting = state.waiting.join(id, || Waiting {
            drv: drv.clone(),
            ending: watch::channel(None).0,
            asked_at: SystemTime::now(),
            told: None,
            begun: false,
            asked_by: client,
            returns: 0,
        });
        let ticket = Ticket { shared: Arc::clone(&self.0), id, ending: waiting.ending.subscribe() };
        drop(state);
        if new {
            self.0.changed.notify_one();
            self.0.to_hold.notify_one();
        }
        Ok(Entered { ticket, change, new })
    }

    /// Whether a request for this derivation waits or runs.
    #[must_use]
    pub fn contains(&self, drv: &StorePath) -> bool {
        self.0.lock().queue.request_for(drv).is_some()
    }

    /// Resolves when a running build has to stop: so that older requests are delivered in time, or because it is pre-built
    /// and someone needs something else, or its time is over. Each request that is planned may change that.
    async fn overdue(&self, drv: &StorePath) {
        let mut planned = self.0.planned.subscribe();
        loop {
            planned.borrow_and_update();
            let stop_at = self.0.lock().queue.stop_at(drv);
            let late = async {
                match stop_at {
                    None => std::future::pending().await,
                    Some(at) => tokio::time::sleep(at.saturating_sub(self.0.now())).await,
                }
            };
            tokio::select! {
                () = late => return,
                // It does not end before this does.
                _ = planned.changed() => {}
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }
}

/// A ticket, and what has to be recorded before it is given out.
struct Entered {
    ticket: Ticket,
    change: u64,
    /// Whether nobody asked before.
    new: bool,
}

impl State {
    /// Requests have left early: what only they needed is not expected any more.
    fn forget_kinds(&mut self) {
        let Self { queue, running, foresight, .. } = self;
        foresight.retain(|drv| running.contains_key(drv) || queue.needed_by(drv).next().is_some());
    }

    /// A request has ended, or left the queue for good.
    fn forget(&mut self, id: RequestId, past: RequestState, metrics: &Metrics) -> Option<Waiting> {
        let waiting = self.waiting.leave(id)?;
        self.ended.insert(id.0);
        let how = match past {
            RequestState::Served => Ended::Well,
            RequestState::Dropped => Ended::Early,
            _ => Ended::Failed,
        };
        if let (Some((told, at)), Ended::Well) = (waiting.told, how) {
            self.foresight.finished(told, at.elapsed());
        }
        metrics.request_ended(how, waiting.asked_at.elapsed().unwrap_or_default());
        self.remember(id, &waiting, past);
        self.let_go.push(waiting.drv.clone());
        Some(waiting)
    }
}

/// A place in the queue, held by one waiting client; dropping it leaves the queue.
pub struct Ticket {
    shared: Arc<Shared>,
    id: RequestId,
    ending: watch::Receiver<Option<Ending>>,
}

impl Ticket {
    /// Waits until the request has ended; `None` when the server stops before. May be called again after it was cancelled.
    pub async fn ended(&mut self) -> Option<Ending> {
        self.ending.wait_for(Option::is_some).await.ok().and_then(|ending| ending.clone())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = self.shared.now();
        self.shared.lock().queue.leave(self.id, now);
    }
}
