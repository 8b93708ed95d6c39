//! A queue that several servers share. Requests are numbered and kept in the index; every server has all of
//! them in memory, and its clients wait for them here as for those of a single server. Only the leader plans
//! and builds, and it tells nobody of an ending before that is on record: what a leader finds that was taken
//! over from meanwhile reaches no client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use narinfo::StorePath;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{JoinOutcome, NotQueued, Scheduler, State, Ticket};
use crate::build::Ending;
use crate::build::queue::RequestId;
use crate::build::view::RequestState;
use crate::causes::with_causes;
use crate::index::{self, Index};
use crate::model::{EndingRow, Failure, NodeId, QueueNews, QueueOutcome};

/// Interval at which it is looked for requests that clients have left.
const HOLD_EVERY: Duration = Duration::from_secs(1);
/// Interval at which the other servers are told that this one is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// Time for which a failure to add a request stands for those of others.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// Rest after the index could not be read or written.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Endings that are remembered for those who joined a moment too late.
const RECENT_MAX: usize = 10_000;

/// Part of a server in a shared queue.
pub(super) struct Sharing {
    pub(super) index: Index,
    node: NodeId,
    /// Position in the shared queue up to which it is known here. Locked while the index is asked, so that
    /// what comes from there comes in order.
    pub(super) position: tokio::sync::Mutex<QueuePosition>,
    /// Time until which builds may be started: the lease lasts at least as long. The leader alone has one.
    pub(super) lease_until: Mutex<Option<Instant>>,
    /// Requests that were cancelled here, of which the index is not told yet.
    cancelled: Mutex<Vec<u64>>,
    /// Notified when requests were cancelled.
    cancel_due: Notify,
    /// Notified when a write was refused because another server leads.
    pub(super) superseded: Notify,
}

#[derive(Default)]
pub(super) struct QueuePosition {
    pub(super) request: u64,
    pub(super) ending: u64,
    told_at: Option<Instant>,
    /// The latest failure to add a request: those who have waited for their turn meanwhile fail with it.
    failed: Option<(Instant, Arc<str>)>,
}

/// State of a shared queue that is guarded with the queue.
#[derive(Default)]
pub(super) struct SharedState {
    /// Requests that this server holds in the index.
    held: BTreeSet<u64>,
    /// Endings that are not on record yet.
    pub(super) endings: Vec<EndingRow>,
    recent: BTreeMap<u64, QueueOutcome>,
}

impl Sharing {
    pub(super) fn new(index: Index, node: NodeId) -> Self {
        Self {
            index,
            node,
            position: tokio::sync::Mutex::default(),
            lease_until: Mutex::default(),
            cancelled: Mutex::default(),
            cancel_due: Notify::new(),
            superseded: Notify::new(),
        }
    }

