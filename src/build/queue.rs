//! The order of builds as plain code: requests in the order of arrival, each with the derivations it lacks; strictly first
//! come, first served. No I/O and no clock of its own: it is told the time and what happened, and says what to build next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a request keeps its place after its last client has left, so that a client which only reconnects finds it again.
pub const ABANDONED_GRACE: Duration = Duration::from_secs(60);

/// Names a request for as long as the server runs. Older ones are smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// What someone waits for.
#[derive(Clone, Debug)]
struct Request<D> {
    wanted: D,
    clients: usize,
    /// Since when nobody waits for it.
    abandoned_at: Option<Duration>,
    /// What of its closure is not built yet; `None` until that is known.
    lacks: Option<BTreeSet<D>>,
    /// How many derivations it lacked when it was planned.
    steps: usize,
    /// Whether something has been built for it.
    started: bool,
}

/// A derivation that is to be built.
#[derive(Clone, Debug, Default)]
struct Step<D> {
    /// Its inputs that are not built yet.
    waits_for: BTreeSet<D>,
    /// What waits for it.
    awaited_by: BTreeSet<D>,
    /// The requests that need it; the oldest one owns it.
    needed_by: BTreeSet<RequestId>,
}

/// Requests and the derivations they lack. `D` names a derivation; times are durations since any fixed moment.
#[derive(Clone, Debug)]
pub struct Queue<D> {
    requests: BTreeMap<RequestId, Request<D>>,
    /// Not one of these is built; those in `running` are under way.
    steps: BTreeMap<D, Step<D>>,
    running: BTreeSet<D>,
    /// Built while some request was not planned yet: its plan may be older than that.
    built_meanwhile: BTreeSet<D>,
    last_id: u64,
}

impl<D> Default for Queue<D> {
    fn default() -> Self {
        Self {
            requests: BTreeMap::new(),
            steps: BTreeMap::new(),
            running: BTreeSet::new(),
            built_meanwhile: BTreeSet::new(),
            last_id: 0,
        }
    }
}

impl<D: Clone + Ord> Queue<D> {
    /// Adds one client to the request for `wanted`. Where there is none, makes it, as the youngest; it has to be
    /// [`planned`](Self::plan) then.
    pub fn ask(&mut self, wanted: &D) -> (RequestId, bool) {
        if let Some((id, request)) = self.requests.iter_mut().find(|(_, request)| request.wanted == *wanted) {
            request.clients += 1;
            request.abandoned_at = None;
            return (*id, false);
        }
        self.last_id += 1;
        let id = RequestId(self.last_id);
        let request = Request {
            wanted: wanted.clone(),
            clients: 1,
            abandoned_at: None,
            lacks: None,
            steps: 0,
            started: false,
        };
        self.requests.insert(id, request);
        (id, true)
    }

    /// Says what a request lacks: each derivation with those of its inputs that are lacking, too. True when it lacks
    /// nothing (any more): then it has left the queue and can be delivered.
    pub fn plan(&mut self, id: RequestId, mut needs: BTreeMap<D, BTreeSet<D>>) -> bool {
        needs.retain(|drv, _| !self.built_meanwhile.contains(drv));
        let Some(request) = self.requests.get_mut(&id) else { return false };
        request.steps = needs.len();
        request.lacks = Some(needs.keys().cloned().collect());
        for (drv, inputs) in &needs {
            let waits_for: BTreeSet<D> =
                inputs.iter().filter(|input| needs.contains_key(*input)).cloned().collect();
            for input in &waits_for {
                self.step(input).awaited_by.insert(drv.clone());
            }
            let step = self.step(drv);
            step.needed_by.insert(id);
            step.waits_for.extend(waits_for);
        }
        if self.requests.values().all(|request| request.lacks.is_some()) {
            self.built_meanwhile.clear();
        }
        needs.is_empty() && self.requests.remove(&id).is_some()
    }

