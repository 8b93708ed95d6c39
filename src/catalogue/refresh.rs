//! Brings sets up to date, one at a time: when they are due, and when somebody wants it. A generation is
//! complete, held in the Nix store and on record before it takes the place of the one before; whatever fails
//! leaves that one as it is.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use narinfo::StorePath;
use tokio::time::{Instant, sleep_until};

use super::closure;
use super::error::RefreshError;
use super::gather::{self, Gathered};
use super::holder;
use super::jobs::{self, Jobs};
use super::metrics::Refreshed;
use super::settings::{Indexing, SetSettings};
use super::setup::{self, Setup};
use super::source;
use super::walk::{Attribute, Task, Walk};
use super::{Catalogue, ConfiguredSet, RefreshState, Tools};
use crate::backoff::Backoff;
use crate::causes::with_causes;
use crate::model::{GenerationSize, NewGeneration, Swapped};

/// Longest delay after a failure until a set is refreshed again, unless it is due before.
const RETRY_AFTER: Duration = Duration::from_secs(15 * 60);
/// Delay after a first transient failure; it doubles after each further one.
const RETRY_FIRST: Duration = Duration::from_secs(5);
/// Interval of the removal of expired generations.
const TIDY_INTERVAL: Duration = Duration::from_secs(3600);
/// Refreshes the sets of a catalogue.
pub struct Refresher {
    /// The sets.
    pub catalogue: Catalogue,
    /// Resources of evaluations.
    pub tools: Tools,
}

