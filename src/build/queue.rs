//! The order of builds as plain code: requests wait in the order of arrival, equal ones share a place, one runs at a time.
//! No I/O and no clock of its own: it is told the time, so that a simulation can drive it.

use std::collections::VecDeque;
use std::time::Duration;

use narinfo::StorePath;

/// How long a request keeps its place after its last client has left, so that a client which only reconnects finds it again.
pub const ABANDONED_GRACE: Duration = Duration::from_secs(60);

/// Names a request for as long as the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// One derivation that somebody waits for.
#[derive(Clone, Debug)]
struct Request {
    id: RequestId,
    drv: StorePath,
    clients: usize,
    /// Since when nobody waits for it.
    abandoned_at: Option<Duration>,
}

/// What waits, and what runs. Times are durations since any fixed moment.
#[derive(Debug, Default)]
pub struct Queue {
    running: Option<Request>,
    waiting: VecDeque<Request>,
    last_id: u64,
}

impl Queue {
    /// Adds one client to the request for `drv`, making the request at the end of the queue when there is none.
    pub fn ask(&mut self, drv: &StorePath) -> RequestId {
        if let Some(request) = self.running.iter_mut().chain(&mut self.waiting).find(|r| r.drv == *drv) {
            request.clients += 1;
            request.abandoned_at = None;
            return request.id;
        }
        self.last_id += 1;
        let id = RequestId(self.last_id);
        self.waiting.push_back(Request { id, drv: drv.clone(), clients: 1, abandoned_at: None });
        id
    }

    /// Whether `drv` waits or runs.
    #[must_use]
    pub fn contains(&self, drv: &StorePath) -> bool {
        self.running.iter().chain(&self.waiting).any(|r| r.drv == *drv)
    }

    /// One client of a request has gone away.
    pub fn leave(&mut self, id: RequestId, now: Duration) {
        if let Some(request) = self.running.iter_mut().chain(&mut self.waiting).find(|r| r.id == id) {
            request.clients = request.clients.saturating_sub(1);
            if request.clients == 0 {
                request.abandoned_at = Some(now);
            }
        }
    }

    /// Starts the oldest request, unless one runs. Those that nobody has waited for longer than
    /// [`ABANDONED_GRACE`] are dropped, and given as the second part.
    pub fn start_next(&mut self, now: Duration) -> (Option<(RequestId, StorePath)>, Vec<RequestId>) {
        let mut dropped = Vec::new();
        self.waiting.retain(|request| {
            let keep = request.abandoned_at.is_none_or(|since| now.saturating_sub(since) <= ABANDONED_GRACE);
            if !keep {
                dropped.push(request.id);
            }
            keep
        });
        if self.running.is_some() {
            return (None, dropped);
        }
        self.running = self.waiting.pop_front();
        (self.running.as_ref().map(|r| (r.id, r.drv.clone())), dropped)
    }

    /// The running request has come to its end, good or bad.
    pub fn finish(&mut self, id: RequestId) {
        self.running.take_if(|running| running.id == id);
    }

    /// The place of a request, 1 being the one that runs (or would run next); `None` once it has ended.
    #[must_use]
    pub fn position(&self, id: RequestId) -> Option<usize> {
        self.running.iter().chain(&self.waiting).position(|r| r.id == id).map(|i| i + 1)
    }

    /// The derivations in order, the running one first where there is one.
    pub fn derivations(&self) -> impl Iterator<Item = &StorePath> {
        self.running.iter().chain(&self.waiting).map(|r| &r.drv)
    }

    /// How many requests run or wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.running.is_some())
    }

    /// Whether nothing runs or waits.
    #[must_use]
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drv(n: u8) -> StorePath {
        let letter = char::from(b'a' + n % 4);
        StorePath::parse(&format!("{}-{n}.drv", letter.to_string().repeat(32))).expect("a store path")
    }

    const NOW: Duration = Duration::from_secs(1000);

    fn started(queue: &mut Queue, now: Duration) -> Option<StorePath> {
        queue.start_next(now).0.map(|(_, drv)| drv)
    }

    #[test]
    fn whoever_asks_first_is_built_first() {
        let mut queue = Queue::default();
        let ids: Vec<_> = (0..3).map(|n| queue.ask(&drv(n))).collect();
        for n in 0..3 {
            assert_eq!(started(&mut queue, NOW), Some(drv(n)));
            queue.finish(ids[usize::from(n)]);
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn equal_requests_share_one_place() {
        let mut queue = Queue::default();
        let first = queue.ask(&drv(0));
        queue.ask(&drv(1));
        assert_eq!(queue.ask(&drv(0)), first);
        assert_eq!(queue.len(), 2);
        assert_eq!(started(&mut queue, NOW), Some(drv(0)));
        assert_eq!(queue.ask(&drv(0)), first, "a second request joins the running build");
    }

    #[test]
    fn one_build_runs_at_a_time() {
        let mut queue = Queue::default();
        let first = queue.ask(&drv(0));
        queue.ask(&drv(1));
        assert_eq!(started(&mut queue, NOW), Some(drv(0)));
        assert_eq!(started(&mut queue, NOW), None);
        queue.finish(first);
        assert_eq!(started(&mut queue, NOW), Some(drv(1)));
    }

    #[test]
    fn an_abandoned_request_leaves_after_the_grace_and_not_before() {
        let mut queue = Queue::default();
        let gone = queue.ask(&drv(0));
        queue.ask(&drv(1));
        queue.leave(gone, NOW);
        let late = NOW + ABANDONED_GRACE + Duration::from_secs(1);
        let (next, dropped) = queue.start_next(late);
        assert_eq!((next.map(|n| n.1), dropped), (Some(drv(1)), vec![gone]));

        let mut queue = Queue::default();
        let gone = queue.ask(&drv(0));
        queue.leave(gone, NOW);
        assert_eq!(started(&mut queue, NOW + ABANDONED_GRACE), Some(drv(0)));
    }

    #[test]
    fn a_request_with_another_client_stays() {
        let mut queue = Queue::default();
        let id = queue.ask(&drv(0));
        queue.ask(&drv(0));
        queue.leave(id, NOW);
        assert_eq!(started(&mut queue, NOW + 2 * ABANDONED_GRACE), Some(drv(0)));
    }

    #[test]
    fn a_client_that_comes_back_within_the_grace_finds_its_place() {
        let mut queue = Queue::default();
        let id = queue.ask(&drv(0));
        queue.ask(&drv(1));
        queue.leave(id, NOW);
        assert_eq!(queue.ask(&drv(0)), id);
        assert_eq!(queue.position(id), Some(1));
        assert_eq!(started(&mut queue, NOW + 2 * ABANDONED_GRACE), Some(drv(0)));
    }

    #[test]
    fn a_running_build_finishes_though_its_client_left() {
        let mut queue = Queue::default();
        let id = queue.ask(&drv(0));
        started(&mut queue, NOW);
        queue.leave(id, NOW);
        let (next, dropped) = queue.start_next(NOW + 2 * ABANDONED_GRACE);
        assert_eq!((next, dropped.len(), queue.position(id)), (None, 0, Some(1)));
    }
}
