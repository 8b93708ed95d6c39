//! What the worker does while nobody waits: it keeps in mind what people ask for by the names that package sets have for it, and once
//! a name stands for something new, has that built before anyone asks. What is worth most is for `prebuild` to say, and that
//! it gives way to everyone for `queue`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use narinfo::StorePath;
use tokio::time::sleep;

use super::metrics::Prebuilt;
use super::plan::{self, Planned};
use super::prebuild::allowance::Allowance;
use super::prebuild::demand::{DAYS, Demand};
use super::prebuild::{Prebuild, WANTED_MAX, day};
use super::{Builds, State, Worker};
use crate::index::{self, AttributeName, DemandRow, Index};
use crate::nix::DaemonError;

/// How long requests are gathered before they are counted, so that many cost no more than one.
const GATHER: Duration = Duration::from_millis(250);
/// How often it is looked whether it is time to pre-build something.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// How old a plan may become: what failed for a while may do now, and what was collected is lacking again.
const PLAN_AGE_MAX: Duration = Duration::from_secs(3600);
/// Derivations that may wait to be counted; more are not.
const NOTED_MAX: usize = 10_000;

/// What may be pre-built, and what was asked for.
pub(super) struct Idle {
    allowance: Allowance,
    demand: Demand<AttributeName>,
    /// What was asked for a moment ago, and how often.
    noted: BTreeMap<StorePath, u32>,
    choice: Prebuild<StorePath>,
    /// The system that each derivation of the choice is built on.
    systems: BTreeMap<StorePath, String>,
    running: Option<Run>,
    /// Outputs that are of use to what will be pre-built.
    held: Vec<StorePath>,
}

/// What is pre-built, and nobody's yet.
struct Run {
    drv: StorePath,
    /// In local time.
    since: Duration,
    /// The same moment of a clock that does not step.
    begun: Instant,
}

/// A pre-build that has ended and was nobody's to its end.
pub(super) struct Done {
    /// Whether its outputs are to be served, since they themselves were expected to be asked for.
    pub(super) expected: bool,
    /// How long it ran.
    pub(super) took: Duration,
}

