//! Scheduler: owner of the queue's state and of its notifications, behind verbs for clients, the worker and
//! the views. No one else locks the queue. It does no I/O: what has to be recorded, held or built is given
//! out for others to do.

mod bounds;
mod cancel;
mod disagreement;
#[cfg(test)]
mod farm_tests;
mod held;
mod machines;
mod outage;
mod past;
mod places;
mod prebuild;
mod record;
mod repeats;
mod requests;
mod runs;
mod sharing;
mod snapshot;
mod term;
mod waiters;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use narinfo::StorePath;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::farm::Farm;
use super::forecast::Forecaster;
use super::metrics::{Ended, JoinOutcome, Metrics};
use super::queue::{Queue, RequestId};
use super::view::RequestState;
use super::{Ending, Settings};
use crate::caller::QueuePlace;
use crate::index::{self, Index};
use crate::model::{DurationRow, NodeId};
pub use bounds::NotQueued;
pub use cancel::Cancellation;
use held::HeldOutputs;
use machines::Machines;
use outage::Outage;
pub(super) use outage::{DAEMON, INDEX, NAR_STORE};
use past::Past;
pub use places::NoBuilder;
pub(super) use prebuild::PrebuildPlan;
use prebuild::PrebuildState;
pub(super) use record::QueueChanges;
pub(super) use repeats::Repeat;
use repeats::Repeats;
pub(super) use requests::RootChanges;
use requests::RootProgress;
pub(super) use runs::{BuildIds, Finished, FollowUp, Lane};
use sharing::{SharedState, Sharing};
use snapshot::QueueSnapshot;
use waiters::{PendingRequest, Waiters};

/// Derivations that may be remembered though nobody needs them any more, beside as many as are needed.
const KINDS_MIN: usize = 1_000;

/// The queue of one server; clones share it.
#[derive(Clone)]
pub struct Scheduler(Arc<Shared>);

struct Shared {
    settings: Settings,
    /// `None` where the queue is of this server alone.
    sharing: Option<Sharing>,
    metrics: Metrics,
    state: Mutex<State>,
    /// A request may be planned.
    plannable: Notify,
    /// A derivation has to be held or released.
    roots_due: Notify,
    /// Progress of holding the derivations of requests.
    root_progress: watch::Sender<RootProgress>,
    /// Something may be ready to build.
    work: Notify,
    /// A change has to be recorded.
    changed: Notify,
    /// Demand has to be counted, or a pre-build has ended.
    demand: Notify,
    /// Number of requests that were planned: after each, what runs may have to stop.
    planned: watch::Sender<u64>,
    /// Number of requests that are on record.
    recorded: watch::Sender<u64>,
    /// The moment from which the times of the queue count.
    epoch: Instant,
}

struct State {
    queue: Queue<StorePath>,
    /// Requests whose derivation is not held yet, oldest first.
    unheld: VecDeque<RequestId>,
    /// Derivations of requests that have ended.
    released: Vec<StorePath>,
    /// Requests that are held and not planned yet, oldest first.
    unplanned: VecDeque<RequestId>,
    waiters: Waiters,
    /// Builds under way, with their start.
    running: BTreeMap<StorePath, Instant>,
    /// The machines that build.
    machines: Machines,
    repeats: Repeats,
    held: HeldOutputs,
    /// `None` where nothing is pre-built.
    prebuild: Option<PrebuildState>,
    forecaster: Forecaster,
    /// The loss of the daemon, while something waits for it.
    outage: Option<Outage>,
    /// Durations that were learned and are not recorded yet.
    learned: Vec<DurationRow>,
    snapshot: Option<QueueSnapshot>,
    /// Requests that were at work when the server ended: builders may have gone on for them.
    interrupted: BTreeSet<RequestId>,
    /// The latest requests that have ended.
    past: Past,
    /// Outputs that only cancelled requests held.
    unneeded: Vec<StorePath>,
    shared: SharedState,
    /// Requests that ended and may still be on record.
    ended: BTreeSet<u64>,
    /// Number of requests that were made.
    made: u64,
}

impl Scheduler {
    /// The queue as it was when the server ended, for the local Nix daemon alone.
    ///
    /// # Errors
    /// The index cannot be read.
    pub async fn open(settings: Settings, index: &Index) -> Result<Self, index::Error> {
        Self::open_farm(settings, Farm::local(settings.lanes), index).await
    }

    /// The queue as it was when the server ended, for these machines.
    ///
    /// # Errors
    /// The index cannot be read.
    pub async fn open_farm(settings: Settings, farm: Farm, index: &Index) -> Result<Self, index::Error> {
        let (waiting, last_id) = index.requests().await?;
        let scheduler = Self::empty(settings, farm, index, None).await?;
        scheduler.restore(waiting, last_id);
        Ok(scheduler)
    }

    /// The queue that this node shares with others, for these machines. It is empty until it is
    /// [followed](Self::follow_queue).
    ///
    /// # Errors
    /// The index cannot be read.
    pub async fn open_shared(
        settings: Settings,
        farm: Farm,
        index: &Index,
        node: NodeId,
    ) -> Result<Self, index::Error> {
        Self::empty(settings, farm, index, Some(Sharing::new(index.clone(), node))).await
    }

