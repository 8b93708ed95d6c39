//! Forecasts for the builds in the queue: the kind of work each is, its duration, and the delivery of each
//! request.

pub mod estimate;
pub mod eta;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use narinfo::StorePath;

use super::queue::Guess;
use crate::model::DurationRow;
use estimate::{Durations, Estimate, Kind, Sum};
use eta::{Etas, Expected, Forecast};

/// Durations that were learned, and the derivations that they are applied to.
#[derive(Default)]
pub(super) struct Forecaster {
    durations: Durations,
    etas: Etas,
    /// Kinds of the derivations in the queue.
    kinds: HashMap<StorePath, Kind>,
}

impl Forecaster {
    /// A forecaster that knows what was recorded before a restart.
    pub(super) fn new(rows: Vec<DurationRow>) -> Self {
        let mut durations = Durations::default();
        for row in rows {
            durations.learn(&Kind::from_text(row.work), row.took, row.built);
        }
        Self { durations, ..Self::default() }
    }

    /// Expects the build of a derivation, for this system on so many cores.
    pub(super) fn expect(&mut self, drv: StorePath, system: &str, cores: u64) {
        let kind = kind(&drv, system, cores);
        self.kinds.insert(drv, kind);
    }

    /// Learns from a build that took so long, or was stopped or failed after that. Gives what to record of
    /// it.
    pub(super) fn learn(&mut self, drv: &StorePath, took: Duration, built: bool) -> Option<DurationRow> {
        // A derivation whose build was stopped is built again.
        let kind = if built { self.kinds.remove(drv)? } else { self.kinds.get(drv)?.clone() };
        self.durations.learn(&kind, took, built);
        Some(DurationRow { work: kind.as_str().to_owned(), took, built })
    }

    /// Duration of these builds one after the other, if all of it is known.
    pub(super) fn guess(&self, drvs: &BTreeSet<StorePath>) -> Option<Guess> {
        let mut sum = Sum::default();
        for drv in drvs {
            sum.add(self.estimate(drv, None));
        }
        sum.guess()
    }

    /// Duration of a build, or the rest of one that has run for a while.
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

    /// Duration of a derivation that is not in the queue: that of others of its kind, else that of any build.
    pub(super) fn guess_at(&self, drv: &StorePath, system: &str, cores: u64) -> Option<Estimate> {
        self.durations.estimate(&kind(drv, system, cores)).or_else(|| self.durations.of_unknown())
    }

    /// Durations of the latest builds of the same kind, the oldest first.
    pub(super) fn latest(&self, drv: &StorePath, system: &str, cores: u64) -> Vec<Duration> {
        self.durations.latest(&kind(drv, system, cores))
    }

    /// Delivery of a request that waits for all of this work.
    pub(super) fn forecast(&self, ahead: Sum) -> Option<Forecast> {
        Expected::after(ahead, &self.durations).map(|expected| self.etas.forecast(expected))
    }

    /// Learns from a request that was served so long after this forecast.
    pub(super) fn finished(&mut self, forecast: Forecast, actual: Duration) {
        self.etas.finished(forecast, actual);
    }

    /// Number of derivations whose kinds are known.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Forgets the kinds of derivations that are not in the queue any more.
    pub(super) fn retain(&mut self, waits: impl Fn(&StorePath) -> bool) {
        self.kinds.retain(|drv, _| waits(drv));
    }
}

fn kind(drv: &StorePath, system: &str, cores: u64) -> Kind {
    Kind::new(drv.name().trim_end_matches(".drv"), system, cores)
}
