//! What the server expects of the builds in its queue: which kind of work each is, how long that takes, and when whoever
//! waits will be served.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use narinfo::StorePath;

use super::estimate::{Durations, Estimate, Kind, Sum};
use super::eta::{Etas, Expected, Told};
use super::queue::Guess;
use crate::index::DurationRow;

/// What was learned, and what it is applied to.
#[derive(Default)]
pub(super) struct Foresight {
    durations: Durations,
    etas: Etas,
    /// Of what is in the queue.
    kinds: HashMap<StorePath, Kind>,
}

impl Foresight {
    /// What was known before a restart.
    pub(super) fn new(rows: Vec<DurationRow>) -> Self {
        let mut durations = Durations::default();
        for row in rows {
            durations.learn(&Kind::from_text(row.work), row.took, row.built);
        }
        Self { durations, ..Self::default() }
    }

    /// A derivation will be built, for this system on so many cores.
    pub(super) fn expect(&mut self, drv: StorePath, system: &str, cores: u64) {
        let kind = kind(&drv, system, cores);
        self.kinds.insert(drv, kind);
    }

    /// A build took so long, or was stopped or failed after that. Gives what to record of it.
    pub(super) fn learn(&mut self, drv: &StorePath, took: Duration, built: bool) -> Option<DurationRow> {
        // What was stopped is built again.
        let kind = if built { self.kinds.remove(drv)? } else { self.kinds.get(drv)?.clone() };
        self.durations.learn(&kind, took, built);
        Some(DurationRow { work: kind.as_str().to_owned(), took, built })
    }

    /// How long these take one after the other, if all of it is known.
    pub(super) fn guess(&self, drvs: &BTreeSet<StorePath>) -> Option<Guess> {
        let mut sum = Sum::default();
        for drv in drvs {
            sum.add(self.estimate(drv, None));
        }
        sum.guess()
    }

    /// How long a build takes, or what is left of one that has run for a while.
    pub(super) fn estimate(&self, drv: &StorePath, running_for: Option<Duration>) -> Option<Estimate> {
        let estimate = self.durations.estimate(self.kinds.get(drv)?)?;
        Some(running_for.map_or(estimate, |elapsed| estimate.after(elapsed)))
    }

    /// Adds a build of the queue to the work ahead, or what is left of one that has run for a while.
    pub(super) fn add_to(&self, ahead: &mut Sum, drv: &StorePath, running_for: Option<Duration>) {
        match (self.estimate(drv, running_for), running_for) {
            (None, Some(elapsed)) => ahead.add_begun(self.durations.of_first(elapsed)),
            (estimate, _) => ahead.add(estimate),
        }
    }

    /// How long a derivation takes that is not in the queue: as others of its kind, else as any build.
    pub(super) fn guess_at(&self, drv: &StorePath, system: &str, cores: u64) -> Option<Estimate> {
        self.durations.estimate(&kind(drv, system, cores)).or_else(|| self.durations.of_unknown())
    }

    /// When someone will be served who waits for all of this.
    pub(super) fn tell(&self, ahead: Sum) -> Option<Told> {
        Expected::after(ahead, &self.durations).map(|expected| self.etas.tell(expected))
    }

    /// Someone was served so long after this was told.
    pub(super) fn finished(&mut self, told: Told, actual: Duration) {
        self.etas.finished(told, actual);
    }

    /// Forgets what is not in the queue any more.
    pub(super) fn retain(&mut self, waits: impl Fn(&StorePath) -> bool) {
        self.kinds.retain(|drv, _| waits(drv));
    }
}

fn kind(drv: &StorePath, system: &str, cores: u64) -> Kind {
    Kind::new(drv.name().trim_end_matches(".drv"), system, cores)
}
