//! The queue as people and programs see it: JSON for the API, one line for a client that waits, headers for its answer.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant, SystemTime};

use super::estimate::Sum;
use super::idle::Idle;
use super::metrics::Gauges;
use super::queue::RequestId;
use super::waiting::Waiting;
use super::{Builds, State, Ticket};
use crate::index::{Failure, FailureClass};

/// Requests that are listed; of more, only their number is told.
const LISTED_MAX: usize = 1_000;
/// Requests that are remembered after their end.
const PAST_MAX: usize = 1_000;
/// Requests in the queue up to which it is foretold, when one is planned, when that will be delivered.
const FORETOLD_MAX: usize = 1_000;
/// How old the outlook may be before it is made anew.
const OUTLOOK_AGE_MAX: Duration = Duration::from_secs(1);
/// How many times as long as it took it counts at least: the queue is held meanwhile.
const OUTLOOK_WORTH: u32 = 20;

/// `GET /api/v1/queue`.
#[derive(Clone, Debug)]
pub struct QueueView {
    /// What is being built now.
    pub running: Vec<RunningView>,
    /// Requests that wait, in all.
    pub total: usize,
    /// The oldest of them, in order.
    pub requests: Vec<RequestView>,
    /// Why none of them goes on; null while they do.
    pub stalled: Option<String>,
}

/// A build that runs.
#[derive(Clone, Debug)]
pub struct RunningView {
    /// Base name of the derivation.
    pub derivation: String,
    /// Seconds since it was started.
    pub seconds: u64,
    /// The request it is built for.
    pub request: Option<u64>,
    /// Whether it is pre-built: for nobody yet, and stopped once someone waits for anything else.
    pub prebuild: bool,
}

/// A request that waits.
#[derive(Clone, Debug)]
pub struct RequestView {
    /// Its number, which is never used again.
    pub id: u64,
    /// Base name of the derivation it is for.
    pub derivation: String,
    /// When it was asked for, in Unix seconds.
    pub asked_at: u64,
    /// How many clients wait for it.
    pub clients: usize,
    /// Whether it waits or how it ended.
    pub state: RequestState,
    /// How it stands in the queue; nothing once it has left it.
    pub outlook: Option<Outlook>,
}

/// Where a request is in its life.
#[derive(Clone, Debug)]
pub enum RequestState {
    /// In the queue, nothing is being built for it now.
    Waiting,
    /// In the queue, and something is being built for it.
    Building {
        /// Base name of what is being built.
        building: String,
    },
    /// All is built; its outputs are being signed and published.
    Delivering,
    /// It was served.
    Served,
    /// It could not be built.
    Failed {
        /// Base name of the derivation whose build failed.
        cause: String,
        /// What the daemon said.
        reason: String,
    },
    /// Nothing was built for it, because this server cannot or may not.
    Refused {
        /// What is missing.
        reason: String,
    },
    /// Nobody waited for it any more, and nothing of it was built yet.
    Dropped,
}

impl From<&Failure> for RequestState {
    fn from(failure: &Failure) -> Self {
        let reason = failure.reason.clone();
        match failure.class {
            FailureClass::Refused => Self::Refused { reason },
            FailureClass::Permanent | FailureClass::Passing => {
                Self::Failed { cause: failure.cause.to_string(), reason }
            }
        }
    }
}

/// How a request stands.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// Its place, 1 being the oldest.
    pub position: usize,
    /// Of how many.
    pub of: usize,
    /// Derivations built for it since it was planned; nothing until it is planned.
    pub built: Option<usize>,
    /// How many it lacked then.
    pub lacked: Option<usize>,
    /// Seconds of work ahead of its delivery, as far as that is known; nothing until it is planned.
    pub known_seconds: Option<u64>,
    /// Derivations ahead of its delivery of which it is not known how long they take.
    pub unknown: Option<usize>,
    /// It is delivered between these numbers of seconds from now, in eight cases of ten.
    pub eta_seconds: Option<(u64, u64)>,
}

/// How every request stands, as of a moment.
pub(super) struct Board {
    at: Instant,
    took: Duration,
    outlooks: BTreeMap<RequestId, Outlook>,
}

/// Work ahead of each request and its own.
type Ahead = BTreeMap<RequestId, Sum>;

