//! Terms of this server as the leader of several: the queue is taken over as it is on record, and given back.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::prebuild::PrebuildState;
use super::requests::RootProgress;
use super::{Forecaster, Scheduler, State};
use crate::build::Settings;
use crate::build::queue::Queue;
use crate::index;
use crate::model::Term;

/// Rest after the index could not be read.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

impl Scheduler {
    /// True where several servers share the queue.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.sharing.is_some()
    }

    /// A write was refused because another server leads.
    pub(in crate::build) fn note_superseded(&self) {
        if let Some(sharing) = &self.0.sharing {
            sharing.superseded.notify_one();
        }
    }

    /// Resolves once a write was refused because another server leads.
    pub async fn superseded(&self) {
        match &self.0.sharing {
            Some(sharing) => sharing.superseded.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Builds may be started until then; `None` where another server leads.
    pub fn set_lease(&self, until: Option<Instant>) {
        let Some(sharing) = &self.0.sharing else { return };
        let had_lapsed = !sharing.may_start();
        *sharing.lease_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        if had_lapsed && until.is_some() {
            self.wake();
        }
    }

    /// Takes the queue over as it is on record, in its order, for a term of this server. Clients that wait go
    /// on waiting.
    ///
    /// # Errors
    /// The index cannot be read; nothing has changed.
    pub async fn begin_term(&self, term: &Term) -> Result<(), index::Error> {
        let Some(sharing) = &self.0.sharing else { return Ok(()) };
        let index = &sharing.index;
        let prebuild = match self.0.settings.prebuild {
            Some(allowance) => Some(PrebuildState::open(allowance, index).await?),
            None => None,
        };
        let forecaster = Forecaster::new(index.durations().await?);
        let mut position = sharing.position.lock().await;
        let news = sharing.news(0, position.ending).await?;
        (position.request, position.ending) = (news.latest_request, news.latest_ending);
        {
            let mut state = self.0.lock();
            state.restart(&self.0.settings);
            (state.prebuild, state.forecaster) = (prebuild, forecaster);
        }
        index.set_term(Some(term.clone()));
        self.0.root_progress.send_replace(RootProgress::default());
        self.apply_news(news);
        self.restore_clients();
        Ok(())
    }

    /// Drops the work of a term that has ended: the queue is again what is on record. Clients that wait go on
    /// waiting.
    pub async fn end_term(&self) {
        let Some(sharing) = &self.0.sharing else { return };
        sharing.index.set_term(None);
        self.set_lease(None);
        loop {
            let mut position = sharing.position.lock().await;
            match sharing.news(0, position.ending).await {
                Ok(news) => {
                    (position.request, position.ending) = (news.latest_request, news.latest_ending);
                    self.0.lock().restart(&self.0.settings);
                    self.apply_news(news);
                    return self.restore_clients();
                }
                Err(error) => {
                    drop(position);
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot read the queue yet");
                    sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    /// Counts the clients that wait for the requests of a queue that was read anew.
    fn restore_clients(&self) {
        let mut state = self.0.lock();
        let state = &mut *state;
        for id in state.waiters.awaited() {
            let Some(request) = state.waiters.get(id).filter(|_| state.queue.wanted(id).is_some()) else {
                continue;
            };
            for _ in 0..request.tickets() {
                state.queue.ask(&request.drv);
            }
        }
    }
}

impl State {
    /// Forgets all but the clients that wait, and what is told of the past.
    fn restart(&mut self, settings: &Settings) {
        self.queue = Queue::new(settings.policy);
        self.waiters.retain_awaited();
        self.drop_work();
        self.running.clear();
        self.machines.restart();
        self.repeats = Default::default();
        self.held = Default::default();
        self.outage = None;
        self.learned.clear();
        self.snapshot = None;
        self.interrupted.clear();
        self.shared.endings.clear();
    }
}
