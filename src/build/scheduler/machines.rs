//! State of the machines that build: what runs where, which one is lost and rests, and the choice of a
//! machine for a derivation. A machine that is lost is tried again with growing pauses, and is an event of
//! the queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use narinfo::StorePath;
use tokio::time::Instant;

use super::disagreement::FailedBuilds;
use super::places::{BuildPlaces, NoBuilder};
use super::{Scheduler, State};
use crate::backoff::Backoff;
use crate::build::builder_metrics;
use crate::build::farm::{Farm, FarmMachine, MachineId};
use crate::build::runner::Loss;
use crate::build::view::{BuilderState, BuilderView, RunningView};
use crate::nix::Machine;

/// Shortest rest of a lost machine.
const REST_MIN: Duration = Duration::from_secs(1);
/// Longest rest: a machine that is back is noticed within it.
const REST_MAX: Duration = Duration::from_secs(60);
/// Derivations of each machine whose outputs it is remembered to have.
const BUILT_MAX: usize = 10_000;

/// The machines, and where each derivation may be built.
pub(super) struct Machines {
    pub(super) farm: Arc<Farm>,
    machines: Vec<MachineState>,
    pub(super) places: BuildPlaces,
    /// Derivations that are being built, each with its machine.
    placed: BTreeMap<StorePath, MachineId>,
    failed: FailedBuilds,
    /// Starts of each derivation that have lost their machine.
    losses: HashMap<StorePath, u32>,
}

struct MachineState {
    spec: FarmMachine,
    running: BTreeSet<StorePath>,
    reach: Reach,
    /// The administrator wants nothing more to be built there.
    is_drained: bool,
    since: SystemTime,
    backoff: Backoff,
    /// Last start or end of a build there.
    used: Instant,
    built: u64,
    failed: u64,
    lost: u64,
    last_error: Option<(SystemTime, String)>,
    /// Number of builds that failed here and not elsewhere, or the reverse, and the latest one in words.
    disagreements: (u64, Option<String>),
    /// Derivations that were built there.
    outputs: BTreeSet<StorePath>,
    nix_version: Option<String>,
}

/// Reach of a machine: it can be used, or not.
enum Reach {
    Up,
    /// Lost since, and tried again at a time; with the reason of the latest attempt, if there was one.
    Resting {
        since: Instant,
        due: Instant,
        reason: Option<String>,
    },
}

impl MachineState {
    fn new(spec: FarmMachine) -> Self {
        let now = Instant::now();
        let reach = match spec.address {
            None => Reach::Up,
            // Connected to before it is used.
            Some(_) => Reach::Resting { since: now, due: now, reason: None },
        };
        Self {
            spec,
            running: BTreeSet::new(),
            reach,
            is_drained: false,
            since: SystemTime::now(),
            backoff: Backoff::new(REST_MIN, REST_MAX),
            used: now,
            built: 0,
            failed: 0,
            lost: 0,
            last_error: None,
            disagreements: (0, None),
            outputs: BTreeSet::new(),
            nix_version: None,
        }
    }

    fn is_free(&self) -> bool {
        matches!(self.reach, Reach::Up) && !self.is_drained && self.running.len() < self.spec.slots.get()
    }

    /// Rests after a loss, from the first one on.
    fn rest(&mut self, why: &str) {
        let now = Instant::now();
        let since = match &self.reach {
            Reach::Resting { since, .. } => *since,
            Reach::Up => {
                self.since = SystemTime::now();
                now
            }
        };
        let due = now + self.backoff.pause();
        self.reach = Reach::Resting { since, due, reason: Some(why.to_owned()) };
        self.last_error = Some((SystemTime::now(), why.to_owned()));
    }

    fn state(&self) -> BuilderState {
        match (&self.reach, self.is_drained) {
            (_, true) if self.running.is_empty() => BuilderState::Drained,
            (_, true) => BuilderState::Draining,
            (Reach::Up, false) => BuilderState::Up,
            (Reach::Resting { reason: None, .. }, false) => BuilderState::Connecting,
            (Reach::Resting { .. }, false) => BuilderState::Resting,
        }
    }
}

impl Machines {
    pub(super) fn new(farm: Arc<Farm>) -> Self {
        Self {
            machines: farm.machines().map(|(_, machine)| MachineState::new(machine.clone())).collect(),
            places: BuildPlaces::new(farm.default_placement()),
            placed: BTreeMap::new(),
            failed: FailedBuilds::default(),
            losses: HashMap::new(),
            farm,
        }
    }

    /// Forgets what runs, as after a restart: each machine is connected to before it is used.
    pub(super) fn restart(&mut self) {
        self.placed.clear();
        self.losses.clear();
        for machine in &mut self.machines {
            machine.running.clear();
            machine.reach = MachineState::new(machine.spec.clone()).reach;
        }
    }

