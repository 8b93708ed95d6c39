//! State of pre-building: demand that was noted, the plan made from it, and the pre-build that runs. A
//! pre-build is nobody's until someone needs it, and gives way to everyone.

use std::collections::BTreeMap;
use std::time::Duration;

use narinfo::StorePath;
use tokio::time::Instant;

use super::{Scheduler, State};
use crate::build::farm::{MachineId, Placement};
use crate::build::forecast::estimate::Estimate;
use crate::build::metrics::Prebuilt;
use crate::build::prebuild::allowance::Allowance;
use crate::build::prebuild::demand::Demand;
use crate::build::prebuild::{Prebuild, WANTED_MAX, day};
use crate::index::{self, Index};
use crate::model::{AttributeName, DemandRow};

/// Derivations whose demand may wait to be counted; that of more is not.
const NOTED_MAX: usize = 10_000;

/// Demand, and what may be pre-built for it.
pub(super) struct PrebuildState {
    allowance: Allowance,
    demand: Demand<AttributeName>,
    /// Demand that is not counted yet, with how often each was asked for.
    noted: BTreeMap<StorePath, u32>,
    plan: PrebuildPlan,
    running: Option<PrebuildRun>,
    /// Outputs that are inputs of what will be pre-built.
    held: Vec<StorePath>,
}

/// Choice of what to pre-build.
#[derive(Default)]
pub(in crate::build) struct PrebuildPlan {
    pub(in crate::build) choice: Prebuild<StorePath>,
    /// The system that each derivation of the choice is built on.
    pub(in crate::build) systems: BTreeMap<StorePath, String>,
    /// Machines that can build each of them.
    pub(in crate::build) placements: BTreeMap<StorePath, Placement>,
}

/// A pre-build that runs and is nobody's yet.
struct PrebuildRun {
    drv: StorePath,
    /// Start in local time.
    since: Duration,
    /// The same moment of a clock that does not step.
    begun: Instant,
}

/// A pre-build that has ended and was nobody's to its end.
pub(super) struct PrebuildDone {
    /// True when its outputs are to be served, since they themselves were expected to be asked for.
    pub(super) expected: bool,
    pub(super) took: Duration,
}

fn cloned((drv, placement): (&StorePath, &Placement)) -> (StorePath, Placement) {
    (drv.clone(), placement.clone())
}

/// Local time, since a midnight of long ago: people's nights and days.
fn local_now() -> Duration {
    let epoch = jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    let since = jiff::ZonedDateTime::now().datetime().duration_since(epoch);
    since.try_into().unwrap_or_default()
}

impl PrebuildState {
    /// The state as it was when the server ended.
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
            plan: PrebuildPlan::default(),
            running: None,
            held: Vec::new(),
        })
    }

    /// Time that was spent on pre-builds today.
    pub(super) fn spent_today(&self) -> Duration {
        self.allowance.spent_today(local_now())
    }

    pub(super) fn is_running(&self, drv: &StorePath) -> bool {
        self.running.as_ref().is_some_and(|run| run.drv == *drv)
    }

    /// The pre-build that ran is not nobody's any longer. Gives how long it was.
    fn account(&mut self) -> Duration {
        let Some(PrebuildRun { since, begun, .. }) = self.running.take() else { return Duration::ZERO };
        let took = begun.elapsed();
        self.allowance.spend(since, since + took);
        took
    }
}

impl Scheduler {
    /// Notes that someone asks for what this derivation makes, be it there already or not.
    pub fn note_demand(&self, drv: &StorePath) {
        if self.0.settings.prebuild.is_none() {
            return;
        }
        let mut state = self.0.lock();
        let Some(prebuild) = &mut state.prebuild else { return };
        if prebuild.noted.len() < NOTED_MAX || prebuild.noted.contains_key(drv) {
            *prebuild.noted.entry(drv.clone()).or_default() += 1;
        }
        drop(state);
        self.0.demand.notify_one();
    }

    /// Number of requests for an attribute in the last four weeks; not known where nothing is pre-built.
    #[must_use]
    pub fn asked_lately(&self, name: &AttributeName) -> Option<u32> {
        Some(self.0.lock().prebuild.as_ref()?.demand.asked_lately(name, local_now()))
    }

    /// Waits for demand that is to be counted, or the end of a pre-build. For one caller.
    pub(in crate::build) async fn demand(&self) {
        self.0.demand.notified().await;
    }

    /// Demand that was not counted yet, and the day of the latest pre-build with the time spent on that day;
    /// `None` where nothing is pre-built.
    pub(in crate::build) fn take_demand(&self) -> Option<(BTreeMap<StorePath, u32>, (u64, Duration))> {
        let mut state = self.0.lock();
        let prebuild = state.prebuild.as_mut()?;
        Some((std::mem::take(&mut prebuild.noted), prebuild.allowance.spent()))
    }

    /// Counts demand for attributes. Gives what to record of it, and the number of today.
    pub(in crate::build) fn count_demand(&self, names: Vec<(AttributeName, u32)>) -> (Vec<DemandRow>, u64) {
        let today = day(local_now());
        let mut state = self.0.lock();
        let Some(prebuild) = &mut state.prebuild else { return (Vec::new(), today) };
        let row = |(name, times)| {
            let asked = prebuild.demand.add(&name, today, times);
            DemandRow { name, day: today, asked }
        };
        (names.into_iter().map(row).collect(), today)
    }

