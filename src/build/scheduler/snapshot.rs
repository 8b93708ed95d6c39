//! Snapshots of the queue for views, waiting clients and metrics. The whole queue is looked at once in a
//! while, however many ask meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::time::{Duration, SystemTime};

use narinfo::StorePath;
use tokio::time::Instant;

use super::prebuild::PrebuildState;
use super::{PendingRequest, Scheduler, State, Ticket};
use crate::build::forecast::estimate::Sum;
use crate::build::metrics::Gauges;
use crate::build::queue::RequestId;
use crate::build::view::{Outlook, QueuePulse, QueueView, RequestState, RequestView, RunningView};

/// Builds that a waiting client is told of; of more, only the number.
const TOLD_MAX: usize = 4;
/// Requests that are listed; of more, only the number is given.
const LISTED_MAX: usize = 1_000;
/// Requests in the queue up to which each is forecast once it is planned.
const FORECAST_MAX: usize = 1_000;
/// Age of a snapshot at least before it is made anew.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(1);
/// The same as a multiple of the time that it took, for which the queue was locked.
const SNAPSHOT_WORTH: u32 = 20;

/// Outlooks of all requests at one moment.
pub(super) struct QueueSnapshot {
    at: Instant,
    took: Duration,
    outlooks: BTreeMap<RequestId, Outlook>,
}

/// Work ahead of each request and its own.
type Ahead = BTreeMap<RequestId, Sum>;

impl Scheduler {
    /// The queue, with its oldest requests.
    #[must_use]
    pub fn snapshot(&self) -> QueueView {
        let mut state = self.0.lock();
        let running = state.running.keys().map(|drv| state.running_view(drv)).collect();
        let ids: Vec<RequestId> = state.queue.requests().take(LISTED_MAX).collect();
        state.take_snapshot(self.0.settings.lanes);
        let views = ids.into_iter().map(|id| state.request_view(id, state.in_snapshot(id)));
        let requests = views.flatten().collect();
        QueueView { running, total: state.queue.len(), requests, stalled: state.stalled() }
    }

    /// A request that waits, or one of the latest that have ended.
    #[must_use]
    pub fn request(&self, id: u64) -> Option<RequestView> {
        let mut state = self.0.lock();
        let outlook = state.outlook(RequestId(id), self.0.settings.lanes);
        let waiting = state.request_view(RequestId(id), outlook);
        waiting.or_else(|| state.past.get(id).cloned())
    }

    /// Durations of the latest builds of a derivation's kind, the oldest first.
    #[must_use]
    pub fn latest_durations(&self, drv: &StorePath, system: &str) -> Vec<Duration> {
        self.0.lock().forecaster.latest(drv, system, self.0.settings.cores)
    }

    /// The builds that run, the number of requests that wait, and the number of the request that ended last:
    /// for those who look often for a change.
    #[must_use]
    pub fn pulse(&self) -> QueuePulse {
        let state = self.0.lock();
        QueuePulse {
            running: state.running.keys().cloned().collect(),
            waiting: state.queue.len(),
            ended: state.past.latest().next().map(|request| request.id),
            stalled: state.stalled(),
        }
    }

    /// The latest requests that have ended, so many at most, the last one first.
    #[must_use]
    pub fn ended_requests(&self, max: usize) -> Vec<RequestView> {
        self.0.lock().past.latest().take(max).cloned().collect()
    }

    /// Derivations that are being built, and those of requests that wait, are being delivered, or have ended
    /// lately, the last one first.
    #[must_use]
    pub fn requested(&self) -> Vec<StorePath> {
        let state = self.0.lock();
        let running = state.running.keys().cloned();
        let waiting = state.waiters.ids().filter_map(|id| Some(state.waiters.get(id)?.drv.clone()));
        let ended = state.past.latest().filter_map(|request| StorePath::parse(&request.derivation).ok());
        running.chain(waiting).chain(ended).collect()
    }

    /// Places in the queue of all requests, and whether something is being built for each.
    #[must_use]
    pub fn places(&self) -> HashMap<u64, (usize, bool)> {
        let state = self.0.lock();
        let place = |(before, id): (usize, RequestId)| (id.0, (before + 1, state.building_for(id).is_some()));
        state.queue.requests().enumerate().map(place).collect()
    }

    /// The metrics of the queue in the OpenMetrics text format, without its end.
    pub fn write_metrics(&self, out: &mut String) {
        let state = self.0.lock();
        let gauges = Gauges {
            requests: state.queue.len(),
            derivations: state.queue.lacking().len(),
            clients: state.queue.requests().map(|id| state.queue.clients(id)).sum(),
            running: state.running.len(),
            oldest: state.oldest_waits(),
            prebuilt_today: state.prebuild.as_ref().map(PrebuildState::spent_today).unwrap_or_default(),
        };
        drop(state);
        self.0.metrics.write(&gauges, out);
    }
}