/// Why nothing is planned, or kept in mind.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The index does not do its part.
    #[error("the index failed")]
    Index(#[from] index::Error),
    /// The daemon does not do its part.
    #[error("the Nix daemon failed")]
    Daemon(#[from] DaemonError),
}

/// Local time, since a midnight of long ago: people's nights and days.
fn local_now() -> Duration {
    let epoch = jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    let since = jiff::ZonedDateTime::now().datetime().duration_since(epoch);
    since.try_into().unwrap_or_default()
}

impl Idle {
    /// As it was when the server ended.
    pub(super) async fn open(mut allowance: Allowance, index: &Index) -> Result<Self, index::Error> {
        let (day, spent) = index.prebuilt().await?;
        allowance.restore(day, spent);
        let mut demand = Demand::default();
        for DemandRow { name, day, asked } in index.demand().await? {
            demand.add(&name, day, asked);
        }
        Ok(Self {
            allowance,
            demand,
            noted: BTreeMap::new(),
            choice: Prebuild::default(),
            systems: BTreeMap::new(),
            running: None,
            held: Vec::new(),
        })
    }

    /// How long was pre-built today.
    pub(super) fn spent_today(&self) -> Duration {
        self.allowance.spent_today(local_now())
    }

    pub(super) fn is_running(&self, drv: &StorePath) -> bool {
        self.running.as_ref().is_some_and(|run| run.drv == *drv)
    }

    /// What ran is not nobody's any longer. Gives how long it was.
    fn account(&mut self) -> Duration {
        let Some(Run { since, begun, .. }) = self.running.take() else { return Duration::ZERO };
        let took = begun.elapsed();
        self.allowance.spend(since, since + took);
        took
    }
}

impl Builds {
    /// Someone asks for what this derivation makes, whether or not it is there already.
    pub fn note(&self, drv: &StorePath) {
        if self.0.settings.prebuild.is_none() {
            return;
        }
        let mut state = self.0.lock();
        let Some(idle) = &mut state.idle else { return };
        if idle.noted.len() < NOTED_MAX || idle.noted.contains_key(drv) {
            *idle.noted.entry(drv.clone()).or_default() += 1;
        }
        drop(state);
        self.0.noted.notify_one();
    }

    /// How often something was asked for in the last four weeks; not known where nothing is pre-built.
    #[must_use]
    pub fn asked_lately(&self, name: &AttributeName) -> Option<u32> {
        Some(self.0.lock().idle.as_ref()?.demand.asked_lately(name, local_now()))
    }
}

impl State {
    /// Starts what is worth most, if nobody waits and nothing runs.
    pub(super) fn start_prebuild(&mut self, now: Duration, cores: u64) -> Option<StorePath> {
        let idle = self.idle.as_mut().filter(|_| self.queue.is_empty() && self.running.is_empty())?;
        let local = local_now();
        let left = idle.allowance.left(local);
        if left.is_zero() {
            return None;
        }
        let drv = idle.choice.next(left)?.clone();
        if !self.queue.prebuild(&drv, now, now.saturating_add(left)) {
            return None;
        }
        if let Some(system) = idle.systems.get(&drv) {
            self.foresight.expect(drv.clone(), system, cores);
        }
        idle.running = Some(Run { drv: drv.clone(), since: local, begun: Instant::now() });
        self.running.insert(drv.clone(), Instant::now());
        Some(drv)
    }

    /// Someone may need what is pre-built: then it is theirs from now on. Gives for how long it was nobody's.
    pub(super) fn take_over_prebuild(&mut self) -> Option<Duration> {
        let idle = self.idle.as_mut()?;
        let run = idle.running.as_ref()?;
        self.queue.needed_by(&run.drv).next()?;
        Some(idle.account())
    }

    /// A build has ended, whoever it was for. Gives what there is to tell of one that was nobody's.
    pub(super) fn end_prebuild(&mut self, drv: &StorePath, how: Prebuilt) -> Option<Done> {
        let idle = self.idle.as_mut()?;
        let expected = idle.choice.expects(drv);
        match how {
            Prebuilt::Built => idle.choice.built(drv),
            Prebuilt::Failed => idle.choice.failed(drv),
            Prebuilt::Stopped | Prebuilt::TakenOver => {}
        }
        idle.is_running(drv).then(|| Done { expected, took: idle.account() })
    }

    /// Outputs must not be collected as long as something may be pre-built that needs them.
    pub(super) fn hold_prebuilt(&mut self, outputs: Vec<StorePath>) {
        if let Some(idle) = &mut self.idle {
            idle.held.extend(outputs);
        }
    }
}

impl Worker {
    /// Counts what people ask for, and plans what to pre-build. Ends at once where nothing is.
    pub(super) async fn foresee(&self) {
        if self.settings.prebuild.is_none() {
            return;
        }
        let mut bumps = self.bumps.clone();
        let (mut due, mut bumped) = (Instant::now(), true);
        loop {
            let mut done = self.count().await;
            if done.is_ok() && due <= Instant::now() && self.may_prebuild() {
                done = self.expect(bumped).await;
                bumped &= done.is_err();
                due = Instant::now() + if done.is_ok() { PLAN_AGE_MAX } else { LOOK_INTERVAL };
            }
            if let Err(error) = done {
                tracing::error!(error = &error as &dyn std::error::Error, "nothing can be pre-built for now");
            }
            self.builds.0.work.notify_one();
            tokio::select! {
                () = self.builds.0.noted.notified() => sleep(GATHER).await,
                // An error means that nothing is refreshed any more.
                Ok(()) = bumps.changed() => {
                    (due, bumped) = (Instant::now(), true);
                    self.give_up_choice();
                }
                () = sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// It is of a generation that is not the current one any more.
    fn give_up_choice(&self) {
        if let Some(idle) = &mut self.builds.0.lock().idle {
            idle.choice = Prebuild::default();
        }
    }

    fn may_prebuild(&self) -> bool {
        let state = self.builds.0.lock();
        let idle = state.idle.as_ref().filter(|_| state.queue.is_empty());
        idle.is_some_and(|idle| !idle.allowance.left(local_now()).is_zero())
    }

    /// Brings what was asked for a moment ago to the names that it has, and to the index.
    async fn count(&self) -> Result<(), Error> {
        let (noted, (spent_on, spent)) = {
            let mut state = self.builds.0.lock();
            let Some(idle) = &mut state.idle else { return Ok(()) };
            (std::mem::take(&mut idle.noted), idle.allowance.spent())
        };
        if self.index.prebuilt().await? != (spent_on, whole_millis(spent)) {
            self.index.record_prebuilt(spent_on, spent).await?;
        }
        let names = self.index.names_of(noted.keys().cloned().collect()).await?;
        if names.is_empty() {
            return Ok(());
        }
        let today = day(local_now());
        let rows = {
            let mut state = self.builds.0.lock();
            let Some(idle) = &mut state.idle else { return Ok(()) };
            let row = |(drv, name): (StorePath, AttributeName)| {
                let asked = idle.demand.add(&name, today, noted[&drv]);
                DemandRow { name, day: today, asked }
            };
            names.into_iter().map(row).collect()
        };
        self.index.record_demand(rows, (today + 1).saturating_sub(DAYS as u64)).await?;
        Ok(())
    }

    /// Finds out what of that which people asked for is not built in its present version.
    async fn expect(&self, bumped: bool) -> Result<(), Error> {
        let (names, asked): (Vec<AttributeName>, Vec<u32>) = {
            let state = self.builds.0.lock();
            let Some(idle) = &state.idle else { return Ok(()) };
            let most = idle.demand.most_asked(local_now()).into_iter().take(WANTED_MAX);
            most.map(|(name, asked)| (name.clone(), asked)).unzip()
        };
        let drvs = self.index.derivations_named(names).await?;
        self.builder.heed_upstreams().await;
        let capabilities = self.capabilities.known().await;
        let mut daemon = self.builder.connections.pool.get().await?;
        let (mut choice, mut systems) = (Prebuild::default(), BTreeMap::new());
        for (drv, asked) in drvs.into_iter().zip(asked).filter_map(|(drv, asked)| Some((drv?, asked))) {
            if choice.expects(&drv) {
                continue;
            }
            let max = self.settings.derivations_max;
            let Planned { needs, systems: of_it } =
                match plan::plan(&mut daemon, &drv, max, &capabilities).await {
                    Ok(planned) => planned,
                    Err(plan::Error::Daemon(error)) => return Err(error.into()),
                    Err(plan::Error::Impossible(_) | plan::Error::Collected) => continue,
                };
            if needs.is_empty() || self.remembered(&needs).await.is_some() {
                continue;
            }
            let state = self.builds.0.lock();
            let guess = |drv: &StorePath| state.foresight.guess_at(drv, of_it.get(drv)?, self.settings.cores);
            choice.offer(&drv, asked, &needs, guess);
            drop(state);
            systems.extend(of_it);
        }
        let mut state = self.builds.0.lock();
        let Some(idle) = &mut state.idle else { return Ok(()) };
        (idle.choice, idle.systems) = (choice, systems);
        if bumped {
            // What it needs of these was found to be there: then the daemon builds it again, should that be collected.
            std::mem::take(&mut idle.held).iter().for_each(|output| self.builder.roots.release(output));
        }
        Ok(())
    }
}

/// As the index keeps it.
fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