    /// True where any machine has a free slot.
    pub(super) fn have_room(&self) -> bool {
        self.machines.iter().any(MachineState::is_free)
    }

    /// The machine for a derivation among those that are free: rather another one than that on which it has
    /// failed; of the highest weight the one that has most of its inputs, then the one with the fewest builds
    /// for its speed, then the one that was idle for longest.
    pub(super) fn choose(&self, drv: &StorePath) -> Option<MachineId> {
        let (fits, inputs) = (self.places.fits(drv), self.places.inputs(drv));
        let free = fits.iter().map(|id| (*id, &self.machines[id.0])).filter(|(_, machine)| machine.is_free());
        let best = free.max_by(|(one_id, one), (other_id, other)| {
            let inputs_of = |machine: &MachineState| inputs.intersection(&machine.outputs).count();
            let inputs = inputs_of(one).cmp(&inputs_of(other));
            let weight = one.spec.weight.cmp(&other.spec.weight);
            // A machine whose other slots are busy is as fast as they let it be.
            let load_of = |machine: &MachineState| (machine.running.len() + 1) as f64 / machine.spec.speed;
            let load = load_of(other).total_cmp(&load_of(one));
            let failed = |id: MachineId| self.failed.machine_of(drv) == Some(id);
            let untried = failed(*other_id).cmp(&failed(*one_id));
            untried.then(weight).then(inputs).then(load).then_with(|| other.used.cmp(&one.used))
        });
        best.map(|(id, _)| id)
    }

    /// True while machines were not tried yet since the server was started.
    pub(super) fn are_connecting(&self) -> bool {
        let is_untried =
            |machine: &MachineState| matches!(machine.reach, Reach::Resting { reason: None, .. });
        self.machines.iter().any(is_untried)
    }

    /// Other machines than that on which a derivation runs, reached by ssh, which could have built it.
    pub(super) fn others_for(&self, drv: &StorePath) -> Vec<MachineId> {
        let is_other =
            |id: &MachineId| self.placed.get(drv) != Some(id) && self.machines[id.0].spec.address.is_some();
        self.places.fits(drv).iter().copied().filter(is_other).collect()
    }

    /// True where a machine has a free slot.
    pub(super) fn is_free(&self, id: MachineId) -> bool {
        self.machines[id.0].is_free()
    }

    /// True where a machine can be used, or could if its slots were free.
    pub(super) fn is_up(&self, id: MachineId) -> bool {
        matches!(self.machines[id.0].reach, Reach::Up)
    }

    /// The machine on which a derivation runs.
    pub(super) fn placed_on(&self, drv: &StorePath) -> Option<MachineId> {
        self.placed.get(drv).copied()
    }

    /// Takes up a slot for something that is not in the queue.
    pub(super) fn occupy(&mut self, drv: &StorePath, id: MachineId) {
        self.machines[id.0].running.insert(drv.clone());
    }

    /// Frees it.
    pub(super) fn vacate(&mut self, drv: &StorePath, id: MachineId) {
        self.machines[id.0].running.remove(drv);
    }

    pub(super) fn start(&mut self, drv: &StorePath, id: MachineId) {
        let machine = &mut self.machines[id.0];
        machine.running.insert(drv.clone());
        machine.used = Instant::now();
        self.placed.insert(drv.clone(), id);
    }

    /// A build has ended; `well` is `None` where it was stopped or lost its machine. Gives the machine's
    /// speed.
    pub(super) fn end(&mut self, drv: &StorePath, well: Option<bool>) -> f64 {
        if well.is_some() {
            self.places.forget(drv);
            self.losses.remove(drv);
        }
        let Some(id) = self.placed.remove(drv) else { return 1.0 };
        let machine = &mut self.machines[id.0];
        machine.running.remove(drv);
        machine.used = Instant::now();
        match well {
            Some(true) => {
                machine.built += 1;
                if machine.outputs.len() >= BUILT_MAX {
                    machine.outputs.pop_first();
                }
                machine.outputs.insert(drv.clone());
            }
            Some(false) => {
                machine.failed += 1;
                self.failed.failed(drv, id);
            }
            None => {}
        }
        if well.is_some() && matches!(machine.reach, Reach::Up) {
            machine.backoff.reset();
        }
        let speed = machine.spec.speed;
        if well == Some(true)
            && let Some(other) = self.failed.built(drv)
            && other != id
        {
            self.disagree(drv, other, id);
        }
        speed
    }