impl Ticket {
    /// The number of the request.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id.0
    }

    /// Outlook of the request; nothing once it is being delivered.
    #[must_use]
    pub fn outlook(&self) -> Option<Outlook> {
        self.shared.lock().outlook(self.id, self.shared.settings.lanes)
    }

    /// State of the request in one line, for the person who waits.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut line = match self.outlook() {
            Some(Outlook { position, of, built, lacked, known_seconds, unknown, eta_seconds }) => {
                let mut line = format!("position {position} of {of}");
                if let (Some(built), Some(lacked)) = (built, lacked) {
                    line += &format!("; {built} of {lacked} built");
                }
                if let Some(known_seconds) = known_seconds {
                    line += &format!("; known work ahead {known_seconds} s");
                }
                if let Some(unknown @ 1..) = unknown {
                    line += &format!(", {unknown} unknown");
                }
                match eta_seconds {
                    Some((earliest, latest)) => line += &format!("; ready in {earliest} to {latest} s"),
                    None if lacked.is_some() => line += "; time left unknown",
                    None => {}
                }
                line
            }
            None => "being delivered".to_owned(),
        };
        let state = self.shared.lock();
        if self.shared.sharing.as_ref().is_some_and(|sharing| !sharing.leads()) {
            return format!("{line}; another server schedules it");
        }
        if let Some(stalled) = state.stalled() {
            return format!("{line}; {stalled}");
        }
        let lacks = state.queue.lacks(self.id);
        let is_own = |drv: &StorePath| lacks.is_some_and(|lacks| lacks.contains(drv));
        let (own, others): (Vec<_>, Vec<_>) = state.running.iter().partition(|(drv, _)| is_own(drv));
        for (drv, since) in own.iter().chain(&others).take(TOLD_MAX) {
            let name = drv.name().trim_end_matches(".drv");
            line += &format!("; building {name}");
            if let (Some(builder), false) = (state.machines.machine_of(drv), state.machines.farm.is_local()) {
                line += &format!(" on {builder}");
            }
            line += &format!(" for {} s", since.elapsed().as_secs());
        }
        if let Some(more @ 1..) = state.running.len().checked_sub(TOLD_MAX) {
            line += &format!("; and {more} more");
        }
        line
    }
}

impl QueueSnapshot {
    fn is_old(&self) -> bool {
        self.at.elapsed() >= SNAPSHOT_AGE_MAX.max(self.took * SNAPSHOT_WORTH)
    }
}

impl State {
    /// A build that runs.
    pub(super) fn running_view(&self, drv: &StorePath) -> RunningView {
        RunningView {
            derivation: drv.to_string(),
            seconds: self.running.get(drv).map(|since| since.elapsed().as_secs()).unwrap_or_default(),
            expected_seconds: self.forecaster.estimate(drv, None).map(|estimate| estimate.mean() as u64),
            request: self.queue.needed_by(drv).next().map(|id| id.0),
            builder: self.machines.machine_of(drv).map(str::to_owned),
            prebuild: self.prebuild.as_ref().is_some_and(|prebuild| prebuild.is_running(drv)),
        }
    }

    /// The work that is owned by each request or an older one, shared by so many lanes.
    fn work_ahead(&self, lanes: NonZeroUsize) -> Ahead {
        let mut ahead = Sum::default();
        let after_each = self.queue.requests().map(|id| {
            for drv in self.queue.owned_by(id) {
                let running_for = self.running.get(drv).map(|since| since.elapsed());
                self.forecaster.add_to(&mut ahead, drv, running_for);
            }
            (id, ahead.shared_by(lanes.get()))
        });
        after_each.collect()
    }

    /// Work that has to be done until a request is delivered.
    fn ahead_of(&self, id: RequestId, ahead: &Ahead) -> Option<Sum> {
        ahead.get(&self.queue.due_owner(id)?).copied()
    }

    /// Forecasts the delivery of a request that was just planned, to learn from how that comes out.
    pub(super) fn forecast(&mut self, id: RequestId, lanes: NonZeroUsize) {
        if self.queue.len() > FORECAST_MAX {
            return;
        }
        let ahead = self.ahead_of(id, &self.work_ahead(lanes));
        let forecast = ahead.and_then(|ahead| self.forecaster.forecast(ahead));
        if let Some(request) = self.waiters.get_mut(id) {
            request.forecast = forecast.map(|forecast| (forecast, Instant::now()));
        }
    }

    /// Outlook of one request, as of a moment ago. One that is not in the snapshot yet is given its place
    /// alone; nothing for what is not in the queue.
    fn outlook(&mut self, id: RequestId, lanes: NonZeroUsize) -> Option<Outlook> {
        self.queue.wanted(id)?;
        if self.snapshot.as_ref().is_none_or(QueueSnapshot::is_old) {
            self.take_snapshot(lanes);
        }
        self.in_snapshot(id).or_else(|| self.place_alone(id))
    }

    fn in_snapshot(&self, id: RequestId) -> Option<Outlook> {
        self.snapshot.as_ref()?.outlooks.get(&id).cloned()
    }