impl Refresher {
    /// Refreshes what is due and what is wanted. Never ends.
    pub async fn run(self) {
        let mut due = Vec::new();
        let mut retries = vec![Backoff::new(RETRY_FIRST, RETRY_AFTER); self.catalogue.0.sets.len()];
        for set in &self.catalogue.0.sets {
            due.push(self.first_due(&set.settings).await);
        }
        // Of evaluators that were killed with the server before.
        let _ = std::fs::remove_dir_all(self.tools.home.join(setup::TEMPORARY));
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
                let set = &self.catalogue.0.sets[number];
                let how = self.refresh(set).await;
                let (every, retry) = (set.settings.refresh, &mut retries[number]);
                let after = match how {
                    How::Well => {
                        retry.reset();
                        every
                    }
                    How::MayPass => Some(retry.pause().min(every.unwrap_or(RETRY_AFTER))),
                    How::Failed => every.map(|every| every.min(RETRY_AFTER)),
                };
                due[number] = after.map(|after| Instant::now() + after);
                continue;
            }
            let until = due.iter().flatten().copied().min().map_or(tidy_at, |at| at.min(tidy_at));
            tokio::select! {
                () = sleep_until(until) => {}
                () = self.catalogue.0.wanted.notified() => {}
            }
        }
    }

    /// Brings the current generations into the Nix store of this machine, where another server has made them:
    /// what is queued of them is built here from now on.
    pub async fn bring_here(&self) {
        for set in &self.catalogue.0.sets {
            let current = self.tools.index.set(set.settings.name.to_string()).await;
            if let Ok(row) = current
                && row.generations.first().is_some_and(|current| !self.holds(&current.holder))
            {
                self.refresh(set).await;
            }
        }
    }

    /// True where the derivations of a generation are in the Nix store of this machine.
    fn holds(&self, holder: &StorePath) -> bool {
        !self.tools.index.is_shared() || self.tools.roots.held().is_ok_and(|held| held.contains(holder))
    }

    /// At once when there is nothing, or what there is was made with other settings.
    async fn first_due(&self, set: &SetSettings) -> Option<Instant> {
        let now = Instant::now();
        let row = match self.tools.index.set(set.name.to_string()).await {
            Ok(row) => row,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot read the package sets from the index"
                );
                return Some(now);
            }
        };
        if let Some(current) = row.generations.first() {
            let fresh_at = row.tried_at.filter(|_| row.failure.is_none()).unwrap_or(current.made_at);
            self.catalogue.0.metrics.current(&set.name, current.id, current.size, fresh_at);
        }
        let made_by = set.made_by();
        if row
            .generations
            .first()
            .is_none_or(|current| current.made_by != made_by || !self.holds(&current.holder))
        {
            return Some(now);
        }
        let every = set.refresh?;
        let after = if row.failure.is_some() { every.min(RETRY_AFTER) } else { every };
        let since = row.tried_at.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
        Some(now + after.saturating_sub(since))
    }

    async fn refresh(&self, set: &ConfiguredSet) -> How {
        let name = &set.settings.name;
        let asked = set.progress.borrow().asked;
        tracing::info!(set = %name, "refreshing");
        let begun = Instant::now();
        let mut outcome = self.make(set, VanishedDerivation::IsAnError).await;
        if outcome.as_ref().is_err_and(RefreshError::may_be_collected) {
            outcome = self.make(set, VanishedDerivation::IsReported).await;
        }
        let refreshed = outcome.as_ref().map_or(Refreshed::Failed, Made::how);
        self.catalogue.0.metrics.refreshed(name, refreshed, begun.elapsed());
        let how = match &outcome {
            Ok(Made { trouble: None, .. }) => How::Well,
            Ok(_) => How::MayPass,
            Err(error) if error.may_pass() => How::MayPass,
            Err(_) if self.has_nothing(set).await => How::MayPass,
            Err(_) => How::Failed,
        };
        let trouble = outcome.as_ref().ok().and_then(|made| made.trouble.clone());
        let outcome = outcome.map(|made| made.to_string()).map_err(|error| with_causes(&error));
        match &outcome {
            Ok(done) => tracing::info!(set = %name, "refreshed: {done}"),
            Err(error) => {
                tracing::warn!(set = %name, error, "refresh failed; the current generation stays in use");
            }
        }
        if let Some(failure) = trouble.or_else(|| outcome.as_ref().err().cloned()) {
            let recorded = self.tools.index.record_refresh(name.to_string(), Some(failure)).await;
            if let Err(error) = recorded {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot record a failed refresh");
            }
        }
        self.tidy().await;
        set.over(asked, outcome);
        how
    }

    /// True if a set has no generation yet.
    async fn has_nothing(&self, set: &ConfiguredSet) -> bool {
        let row = self.tools.index.set(set.settings.name.to_string()).await;
        row.is_ok_and(|row| row.generations.is_empty())
    }

    /// Makes a generation and puts it in the place of the one before.
    async fn make(&self, set: &ConfiguredSet, missing: VanishedDerivation) -> Result<Made, RefreshError> {
        self.tools.index.start_generation().await?;
        let settings = &set.settings;
        if settings.indexing == Indexing::Lazy {
            return self.make_empty(set).await;
        }
        let deadline = Instant::now() + settings.evaluation.time_max;
        let mut gathered = match self.gather(set, deadline, jobs::workers(settings)).await {
            Err(RefreshError::Jobs(error)) => {
                let (name, error) = (&settings.name, with_causes(&error));
                tracing::warn!(set = %name, error, "nix-eval-jobs failed; evaluating again with nix-instantiate");
                self.tools.index.start_generation().await?;
                self.gather(set, deadline, None).await?
            }
            gathered => gathered?,
        };
        let digest = gathered.digest();
        let Gathered { mut daemon, allowed, denied, mut size, first_error, trouble, .. } = gathered;
        let trouble = trouble.told();
        if let Some(trouble) = &trouble {
            tracing::warn!(set = %settings.name, trouble, "refreshed with transient errors; the affected attributes stay as they were, and it is tried again soon");
        }
        if size.attributes == 0 {
            return Err(first_error.map_or(RefreshError::Empty, |(attribute, error)| {
                RefreshError::NothingEvaluates { count: size.errors, attribute, error }
            }));
        }
        let holder = holder::hold(&self.tools, &mut daemon, &settings.name, &digest, &allowed).await?;
        let row = self.tools.index.set(settings.name.to_string()).await?;
        let made_by = settings.made_by();
        if row
            .generations
            .first()
            .is_some_and(|current| current.holder == holder && current.made_by == made_by)
        {
            self.tools.index.record_refresh(settings.name.to_string(), None).await?;
            return Ok(Made { size, swapped: None, trouble });
        }
        set.show(RefreshState::Reading { derivations: 0 });
        let progress = |derivations| set.show(RefreshState::Reading { derivations });
        let store_dir = &self.tools.nix.store_dir;
        let closure = closure::bring_in(&self.tools.index, store_dir, allowed, denied, progress).await?;
        size.derivations = closure.derivations;
        self.leave_out(set, closure.unreadable, &mut size, missing).await?;
        Ok(Made { trouble, ..self.swap(set, holder, size).await? })
    }

    /// Has attributes fail whose derivations cannot be read.
    async fn leave_out(
        &self,
        set: &ConfiguredSet,
        unreadable: Vec<(StorePath, String)>,
        size: &mut GenerationSize,
        missing: VanishedDerivation,
    ) -> Result<(), RefreshError> {
        let store_dir = &self.tools.nix.store_dir;
        let is_gone = |drv: &StorePath| !Path::new(&drv.in_dir(store_dir)).exists();
        let mut failures = Vec::new();
        for (drv, reason) in unreadable {
            if missing == VanishedDerivation::IsAnError && is_gone(&drv) {
                return Err(RefreshError::Gone(drv));
            }
            tracing::warn!(set = %set.settings.name, %drv, reason, "skipped an unreadable derivation");
            let error = gather::unreadable(&drv, &reason);
            failures.push((drv, error));
        }
        if !failures.is_empty() {
            let failed = self.tools.index.fail_attributes(failures).await?;
            size.attributes = size.attributes.saturating_sub(failed);
            size.errors += failed;
        }
        Ok(())
    }

    /// Makes a generation of a lazy set, of which nothing is evaluated yet: its source may have changed.
    async fn make_empty(&self, set: &ConfiguredSet) -> Result<Made, RefreshError> {
        let name = &set.settings.name;
        // A source that is not there is no new generation.
        Setup::new(&self.tools, &set.settings).await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut daemon = self.tools.pool.get().await?;
        // Each generation has a holder of its own.
        let which = format!("as of {}", now.as_nanos());
        let holder = holder::hold(&self.tools, &mut daemon, name, &which, &BTreeSet::new()).await?;
        self.swap(set, holder, GenerationSize::default()).await
    }

    /// Puts what was brought in into the place of the generation before.
    async fn swap(
        &self,
        set: &ConfiguredSet,
        holder: StorePath,
        size: GenerationSize,
    ) -> Result<Made, RefreshError> {
        let settings = &set.settings;
        set.show(RefreshState::Swapping);
        let (name, made_by) = (settings.name.to_string(), settings.made_by());
        let new = NewGeneration { set: name, made_by, holder, size };
        let swapped = self.tools.index.swap_generation(new).await?;
        self.catalogue.0.metrics.current(&settings.name, swapped.generation, size, SystemTime::now());
        self.catalogue.0.bumps.send_modify(|bumps| *bumps += 1);
        Ok(Made { size, swapped: Some(swapped), trouble: None })
    }

    /// Evaluates all attributes: with so many workers of nix-eval-jobs, or with nix-instantiate.
    async fn gather<'a>(
        &self,
        set: &'a ConfiguredSet,
        deadline: Instant,
        workers: Option<u64>,
    ) -> Result<Gathered<'a>, RefreshError> {
        let mut gathered = Gathered::new(set, self.tools.index.clone(), self.tools.pool.get().await?);
        let settings = &set.settings;
        match workers {
            Some(workers) => tracing::info!(set = %settings.name, workers, "evaluating with nix-eval-jobs"),
            None => tracing::info!(set = %settings.name, "evaluating with nix-instantiate"),
        }
        let links = source::links(&settings.origin).map_err(RefreshError::Source)?;
        let setup = Setup::new(&self.tools, settings).await?;
        if let Some(pinned) = &setup.pinned {
            gathered.daemon.add_temp_root(pinned).await?;
        }
        let store_dir = &self.tools.nix.store_dir;
        for system in &settings.systems {
            gathered.show(system);
            let task = setup.task(&self.tools, settings, system, deadline);
            let mut left = vec![setup.source.clone()];
            if let Some(workers) = workers {
                let mut jobs = Jobs::new(task, workers);
                while let Some(attribute) = jobs.next().await? {
                    gathered.take(attribute, system).await?;
                }
                left = jobs.left().map(|place| setup.source.within(place.clone())).collect();
            }
            for source in &left {
                let mut walk = Walk::new(Task { source, ..task });
                while let Some(attribute) = walk.next().await? {
                    gathered.take(attribute, system).await?;
                }
            }
            for (attribute, target) in &links {
                let outcome = source::linked(store_dir, target, &mut gathered.daemon).await?;
                gathered.take(Attribute { attribute: attribute.clone(), rank: 0, outcome }, system).await?;
            }
        }
        gathered.finish().await
    }

    /// Forgets generations that have expired, and lets go of what they held.
    async fn tidy(&self) {
        let _holding = self.catalogue.0.holding.lock().await;
        for set in &self.catalogue.0.sets {
            let SetSettings { name, keep, .. } = &set.settings;
            if let Err(error) = self.tools.index.expire_generations(name.to_string(), *keep).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot remove expired generations"
                );
                return;
            }
        }
        match (self.tools.index.holders().await, self.tools.roots.held()) {
            (Ok(needed), Ok(held)) => {
                held.iter()
                    .filter(|path| !needed.contains(path))
                    .for_each(|path| self.tools.roots.release(path));
            }
            (Err(error), _) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot read the generations from the index"
                );
            }
            (_, Err(error)) => tracing::error!(%error, "cannot list the GC roots of generations"),
        }
    }
}

