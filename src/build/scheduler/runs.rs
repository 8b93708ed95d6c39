//! Builds under way: the next derivation of each lane, when one has to stop, and what follows from its end.

use std::collections::{BTreeMap, BTreeSet};

use narinfo::StorePath;
use tokio::time::Instant;

use super::{Scheduler, State};
use crate::build::farm::MachineId;
use crate::build::metrics::{Ended, Prebuilt};
use crate::build::queue::RequestId;
use crate::build::runner::Built;
use crate::model::Failure;

/// Place where something is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::build) enum Lane {
    /// In the order of the queue.
    Main,
    /// Beside that, with less weight.
    Background,
}

/// End of a build.
#[derive(Debug)]
pub(in crate::build) enum Finished {
    /// The outputs are there.
    Built(Built),
    /// The build failed, and that is noted.
    Failed(Failure),
    /// The build was stopped by its [signal](Scheduler::stop_signal).
    Stopped,
}

/// Consequence of the end of a build.
#[derive(Debug)]
pub(in crate::build) enum FollowUp {
    /// A request is complete; with what it wanted.
    Deliver(RequestId, StorePath),
    /// A request cannot be completed; with what it wanted, and the failure of the cause.
    Fail(RequestId, StorePath, Failure),
    /// A pre-build is there that is itself expected to be asked for; with its outputs, which are held.
    Serve(StorePath, Vec<StorePath>),
    /// A pre-build failed; nobody need wait for it.
    Remember(Failure),
}

/// A running build in logs and traces, by what pages and the API show of it.
#[derive(Debug, Default)]
pub(in crate::build) struct BuildIds {
    /// Number of the oldest request that needs it; none for a pre-build.
    pub(in crate::build) request: Option<u64>,
    /// Name of the machine that builds it.
    pub(in crate::build) builder: Option<String>,
}

impl Scheduler {
    /// The request and the machine of a running build.
    pub(in crate::build) fn build_ids(&self, drv: &StorePath) -> BuildIds {
        let state = self.0.lock();
        BuildIds {
            request: state.queue.needed_by(drv).next().map(|id| id.0),
            builder: state.machines.machine_of(drv).map(str::to_owned),
        }
    }

    /// The next derivation to build in a lane, and the machine that is to build it; it counts as running from
    /// now on.
    pub(in crate::build) fn next(&self, lane: Lane) -> Option<(StorePath, MachineId)> {
        if !self.0.may_start() {
            return None;
        }
        let now = self.0.now();
        let mut state = self.0.lock();
        let State { queue, forecaster, machines, interrupted, .. } = &mut *state;
        let guess = |drvs: &BTreeSet<StorePath>| forecaster.guess(drvs);
        let (next, machine) = match lane {
            Lane::Main if !machines.have_room() => return None,
            // One of them may have what is to be built.
            Lane::Main if !interrupted.is_empty() && machines.are_connecting() => return None,
            Lane::Main if machines.farm.is_local() => {
                let next = queue.start(now, guess)?;
                let machine = machines.choose(&next)?;
                (next, machine)
            }
            Lane::Main => queue.start_placed(now, |drv| machines.choose(drv))?,
            Lane::Background => (queue.start_in_background(now, guess)?, MachineId::default()),
        };
        if lane == Lane::Main {
            machines.start(&next, machine);
        }
        state.running.insert(next.clone(), Instant::now());
        let owner = state.queue.needed_by(&next).next();
        if let Some(request) = owner.and_then(|owner| state.waiters.get_mut(owner))
            && !std::mem::replace(&mut request.started, true)
        {
            self.0.metrics.first_build_after(request.asked_at.elapsed().unwrap_or_default());
        }
        drop(state);
        self.0.changed.notify_one();
        Some((next, machine))
    }

    /// Other machines that may have built a derivation which starts now, for a request that was at work when
    /// the server ended.
    pub(in crate::build) fn may_have_built(&self, drv: &StorePath) -> Vec<MachineId> {
        let state = self.0.lock();
        if !state.queue.needed_by(drv).any(|id| state.interrupted.contains(&id)) {
            return Vec::new();
        }
        let others = state.machines.others_for(drv).into_iter();
        others.filter(|id| state.machines.is_up(*id)).collect()
    }

    /// Waits until something may be ready to build. For one caller.
    pub(in crate::build) async fn work(&self) {
        self.0.work.notified().await;
    }