    /// Notes that a derivation has failed on one machine and was built on another.
    pub(super) fn disagree(&mut self, drv: &StorePath, failed_on: MachineId, built_on: MachineId) {
        let name_of = |id: MachineId| self.machines[id.0].spec.name.clone();
        let (failed, built) = (name_of(failed_on), name_of(built_on));
        tracing::warn!(
            %drv,
            failed,
            built,
            "two builders disagree: a derivation failed on one and was built on the other; compare their systems"
        );
        let words = format!("{drv} failed on {failed}, and was built on {built}");
        for id in [failed_on, built_on] {
            let (count, latest) = &mut self.machines[id.0].disagreements;
            *count += 1;
            *latest = Some(words.clone());
        }
    }

    /// The machine that a running derivation is built on.
    pub(super) fn machine_of(&self, drv: &StorePath) -> Option<&str> {
        Some(self.machines[self.placed.get(drv)?.0].spec.name.as_str())
    }

    /// Notes the loss of the machine on which a derivation runs. True where the build itself is to blame: it
    /// has lost its machine too often.
    fn lose(&mut self, drv: &StorePath, loss: &Loss, started: bool) -> bool {
        let Some(id) = self.placed.get(drv) else { return false };
        let machine = &mut self.machines[id.0];
        machine.lost += 1;
        machine.rest(&loss.reason);
        if !started {
            return false;
        }
        let losses = self.losses.entry(drv.clone()).or_default();
        *losses += 1;
        *losses >= loss.starts_max
    }

    /// Forgets the losses of what is not in the queue any more.
    pub(super) fn retain_losses(&mut self, waits: impl Fn(&StorePath) -> bool) {
        self.losses.retain(|drv, _| waits(drv));
    }

    /// Why a derivation that is ready is not built, if that is for the lack of a machine: since when, and the
    /// words for those who wait. `None` while a machine for it is there.
    fn missing(&self, drv: &StorePath) -> Option<(Duration, String)> {
        let mut words = Vec::new();
        let mut least = None;
        for id in self.places.fits(drv) {
            let machine = &self.machines[id.0];
            let name = &machine.spec.name;
            match &machine.reach {
                _ if machine.is_drained => {
                    words.push(format!("builder {name} is drained"));
                    least = Some(Duration::ZERO);
                }
                Reach::Up => return None,
                Reach::Resting { since, reason, .. } => {
                    let away = since.elapsed();
                    let reason = reason.as_deref().unwrap_or("connecting");
                    words.push(format!("builder {name} for {} s: {reason}", away.as_secs()));
                    least = Some(least.map_or(away, |least: Duration| least.min(away)));
                }
            }
        }
        Some((least?, words.join("; ")))
    }

    pub(super) fn views(&self, running_for: impl Fn(&StorePath) -> RunningView) -> Vec<BuilderView> {
        let unix =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let view = |machine: &MachineState| BuilderView {
            name: machine.spec.name.clone(),
            address: machine.spec.address.clone(),
            state: machine.state(),
            since: unix(machine.since),
            systems: machine.spec.machine.systems.iter().cloned().collect(),
            features: machine.spec.machine.features.iter().cloned().collect(),
            mandatory_features: machine.spec.machine.mandatory.iter().cloned().collect(),
            slots: machine.spec.slots.get(),
            speed: machine.spec.speed,
            weight: machine.spec.weight,
            running: machine.running.iter().map(&running_for).collect(),
            built: machine.built,
            failed: machine.failed,
            lost: machine.lost,
            last_error: machine.last_error.as_ref().map(|(_, reason)| reason.clone()),
            last_error_at: machine.last_error.as_ref().map(|(at, _)| unix(*at)),
            disagreements: machine.disagreements.0,
            last_disagreement: machine.disagreements.1.clone(),
            nix_version: machine.nix_version.clone(),
        };
        self.machines.iter().map(view).collect()
    }
}

impl State {
    /// Why the oldest request that is ready does not go on, where that is for the lack of a machine.
    pub(super) fn lacks_machine(&self) -> Option<String> {
        let (_, words) = self.machines.missing(self.queue.first_ready()?)?;
        Some(format!("waiting for {words}"))
    }
}

impl Scheduler {
    /// The machines that build, as they are configured.
    pub(in crate::build) fn farm(&self) -> Arc<Farm> {
        Arc::clone(&self.0.lock().machines.farm)
    }

    /// The machines that build, as they are now.
    #[must_use]
    pub fn builders(&self) -> Vec<BuilderView> {
        let state = self.0.lock();
        state.machines.views(|drv| state.running_view(drv))
    }