/// The end of a refresh.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// All is as the source has it.
    Well,
    /// Something has failed that may do in a while, or there is nothing yet.
    MayPass,
    /// Failed until the source changes.
    Failed,
}

/// Policy for the .drv file of a valid derivation that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VanishedDerivation {
    /// The derivation may have been collected: everything is evaluated again.
    IsAnError,
    /// The error of its attributes.
    IsReported,
}

/// The result of a refresh.
struct Made {
    size: GenerationSize,
    /// Transient errors.
    trouble: Option<String>,
    /// `None` where nothing has changed.
    swapped: Option<Swapped>,
}

impl Made {
    fn how(&self) -> Refreshed {
        if self.swapped.is_some() { Refreshed::Changed } else { Refreshed::Unchanged }
    }
}

impl fmt::Display for Made {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GenerationSize { attributes, denied, errors, .. } = self.size;
        let size = format!("{attributes} attributes ({denied} denied), {errors} errors");
        match self.swapped {
            None => write!(formatter, "nothing changed: {size}")?,
            Some(Swapped { generation, added, removed }) => {
                write!(
                    formatter,
                    "generation {generation}: {size}; {added} outputs added, {removed} removed"
                )?;
            }
        }
        match &self.trouble {
            Some(trouble) => write!(formatter, "; {trouble}"),
            None => Ok(()),
        }
    }
}