impl Builds {
    /// The queue, its oldest requests listed.
    #[must_use]
    pub fn view(&self) -> QueueView {
        let mut state = self.0.lock();
        let running = state.running.iter().map(|(drv, since)| RunningView {
            derivation: drv.to_string(),
            seconds: since.elapsed().as_secs(),
            request: state.queue.needed_by(drv).next().map(|id| id.0),
            prebuild: state.idle.as_ref().is_some_and(|idle| idle.is_running(drv)),
        });
        let running = running.collect();
        let ids: Vec<RequestId> = state.queue.requests().take(LISTED_MAX).collect();
        state.draw_board(self.0.settings.lanes);
        let views = ids.into_iter().map(|id| state.request_view(id, state.on_board(id)));
        let requests = views.flatten().collect();
        QueueView { running, total: state.queue.len(), requests, stalled: state.stalled() }
    }

    /// One request: one that waits, or one of the last thousand that have ended.
    #[must_use]
    pub fn request(&self, id: u64) -> Option<RequestView> {
        let mut state = self.0.lock();
        let outlook = state.outlook(RequestId(id), self.0.settings.lanes);
        let waiting = state.request_view(RequestId(id), outlook);
        waiting.or_else(|| state.past.iter().find(|past| past.id == id).cloned())
    }

    /// The metrics of the queue in the OpenMetrics text format, without its end.
    pub fn write_metrics(&self, out: &mut String) {
        let state = self.0.lock();
        let gauges = Gauges {
            requests: state.queue.len(),
            derivations: state.queue.lacking().count(),
            clients: state.queue.requests().map(|id| state.queue.clients(id)).sum(),
            running: state.running.len(),
            oldest: state.oldest_waits(),
            prebuilt_today: state.idle.as_ref().map(Idle::spent_today).unwrap_or_default(),
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

    /// How the request stands; nothing once it is being delivered.
    #[must_use]
    pub fn outlook(&self) -> Option<Outlook> {
        self.shared.lock().outlook(self.id, self.shared.settings.lanes)
    }

    /// One line that tells where this request stands.
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
        if let Some(stalled) = state.stalled() {
            return format!("{line}; {stalled}");
        }
        for (drv, since) in &state.running {
            let name = drv.name().trim_end_matches(".drv");
            line += &format!("; building {name} for {} s", since.elapsed().as_secs());
        }
        line
    }
}

/// Whole seconds that are not over before the duration is.
fn up_to_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

impl Board {
    fn is_old(&self) -> bool {
        self.at.elapsed() >= OUTLOOK_AGE_MAX.max(self.took * OUTLOOK_WORTH)
    }
}

impl State {
    /// The work that is owned by each request or an older one, shared by so many lanes.
    fn work_ahead(&self, lanes: NonZeroUsize) -> Ahead {
        let mut ahead = Sum::default();
        let after_each = self.queue.requests().map(|id| {
            for drv in self.queue.owned_by(id) {
                let running_for = self.running.get(drv).map(|since| since.elapsed());
                self.foresight.add_to(&mut ahead, drv, running_for);
            }
            (id, ahead.shared_by(lanes.get()))
        });
        after_each.collect()
    }

    /// What has to be built until a request is delivered.
    fn ahead_of(&self, id: RequestId, ahead: &Ahead) -> Option<Sum> {
        ahead.get(&self.queue.due_owner(id)?).copied()
    }

    /// Foretells when a request that was just planned will be delivered, to learn from how that comes out.
    pub(super) fn tell(&mut self, id: RequestId, lanes: NonZeroUsize) {
        if self.queue.len() > FORETOLD_MAX {
            return;
        }
        let ahead = self.ahead_of(id, &self.work_ahead(lanes));
        let told = ahead.and_then(|ahead| self.foresight.tell(ahead));
        if let Some(waiting) = self.waiting.get_mut(id) {
            waiting.told = told.map(|told| (told, Instant::now()));
        }
    }

    /// How one request stands, as of a moment ago: however many ask, the whole queue is looked at once in that time. One that is not
    /// on the board yet is told its place alone; nothing for what is not in the queue.
    fn outlook(&mut self, id: RequestId, lanes: NonZeroUsize) -> Option<Outlook> {
        self.queue.wanted(id)?;
        if self.board.as_ref().is_none_or(Board::is_old) {
            self.draw_board(lanes);
        }
        self.on_board(id).or_else(|| self.newcomer(id))
    }

    fn on_board(&self, id: RequestId) -> Option<Outlook> {
        self.board.as_ref()?.outlooks.get(&id).cloned()
    }

    /// One of the youngest.
    fn newcomer(&self, id: RequestId) -> Option<Outlook> {
        let (built, lacked) = self.queue.progress(id).unzip();
        let of = self.queue.len();
        let younger = self.queue.younger_than(id).count();
        let position = of.checked_sub(younger)?;
        Some(Outlook { position, of, built, lacked, known_seconds: None, unknown: None, eta_seconds: None })
    }