    /// Fails where nothing can be built on the builder of this name, whatever is to be built. One that does
    /// not answer is waited for.
    ///
    /// # Errors
    /// There is none, or it is drained.
    pub fn check_builder(&self, name: &str) -> Result<(), NoBuilder> {
        let state = self.0.lock();
        let machines = &state.machines;
        match machines.machines.iter().find(|machine| machine.spec.name == name) {
            Some(machine) if machine.is_drained => Err(NoBuilder::Drained(name.to_owned())),
            Some(_) => Ok(()),
            None => {
                let known: Vec<&str> = machines.farm.names().collect();
                Err(NoBuilder::Unknown { name: name.to_owned(), known: known.join(", ") })
            }
        }
    }

    /// The metrics of the machines in the OpenMetrics text format, without its end.
    pub fn write_builder_metrics(&self, out: &mut String) {
        builder_metrics::write(&self.builders(), out);
    }

    /// Notes the systems and features of the local Nix daemon, and its release of Nix once that is known.
    pub(in crate::build) fn describe_local(&self, machine: &Machine, nix_version: Option<&str>) {
        let mut state = self.0.lock();
        for local in state.machines.machines.iter_mut().filter(|one| one.spec.address.is_none()) {
            local.spec.machine = machine.clone();
            local.nix_version = nix_version.map(str::to_owned).or_else(|| local.nix_version.take());
        }
    }

    /// Has nothing more built on a machine, or has it used again. False where there is none of this name.
    #[must_use]
    pub fn drain(&self, name: &str, drain: bool) -> bool {
        let mut state = self.0.lock();
        let machine = state.machines.machines.iter_mut().find(|machine| machine.spec.name == name);
        let Some(machine) = machine else { return false };
        if std::mem::replace(&mut machine.is_drained, drain) != drain {
            machine.since = SystemTime::now();
            tracing::info!(builder = name, "{}", if drain { "drained" } else { "resumed" });
        }
        drop(state);
        self.wake();
        true
    }

    /// Notes that the machine on which a derivation runs is lost: it rests. The build has to be
    /// [`finished`](Self::finished) then, as failed where this is true, else as stopped.
    pub(in crate::build) fn lose_machine(&self, drv: &StorePath, loss: &Loss, started: bool) -> bool {
        let mut state = self.0.lock();
        let gives_up = state.machines.lose(drv, loss, started);
        let builder = state.machines.machine_of(drv).unwrap_or_default();
        tracing::warn!(%drv, builder, reason = %loss.reason, "lost a builder; what it built goes elsewhere");
        gives_up
    }

    /// Waits until a machine that rests is to be tried again.
    pub(in crate::build) async fn probe_due(&self, id: MachineId) {
        loop {
            let due = match self.0.lock().machines.machines[id.0].reach {
                Reach::Resting { due, .. } => Some(due),
                Reach::Up => None,
            };
            match due {
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::time::sleep_until(due).await,
                None => tokio::time::sleep(REST_MIN).await,
            }
        }
    }

    /// A machine that rested was tried again: the release of Nix there, or why it is not to be had.
    pub(in crate::build) fn probed(&self, id: MachineId, outcome: Result<String, String>) {
        let mut state = self.0.lock();
        let machine = &mut state.machines.machines[id.0];
        let name = &machine.spec.name;
        match outcome {
            Ok(version) => {
                tracing::info!(builder = name, nix = version, "a builder answers");
                machine.nix_version = Some(version);
                machine.reach = Reach::Up;
                machine.since = SystemTime::now();
            }
            Err(reason) => {
                let is_news =
                    !matches!(&machine.reach, Reach::Resting { reason: Some(old), .. } if *old == reason);
                if is_news {
                    tracing::warn!(builder = name, reason, "a builder does not answer; it is tried again");
                }
                machine.rest(&reason);
            }
        }
        drop(state);
        self.wake();
    }

    /// Derivations that are ready and for which every machine was away for longer than `transient-retry`,
    /// each with the reason.
    pub(in crate::build) fn hopeless(&self) -> Vec<(StorePath, String)> {
        let state = self.0.lock();
        let patience = self.0.settings.transient_retry;
        let is_lost = |machine: &MachineState| matches!(machine.reach, Reach::Resting { .. });
        if !state.machines.machines.iter().any(is_lost) {
            return Vec::new();
        }
        let mut hopeless = Vec::new();
        // The machines of a class are away for all that is in it.
        for class in state.queue.ready() {
            let mut class = class.peekable();
            let missing = class.peek().and_then(|drv| state.machines.missing(drv));
            let Some((_, words)) = missing.filter(|(away, _)| *away > patience) else { continue };
            let reason = format!("no machine for it was there: {words}");
            hopeless.extend(class.map(|drv| (drv.clone(), reason.clone())));
        }
        hopeless
    }
}