    /// Something may be ready to build.
    pub(in crate::build) fn wake(&self) {
        self.0.work.notify_one();
    }

    /// Resolves when a running build has to stop: so that older requests are delivered in time, or because it
    /// is pre-built and someone needs something else, or its time is over. Each request that is planned may
    /// change that.
    pub(in crate::build) async fn stop_signal(&self, drv: &StorePath) {
        let mut planned = self.0.planned.subscribe();
        loop {
            planned.borrow_and_update();
            let stop_at = self.0.lock().queue.stop_at(drv);
            let late = async {
                match stop_at {
                    None => std::future::pending().await,
                    Some(at) => tokio::time::sleep(at.saturating_sub(self.0.now())).await,
                }
            };
            tokio::select! {
                () = late => return,
                // The sender does not end before this does.
                _ = planned.changed() => {}
            }
        }
    }

    /// A build has ended. Gives what follows for the requests that have ended by it, and for what nobody has
    /// asked for yet.
    pub(in crate::build) fn finished(
        &self,
        drv: &StorePath,
        finished: Finished,
        lane: Lane,
    ) -> Vec<FollowUp> {
        let now = self.0.now();
        let mut state = self.0.lock();
        let since = state.running.remove(drv);
        let (how, prebuilt) = match &finished {
            Finished::Built(_) => (Ended::Well, Prebuilt::Built),
            Finished::Failed(_) => (Ended::Failed, Prebuilt::Failed),
            Finished::Stopped => (Ended::Early, Prebuilt::Stopped),
        };
        let mut took = since.map(|since| since.elapsed()).unwrap_or_default();
        self.0.metrics.build_ended(how, took);
        if lane == Lane::Main {
            let well = match &finished {
                Finished::Built(_) => Some(true),
                Finished::Failed(_) => Some(false),
                Finished::Stopped => None,
            };
            if self.0.settings.repeat && matches!(&finished, Finished::Built(built) if built.worked) {
                let State { machines, repeats, .. } = &mut *state;
                if let Some(first) = machines.placed_on(drv) {
                    repeats.built(drv, first, machines.others_for(drv));
                }
            }
            let speed = state.machines.end(drv, well);
            if let Finished::Built(built) = &finished {
                // What a machine of speed 1 needs for it, without the copying and the waits.
                took = built.took.mul_f64(speed);
            }
        }
        let (built, worked) = match &finished {
            Finished::Built(built) => (true, built.worked),
            Finished::Failed(_) | Finished::Stopped => (false, true),
        };
        // What the daemon had, or fetched, tells nothing about building it; nor does a slow lane.
        if lane == Lane::Main && worked {
            let learned = state.forecaster.learn(drv, took, built);
            state.learned.extend(learned);
        }
        let needed_by: BTreeMap<RequestId, StorePath> =
            state.queue.needed_by(drv).filter_map(|id| Some((id, state.queue.wanted(id)?.clone()))).collect();
        let nobodys = state.end_prebuild(drv, prebuilt);
        let mut follow_ups = Vec::new();
        let wanted = |id: RequestId| Some((id, needed_by.get(&id)?.clone()));
        match finished {
            Finished::Built(Built { outputs, .. }) => {
                match &nobodys {
                    Some(done) if done.expected => follow_ups.push(FollowUp::Serve(drv.clone(), outputs)),
                    Some(_) => state.hold_prebuilt(outputs),
                    None => state.held.hold(outputs, needed_by.keys().copied().collect()),
                }
                let complete = state.queue.built(drv, now).into_iter().filter_map(wanted);
                follow_ups.extend(complete.map(|(id, drv)| FollowUp::Deliver(id, drv)));
            }
            Finished::Failed(failure) => {
                let ended = state.queue.failed(drv, now).into_iter().filter_map(wanted);
                state.forget_kinds();
                follow_ups.extend(ended.map(|(id, drv)| FollowUp::Fail(id, drv, failure.clone())));
                if follow_ups.is_empty() {
                    follow_ups.push(FollowUp::Remember(failure));
                }
            }
            Finished::Stopped => state.queue.stopped(drv, now),
        }
        drop(state);
        if let Some(done) = nobodys {
            self.0.metrics.prebuild_ended(prebuilt, done.took);
            self.0.demand.notify_one();
        }
        self.0.changed.notify_one();
        follow_ups
    }
}