    /// Outlook of one of the youngest requests, which is cheap to find.
    fn place_alone(&self, id: RequestId) -> Option<Outlook> {
        let (built, lacked) = self.queue.progress(id).unzip();
        let of = self.queue.len();
        let younger = self.queue.younger_than(id).count();
        let position = of.checked_sub(younger)?;
        Some(Outlook { position, of, built, lacked, known_seconds: None, unknown: None, eta_seconds: None })
    }

    fn take_snapshot(&mut self, lanes: NonZeroUsize) {
        let begun = Instant::now();
        let of = self.queue.len();
        let ahead = self.work_ahead(lanes);
        let outlooks = self.queue.requests().enumerate().map(|(before, id)| {
            let (built, lacked) = self.queue.progress(id).unzip();
            let ahead = self.ahead_of(id, &ahead);
            let forecast = ahead.and_then(|ahead| self.forecaster.forecast(ahead));
            let outlook = Outlook {
                position: before + 1,
                of,
                built,
                lacked,
                known_seconds: ahead.map(|ahead| ahead.known().as_secs()),
                unknown: ahead.map(|ahead| ahead.unknown),
                eta_seconds: forecast.and_then(|forecast| forecast.told()),
            };
            (id, outlook)
        });
        let outlooks = outlooks.collect();
        self.snapshot = Some(QueueSnapshot { at: Instant::now(), took: begun.elapsed(), outlooks });
    }

    fn request_view(&self, id: RequestId, outlook: Option<Outlook>) -> Option<RequestView> {
        let request = self.waiters.get(id)?;
        let state = match self.building_for(id) {
            _ if outlook.is_none() => RequestState::Delivering,
            Some(drv) => RequestState::Building { building: drv.to_string() },
            None => RequestState::Waiting,
        };
        Some(request.view(id, self.queue.clients(id), state, outlook))
    }

    /// A derivation that is being built for a request.
    fn building_for(&self, id: RequestId) -> Option<&StorePath> {
        let lacks = self.queue.lacks(id)?;
        self.running.keys().find(|drv| lacks.contains(*drv))
    }

    /// Keeps the end of a request for those who ask for it later.
    pub(super) fn remember(&mut self, id: RequestId, request: &PendingRequest, state: RequestState) {
        let ended_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.past.push(RequestView { ended_at: Some(ended_at), ..request.view(id, 0, state, None) });
    }

    fn oldest_waits(&self) -> Duration {
        let oldest = self.queue.requests().next().and_then(|id| self.waiters.get(id));
        oldest.and_then(|request| request.asked_at.elapsed().ok()).unwrap_or_default()
    }
}

impl PendingRequest {
    fn view(
        &self,
        id: RequestId,
        clients: usize,
        state: RequestState,
        outlook: Option<Outlook>,
    ) -> RequestView {
        let asked_at = self.asked_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let derivation = self.drv.to_string();
        let builder = self.builder.clone();
        RequestView { id: id.0, derivation, asked_at, ended_at: None, clients, builder, state, outlook }
    }
}

#[cfg(test)]
mod tests {
    use narinfo::StorePath;

    use super::*;
    use crate::build::Settings;
    use crate::index::Index;

    async fn scheduler(folder: &tempfile::TempDir) -> Scheduler {
        let index = Index::open(&folder.path().join("index")).expect("opened");
        Scheduler::open(Settings::default(), &index).await.expect("opened")
    }

    fn drv(number: u64) -> StorePath {
        StorePath::parse(&format!("{number:032}-p.drv")).expect("a path")
    }

    #[tokio::test]
    async fn the_whole_queue_is_looked_at_once_in_a_while_however_many_come_and_ask() {
        let folder = tempfile::tempdir().expect("a folder");
        let scheduler = scheduler(&folder).await;
        let ask = |number| scheduler.enter(&drv(number), None, None).expect("there is room").ticket;
        let taken_at = || scheduler.0.lock().snapshot.as_ref().map(|snapshot| snapshot.at);
        let mut tickets = vec![ask(0), ask(1)];
        let place = |ticket: &Ticket| ticket.outlook().map(|outlook| (outlook.position, outlook.of));
        assert_eq!(place(&tickets[1]), Some((2, 2)));
        // As if it had been taken in a moment that does not pass.
        let later = Instant::now() + Duration::from_secs(3600);
        scheduler.0.lock().snapshot.as_mut().expect("it was taken").at = later;
        for number in 2..50 {
            tickets.push(ask(number));
            let place = place(tickets.last().expect("one"));
            assert_eq!(place, Some((tickets.len(), tickets.len())));
        }
        assert!(scheduler.request(50).is_some_and(|view| view.outlook.is_some()));
        assert!(scheduler.request(51).is_none());
        scheduler.0.lock().queue.remove(RequestId(3));
        assert!(tickets[2].outlook().is_none(), "it has left the queue");
        assert_eq!(taken_at(), Some(later), "it was taken again");
        assert_eq!(scheduler.snapshot().total, 49);
        assert_eq!((place(&tickets[3]), place(&tickets[49])), (Some((3, 49)), Some((49, 49))));
    }
}