    /// The next derivation to build, which counts as running from now on: of the oldest request that has one that is
    /// ready. Nothing while a request older than any ready one is not planned yet.
    pub fn start(&mut self) -> Option<D> {
        for request in self.requests.values_mut() {
            let ready = request.lacks.as_ref()?.iter().find(|drv| {
                !self.running.contains(*drv)
                    && self.steps.get(*drv).is_some_and(|step| step.waits_for.is_empty())
            });
            if let Some(drv) = ready.cloned() {
                request.started = true;
                self.running.insert(drv.clone());
                return Some(drv);
            }
        }
        None
    }

    /// A running derivation was built. Gives the requests that are complete by it, oldest first; they have left the queue.
    pub fn built(&mut self, drv: &D) -> Vec<RequestId> {
        self.running.remove(drv);
        if self.requests.values().any(|request| request.lacks.is_none()) {
            self.built_meanwhile.insert(drv.clone());
        }
        let Some(step) = self.steps.remove(drv) else { return Vec::new() };
        for waiting in &step.awaited_by {
            if let Some(waiting) = self.steps.get_mut(waiting) {
                waiting.waits_for.remove(drv);
            }
        }
        let mut complete = Vec::new();
        for id in step.needed_by {
            if let Some(request) = self.requests.get_mut(&id)
                && let Some(lacks) = &mut request.lacks
            {
                request.started = true;
                lacks.remove(drv);
                if lacks.is_empty() {
                    self.requests.remove(&id);
                    complete.push(id);
                }
            }
        }
        complete
    }

    /// A running derivation could not be built. Gives the requests that cannot be completed, oldest first; they have
    /// left the queue.
    pub fn failed(&mut self, drv: &D) -> Vec<RequestId> {
        self.running.remove(drv);
        let needed_by = self.steps.get(drv).map(|step| step.needed_by.clone()).unwrap_or_default();
        for id in &needed_by {
            self.remove(*id);
        }
        self.forget_unless_needed(drv);
        needed_by.into_iter().collect()
    }

