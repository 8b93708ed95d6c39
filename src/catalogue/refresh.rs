//! Brings sets up to date, one at a time: when they are due, and when somebody wants it. A generation is complete, held in the
//! Nix store and on record before it takes the place of the one before; whatever fails leaves that one as it is.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use narinfo::{StoreDir, StorePath};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::graph::{self, GraphError};
use super::settings::SetSettings;
use super::source;
use super::walk::{Attribute, Walk, WalkError};
use super::{Catalogue, Set, State};
use crate::causes::with_causes;
use crate::index::{self, AttributeRow, GenerationSize, Index, NewGeneration};
use crate::nix::{DaemonError, Environment, Pool, PooledDaemon};
use crate::roots::{self, Roots};

/// Attributes that are brought in at a time.
const ROWS_CHUNK: usize = 1_000;
/// Attributes of one set at most.
const ATTRIBUTES_MAX: u64 = 2_000_000;
/// How long after a failure a set is tried again, unless it is due before.
const RETRY_AFTER: Duration = Duration::from_secs(15 * 60);
/// How often it is looked for generations that have expired.
const TIDY_INTERVAL: Duration = Duration::from_secs(3600);
/// Pieces of a closure that may wait for the index.
const PIECES_QUEUED_MAX: usize = 2;

/// Why there is no new generation. The text, with its sources, is for who runs the server.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// It cannot be evaluated.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The source is not there.
    #[error("the source cannot be read")]
    Source(#[source] io::Error),
    /// It has nothing.
    #[error("no attribute gives a derivation")]
    Empty,
    /// It has nothing but errors.
    #[error("none of its {count} attributes can be evaluated; the first, {attribute}: {error}")]
    NothingEvaluates {
        /// How many there are.
        count: u64,
        /// One of them.
        attribute: String,
        /// Its error.
        error: String,
    },
    /// It has too much.
    #[error("it has more than {ATTRIBUTES_MAX} attributes")]
    TooMany,
    /// The closure cannot be read.
    #[error("the derivations cannot be read")]
    Graph(#[from] GraphError),
    /// The daemon does not do its part.
    #[error("the Nix daemon failed")]
    Daemon(#[from] DaemonError),
    /// The derivations cannot be held.
    #[error("the derivations cannot be held in the Nix store")]
    Roots(#[from] roots::Error),
    /// The index does not do its part.
    #[error("the index failed")]
    Index(#[from] index::Error),
}

impl RefreshError {
    /// Whether it may be that Nix has collected a derivation before it was held.
    fn may_be_collected(&self) -> bool {
        matches!(self, Self::Daemon(DaemonError::Nix(_)) | Self::Graph(GraphError::Unreadable { .. }))
    }
}

/// What refreshes the sets of a catalogue.
pub struct Refresher {
    /// The sets.
    pub catalogue: Catalogue,
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
}

impl Refresher {
    /// Refreshes what is due and what is wanted. Never ends.
    pub async fn run(self) {
        let mut due = Vec::new();
        for set in &self.catalogue.0.sets {
            due.push(self.first_due(&set.settings).await);
        }
        let mut tidy_at = Instant::now();
        loop {
            let now = Instant::now();
            if tidy_at <= now {
                self.tidy().await;
                tidy_at = now + TIDY_INTERVAL;
            }
            let wanted = |number: usize| self.catalogue.0.sets[number].is_wanted();
            let next = (0..due.len())
                .find(|number| wanted(*number) || due[*number].is_some_and(|at: Instant| at <= now));
            if let Some(number) = next {
                due[number] =
                    self.refresh(&self.catalogue.0.sets[number]).await.map(|after| Instant::now() + after);
                continue;
            }
            let until = due.iter().flatten().copied().min().map_or(tidy_at, |at| at.min(tidy_at));
            tokio::select! {
                () = sleep_until(until) => {}
                () = self.catalogue.0.wanted.notified() => {}
            }
        }
    }

    /// At once when there is nothing, or what there is was made with other settings.
    async fn first_due(&self, set: &SetSettings) -> Option<Instant> {
        let now = Instant::now();
        let row = match self.index.set(set.name.to_string()).await {
            Ok(row) => row,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the index cannot tell of sets");
                return Some(now);
            }
        };
        let made_by = set.made_by();
        if row.generations.first().is_none_or(|current| current.made_by != made_by) {
            return Some(now);
        }
        let every = set.refresh?;
        let after = if row.failure.is_some() { every.min(RETRY_AFTER) } else { every };
        let since = row.tried_at.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
        Some(now + after.saturating_sub(since))
    }

    /// Gives after what time it is due again, if ever.
    async fn refresh(&self, set: &Set) -> Option<Duration> {
        let name = &set.settings.name;
        let asked = set.progress.borrow().asked;
        tracing::info!(set = %name, "refreshing");
        let mut outcome = self.make(set).await;
        if outcome.as_ref().is_err_and(RefreshError::may_be_collected) {
            outcome = self.make(set).await;
        }
        let outcome = outcome.map_err(|error| with_causes(&error));
        match &outcome {
            Ok(done) => tracing::info!(set = %name, "refreshed: {done}"),
            Err(error) => {
                tracing::warn!(set = %name, error, "not refreshed, what was known goes on being served");
                let recorded = self.index.record_refresh(name.to_string(), Some(error.clone())).await;
                if let Err(error) = recorded {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a failed refresh is not on record"
                    );
                }
            }
        }
        self.tidy().await;
        let failed = outcome.is_err();
        set.over(asked, outcome);
        set.settings.refresh.map(|every| if failed { every.min(RETRY_AFTER) } else { every })
    }

    /// Makes a generation and puts it in the place of the one before. Gives what is to be told.
    async fn make(&self, set: &Set) -> Result<String, RefreshError> {
        self.index.start_generation().await?;
        let settings = &set.settings;
        let mut gathered = Gathered::new(set, self.index.clone(), self.pool.get().await?);
        self.evaluate(set, &mut gathered).await?;
        let Gathered { mut daemon, allowed, denied, mut size, digest, first_error, .. } =
            gathered.finish().await?;
        if size.attributes == 0 {
            return Err(first_error.map_or(RefreshError::Empty, |(attribute, error)| {
                RefreshError::NothingEvaluates { count: size.errors, attribute, error }
            }));
        }
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!(
            "Who holds this file holds the derivations of the package set {}.\n{digest}\n",
            settings.name
        );
        let holder = daemon.add_text(&format!("ondine-{}", settings.name), &text, &allowed).await?;
        self.roots.hold(&mut daemon, [&holder]).await?;
        let row = self.index.set(settings.name.to_string()).await?;
        let made_by = settings.made_by();
        if row
            .generations
            .first()
            .is_some_and(|current| current.holder == holder && current.made_by == made_by)
        {
            self.index.record_refresh(settings.name.to_string(), None).await?;
            return Ok(format!("nothing changed: {}", told(size)));
        }
        size.derivations = self.read_closure(set, allowed, denied).await?;
        set.show(State::Swapping);
        let new = NewGeneration { set: settings.name.to_string(), made_by, holder, size };
        let swapped = self.index.swap_generation(new).await?;
        self.catalogue.0.bumps.send_modify(|bumps| *bumps += 1);
        let index::Swapped { generation, added, removed } = swapped;
        Ok(format!("generation {generation}: {}; {added} outputs added, {removed} removed", told(size)))
    }

    async fn evaluate(&self, set: &Set, gathered: &mut Gathered<'_>) -> Result<(), RefreshError> {
        let settings = &set.settings;
        let links = source::links(&settings.origin).map_err(RefreshError::Source)?;
        let source = source::prepare(&settings.origin, &settings.evaluation).map_err(RefreshError::Source)?;
        std::fs::create_dir_all(&self.home).map_err(RefreshError::Source)?;
        let deadline = Instant::now() + settings.evaluation.time_max;
        let variables = source::variables(&self.nix, &self.home);
        for system in &settings.systems {
            gathered.show(system);
            let mut walk = Walk::new(settings, system, &source, &self.nix.store_dir, &variables, deadline);
            while let Some(attribute) = walk.next().await? {
                gathered.take(attribute, system).await?;
            }
            for (attribute, target) in &links {
                let drv =
                    target.to_str().and_then(|path| StorePath::parse_in(&self.nix.store_dir, path).ok());
                let drv = drv.filter(StorePath::is_derivation);
                let name = drv.map(|drv| (drv.name().trim_end_matches(".drv").to_owned(), drv));
                let outcome = match name {
                    Some((name, drv)) if gathered.daemon.is_valid_path(&drv).await? => Ok((drv, name)),
                    _ => Err(format!("{} is no derivation in the Nix store", target.display())),
                };
                gathered.take(Attribute { attribute: attribute.clone(), outcome }, system).await?;
            }
        }
        Ok(())
    }

    /// Brings in what the derivations of the closure give; gives how many there are.
    async fn read_closure(
        &self,
        set: &Set,
        allowed: BTreeSet<StorePath>,
        denied: BTreeSet<StorePath>,
    ) -> Result<u64, RefreshError> {
        set.show(State::Reading { derivations: 0 });
        let (sender, mut pieces) = mpsc::channel(PIECES_QUEUED_MAX);
        let store_dir: StoreDir = self.nix.store_dir.clone();
        let reading = tokio::task::spawn_blocking(move || {
            graph::read(&store_dir, allowed, denied, |rows, count| {
                sender.blocking_send((rows, count)).is_ok()
            })
        });
        while let Some((rows, derivations)) = pieces.recv().await {
            self.index.add_outputs(rows).await?;
            set.show(State::Reading { derivations });
        }
        match reading.await {
            Ok(read) => Ok(read?),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Forgets generations that have expired, and lets go of what they held.
    async fn tidy(&self) {
        for set in &self.catalogue.0.sets {
            let SetSettings { name, keep, .. } = &set.settings;
            if let Err(error) = self.index.expire_generations(name.to_string(), *keep).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "old generations cannot be forgotten"
                );
                return;
            }
        }
        match (self.index.holders().await, self.roots.held()) {
            (Ok(needed), Ok(held)) => {
                held.iter().filter(|path| !needed.contains(path)).for_each(|path| self.roots.release(path));
            }
            (Err(error), _) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the index cannot tell of generations"
                );
            }
            (_, Err(error)) => tracing::error!(%error, "the roots of generations cannot be listed"),
        }
    }
}

