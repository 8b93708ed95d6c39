//! Builds on demand: who waits for what, and the worker that has the Nix daemon build it, one derivation after the other.
//! Must never build twice what two clients ask for, and never run two builds at once.

mod log;
mod plan;
pub mod queue;
mod verdict;
mod worker;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use narinfo::StorePath;
use tokio::sync::{Notify, watch};

use crate::index::Failure;
pub use log::Logs;
use queue::{Queue, RequestId};
pub use worker::Worker;

/// Requests that may wait; one more is refused.
const QUEUED_MAX: usize = 10_000;

/// How long failures are remembered.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// When the build itself is wrong.
    pub remember_permanent: Duration,
    /// When the machine was.
    pub remember_passing: Duration,
}

/// How a request ended.
pub type Ending = Result<(), Arc<Failure>>;

/// The queue is full.
#[derive(Debug, thiserror::Error)]
#[error("{QUEUED_MAX} builds wait already; ask again when some are done")]
pub struct QueueFull;

/// The queue, as those who ask see it; clones share it.
#[derive(Clone)]
pub struct Builds(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// A request was added.
    asked: Notify,
    /// There may be something to build.
    work: Notify,
    /// The moment that the queue's times count from.
    epoch: Instant,
}

#[derive(Default)]
struct State {
    queue: Queue<StorePath>,
    /// Requests that nobody has planned yet, oldest first.
    unplanned: VecDeque<RequestId>,
    endings: HashMap<RequestId, watch::Sender<Option<Ending>>>,
    doing: Option<Doing>,
    held: Vec<Held>,
}

/// Outputs that must not be collected, for as long as these requests have not ended.
struct Held {
    outputs: Vec<StorePath>,
    needed_by: BTreeSet<RequestId>,
}

/// What the worker does at this moment.
#[derive(Clone, Debug)]
struct Doing {
    drv: StorePath,
    since: Instant,
}

/// What the queue looks like from outside.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Overview {
    /// The derivation that is being built now.
    pub building: Option<String>,
    /// Seconds that it has been built for.
    pub building_seconds: Option<u64>,
    /// The derivations asked for, oldest first.
    pub requests: Vec<String>,
}

impl Default for Builds {
    fn default() -> Self {
        let (asked, work) = (Notify::new(), Notify::new());
        Self(Arc::new(Shared { state: Mutex::default(), asked, work, epoch: Instant::now() }))
    }
}

impl Builds {
    /// Joins the request for this derivation, or makes it.
    ///
    /// # Errors
    /// When too many wait already.
    pub fn ask(&self, drv: &StorePath) -> Result<Ticket, QueueFull> {
        let mut state = self.0.lock();
        if state.queue.len() >= QUEUED_MAX && state.queue.request_for(drv).is_none() {
            return Err(QueueFull);
        }
        let (id, new) = state.queue.ask(drv);
        let ending = state.endings.entry(id).or_insert_with(|| watch::channel(None).0).subscribe();
        if new {
            state.unplanned.push_back(id);
            self.0.asked.notify_one();
        }
        drop(state);
        Ok(Ticket { shared: Arc::clone(&self.0), id, ending })
    }

    /// Whether a request for this derivation waits or runs.
    #[must_use]
    pub fn contains(&self, drv: &StorePath) -> bool {
        self.0.lock().queue.request_for(drv).is_some()
    }

    /// The queue as it stands.
    #[must_use]
    pub fn overview(&self) -> Overview {
        let state = self.0.lock();
        Overview {
            building: state.doing.as_ref().map(|d| d.drv.to_string()),
            building_seconds: state.doing.as_ref().map(|d| d.since.elapsed().as_secs()),
            requests: state
                .queue
                .requests()
                .filter_map(|id| state.queue.wanted(id))
                .map(ToString::to_string)
                .collect(),
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

    /// One line that tells where this request stands.
    #[must_use]
    pub fn describe(&self) -> String {
        let state = self.shared.lock();
        let mut line = match state.queue.requests().position(|id| id == self.id).map(|before| before + 1) {
            Some(position) => format!("position {position} of {}", state.queue.len()),
            None => "being delivered".to_owned(),
        };
        if let Some((built, of)) = state.queue.progress(self.id) {
            line += &format!("; {built} of {of} built");
        }
        if let Some(Doing { drv, since }) = &state.doing {
            let name = drv.name().trim_end_matches(".drv");
            line += &format!("; building {name} for {} s", since.elapsed().as_secs());
        }
        line
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = self.shared.now();
        self.shared.lock().queue.leave(self.id, now);
    }
}
