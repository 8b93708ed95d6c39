//! Pre-building: counts what people ask for by the names that package sets have for it, and once a name
//! stands for something new, plans to have that built before anyone asks. What is worth most is for
//! `prebuild` to say.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Worker;
use crate::build::plan::{self, Planned};
use crate::build::prebuild::demand::DAYS;
use crate::build::scheduler::PrebuildPlan;
use crate::index;
use crate::model::AttributeName;
use crate::nix::DaemonError;

/// Time for which demand is gathered before it is counted, so that many requests cost no more than one.
const GATHER: Duration = Duration::from_millis(250);
/// Interval at which it is checked whether something may be pre-built.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Age of a plan at most: what failed for a while may do now, and what was collected is lacking again.
const PLAN_AGE_MAX: Duration = Duration::from_secs(3600);

/// Why nothing is planned, or counted.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The index does not do its part.
    #[error("the index failed")]
    Index(#[from] index::Error),
    /// The daemon does not do its part.
    #[error("the Nix daemon failed")]
    Daemon(#[from] DaemonError),
}

impl Worker {
    /// Counts demand, and plans what to pre-build. Ends at once where nothing is.
    pub(super) async fn plan_prebuilds(&self) {
        if self.settings.prebuild.is_none() {
            return;
        }
        let mut bumps = self.bumps.clone();
        let (mut due, mut bumped) = (Instant::now(), true);
        loop {
            let mut done = self.count_demand().await;
            if done.is_ok() && due <= Instant::now() && self.scheduler.may_prebuild() {
                done = self.expect(bumped).await;
                bumped &= done.is_err();
                due = Instant::now() + if done.is_ok() { PLAN_AGE_MAX } else { LOOK_INTERVAL };
            }
            if let Err(error) = done {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot plan pre-builds; trying again in {} s",
                    LOOK_INTERVAL.as_secs()
                );
            }
            self.scheduler.wake();
            tokio::select! {
                () = self.scheduler.demand() => sleep(GATHER).await,
                // An error means that nothing is refreshed any more.
                Ok(()) = bumps.changed() => {
                    (due, bumped) = (Instant::now(), true);
                    // The plan is of a generation that is not the current one any more.
                    self.scheduler.set_prebuild_plan(PrebuildPlan::default());
                }
                () = sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Brings demand that was just noted to the names that it has, and to the index.
    async fn count_demand(&self) -> Result<(), Error> {
        let Some((noted, (spent_on, spent))) = self.scheduler.take_demand() else { return Ok(()) };
        if self.index.prebuilt().await? != (spent_on, whole_millis(spent)) {
            self.index.record_prebuilt(spent_on, spent).await?;
        }
        let names = self.index.names_of(noted.keys().cloned().collect()).await?;
        if names.is_empty() {
            return Ok(());
        }
        let times = names.into_iter().map(|(drv, name)| (name, noted[&drv])).collect();
        let (rows, today) = self.scheduler.count_demand(times);
        self.index.record_demand(rows, (today + 1).saturating_sub(DAYS as u64)).await?;
        Ok(())
    }

    /// Finds out which of the attributes that people ask for are not built in their present version.
    async fn expect(&self, bumped: bool) -> Result<(), Error> {
        let (names, asked): (Vec<AttributeName>, Vec<u32>) = self.scheduler.most_asked().into_iter().unzip();
        let drvs = self.index.derivations_named(names).await?;
        self.runner.use_upstreams().await;
        let rules = self.plan_rules().await;
        let mut daemon = self.runner.connections.pool.get().await?;
        let mut prebuilds = PrebuildPlan::default();
        for (drv, asked) in drvs.into_iter().zip(asked).filter_map(|(drv, asked)| Some((drv?, asked))) {
            if prebuilds.choice.expects(&drv) {
                continue;
            }
            let Planned { needs, systems, placements, .. } = match plan::plan(&mut daemon, &drv, &rules).await
            {
                Ok(planned) => planned,
                Err(plan::Error::Daemon(error)) => return Err(error.into()),
                Err(plan::Error::Impossible(_) | plan::Error::Unfit(_) | plan::Error::Collected) => continue,
            };
            if needs.is_empty() || self.remembered(&needs).await.is_some() {
                continue;
            }
            let estimates = self.scheduler.estimates(&systems);
            prebuilds.choice.offer(&drv, asked, &needs, |drv| estimates.get(drv).copied());
            prebuilds.systems.extend(systems);
            prebuilds.placements.extend(placements);
        }
        self.scheduler.set_prebuild_plan(prebuilds);
        if bumped {
            // What the plan needs of these was found to be there: the daemon builds it again, should it be
            // collected.
            self.scheduler.release_prebuilt().iter().for_each(|output| self.runner.roots.release(output));
        }
        Ok(())
    }
}

/// As the index keeps it.
fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
