//! Package sets that are known by name and by hash before anyone asks: evaluated in the background by the Nix
//! of this machine, generation by generation. Reading order: attribute, settings, source, sandbox, gateway,
//! message, trouble, evaluate, walk, jobs, setup, gather, holder, graph, closure, refresh, denied, lazy,
//! names. Builds nothing, and no request for a hash ever waits for an evaluation.

mod attribute;
mod closure;
mod denied;
mod error;
mod evaluate;
mod gateway;
mod gather;
mod graph;
mod holder;
mod jobs;
mod lazy;
mod message;
mod metrics;
mod names;
mod refresh;
mod sandbox;
mod settings;
mod setup;
mod source;
mod trouble;
mod walk;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use metrics::Metrics;
use tokio::sync::{Notify, watch};

use crate::index::Index;
use crate::nix::{Environment, Pool};
use crate::roots::Roots;
use crate::tasks::Tasks;
pub use attribute::{AttributePath, Selection};
pub use closure::bring_in;
pub use error::RefreshError;
pub use names::{NameResolver, NoSuchName, ResolvedName};
pub use refresh::Refresher;
pub use sandbox::Isolation;
pub use settings::{Evaluation, Indexing, SetName, SetSettings, SetSource, Settings};

/// The package sets, as those who ask see them; clones share it.
#[derive(Clone)]
pub struct Catalogue(Arc<Shared>);

struct Shared {
    sets: Vec<ConfiguredSet>,
    /// A refresh is wanted.
    wanted: Notify,
    /// Number of generations that have replaced another one since the start.
    bumps: watch::Sender<u64>,
    metrics: Metrics,
    /// Held by who changes what generations hold in the Nix store.
    holding: tokio::sync::Mutex<()>,
}

/// Resources of evaluations; clones share them.
#[derive(Clone)]
pub struct Tools {
    /// Where generations are on record.
    pub index: Index,
    /// The daemon, through which derivations are held.
    pub pool: Pool,
    /// The roots of generations; nothing else has roots there.
    pub roots: Roots,
    /// Where Nix is.
    pub nix: Environment,
    /// Home of evaluators, for what they keep.
    pub home: PathBuf,
    /// The state directory, of which evaluators see nothing but their home, and secrets elsewhere.
    pub hidden: Vec<PathBuf>,
    /// Requirement of isolation.
    pub isolation: Isolation,
    /// Spawner of evaluations that clients wait for.
    pub tasks: Tasks,
}

/// A set, and how its refresh is.
struct ConfiguredSet {
    settings: SetSettings,
    progress: watch::Sender<Progress>,
}

/// Progress of the refresh of a set.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The current step.
    pub state: RefreshState,
    /// Number of requested refreshes.
    asked: u64,
    /// Number of those that have ended.
    ended: u64,
    /// Result of the latest one.
    outcome: Option<Result<String, String>>,
}

/// The current step of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RefreshState {
    /// Nothing.
    #[default]
    Idle,
    /// A refresh is wanted, and another set has its turn.
    Waiting,
    /// Its attributes are evaluated.
    Evaluating {
        /// For this system.
        system: String,
        /// Those that gave a derivation.
        attributes: u64,
        /// Those that failed.
        errors: u64,
    },
    /// The closure of its derivations is read.
    Reading {
        /// Those that were read.
        derivations: u64,
    },
    /// The new generation takes the place of the one before.
    Swapping,
}

impl fmt::Display for RefreshState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => write!(formatter, "idle"),
            Self::Waiting => write!(formatter, "waiting for its turn"),
            Self::Evaluating { system, attributes, errors } => {
                write!(formatter, "evaluating for {system}: {attributes} attributes, {errors} errors")
            }
            Self::Reading { derivations } => write!(formatter, "reading derivations: {derivations}"),
            Self::Swapping => write!(formatter, "swapping generations"),
        }
    }
}

