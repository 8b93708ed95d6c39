//! The order of builds as plain code: requests in the order of arrival, each with the derivations it lacks.
//! First come, first served, unless a [`Policy`] lets short requests go first within a bound. No I/O and no
//! clock of its own: it is told the time and what happened, and says what to build next.

mod account;
mod choice;
mod questions;
mod ready;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use account::Account;
pub use account::Overtaking;
pub use choice::{Guess, Policy};
pub use ready::PlaceClass;
use ready::{ReadyPosition, ReadySteps};

/// Names a request; never used twice. Older ones are smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A request that has not ended.
#[derive(Clone, Debug)]
struct Request<D> {
    wanted: D,
    clients: usize,
    /// Since when nobody waits for it.
    abandoned_at: Option<Duration>,
    /// Derivations of its closure that are not built yet; `None` until that is known.
    lacks: Option<BTreeSet<D>>,
    /// Number of derivations that it lacked when it was planned.
    steps: usize,
    /// True once something has been built for it.
    started: bool,
    account: Account,
}

/// A derivation that is to be built.
#[derive(Clone, Debug)]
struct QueuedStep<D> {
    /// Its inputs that are not built yet.
    waits_for: BTreeSet<D>,
    /// Derivations that wait for it.
    awaited_by: BTreeSet<D>,
    /// The requests that need it; the oldest one owns it.
    needed_by: BTreeSet<RequestId>,
    class: PlaceClass,
    /// Position among those that are ready, if it is.
    ready_at: Option<ReadyPosition>,
}

/// A build that is under way.
#[derive(Clone, Copy, Debug)]
struct ActiveBuild {
    since: Duration,
    purpose: Purpose,
}

/// Purpose of a build.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    /// For the owner of the derivation.
    Owner {
        /// As of when it was started.
        id: RequestId,
        /// True when an older request waits for its end.
        overtakes: bool,
    },
    /// For nobody yet: it is pre-built, as long as nobody waits for anything else.
    Nobody {
        /// Latest end.
        until: Duration,
    },
}

/// A request as it is kept over a restart. What it lacks is not part of it: that is found out anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved<D> {
    /// Its name.
    pub id: RequestId,
    /// Derivation that is wanted.
    pub wanted: D,
    /// True once something has been built for it.
    pub started: bool,
    /// The latest owner among the derivations that it lacked when it was planned.
    pub due_owner: Option<RequestId>,
    /// Time that overtaking has cost it.
    pub charged: Duration,
    /// Time that was spent on the work it must wait for anyway.
    pub earned: Duration,
}

/// Requests and the derivations they lack. `D` names a derivation; times are durations since any fixed
/// moment.
#[derive(Clone, Debug)]
pub struct Queue<D> {
    policy: Policy,
    requests: BTreeMap<RequestId, Request<D>>,
    by_wanted: BTreeMap<D, RequestId>,
    /// Not one of these is built; those in `running` are under way.
    steps: BTreeMap<D, QueuedStep<D>>,
    ready: ReadySteps<D>,
    running: BTreeMap<D, ActiveBuild>,
    /// Built while some request was not planned yet: its plan may be older than that.
    built_meanwhile: BTreeSet<D>,
    /// Requests that are no longer as they were saved.
    changed: BTreeSet<RequestId>,
    unplanned: BTreeSet<RequestId>,
    last_id: u64,
}

impl<D: Clone + Ord> Default for Queue<D> {
    fn default() -> Self {
        Self::new(Policy::default())
    }
}

