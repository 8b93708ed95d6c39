//! The database that several servers share, in memory: the lease of the leader, the queue, and the log of
//! what was recorded, by the clock of tokio. [`SharedMemory`](super::shared::SharedMemory) is the way there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use narinfo::{NarHash, StorePath};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::MemoryBackend;
use super::shared::at_once;
use crate::index::Error;
use crate::index::backend::{Nars, Paths, QueueLog};
use crate::model::{
    DurationRow, EndingRow, NewNar, NodeId, PathRow, QueueNews, QueueOutcome, RequestRow, Term,
};

/// Life of a lease that is not renewed.
const LEASE: Duration = Duration::from_secs(3);
/// Time for which a server that was heard of counts as alive.
const ALIVE_FOR: Duration = Duration::from_secs(60);
/// Time for which endings are kept.
const ENDINGS_KEPT_FOR: Duration = Duration::from_secs(3600);

/// Write of the database that a history is checked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DatabaseEvent {
    /// A server leads.
    TakenOver(Term),
    /// A request was made.
    Asked { request: u64, drv: StorePath },
    /// The row of a NAR was added.
    Packed { nar: NarHash, epoch: Option<u64> },
    /// A path is served.
    Published { path: StorePath, nar: NarHash, epoch: Option<u64> },
    /// A request has ended.
    Ended { ending: EndingRow, epoch: Option<u64> },
}

/// The database; every server has its own link to it.
#[derive(Default)]
pub(crate) struct Database {
    pub(super) rows: MemoryBackend,
    shared: Mutex<SharedRows>,
}

#[derive(Default)]
struct SharedRows {
    epoch: u64,
    holder: Option<NodeId>,
    /// `None` where nobody has the lease.
    expires_at: Option<Instant>,
    /// Servers that hold each request.
    holders: BTreeMap<u64, BTreeSet<NodeId>>,
    seen_at: BTreeMap<NodeId, Instant>,
    /// By their position, each with the time of its record.
    endings: BTreeMap<u64, (Instant, EndingRow)>,
    latest_ending: u64,
    listeners: Vec<Weak<Notify>>,
    log: Vec<(Instant, DatabaseEvent)>,
}

impl SharedRows {
    fn note(&mut self, event: DatabaseEvent) {
        self.log.push((Instant::now(), event));
    }

    fn tell(&mut self) {
        let tell = |listener: &Weak<Notify>| listener.upgrade().map(|listener| listener.notify_one());
        self.listeners.retain(|listener| tell(listener).is_some());
    }
}

impl Database {
    fn shared(&self) -> MutexGuard<'_, SharedRows> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log of writes since this was last called.
    pub(crate) fn take_log(&self) -> Vec<(Instant, DatabaseEvent)> {
        std::mem::take(&mut self.shared().log)
    }

    /// The latest term.
    pub(crate) fn term(&self) -> Option<Term> {
        let shared = self.shared();
        Some(Term { epoch: shared.epoch, holder: shared.holder.clone()? })
    }

    /// Requests that have not ended, oldest first.
    pub(crate) fn queue(&self) -> Vec<RequestRow> {
        self.rows.state().requests.values().cloned().collect()
    }

    /// True where a request has not ended.
    pub(crate) fn has_queue(&self) -> bool {
        !self.rows.state().requests.is_empty()
    }

    /// A server is told of changes from now on.
    pub(super) fn listen(&self, listener: Weak<Notify>) {
        self.shared().listeners.push(listener);
    }

    /// The database was restarted: the leader could not renew its lease meanwhile.
    pub(crate) fn restarted(&self) {
        let mut shared = self.shared();
        let until = Instant::now() + LEASE;
        shared.expires_at = shared.expires_at.map(|at| at.max(until));
    }

    /// Refuses a write whose term has ended.
    pub(super) fn check(&self, fence: Option<&Term>) -> Result<(), Error> {
        match fence {
            Some(term) if self.term().as_ref() != Some(term) => Err(Error::Superseded),
            _ => Ok(()),
        }
    }

    pub(super) fn take_over(&self, node: NodeId) -> Option<Term> {
        let (mut shared, now) = (self.shared(), Instant::now());
        let is_own = shared.holder.as_ref() == Some(&node);
        if !is_own && shared.expires_at.is_some_and(|at| at >= now) {
            return None;
        }
        shared.epoch += 1;
        (shared.holder, shared.expires_at) = (Some(node.clone()), Some(now + LEASE));
        let term = Term { epoch: shared.epoch, holder: node };
        shared.note(DatabaseEvent::TakenOver(term.clone()));
        Some(term)
    }

    /// Changes the lease of a term. False where that has ended.
    pub(super) fn set_lease(&self, term: &Term, is_renewed: bool) -> bool {
        let mut shared = self.shared();
        if (shared.epoch, shared.holder.as_ref()) != (term.epoch, Some(&term.holder)) {
            return false;
        }
        shared.expires_at = is_renewed.then(|| Instant::now() + LEASE);
        true
    }