    async fn empty(
        settings: Settings,
        farm: Farm,
        index: &Index,
        sharing: Option<Sharing>,
    ) -> Result<Self, index::Error> {
        let prebuild = match settings.prebuild {
            Some(allowance) => Some(PrebuildState::open(allowance, index).await?),
            None => None,
        };
        let durations = index.durations().await?;
        let state = State {
            queue: Queue::new(settings.policy),
            unheld: VecDeque::new(),
            released: Vec::new(),
            unplanned: VecDeque::new(),
            waiters: Waiters::default(),
            running: BTreeMap::new(),
            machines: Machines::new(Arc::new(farm)),
            repeats: Repeats::default(),
            held: HeldOutputs::default(),
            prebuild,
            forecaster: Forecaster::new(durations),
            outage: None,
            learned: Vec::new(),
            snapshot: None,
            interrupted: BTreeSet::new(),
            past: Past::default(),
            unneeded: Vec::new(),
            shared: SharedState::default(),
            ended: BTreeSet::new(),
            made: 0,
        };
        Ok(Self(Arc::new(Shared {
            settings,
            sharing,
            metrics: Metrics::new(),
            state: Mutex::new(state),
            plannable: Notify::new(),
            roots_due: Notify::new(),
            root_progress: watch::channel(RootProgress::default()).0,
            work: Notify::new(),
            changed: Notify::new(),
            demand: Notify::new(),
            planned: watch::channel(0).0,
            recorded: watch::channel(0).0,
            epoch: Instant::now(),
        })))
    }

    /// Joins the request for this derivation, or makes it. Returns once the request would survive the end of
    /// the server, and its derivation a garbage collection; where the daemon does not answer, the ticket says
    /// so.
    ///
    /// # Errors
    /// Too many wait already.
    pub async fn join(&self, drv: &StorePath, client: Option<IpAddr>) -> Result<Ticket, NotQueued> {
        self.note_demand(drv);
        if let Some(sharing) = &self.0.sharing {
            let joined = Box::pin(self.join_shared(sharing, std::slice::from_ref(drv), client, None)).await;
            return joined.into_iter().next().unwrap_or(Err(NotQueued::ForAll(0)));
        }
        let Entered { ticket, change, .. } = self.enter_counted(drv, client, None)?;
        self.settled(change, Some(ticket.id)).await;
        Ok(ticket)
    }

    /// Joins the requests for these derivations in their order, as [`join`](Self::join) does one after the
    /// other, and waits once for all of them. Those of them that are built are built on `builder`, where one
    /// is named.
    pub async fn join_all(
        &self,
        drvs: &[StorePath],
        client: Option<IpAddr>,
        builder: Option<&str>,
    ) -> Vec<Result<Ticket, NotQueued>> {
        if let Some(sharing) = &self.0.sharing {
            drvs.iter().for_each(|drv| self.note_demand(drv));
            return self.join_shared(sharing, drvs, client, builder).await;
        }
        let (mut tickets, mut last_change, mut last_id) = (Vec::new(), 0, None);
        for drv in drvs {
            self.note_demand(drv);
            let entered = self.enter_counted(drv, client, builder);
            if let Ok(Entered { ticket, change, .. }) = &entered {
                last_change = last_change.max(*change);
                last_id = last_id.max(Some(ticket.id));
            }
            tickets.push(entered.map(|entered| entered.ticket));
        }
        self.settled(last_change, last_id).await;
        tickets
    }

    /// A ticket more for a request that waits already.
    #[must_use]
    pub fn rejoin(&self, id: u64) -> Option<Ticket> {
        let mut state = self.0.lock();
        let drv = state.queue.wanted(RequestId(id))?.clone();
        let (id, _) = state.queue.ask(&drv);
        Some(self.ticket(id, state.waiters.get(id)?))
    }

    fn ticket(&self, id: RequestId, request: &PendingRequest) -> Ticket {
        // In a trace, whoever waits for it shows its number.
        tracing::Span::current().record("request", id.0);
        let (ending, counted) = (request.ending.subscribe(), Arc::clone(&request.tickets));
        Ticket { shared: Arc::clone(&self.0), id, ending, _counted: counted, _place: None }
    }

    fn enter_counted(
        &self,
        drv: &StorePath,
        client: Option<IpAddr>,
        builder: Option<&str>,
    ) -> Result<Entered, NotQueued> {
        let entered = self.enter(drv, client, builder);
        self.0.metrics.joined(match &entered {
            Ok(Entered { new: true, .. }) => JoinOutcome::New,
            Ok(Entered { new: false, .. }) => JoinOutcome::Shared,
            Err(_) => JoinOutcome::Refused,
        });
        entered
    }