/// A refresh that was asked for.
pub struct RefreshHandle {
    /// The set's name.
    pub set: SetName,
    number: u64,
    progress: watch::Receiver<Progress>,
}

/// Progress of a refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefreshUpdate {
    /// The refresh has reached this step.
    Running(RefreshState),
    /// The refresh has ended: its result, or its error.
    Done(Result<String, String>),
}

impl Catalogue {
    /// These sets, of which nothing is done yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let set = |settings| ConfiguredSet { settings, progress: watch::channel(Progress::default()).0 };
        let sets = settings.sets.into_iter().map(set).collect();
        Self(Arc::new(Shared {
            sets,
            wanted: Notify::new(),
            bumps: watch::channel(0).0,
            metrics: Metrics::new(),
            holding: tokio::sync::Mutex::default(),
        }))
    }

    /// Each set, and what is done for it now.
    pub fn sets(&self) -> impl Iterator<Item = (&SetSettings, RefreshState)> {
        self.0.sets.iter().map(|set| (&set.settings, set.progress.borrow().state.clone()))
    }

    /// The settings of a set.
    fn settings_of(&self, name: &str) -> Option<&SetSettings> {
        self.0.sets.iter().map(|set| &set.settings).find(|settings| settings.name.as_str() == name)
    }

    /// Metrics of the sets in the OpenMetrics text format, without its end.
    pub fn write_metrics(&self, out: &mut String) {
        self.0.metrics.write(out);
    }

    /// Number of new generations since the start.
    #[must_use]
    pub fn bumps(&self) -> watch::Receiver<u64> {
        self.0.bumps.subscribe()
    }

    /// Asks for a refresh of the set of this name, or of all sets: one that begins from now on. `None` when
    /// there is no such set.
    #[must_use]
    pub fn refresh(&self, name: Option<&str>) -> Option<Vec<RefreshHandle>> {
        let meant =
            self.0.sets.iter().filter(|set| name.is_none_or(|name| set.settings.name.as_str() == name));
        let following: Vec<RefreshHandle> = meant.map(ConfiguredSet::want).collect();
        self.0.wanted.notify_one();
        (name.is_none() || !following.is_empty()).then_some(following)
    }
}

impl ConfiguredSet {
    fn want(&self) -> RefreshHandle {
        let mut number = 0;
        self.progress.send_modify(|progress| {
            progress.asked += 1;
            number = progress.asked;
            if progress.state == RefreshState::Idle {
                progress.state = RefreshState::Waiting;
            }
        });
        RefreshHandle { set: self.settings.name.clone(), number, progress: self.progress.subscribe() }
    }

    fn is_wanted(&self) -> bool {
        let progress = self.progress.borrow();
        progress.asked > progress.ended
    }

    fn show(&self, state: RefreshState) {
        self.progress.send_modify(|progress| progress.state = state);
    }

    /// A refresh that began when so many were asked for has ended.
    fn over(&self, asked: u64, outcome: Result<String, String>) {
        self.progress.send_modify(|progress| {
            progress.ended = asked;
            progress.state = if progress.asked > asked { RefreshState::Waiting } else { RefreshState::Idle };
            progress.outcome = Some(outcome);
        });
    }
}

impl RefreshHandle {
    /// The progress now.
    pub fn news(&mut self) -> RefreshUpdate {
        let progress = self.progress.borrow_and_update();
        match &progress.outcome {
            Some(outcome) if progress.ended >= self.number => RefreshUpdate::Done(outcome.clone()),
            _ => RefreshUpdate::Running(progress.state.clone()),
        }
    }

    /// Resolves once it is over.
    pub async fn over(&mut self) {
        let number = self.number;
        // An error means that nothing will come any more.
        let _ = self.progress.wait_for(|progress| progress.ended >= number).await;
    }

    /// Resolves once there is something new to tell; also when nothing will come any more, which is `false`.
    pub async fn changed(&mut self) -> bool {
        self.progress.changed().await.is_ok()
    }
}