    pub(super) fn ask(
        &self,
        node: &NodeId,
        asked: Vec<(StorePath, Option<IpAddr>)>,
        builder: Option<&String>,
    ) -> Vec<u64> {
        let (mut shared, mut state) = (self.shared(), self.rows.state());
        let mut ids = Vec::new();
        for (drv, asked_by) in asked {
            let known = state.requests.values().find(|request| request.drv == drv).map(|request| request.id);
            let id = known.unwrap_or_else(|| {
                state.last_request += 1;
                let id = state.last_request;
                shared.note(DatabaseEvent::Asked { request: id, drv: drv.clone() });
                let row = RequestRow {
                    id,
                    drv,
                    started: false,
                    asked_at: SystemTime::now(),
                    asked_by,
                    due_owner: None,
                    charged: Duration::ZERO,
                    earned: Duration::ZERO,
                    builder: builder.cloned(),
                };
                state.requests.insert(id, row);
                id
            });
            shared.holders.entry(id).or_default().insert(node.clone());
            ids.push(id);
        }
        shared.seen_at.insert(node.clone(), Instant::now());
        shared.tell();
        ids
    }

    pub(super) fn hold(&self, node: &NodeId, requests: &[u64]) -> Vec<u64> {
        let (mut shared, state) = (self.shared(), self.rows.state());
        shared.seen_at.insert(node.clone(), Instant::now());
        shared.holders.retain(|_, nodes| {
            nodes.remove(node);
            !nodes.is_empty()
        });
        let (held, missing): (Vec<u64>, Vec<u64>) =
            requests.iter().partition(|id| state.requests.contains_key(*id));
        for id in held {
            shared.holders.entry(id).or_default().insert(node.clone());
        }
        missing
    }

    pub(super) fn queue_news(&self, after_request: u64, after_ending: u64) -> QueueNews {
        let (shared, state) = (self.shared(), self.rows.state());
        let requests: Vec<RequestRow> =
            state.requests.range(after_request + 1..).map(|(_, request)| request.clone()).collect();
        let endings = shared.endings.range(after_ending + 1..);
        QueueNews {
            latest_request: requests.last().map_or(after_request, |request| request.id),
            requests,
            endings: endings.map(|(_, (_, ending))| ending.clone()).collect(),
            latest_ending: after_ending.max(shared.latest_ending),
        }
    }

    pub(super) fn end_requests(&self, endings: Vec<EndingRow>, fence: Option<&Term>) {
        let (mut shared, mut state, now) = (self.shared(), self.rows.state(), Instant::now());
        if endings.is_empty() {
            return;
        }
        // The last ending of each counts.
        let latest: BTreeMap<u64, EndingRow> =
            endings.into_iter().map(|ending| (ending.request, ending)).collect();
        for (id, ending) in latest {
            if state.requests.remove(&id).is_none() {
                continue;
            }
            shared.holders.remove(&id);
            shared.note(DatabaseEvent::Ended { ending: ending.clone(), epoch: fence.map(|term| term.epoch) });
            shared.latest_ending += 1;
            let position = shared.latest_ending;
            shared.endings.insert(position, (now, ending));
        }
        while let Some(oldest) = shared.endings.first_entry()
            && now - oldest.get().0 > ENDINGS_KEPT_FOR
        {
            oldest.remove();
        }
        shared.tell();
    }

    pub(super) fn end_unheld(
        &self,
        requests: Vec<u64>,
        outcome: &QueueOutcome,
        fence: Option<&Term>,
    ) -> Vec<u64> {
        let endings: Vec<EndingRow> = {
            let (shared, state, now) = (self.shared(), self.rows.state(), Instant::now());
            let is_alive = |node: &NodeId| shared.seen_at.get(node).is_some_and(|at| now - *at < ALIVE_FOR);
            let is_held = |id: &u64| shared.holders.get(id).is_some_and(|nodes| nodes.iter().any(is_alive));
            let unheld = requests.iter().filter(|id| !is_held(id)).filter_map(|id| state.requests.get(id));
            let ending = |request: &RequestRow| EndingRow {
                request: request.id,
                drv: request.drv.clone(),
                outcome: outcome.clone(),
            };
            unheld.map(ending).collect()
        };
        let ended = endings.iter().map(|ending| ending.request).collect();
        self.end_requests(endings, fence);
        ended
    }

    pub(super) fn publish(&self, fence: Option<&Term>, rows: Vec<PathRow>) -> Result<bool, Error> {
        let published = at_once(self.rows.publish(rows.clone()))?;
        let mut shared = self.shared();
        for PathRow { info, .. } in rows.into_iter().filter(|_| published) {
            let epoch = fence.map(|term| term.epoch);
            shared.note(DatabaseEvent::Published { path: info.path, nar: info.nar_hash, epoch });
        }
        Ok(published)
    }

    pub(super) fn record_packed(&self, fence: Option<&Term>, nar: NewNar) -> Result<(), Error> {
        let epoch = fence.map(|term| term.epoch);
        self.shared().note(DatabaseEvent::Packed { nar: nar.row.nar_hash, epoch });
        at_once(self.rows.record_packed(nar))
    }

    /// The requests that the leader has in its queue were asked for here, and may have ended here.
    pub(super) fn record_queue(
        &self,
        fence: Option<&Term>,
        mut requests: Vec<RequestRow>,
        gone: Vec<u64>,
        durations: Vec<DurationRow>,
    ) -> Result<(), Error> {
        if fence.is_some() {
            let state = self.rows.state();
            requests.retain(|request| state.requests.contains_key(&request.id));
        }
        self.shared().holders.retain(|id, _| !gone.contains(id));
        at_once(self.rows.record_queue(requests, gone, durations))
    }
}