    /// Waits until so many requests are on record, and the derivations of all up to this one are held.
    async fn settled(&self, change: u64, id: Option<RequestId>) {
        let Some(id) = id else { return };
        // An error means that the worker is gone: then nobody waits much longer.
        let _ = self.0.recorded.subscribe().wait_for(|recorded| *recorded >= change).await;
        let _ = self.0.root_progress.subscribe().wait_for(|progress| progress.covers(id)).await;
    }

    fn enter(
        &self,
        drv: &StorePath,
        client: Option<IpAddr>,
        builder: Option<&str>,
    ) -> Result<Entered, NotQueued> {
        let mut state = self.0.lock();
        if let Some(builder) = builder {
            state.may_be_built_on(builder, drv)?;
        }
        state.room_for(drv, client, 0, &self.0.settings)?;
        let (id, new) = state.queue.ask(drv);
        if new {
            state.made += 1;
            state.unheld.push_back(id);
        }
        let change = state.made;
        let request = state.waiters.join(id, || PendingRequest {
            drv: drv.clone(),
            ending: watch::channel(None).0,
            asked_at: SystemTime::now(),
            forecast: None,
            started: false,
            asked_by: client,
            builder: builder.map(str::to_owned),
            returns: 0,
            tickets: Arc::default(),
        });
        let ticket = self.ticket(id, request);
        drop(state);
        if new {
            self.0.changed.notify_one();
            self.0.roots_due.notify_one();
        }
        Ok(Entered { ticket, change, new })
    }

    /// True while a request for this derivation waits or runs.
    #[must_use]
    pub fn contains(&self, drv: &StorePath) -> bool {
        self.0.lock().queue.request_for(drv).is_some()
    }

    /// True while anybody waits for this derivation, also while it is delivered.
    pub(in crate::build) fn awaits(&self, drv: &StorePath) -> bool {
        self.0.lock().waiters.await_drv(drv)
    }

    /// Number of the request for this derivation that waits or runs.
    #[must_use]
    pub fn request_for(&self, drv: &StorePath) -> Option<u64> {
        self.0.lock().queue.request_for(drv).map(|id| id.0)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// False where another server may be the leader: what it builds is not to be built here, too.
    fn may_start(&self) -> bool {
        self.sharing.as_ref().is_none_or(Sharing::may_start)
    }
}

/// A ticket, and the number of requests that have to be on record before it is given out.
struct Entered {
    ticket: Ticket,
    change: u64,
    new: bool,
}

impl State {
    /// Requests have left early: the kinds of derivations that only they needed are not expected any more.
    /// All are looked at, and so not each time.
    fn forget_kinds(&mut self) {
        let queue = &self.queue;
        self.machines.retain_losses(|drv| queue.needed_by(drv).next().is_some());
        if self.machines.places.len() + self.forecaster.len() < 4 * self.queue.lacking().len() + KINDS_MIN {
            return;
        }
        let Self { queue, running, forecaster, machines, .. } = self;
        let waits = |drv: &StorePath| running.contains_key(drv) || queue.needed_by(drv).next().is_some();
        forecaster.retain(waits);
        machines.places.retain(waits);
    }

    /// A request has ended, or left the queue for good.
    fn forget(&mut self, id: RequestId, past: RequestState, metrics: &Metrics) -> Option<PendingRequest> {
        let request = self.waiters.leave(id)?;
        self.ended.insert(id.0);
        self.interrupted.remove(&id);
        if request.builder.is_some() {
            self.machines.places.unfix(&request.drv);
        }
        let how = match past {
            RequestState::Served => Ended::Well,
            RequestState::Dropped | RequestState::Cancelled => Ended::Early,
            _ => Ended::Failed,
        };
        if let (Some((forecast, at)), Ended::Well) = (request.forecast, how) {
            self.forecaster.finished(forecast, at.elapsed());
        }
        metrics.request_ended(how, request.asked_at.elapsed().unwrap_or_default());
        self.remember(id, &request, past);
        self.released.push(request.drv.clone());
        Some(request)
    }
}

/// A place in the queue, held by one waiting client; dropping it leaves the queue.
pub struct Ticket {
    shared: Arc<Shared>,
    id: RequestId,
    ending: watch::Receiver<Option<Ending>>,
    /// Shared by all tickets of the request, and by the request.
    _counted: Arc<()>,
    /// Place of a token that may have only so many.
    _place: Option<QueuePlace>,
}

/// Signal of the end of a request, for one who has no place in the queue.
pub struct EndSignal(watch::Receiver<Option<Ending>>);

impl EndSignal {
    /// Resolves when the request has ended, however it did.
    pub async fn ended(&mut self) {
        // An error means that it left the queue early.
        let _ = self.0.wait_for(Option::is_some).await;
    }
}

impl Ticket {
    /// The same, which takes up a place of a token for as long as it is held.
    #[must_use]
    pub fn with_place(mut self, place: Option<QueuePlace>) -> Self {
        self._place = place;
        self
    }

    /// True once the request has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ending.borrow().is_some() || self.ending.has_changed().is_err()
    }

    /// Waits until the request has ended; `None` when the server stops before. May be called again after it
    /// was cancelled.
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
