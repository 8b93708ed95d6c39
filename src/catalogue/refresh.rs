//! Brings sets up to date, one at a time: when they are due, and when somebody wants it. A generation is complete, held in the
//! Nix store and on record before it takes the place of the one before; whatever fails leaves that one as it is.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use narinfo::StorePath;
use sha2::Digest;
use tokio::time::{Instant, sleep_until};

use super::closure;
use super::error::RefreshError;
use super::gather::Gathered;
use super::metrics::Refreshed;
use super::settings::SetSettings;
use super::source;
use super::walk::{Attribute, Walk};
use super::{Catalogue, Set, State};
use crate::causes::with_causes;
use crate::index::{GenerationSize, Index, NewGeneration, Swapped};
use crate::nix::{Environment, Pool};
use crate::roots::Roots;

/// How long after a failure a set is tried again, unless it is due before.
const RETRY_AFTER: Duration = Duration::from_secs(15 * 60);
/// How often it is looked for generations that have expired.
const TIDY_INTERVAL: Duration = Duration::from_secs(3600);
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
        if let Some(current) = row.generations.first() {
            let fresh_at = row.tried_at.filter(|_| row.failure.is_none()).unwrap_or(current.made_at);
            self.catalogue.0.metrics.current(&set.name, current.id, current.size, fresh_at);
        }
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
        let begun = Instant::now();
        let mut outcome = self.make(set).await;
        if outcome.as_ref().is_err_and(RefreshError::may_be_collected) {
            outcome = self.make(set).await;
        }
        let how = outcome.as_ref().map_or(Refreshed::Failed, |made| made.how());
        self.catalogue.0.metrics.refreshed(name, how, begun.elapsed());
        let outcome = outcome.map(|made| made.to_string()).map_err(|error| with_causes(&error));
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

    /// Makes a generation and puts it in the place of the one before.
    async fn make(&self, set: &Set) -> Result<Made, RefreshError> {
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
            return Ok(Made { size, swapped: None });
        }
        set.show(State::Reading { derivations: 0 });
        let progress = |derivations| set.show(State::Reading { derivations });
        size.derivations =
            closure::bring_in(&self.index, &self.nix.store_dir, allowed, denied, progress).await?;
        set.show(State::Swapping);
        let new = NewGeneration { set: settings.name.to_string(), made_by, holder, size };
        let swapped = self.index.swap_generation(new).await?;
        self.catalogue.0.metrics.current(&settings.name, swapped.generation, size, SystemTime::now());
        self.catalogue.0.bumps.send_modify(|bumps| *bumps += 1);
        Ok(Made { size, swapped: Some(swapped) })
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

/// What a refresh has brought.
struct Made {
    size: GenerationSize,
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
            None => write!(formatter, "nothing changed: {size}"),
            Some(Swapped { generation, added, removed }) => {
                write!(formatter, "generation {generation}: {size}; {added} outputs added, {removed} removed")
            }
        }
    }
}