    pub(super) fn may_start(&self) -> bool {
        let until = *self.lease_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn leads(&self) -> bool {
        self.index.leads()
    }

    pub(super) fn cancel(&self, id: u64) {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.cancel_due.notify_one();
    }

    fn take_cancelled(&self) -> Vec<u64> {
        std::mem::take(&mut *self.cancelled.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask(
        &self,
        asked: Vec<(StorePath, Option<IpAddr>)>,
        builder: Option<&str>,
    ) -> Result<Vec<u64>, index::Error> {
        let (node, builder) = (self.node.clone(), builder.map(str::to_owned));
        match self.index.cluster() {
            Some(cluster) if !asked.is_empty() => cluster.ask(node, asked, builder).await,
            _ => Ok(Vec::new()),
        }
    }

    async fn hold(&self, requests: Vec<u64>) -> Result<Vec<u64>, index::Error> {
        match self.index.cluster() {
            Some(cluster) => cluster.hold(self.node.clone(), requests).await,
            None => Ok(Vec::new()),
        }
    }

    pub(super) async fn news(
        &self,
        after_request: u64,
        after_ending: u64,
    ) -> Result<QueueNews, index::Error> {
        match self.index.cluster() {
            Some(cluster) => cluster.queue_news(after_request, after_ending).await,
            None => Ok(QueueNews::default()),
        }
    }
}

impl Scheduler {
    /// Joins requests in the order of the derivations. They would survive this server, and the leader.
    pub(super) async fn join_shared(
        &self,
        sharing: &Sharing,
        drvs: &[StorePath],
        client: Option<IpAddr>,
        builder: Option<&str>,
    ) -> Vec<Result<Ticket, NotQueued>> {
        let fits = |drv| builder.map_or(Ok(()), |builder| self.0.lock().may_be_built_on(builder, drv));
        let known = |drv| match fits(drv) {
            Ok(()) => self.rejoin_held(drv).map(Ok),
            Err(no) => Some(Err(no)),
        };
        let mut tickets: Vec<_> = drvs.iter().map(known).collect();
        if tickets.iter().all(Option::is_some) {
            return tickets.into_iter().flatten().collect();
        }
        let (mut new, mut asked) = (Vec::new(), Vec::new());
        for (at, drv) in drvs.iter().enumerate() {
            if tickets[at].is_some() {
                continue;
            }
            match self.0.lock().room_for(drv, client, asked.len(), &self.0.settings) {
                Ok(()) => {
                    new.push(at);
                    asked.push((drv.clone(), client));
                }
                Err(full) => tickets[at] = Some(Err(full)),
            }
        }
        // Of what is added meanwhile nobody lets go.
        let mut position = sharing.position.lock().await;
        let failed = position.failed.clone().filter(|(at, _)| at.elapsed() < FAILED_FOR);
        let added = match failed {
            Some((_, cause)) => Err(cause),
            None => self.add_requests(sharing, &mut position, asked, builder).await,
        };
        match added {
            Ok(ids) => {
                for (at, id) in new.into_iter().zip(ids) {
                    tickets[at] = Some(Ok(self.ticket_of(RequestId(id), &drvs[at])));
                }
            }
            Err(cause) => {
                for at in new {
                    tickets[at] = Some(Err(NotQueued::Unrecorded(Arc::clone(&cause))));
                }
            }
        }
        tickets.into_iter().flatten().collect()
    }

    /// Adds requests to the index, and reads the queue up to them.
    async fn add_requests(
        &self,
        sharing: &Sharing,
        position: &mut QueuePosition,
        asked: Vec<(StorePath, Option<IpAddr>)>,
        builder: Option<&str>,
    ) -> Result<Vec<u64>, Arc<str>> {
        let added = async {
            let ids = sharing.ask(asked, builder).await?;
            self.read_news(sharing, position).await?;
            Ok::<_, index::Error>(ids)
        };
        let added = added.await.map_err(|error| Arc::from(with_causes(&error)));
        position.failed = added.as_ref().err().map(|cause| (Instant::now(), Arc::clone(cause)));
        added
    }

    /// A ticket for a request that this server holds already.
    fn rejoin_held(&self, drv: &StorePath) -> Option<Ticket> {
        let mut state = self.0.lock();
        let id = state.queue.request_for(drv).filter(|id| state.shared.held.contains(&id.0))?;
        state.queue.ask(drv);
        let ticket = self.ticket(id, state.waiters.get(id)?);
        self.0.metrics.joined(JoinOutcome::Shared);
        Some(ticket)
    }

    /// A ticket for a request that was just asked for. It may have ended since.
    fn ticket_of(&self, id: RequestId, drv: &StorePath) -> Ticket {
        let mut state = self.0.lock();
        state.shared.held.insert(id.0);
        if state.queue.request_for(drv) == Some(id) {
            state.queue.ask(drv);
        }
        self.0.metrics.joined(JoinOutcome::New);
        if let Some(request) = state.waiters.get(id) {
            return self.ticket(id, request);
        }
        let ending = state.shared.recent.get(&id.0).map_or(Some(Ok(())), ending_of);
        let (_, ending) = watch::channel(ending);
        Ticket { shared: Arc::clone(&self.0), id, ending, _counted: Arc::default(), _place: None }
    }

    /// Reads what others have added, and what has ended, in order.
    async fn read_news(&self, sharing: &Sharing, position: &mut QueuePosition) -> Result<(), index::Error> {
        let news = sharing.news(position.request, position.ending).await?;
        (position.request, position.ending) = (news.latest_request, news.latest_ending);
        self.apply_news(news);
        Ok(())
    }

    /// Endings first: a request that was made since may be for the same derivation.
    pub(super) fn apply_news(&self, news: QueueNews) {
        let QueueNews { mut requests, endings, .. } = news;
        let ended: BTreeSet<u64> = endings.iter().map(|ending| ending.request).collect();
        self.tell(endings);
        requests.retain(|request| !ended.contains(&request.id));
        self.put_back_rows(requests);
        if self.leads() {
            self.0.changed.notify_one();
            self.0.roots_due.notify_one();
        } else {
            self.0.lock().drop_work();
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.0.sharing.as_ref().is_none_or(Sharing::leads)
    }

    /// Tells those who wait of endings that are on record.
    pub(in crate::build) fn tell(&self, endings: Vec<EndingRow>) {
        for EndingRow { request: id, outcome, .. } in endings {
            let (id, now) = (RequestId(id), self.0.now());
            let mut state = self.0.lock();
            state.shared.endings.retain(|ending| ending.request != id.0);
            if state.queue.wanted(id).is_some() {
                // Cancelled on another server, or mirrored here.
                state.queue.cancel(id, now);
                let unneeded = state.held.release(id);
                state.unneeded.extend(unneeded);
                state.forget_kinds();
                self.0.planned.send_modify(|planned| *planned += 1);
                self.wake();
            }
            // Of the others, a server that has no part in a request remembers and counts nothing.
            let is_ours = self.leads() || state.waiters.get(id).is_some_and(|request| request.tickets() > 0);
            let request = match is_ours {
                true => state.forget(id, past_of(&outcome), &self.0.metrics),
                false => state.waiters.leave(id),
            };
            state.ended.clear();
            if let (Some(request), Some(ending)) = (request, ending_of(&outcome)) {
                request.ending.send_replace(Some(ending));
            }
            state.shared.held.remove(&id.0);
            state.shared.recent.insert(id.0, outcome);
            if state.shared.recent.len() > RECENT_MAX {
                state.shared.recent.pop_first();
            }
        }
    }

    /// Notes an ending that is to be recorded before anyone is told.
    pub(super) fn note_ending(&self, id: RequestId, ending: Ending) {
        let mut state = self.0.lock();
        let Some(request) = state.waiters.get(id) else { return };
        let outcome = match ending {
            Ok(()) => QueueOutcome::Served,
            Err(failure) => QueueOutcome::Failed(Failure::clone(&failure)),
        };
        let ending = EndingRow { request: id.0, drv: request.drv.clone(), outcome };
        state.shared.endings.push(ending);
        drop(state);
        self.0.changed.notify_one();
    }

    /// Requests that nobody has waited for any more for `abandon_after` on this server, where several share
    /// the queue: the index tells if they are held on another.
    pub(in crate::build) fn abandoned(&self) -> Vec<u64> {
        let (now, state) = (self.0.now(), self.0.lock());
        let abandoned = state.queue.abandoned(now, self.0.settings.abandon_after);
        abandoned.into_iter().map(|id| id.0).collect()
    }

    /// Follows the shared queue, and tells the others of clients that wait here, for as long as the server
    /// runs.
    pub async fn follow_queue(self) {
        let Some(sharing) = &self.0.sharing else { return };
        let Some(cluster) = sharing.index.cluster() else { return };
        let reading = async {
            loop {
                let mut position = sharing.position.lock().await;
                let read = self.read_news(sharing, &mut position).await;
                drop(position);
                match read {
                    Ok(()) => cluster.queue_changed().await,
                    Err(error) => {
                        tracing::debug!(
                            error = &error as &dyn std::error::Error,
                            "cannot read the queue yet"
                        );
                        tokio::time::sleep(AGAIN_AFTER).await;
                    }
                }
            }
        };
        let holding = async {
            loop {
                if let Err(error) = self.hold_awaited(sharing).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "cannot tell of the clients that wait here yet");
                }
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(HOLD_EVERY) => {}
                    () = sharing.cancel_due.notified() => {}
                }
            }
        };
        tokio::join!(reading, holding);
    }

    /// Tells the index which requests are awaited here, where that has changed or was not told for a while.
    async fn hold_awaited(&self, sharing: &Sharing) -> Result<(), index::Error> {
        let mut position = sharing.position.lock().await;
        let cancelled = sharing.take_cancelled();
        let (awaited, has_changed) = {
            let (now, mut state) = (self.0.now(), self.0.lock());
            let state = &mut *state;
            let grace = self.0.settings.abandon_after;
            let is_in_grace =
                |id: &u64| !cancelled.contains(id) && state.queue.is_within_grace(RequestId(*id), now, grace);
            let mut held: BTreeSet<u64> = state.shared.held.iter().copied().filter(is_in_grace).collect();
            held.extend(state.waiters.awaited().map(|id| id.0));
            let has_changed = held != state.shared.held;
            state.shared.held.clone_from(&held);
            (held, has_changed)
        };
        let is_due = position.told_at.is_none_or(|at| at.elapsed() >= ALIVE_EVERY);
        if !has_changed && !is_due && cancelled.is_empty() {
            return Ok(());
        }
        // Where this fails it is told again.
        position.told_at = None;
        let missing = sharing.hold(awaited.into_iter().collect()).await?;
        if let (Some(cluster), false) = (sharing.index.cluster(), cancelled.is_empty()) {
            cluster.end_unheld(cancelled, QueueOutcome::Cancelled).await?;
        }
        position.told_at = Some(Instant::now());
        self.read_news(sharing, &mut position).await?;
        // Their endings are not on record any more: whoever waits looks for the outputs.
        let lost = missing.into_iter().filter_map(|id| {
            let drv = self.0.lock().waiters.get(RequestId(id))?.drv.clone();
            Some(EndingRow { request: id, drv, outcome: QueueOutcome::Served })
        });
        self.tell(lost.collect());
        Ok(())
    }
}

impl State {
    /// Forgets what only a leader has to do.
    pub(super) fn drop_work(&mut self) {
        self.unheld.clear();
        self.unplanned.clear();
        self.released.clear();
        self.unneeded.clear();
        self.ended.clear();
        self.queue.take_changed();
    }

    pub(super) fn endings(&self) -> Vec<EndingRow> {
        self.shared.endings.clone()
    }
}

fn ending_of(outcome: &QueueOutcome) -> Option<Ending> {
    match outcome {
        QueueOutcome::Served => Some(Ok(())),
        QueueOutcome::Failed(failure) => Some(Err(Arc::new(failure.clone()))),
        // Whoever waits all the same is cut off, and asks again.
        QueueOutcome::Dropped | QueueOutcome::Cancelled => None,
    }
}

fn past_of(outcome: &QueueOutcome) -> RequestState {
    match outcome {
        QueueOutcome::Served => RequestState::Served,
        QueueOutcome::Failed(failure) => failure.into(),
        QueueOutcome::Dropped => RequestState::Dropped,
        QueueOutcome::Cancelled => RequestState::Cancelled,
    }
}