    fn draw_board(&mut self, lanes: NonZeroUsize) {
        let begun = Instant::now();
        let of = self.queue.len();
        let ahead = self.work_ahead(lanes);
        let outlooks = self.queue.requests().enumerate().map(|(before, id)| {
            let (built, lacked) = self.queue.progress(id).unzip();
            let ahead = self.ahead_of(id, &ahead);
            let told = ahead.and_then(|ahead| self.foresight.tell(ahead));
            let outlook = Outlook {
                position: before + 1,
                of,
                built,
                lacked,
                known_seconds: ahead.map(|ahead| ahead.known().as_secs()),
                unknown: ahead.map(|ahead| ahead.unknown),
                eta_seconds: told.map(|told| (told.earliest.as_secs(), up_to_seconds(told.latest))),
            };
            (id, outlook)
        });
        let outlooks = outlooks.collect();
        self.board = Some(Board { at: Instant::now(), took: begun.elapsed(), outlooks });
    }

    fn request_view(&self, id: RequestId, outlook: Option<Outlook>) -> Option<RequestView> {
        let waiting = self.waiting.get(id)?;
        let lacks = self.queue.lacks(id);
        let building = lacks.and_then(|lacks| self.running.keys().find(|drv| lacks.contains(*drv)));
        let state = match building {
            _ if outlook.is_none() => RequestState::Delivering,
            Some(drv) => RequestState::Building { building: drv.to_string() },
            None => RequestState::Waiting,
        };
        Some(waiting.view(id, self.queue.clients(id), state, outlook))
    }

    /// Keeps the end of a request for those who ask for it later.
    pub(super) fn remember(&mut self, id: RequestId, waiting: &Waiting, state: RequestState) {
        if self.past.len() >= PAST_MAX {
            self.past.pop_front();
        }
        self.past.push_back(waiting.view(id, 0, state, None));
    }

    fn oldest_waits(&self) -> Duration {
        let oldest = self.queue.requests().next().and_then(|id| self.waiting.get(id));
        oldest.and_then(|waiting| waiting.asked_at.elapsed().ok()).unwrap_or_default()
    }
}

impl Waiting {
    fn view(
        &self,
        id: RequestId,
        clients: usize,
        state: RequestState,
        outlook: Option<Outlook>,
    ) -> RequestView {
        let asked_at = self.asked_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        RequestView { id: id.0, derivation: self.drv.to_string(), asked_at, clients, state, outlook }
    }
}

#[cfg(test)]
mod tests {
    use narinfo::StorePath;

    use super::*;
    use crate::build::Settings;
    use crate::index::Index;

    async fn builds(folder: &tempfile::TempDir) -> Builds {
        let index = Index::open(&folder.path().join("index")).expect("opened");
        Builds::open(Settings::strict(), &index).await.expect("opened")
    }

    fn drv(number: u64) -> StorePath {
        StorePath::parse(&format!("{number:032}-p.drv")).expect("a path")
    }

    #[tokio::test]
    async fn the_whole_queue_is_looked_at_once_in_a_while_however_many_come_and_ask() {
        let folder = tempfile::tempdir().expect("a folder");
        let builds = builds(&folder).await;
        let ask = |number| builds.enter(&drv(number), None).expect("there is room").ticket;
        let drawn_at = || builds.0.lock().board.as_ref().map(|board| board.at);
        let mut tickets = vec![ask(0), ask(1)];
        let place = |ticket: &Ticket| ticket.outlook().map(|outlook| (outlook.position, outlook.of));
        assert_eq!(place(&tickets[1]), Some((2, 2)));
        // As if it had been drawn in a moment that does not pass.
        let later = Instant::now() + Duration::from_secs(3600);
        builds.0.lock().board.as_mut().expect("it was drawn").at = later;
        for number in 2..50 {
            tickets.push(ask(number));
            let place = place(tickets.last().expect("one"));
            assert_eq!(place, Some((tickets.len(), tickets.len())));
        }
        assert!(builds.request(50).is_some_and(|view| view.outlook.is_some()));
        assert!(builds.request(51).is_none());
        builds.0.lock().queue.remove(RequestId(3));
        assert!(tickets[2].outlook().is_none(), "it has left the queue");
        assert_eq!(drawn_at(), Some(later), "it was drawn again");
        assert_eq!(builds.view().total, 49);
        assert_eq!((place(&tickets[3]), place(&tickets[49])), (Some((3, 49)), Some((49, 49))));
    }
}
