//! Life of a request from its place in the queue to its end: its derivation is held, it is planned, and it is
//! ended.

use std::collections::BTreeSet;

use narinfo::StorePath;

use super::{Scheduler, State};
use crate::build::Ending;
use crate::build::metrics::Prebuilt;
use crate::build::plan::Planned;
use crate::build::queue::RequestId;
use crate::build::view::RequestState;

/// Number of times that a request may be complete and then not be: its outputs are collected each time.
const RETURNS_MAX: u32 = 5;

/// Progress of holding the derivations of requests by GC roots.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RootProgress {
    /// Derivations of all requests up to this one are held, or the requests have ended.
    up_to: u64,
    /// The next ones wait for the daemon.
    stuck: bool,
}

impl RootProgress {
    /// True when the client of a request can be told that it waits.
    pub(super) fn covers(self, id: RequestId) -> bool {
        self.stuck || self.up_to >= id.0
    }
}

/// GC roots to make and to remove.
#[derive(Debug)]
pub(in crate::build) struct RootChanges {
    /// Derivations of new requests, oldest first.
    pub(in crate::build) hold: Vec<(RequestId, StorePath)>,
    /// Derivations of requests that have ended.
    pub(in crate::build) release: Vec<StorePath>,
}

impl Scheduler {
    /// Waits for roots that are to be made or removed, and gives them. For one caller.
    pub(in crate::build) async fn root_changes(&self) -> RootChanges {
        loop {
            let changes = self.0.lock().take_root_changes();
            if !changes.hold.is_empty() || !changes.release.is_empty() {
                return changes;
            }
            self.0.roots_due.notified().await;
        }
    }

    /// The next roots wait for the daemon, or do not any more.
    pub(in crate::build) fn roots_stuck(&self, stuck: bool) {
        self.0.root_progress.send_modify(|progress| progress.stuck = stuck);
    }

    /// The derivation of a request is held: it may be planned, after [`roots_held`](Self::roots_held).
    pub(in crate::build) fn held(&self, id: RequestId) {
        self.0.lock().unplanned.push_back(id);
    }

    /// The derivations of all requests up to this one are held, or the requests have ended.
    pub(in crate::build) fn roots_held(&self, up_to: RequestId) {
        self.0.root_progress.send_replace(RootProgress { up_to: up_to.0, stuck: false });
        self.0.plannable.notify_one();
    }

    /// Waits for a request that is to be planned, and gives the oldest with what it wants. For one caller.
    pub(in crate::build) async fn next_unplanned(&self) -> (RequestId, StorePath) {
        loop {
            let next = self.0.lock().take_unplanned();
            if let Some(next) = next {
                return next;
            }
            self.0.plannable.notified().await;
        }
    }

    /// Name of the machine that alone may build what a request wants.
    pub(in crate::build) fn builder_of(&self, id: RequestId) -> Option<String> {
        self.0.lock().waiters.get(id)?.builder.clone()
    }

    /// A request is planned. True when it is complete already: then it has left the queue and has to be
    /// delivered.
    pub(in crate::build) fn planned(&self, id: RequestId, planned: Planned) -> bool {
        let Planned { needs, systems, placements, .. } = planned;
        let now = self.0.now();
        let mut state = self.0.lock();
        for (drv, system) in systems {
            state.forecaster.expect(drv, &system, self.0.settings.cores);
        }
        let State { queue, machines, waiters, .. } = &mut *state;
        let fixed = waiters.get(id).filter(|request| request.builder.is_some()).map(|request| &request.drv);
        machines.places.expect(placements, fixed);
        let complete = queue.plan_placed(id, needs, now, |drv| machines.places.class(drv));
        if let Some(before) = state.take_over_prebuild() {
            self.0.metrics.prebuild_ended(Prebuilt::TakenOver, before);
            self.0.demand.notify_one();
        }
        state.forecast(id, self.0.settings.lanes);
        drop(state);
        self.0.planned.send_modify(|planned| *planned += 1);
        self.wake();
        complete
    }

    /// Takes a request out of the queue that cannot be planned. It has to be [`ended`](Self::ended) then.
    pub(in crate::build) fn withdraw(&self, id: RequestId) {
        self.0.lock().queue.remove(id);
        self.wake();
    }

    /// Has a request planned again that was complete and is not after all, unless that was done too often.
    /// Its clients go on waiting.
    pub(in crate::build) fn put_back(&self, id: RequestId, drv: &StorePath) -> bool {
        let mut state = self.0.lock();
        let Some(request) = state.waiters.get_mut(id) else { return false };
        request.returns += 1;
        let clients = request.tickets();
        if request.returns > RETURNS_MAX || !state.queue.put_back(id, drv, clients) {
            return false;
        }
        state.unplanned.push_back(id);
        drop(state);
        self.0.plannable.notify_one();
        true
    }

    /// A request needs no held outputs any more. Gives those that nobody else needs, to be released.
    pub(in crate::build) fn release(&self, id: RequestId) -> Vec<StorePath> {
        self.0.lock().held.release(id)
    }

    /// A request that has left the queue ends: those who wait for it are told. A queue that several servers
    /// share has that on record first.
    pub(in crate::build) fn ended(&self, id: RequestId, ending: Ending) {
        if self.is_shared() {
            return self.note_ending(id, ending);
        }
        let past = match &ending {
            Ok(()) => RequestState::Served,
            Err(failure) => failure.as_ref().into(),
        };
        let request = self.0.lock().forget(id, past, &self.0.metrics);
        self.0.changed.notify_one();
        self.0.roots_due.notify_one();
        if let Some(request) = request {
            request.ending.send_replace(Some(ending));
        }
    }

    /// Drops the requests that nobody has waited for any more for `abandon_after`, unless something was built
    /// for them.
    pub(in crate::build) fn drop_abandoned(&self) {
        let now = self.0.now();
        let mut state = self.0.lock();
        // Nothing was built for them, so nothing is held.
        let dropped = state.queue.drop_abandoned(now, self.0.settings.abandon_after);
        if dropped.is_empty() {
            return;
        }
        for id in dropped {
            state.forget(id, RequestState::Dropped, &self.0.metrics);
        }
        state.forget_kinds();
        drop(state);
        self.0.changed.notify_one();
        self.0.roots_due.notify_one();
        self.wake();
    }

    /// Outputs that were held before a restart stay held for those who waited then. Gives those to be
    /// released.
    pub(in crate::build) fn restore_held(&self, outputs: Vec<StorePath>) -> Vec<StorePath> {
        let mut state = self.0.lock();
        let needed_by: BTreeSet<_> = state.waiters.ids().collect();
        if needed_by.is_empty() {
            return outputs;
        }
        state.held.hold(outputs, needed_by);
        Vec::new()
    }
}

impl State {
    fn take_root_changes(&mut self) -> RootChanges {
        let wanted = |id: RequestId| Some((id, self.queue.wanted(id)?.clone()));
        let hold = std::mem::take(&mut self.unheld).into_iter().filter_map(wanted).collect();
        RootChanges { hold, release: std::mem::take(&mut self.released) }
    }

    fn take_unplanned(&mut self) -> Option<(RequestId, StorePath)> {
        while let Some(id) = self.unplanned.pop_front() {
            // It may have left the queue by now.
            if let Some(wanted) = self.queue.wanted(id) {
                return Some((id, wanted.clone()));
            }
        }
        None
    }
}