/// How much there is in a generation, for people.
fn told(size: GenerationSize) -> String {
    let GenerationSize { attributes, denied, errors, .. } = size;
    format!("{attributes} attributes ({denied} denied), {errors} errors")
}

/// What an evaluation has brought so far. Its derivations are held as long as the connection lives.
struct Gathered<'a> {
    set: &'a Set,
    index: Index,
    daemon: PooledDaemon,
    rows: Vec<AttributeRow>,
    allowed: BTreeSet<StorePath>,
    denied: BTreeSet<StorePath>,
    size: GenerationSize,
    /// Of all that makes one generation differ from another.
    digest: Sha256,
    first_error: Option<(String, String)>,
}

impl<'a> Gathered<'a> {
    fn new(set: &'a Set, index: Index, daemon: PooledDaemon) -> Self {
        Self {
            set,
            index,
            daemon,
            rows: Vec::new(),
            allowed: BTreeSet::new(),
            denied: BTreeSet::new(),
            size: GenerationSize::default(),
            digest: Sha256::new(),
            first_error: None,
        }
    }

    async fn take(&mut self, found: Attribute, system: &str) -> Result<(), RefreshError> {
        let Attribute { attribute, outcome } = found;
        let mut denied = false;
        let outcome = match outcome {
            Ok((drv, name)) => {
                denied = !self.set.settings.allows(&attribute, &name);
                self.size.attributes += 1;
                self.size.denied += u64::from(denied);
                if !self.allowed.contains(&drv) && !self.denied.contains(&drv) {
                    self.daemon.add_temp_root(&drv).await?;
                }
                let known = if denied { &mut self.denied } else { &mut self.allowed };
                known.insert(drv.clone());
                Ok(drv)
            }
            Err(error) => {
                self.size.errors += 1;
                self.first_error.get_or_insert_with(|| (attribute.clone(), error.clone()));
                Err(error)
            }
        };
        self.digest.update(format!(
            "{attribute:?} {system:?} {denied} {:?}\n",
            outcome.as_ref().map(ToString::to_string)
        ));
        self.rows.push(AttributeRow { attribute, system: system.to_owned(), outcome, denied });
        self.show(system);
        if self.size.attributes + self.size.errors > ATTRIBUTES_MAX {
            return Err(RefreshError::TooMany);
        }
        if self.rows.len() >= ROWS_CHUNK {
            self.index.add_attributes(std::mem::take(&mut self.rows)).await?;
        }
        Ok(())
    }

    fn show(&self, system: &str) {
        let GenerationSize { attributes, errors, .. } = self.size;
        self.set.show(State::Evaluating { system: system.to_owned(), attributes, errors });
    }

    async fn finish(mut self) -> Result<Self, RefreshError> {
        self.index.add_attributes(std::mem::take(&mut self.rows)).await?;
        Ok(self)
    }
}