    /// Takes a request out of the queue. What only it needed is not built any more, unless it runs already.
    pub fn remove(&mut self, id: RequestId) {
        let Some(request) = self.requests.remove(&id) else { return };
        for drv in request.lacks.into_iter().flatten() {
            if let Some(step) = self.steps.get_mut(&drv) {
                step.needed_by.remove(&id);
            }
            self.forget_unless_needed(&drv);
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

    /// Drops the requests that nobody has waited for longer than [`ABANDONED_GRACE`] and for which nothing was built
    /// yet, and gives them.
    pub fn drop_abandoned(&mut self, now: Duration) -> Vec<RequestId> {
        let late = |since: Duration| now.saturating_sub(since) > ABANDONED_GRACE;
        let abandoned = |request: &Request<D>| !request.started && request.abandoned_at.is_some_and(late);
        let dropped: Vec<RequestId> =
            self.requests.iter().filter(|(_, request)| abandoned(request)).map(|(id, _)| *id).collect();
        for id in &dropped {
            self.remove(*id);
        }
        dropped
    }

    /// Whether there is a request for `wanted`.
    #[must_use]
    pub fn contains(&self, wanted: &D) -> bool {
        self.requests.values().any(|request| request.wanted == *wanted)
    }

    /// What a request is for.
    #[must_use]
    pub fn wanted(&self, id: RequestId) -> Option<&D> {
        self.requests.get(&id).map(|request| &request.wanted)
    }

    /// The place of a request, 1 being the oldest; `None` once it has left the queue.
    #[must_use]
    pub fn position(&self, id: RequestId) -> Option<usize> {
        self.requests.contains_key(&id).then(|| self.requests.range(..=id).count())
    }

    /// How many of a request's derivations are built, and how many it lacked at first; `None` until it is planned.
    #[must_use]
    pub fn progress(&self, id: RequestId) -> Option<(usize, usize)> {
        let request = self.requests.get(&id)?;
        Some((request.steps - request.lacks.as_ref()?.len(), request.steps))
    }

    /// The requests that need a derivation which is not built yet; the first one owns it.
    pub fn needed_by(&self, drv: &D) -> impl Iterator<Item = RequestId> {
        self.steps.get(drv).into_iter().flat_map(|step| step.needed_by.iter().copied())
    }

    /// Every derivation that is not built yet.
    pub fn lacking(&self) -> impl Iterator<Item = &D> {
        self.steps.keys()
    }

    /// What is asked for, oldest first.
    pub fn requests(&self) -> impl Iterator<Item = &D> {
        self.requests.values().map(|request| &request.wanted)
    }

    /// How many requests there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether nobody has asked for anything that is not there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Nothing may go on waiting for a step that is not going to be built.
    fn forget_unless_needed(&mut self, drv: &D) {
        if self.running.contains(drv) || self.steps.get(drv).is_none_or(|step| !step.needed_by.is_empty()) {
            return;
        }
        for waiting in self.steps.remove(drv).into_iter().flat_map(|step| step.awaited_by) {
            if let Some(waiting) = self.steps.get_mut(&waiting) {
                waiting.waits_for.remove(drv);
            }
        }
    }

    fn step(&mut self, drv: &D) -> &mut Step<D> {
        self.steps.entry(drv.clone()).or_insert_with(|| Step {
            waits_for: BTreeSet::new(),
            awaited_by: BTreeSet::new(),
            needed_by: BTreeSet::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    /// A queue with a planned request for each list of derivations; in a list, each one needs the one before it.
    fn queue(requests: &[&[u32]]) -> (Queue<u32>, Vec<RequestId>) {
        let mut queue = Queue::default();
        let ids = requests.iter().map(|chain| ask(&mut queue, chain)).collect();
        (queue, ids)
    }

    fn ask(queue: &mut Queue<u32>, chain: &[u32]) -> RequestId {
        let (id, new) = queue.ask(chain.last().expect("something is wanted"));
        assert!(new);
        queue.plan(id, needs(chain));
        id
    }

    fn needs(chain: &[u32]) -> BTreeMap<u32, BTreeSet<u32>> {
        let inputs = |n: usize| n.checked_sub(1).map(|before| chain[before]).into_iter().collect();
        chain.iter().enumerate().map(|(n, drv)| (*drv, inputs(n))).collect()
    }

    #[test]
    fn whoever_asks_first_is_built_first_inputs_before_what_needs_them() {
        let (mut queue, ids) = queue(&[&[9, 8], &[1], &[2]]);
        for (drv, complete) in [(9, vec![]), (8, vec![ids[0]]), (1, vec![ids[1]]), (2, vec![ids[2]])] {
            assert_eq!(queue.start(), Some(drv));
            assert_eq!(queue.built(&drv), complete);
        }
        assert!(queue.is_empty() && queue.start().is_none());
    }

    #[test]
    fn equal_requests_share_one_place() {
        let (mut queue, ids) = queue(&[&[1], &[2]]);
        assert_eq!(queue.ask(&1), (ids[0], false));
        assert_eq!(queue.start(), Some(1));
        assert_eq!(queue.ask(&1), (ids[0], false), "a second request joins the running build");
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_shared_derivation_is_built_once_and_a_request_is_complete_the_moment_it_lacks_nothing() {
        let (mut queue, ids) = queue(&[&[1, 2, 3], &[1, 5], &[1, 2]]);
        assert_eq!((queue.start(), queue.built(&1)), (Some(1), vec![]));
        assert_eq!(queue.start(), Some(2));
        assert_eq!(queue.built(&2), vec![ids[2]], "before its turn, at no cost to anyone");
        assert_eq!((queue.start(), queue.built(&3)), (Some(3), vec![ids[0]]));
        assert_eq!((queue.start(), queue.built(&5)), (Some(5), vec![ids[1]]));
    }

    #[test]
    fn with_several_lanes_the_oldest_request_goes_first_in_each() {
        let (mut queue, _) = queue(&[&[1, 2], &[3], &[4]]);
        assert_eq!((queue.start(), queue.start()), (Some(1), Some(3)), "2 is not ready");
        queue.built(&1);
        assert_eq!(queue.start(), Some(2), "before 4, which is younger");
    }

    #[test]
    fn nothing_younger_is_started_before_the_oldest_request_is_planned() {
        let mut queue = Queue::default();
        let (first, _) = queue.ask(&1);
        ask(&mut queue, &[2]);
        assert_eq!(queue.start(), None);
        queue.plan(first, needs(&[1]));
        assert_eq!(queue.start(), Some(1));
    }

    #[test]
    fn a_plan_that_is_older_than_a_build_does_not_build_it_again() {
        let mut queue = Queue::default();
        ask(&mut queue, &[1]);
        let (late, _) = queue.ask(&2);
        assert_eq!(queue.start(), Some(1));
        queue.built(&1);
        queue.plan(late, needs(&[1, 2]));
        assert_eq!(queue.start(), Some(2));
        assert_eq!(queue.built(&2), vec![late]);
    }

    #[test]
    fn a_request_that_lacks_nothing_is_complete_at_once() {
        let mut queue = Queue::default();
        let (id, _) = queue.ask(&1);
        assert!(queue.plan(id, BTreeMap::new()));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_failure_ends_those_who_need_it_and_no_one_else() {
        let (mut queue, ids) = queue(&[&[1, 2], &[1, 3], &[7]]);
        assert_eq!(queue.start(), Some(1));
        assert_eq!(queue.failed(&1), vec![ids[0], ids[1]]);
        assert_eq!((queue.len(), queue.start()), (1, Some(7)));
        assert_eq!(queue.built(&7), vec![ids[2]]);
    }

    #[test]
    fn what_only_a_dropped_request_needed_is_not_built_and_blocks_nobody() {
        let (mut queue, ids) = queue(&[&[1], &[5, 6, 7], &[6, 8]]);
        queue.leave(ids[1], NOW);
        assert_eq!(queue.drop_abandoned(NOW + ABANDONED_GRACE), vec![]);
        assert_eq!(queue.drop_abandoned(NOW + ABANDONED_GRACE + Duration::from_millis(1)), vec![ids[1]]);
        let order: Vec<u32> =
            std::iter::from_fn(|| queue.start().inspect(|drv| drop(queue.built(drv)))).collect();
        assert_eq!(order, vec![1, 6, 8]);
    }

    #[test]
    fn a_request_with_another_client_or_with_something_built_stays() {
        let (mut queue, ids) = queue(&[&[1, 2], &[3]]);
        queue.ask(&3);
        queue.start();
        queue.leave(ids[0], NOW);
        queue.leave(ids[1], NOW);
        assert_eq!(queue.drop_abandoned(NOW + 2 * ABANDONED_GRACE), vec![]);
    }

    #[test]
    fn a_client_that_comes_back_within_the_grace_finds_its_place() {
        let (mut queue, ids) = queue(&[&[1], &[2]]);
        queue.leave(ids[1], NOW);
        assert_eq!(queue.ask(&2), (ids[1], false));
        assert_eq!(queue.drop_abandoned(NOW + 2 * ABANDONED_GRACE), vec![]);
        assert_eq!((queue.position(ids[0]), queue.position(ids[1])), (Some(1), Some(2)));
    }

    #[test]
    fn a_build_that_nobody_needs_any_more_leaves_nothing_behind_however_it_ends() {
        for ends_well in [true, false] {
            let (mut queue, ids) = queue(&[&[1, 2]]);
            assert_eq!(queue.start(), Some(1));
            queue.remove(ids[0]);
            assert_eq!(queue.start(), None);
            let ended = if ends_well { queue.built(&1) } else { queue.failed(&1) };
            assert_eq!(ended, vec![]);
            assert!(queue.steps.is_empty() && queue.running.is_empty() && queue.built_meanwhile.is_empty());
        }
    }
}