    /// The attributes that were asked for most often lately, and how often; the first is the most wanted.
    pub(in crate::build) fn most_asked(&self) -> Vec<(AttributeName, u32)> {
        let state = self.0.lock();
        let Some(prebuild) = &state.prebuild else { return Vec::new() };
        let most = prebuild.demand.most_asked(local_now()).into_iter().take(WANTED_MAX);
        most.map(|(name, asked)| (name.clone(), asked)).collect()
    }

    /// Durations to expect of derivations that are not in the queue, each built on a system; none where
    /// nothing was ever built here.
    pub(in crate::build) fn estimates(
        &self,
        systems: &BTreeMap<StorePath, String>,
    ) -> BTreeMap<StorePath, Estimate> {
        let state = self.0.lock();
        let cores = self.0.settings.cores;
        let estimate = |(drv, system): (&StorePath, &String)| {
            Some((drv.clone(), state.forecaster.guess_at(drv, system, cores)?))
        };
        systems.iter().filter_map(estimate).collect()
    }

    /// True while nobody waits and there is time left to pre-build today.
    pub(in crate::build) fn may_prebuild(&self) -> bool {
        let state = self.0.lock();
        let prebuild = state.prebuild.as_ref().filter(|_| state.queue.is_empty());
        prebuild.is_some_and(|prebuild| !prebuild.allowance.left(local_now()).is_zero())
    }

    /// Sets what to pre-build from now on.
    pub(in crate::build) fn set_prebuild_plan(&self, plan: PrebuildPlan) {
        if let Some(prebuild) = &mut self.0.lock().prebuild {
            prebuild.plan = plan;
        }
    }

    /// Outputs that were held for pre-builds, to be released.
    pub(in crate::build) fn release_prebuilt(&self) -> Vec<StorePath> {
        let mut state = self.0.lock();
        state.prebuild.as_mut().map(|prebuild| std::mem::take(&mut prebuild.held)).unwrap_or_default()
    }

    /// The next derivation to pre-build, and the machine that is to build it, if nobody waits for anything;
    /// it counts as running from now on.
    pub(in crate::build) fn next_prebuild(&self) -> Option<(StorePath, MachineId)> {
        if !self.0.may_start() {
            return None;
        }
        let now = self.0.now();
        self.0.lock().start_prebuild(now, self.0.settings.cores)
    }
}

impl State {
    /// Starts what is worth most, if nobody waits and nothing runs.
    fn start_prebuild(&mut self, now: Duration, cores: u64) -> Option<(StorePath, MachineId)> {
        let idle = self.queue.is_empty() && self.running.is_empty();
        let prebuild = self.prebuild.as_mut().filter(|_| idle)?;
        let local = local_now();
        let left = prebuild.allowance.left(local);
        if left.is_zero() {
            return None;
        }
        let drv = prebuild.plan.choice.next(left)?.clone();
        let placement = prebuild.plan.placements.get_key_value(&drv).map(cloned);
        self.machines.places.expect(placement.into_iter().collect(), None);
        let machine = self.machines.choose(&drv)?;
        if !self.queue.prebuild(&drv, now, now.saturating_add(left)) {
            return None;
        }
        if let Some(system) = prebuild.plan.systems.get(&drv) {
            self.forecaster.expect(drv.clone(), system, cores);
        }
        prebuild.running = Some(PrebuildRun { drv: drv.clone(), since: local, begun: Instant::now() });
        self.running.insert(drv.clone(), Instant::now());
        self.machines.start(&drv, machine);
        Some((drv, machine))
    }

    /// Hands a running pre-build over to a request that needs it. Gives for how long it was nobody's.
    pub(super) fn take_over_prebuild(&mut self) -> Option<Duration> {
        let prebuild = self.prebuild.as_mut()?;
        let run = prebuild.running.as_ref()?;
        self.queue.needed_by(&run.drv).next()?;
        Some(prebuild.account())
    }

    /// A build has ended, whoever it was for. Gives what there is to tell of one that was nobody's.
    pub(super) fn end_prebuild(&mut self, drv: &StorePath, how: Prebuilt) -> Option<PrebuildDone> {
        let prebuild = self.prebuild.as_mut()?;
        let expected = prebuild.plan.choice.expects(drv);
        match how {
            Prebuilt::Built => prebuild.plan.choice.built(drv),
            Prebuilt::Failed => prebuild.plan.choice.failed(drv),
            Prebuilt::Stopped | Prebuilt::TakenOver => {}
        }
        prebuild.is_running(drv).then(|| PrebuildDone { expected, took: prebuild.account() })
    }

    /// Outputs must not be collected as long as something may be pre-built that needs them.
    pub(super) fn hold_prebuilt(&mut self, outputs: Vec<StorePath>) {
        if let Some(prebuild) = &mut self.prebuild {
            prebuild.held.extend(outputs);
        }
    }
}

#[cfg(test)]
impl Scheduler {
    /// Counts a derivation as a running pre-build whose time is over.
    pub(in crate::build) fn start_prebuild_without_time(&self, drv: &StorePath) {
        let now = self.0.now();
        assert!(self.0.lock().queue.prebuild(drv, now, now), "something else waits or runs");
    }
}