impl<D: Clone + Ord> Queue<D> {
    /// An empty queue.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            requests: BTreeMap::new(),
            by_wanted: BTreeMap::new(),
            steps: BTreeMap::new(),
            ready: ReadySteps::new(),
            running: BTreeMap::new(),
            built_meanwhile: BTreeSet::new(),
            changed: BTreeSet::new(),
            unplanned: BTreeSet::new(),
            last_id: 0,
        }
    }

    /// Adds one client to the request for `wanted`. Where there is none, makes it, as the youngest; it has to
    /// be [`planned`](Self::plan) then.
    pub fn ask(&mut self, wanted: &D) -> (RequestId, bool) {
        if let Some(id) = self.by_wanted.get(wanted).copied() {
            if let Some(request) = self.requests.get_mut(&id) {
                request.clients += 1;
                request.abandoned_at = None;
            }
            return (id, false);
        }
        let id = RequestId(self.last_id + 1);
        self.insert(id, wanted.clone(), Account::default());
        self.requests.get_mut(&id).expect("it was just inserted").clients = 1;
        (id, true)
    }

    /// Puts a request back as it was saved, at its old place. Nobody waits for it yet, and it has to be
    /// planned.
    pub fn restore(&mut self, saved: Saved<D>, now: Duration) {
        if self.by_wanted.contains_key(&saved.wanted) || self.requests.contains_key(&saved.id) {
            return;
        }
        let Saved { id, wanted, started, due_owner, charged, earned } = saved;
        self.insert(id, wanted, Account { due_owner, charged, earned, since: now });
        let request = self.requests.get_mut(&id).expect("it was just inserted");
        request.started = started;
        request.abandoned_at = Some(now);
    }

    /// Puts a request back that has left the queue as complete and is not after all, for so many clients: it
    /// has to be planned again. Whether it could: nobody may have asked for the same meanwhile.
    pub fn put_back(&mut self, id: RequestId, wanted: &D, clients: usize) -> bool {
        if self.by_wanted.contains_key(wanted) || self.requests.contains_key(&id) {
            return false;
        }
        self.insert(id, wanted.clone(), Account::default());
        let request = self.requests.get_mut(&id).expect("it was just inserted");
        (request.clients, request.started) = (clients, true);
        true
    }

    /// No new request gets this number or a smaller one.
    pub fn skip_to(&mut self, id: RequestId) {
        self.last_id = self.last_id.max(id.0);
    }

    fn insert(&mut self, id: RequestId, wanted: D, account: Account) {
        self.last_id = self.last_id.max(id.0);
        self.by_wanted.insert(wanted.clone(), id);
        self.changed.insert(id);
        self.unplanned.insert(id);
        let request = Request {
            wanted,
            clients: 0,
            abandoned_at: None,
            lacks: None,
            steps: 0,
            started: false,
            account,
        };
        self.requests.insert(id, request);
    }

    /// Sets what a request lacks: each derivation with those of its inputs that are lacking, too. True when
    /// it lacks nothing (any more): then it has left the queue and can be delivered.
    pub fn plan(&mut self, id: RequestId, needs: BTreeMap<D, BTreeSet<D>>, now: Duration) -> bool {
        self.plan_placed(id, needs, now, |_| PlaceClass::default())
    }

    /// The same, with the class of each derivation. One that was in another class is in this one from now on.
    pub fn plan_placed(
        &mut self,
        id: RequestId,
        mut needs: BTreeMap<D, BTreeSet<D>>,
        now: Duration,
        class: impl Fn(&D) -> PlaceClass,
    ) -> bool {
        needs.retain(|drv, _| !self.built_meanwhile.contains(drv));
        let Some(request) = self.requests.get_mut(&id).filter(|request| request.lacks.is_none()) else {
            return false;
        };
        request.steps = needs.len();
        request.lacks = Some(needs.keys().cloned().collect());
        request.account.open(now);
        self.no_more_unplanned(id);
        for (drv, inputs) in &needs {
            let waits_for: BTreeSet<D> =
                inputs.iter().filter(|input| needs.contains_key(*input)).cloned().collect();
            for input in &waits_for {
                self.step(input).awaited_by.insert(drv.clone());
            }
            let step = self.step(drv);
            step.needed_by.insert(id);
            step.waits_for.extend(waits_for);
            step.class = class(drv);
        }
        for drv in needs.keys() {
            self.relist(drv);
        }
        self.update_due_owner(id);
        self.take_over_prebuilt(id, &needs);
        needs.is_empty() && self.take_out(id).is_some()
    }

    /// A running derivation was built. Gives the requests that are complete by it, oldest first; they have
    /// left the queue.
    pub fn built(&mut self, drv: &D, now: Duration) -> Vec<RequestId> {
        if let Some((owner, since)) = self.end_run(drv) {
            self.settle(|account, _| account.spend(owner, since, now));
        }
        if !self.unplanned.is_empty() {
            self.built_meanwhile.insert(drv.clone());
        }
        let Some(step) = self.remove_step(drv) else { return Vec::new() };
        self.release_awaiting(drv, step.awaited_by);
        let mut complete = Vec::new();
        for id in step.needed_by {
            self.mark_started(id);
            if let Some(lacks) = self.requests.get_mut(&id).and_then(|request| request.lacks.as_mut()) {
                lacks.remove(drv);
                if lacks.is_empty() {
                    self.take_out(id);
                    complete.push(id);
                }
            }
        }
        complete
    }

    /// A running derivation could not be built. Gives the requests that cannot be completed, oldest first;
    /// they have left the queue.
    pub fn failed(&mut self, drv: &D, now: Duration) -> Vec<RequestId> {
        if let Some((owner, since)) = self.end_run(drv) {
            self.settle(|account, _| account.spend(owner, since, now));
        }
        self.relist(drv);
        let needed_by = self.steps.get(drv).map(|step| step.needed_by.clone()).unwrap_or_default();
        for id in &needed_by {
            self.remove(*id);
        }
        self.forget_unless_needed(drv);
        needed_by.into_iter().collect()
    }

    /// A running build was stopped before its end, at [`stop_at`](Self::stop_at): its time is lost, and it
    /// waits for its turn.
    pub fn stopped(&mut self, drv: &D, now: Duration) {
        if let Some((owner, since)) = self.end_run(drv) {
            self.settle(|account, overtaking| account.lose(overtaking, owner, since, now));
        }
        self.relist(drv);
        self.forget_unless_needed(drv);
    }

    /// Takes a request out of the queue. What only it needed is not built any more, unless it runs already.
    pub fn remove(&mut self, id: RequestId) {
        let Some(request) = self.take_out(id) else { return };
        let mut inherited = BTreeSet::new();
        for drv in request.lacks.into_iter().flatten() {
            if let Some(step) = self.steps.get_mut(&drv) {
                step.needed_by.remove(&id);
                inherited.extend(step.needed_by.iter().copied());
            }
            self.relist(&drv);
            self.forget_unless_needed(&drv);
        }
        for heir in inherited {
            self.update_due_owner(heir);
        }
    }

    /// Takes a request out of the queue. What runs for it alone is to be [stopped](Self::stop_at) at once.
    pub fn cancel(&mut self, id: RequestId, now: Duration) {
        let lacks = self.lacks(id).cloned().unwrap_or_default();
        self.remove(id);
        for drv in lacks {
            let needed = self.steps.get(&drv).is_some_and(|step| !step.needed_by.is_empty());
            let Some(run) = self.running.get_mut(&drv).filter(|_| !needed) else { continue };
            let (since, purpose) = (run.since, run.purpose);
            run.purpose = Purpose::Nobody { until: now };
            // Its time is lost, as that of any build that is stopped.
            if let Purpose::Owner { id: owner, .. } = purpose {
                self.settle(|account, overtaking| account.lose(overtaking, owner, since, now));
            }
        }
    }

    /// One client of a request has gone away.
    pub fn leave(&mut self, id: RequestId, now: Duration) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.clients = request.clients.saturating_sub(1);
            if request.clients == 0 {
                request.abandoned_at = Some(now);
            }
        }
    }

    /// Drops the requests that nobody has waited for longer than `grace` and for which nothing was built yet,
    /// and gives them.
    pub fn drop_abandoned(&mut self, now: Duration, grace: Duration) -> Vec<RequestId> {
        let dropped = self.abandoned(now, grace);
        for id in &dropped {
            self.remove(*id);
        }
        dropped
    }

    /// The requests that are not as they were when this was last called: how to save each, or `None` once it
    /// has left.
    pub fn take_changed(&mut self) -> Vec<(RequestId, Option<Saved<D>>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.requests.get(&id).map(|request| request.saved(id)))).collect()
    }

    fn take_out(&mut self, id: RequestId) -> Option<Request<D>> {
        let request = self.requests.remove(&id)?;
        self.by_wanted.remove(&request.wanted);
        self.changed.insert(id);
        if request.lacks.is_none() {
            self.no_more_unplanned(id);
        }
        Some(request)
    }

    fn no_more_unplanned(&mut self, id: RequestId) {
        self.unplanned.remove(&id);
        if self.unplanned.is_empty() {
            self.built_meanwhile.clear();
        }
    }

    /// A build has ended. Gives its owner and when it was started, unless it was nobody's: that costs no
    /// request anything.
    fn end_run(&mut self, drv: &D) -> Option<(RequestId, Duration)> {
        let ActiveBuild { since, purpose } = self.running.remove(drv)?;
        match purpose {
            Purpose::Owner { id, .. } => Some((id, since)),
            Purpose::Nobody { .. } => None,
        }
    }

    fn mark_started(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(&id).filter(|request| !request.started) {
            request.started = true;
            self.changed.insert(id);
        }
    }

    /// Keeps the accounts, where there is overtaking to account for.
    fn settle(&mut self, entry: impl Fn(&mut Account, Overtaking)) {
        let Policy::Overtaking(overtaking) = self.policy else { return };
        for (id, request) in &mut self.requests {
            let before = request.account;
            entry(&mut request.account, overtaking);
            if request.account != before {
                self.changed.insert(*id);
            }
        }
    }

    /// A request waits at least until the latest owner of what it lacks has been served.
    fn update_due_owner(&mut self, id: RequestId) {
        if !matches!(self.policy, Policy::Overtaking(_)) {
            return;
        }
        let Some(latest) = self.due_owner(id) else { return };
        if let Some(request) = self.requests.get_mut(&id)
            && request.account.wait_for(latest)
        {
            self.changed.insert(id);
        }
    }

    /// Nothing may go on waiting for a step that is not going to be built.
    fn forget_unless_needed(&mut self, drv: &D) {
        if self.running.contains_key(drv) || self.steps.get(drv).is_none_or(|step| !step.needed_by.is_empty())
        {
            return;
        }
        if let Some(step) = self.remove_step(drv) {
            self.release_awaiting(drv, step.awaited_by);
        }
    }

    fn step(&mut self, drv: &D) -> &mut QueuedStep<D> {
        self.steps.entry(drv.clone()).or_insert_with(|| QueuedStep {
            waits_for: BTreeSet::new(),
            awaited_by: BTreeSet::new(),
            needed_by: BTreeSet::new(),
            class: PlaceClass::default(),
            ready_at: None,
        })
    }
}

impl<D: Clone> Request<D> {
    fn saved(&self, id: RequestId) -> Saved<D> {
        let Account { due_owner, charged, earned, .. } = self.account;
        Saved { id, wanted: self.wanted.clone(), started: self.started, due_owner, charged, earned }
    }
}
