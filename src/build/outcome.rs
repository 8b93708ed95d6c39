//! What follows from the end of a build: a request whose closure is complete is delivered at once, one that cannot be completed
//! fails, and what failed is remembered.

use std::sync::Arc;
use std::time::SystemTime;

use narinfo::StorePath;

use super::builder::known_outputs;
use super::queue::RequestId;
use super::verdict::Verdict;
use super::{Ending, RequestState, Worker};
use crate::adopt;
use crate::index::{Failure, FailureClass};

/// How often a request may be complete and then not: its outputs are collected each time.
const RETURNS_MAX: u32 = 5;

/// What is to be done once a build has ended.
pub(super) enum After {
    /// A request is complete; with what it wanted.
    Deliver(RequestId, StorePath),
    /// A request cannot be completed; with what it wanted, and the failure of the cause.
    Fail(RequestId, StorePath, Failure),
    /// Nobody has asked for it yet, and it is there; with its outputs, which are held.
    Serve(StorePath, Vec<StorePath>),
    /// Nobody has asked for it yet, and nobody need wait for it.
    Remember(Failure),
}

impl Worker {
    pub(super) async fn follow(self, after: After) {
        match after {
            After::Deliver(id, wanted) => self.deliver(id, wanted).await,
            After::Fail(id, wanted, failed) => self.fail(id, &wanted, failed).await,
            After::Serve(drv, outputs) => {
                // Adopting holds them, too; what cannot be adopted is tried again when someone asks.
                if self.publish(&drv).await.is_ok() {
                    tracing::info!(%drv, "pre-built");
                }
                outputs.iter().for_each(|output| self.builder.roots.release(output));
            }
            After::Remember(failure) => {
                let drv = failure.drv.clone();
                self.failures.record(&drv, failure).await;
            }
        }
    }

    /// Makes the outputs of a complete request served, and tells those who wait.
    pub(super) async fn deliver(&self, id: RequestId, drv: StorePath) {
        match self.publish(&drv).await {
            Ok(()) => {
                tracing::info!(%drv, "delivered");
                self.failures.built(&drv).await;
                self.end(id, Ok(()));
            }
            // It was never there, or was collected in this moment.
            Err(adopt::Error::NotValid(path)) if self.put_back(id, &drv) => {
                tracing::info!(%drv, %path, "not valid in the Nix store; planned again");
            }
            Err(error) => {
                tracing::error!(%drv, error = &error as &dyn std::error::Error, "built, but not published");
                let verdict = match &error {
                    adopt::Error::Daemon(error) => Verdict::of_error(error),
                    error => Verdict::passing(format!("it was built, but could not be published: {error}")),
                };
                let failure = self.failures.note(&drv, verdict);
                self.fail(id, &drv, failure).await;
            }
        }
    }

    /// Has a request planned again, unless that was done too often. Its clients go on waiting.
    fn put_back(&self, id: RequestId, drv: &StorePath) -> bool {
        let mut state = self.builds.0.lock();
        let Some(waiting) = state.waiting.get_mut(id) else { return false };
        waiting.returns += 1;
        let clients = waiting.ending.receiver_count();
        if waiting.returns > RETURNS_MAX || !state.queue.put_back(id, drv, clients) {
            return false;
        }
        state.unplanned.push_back(id);
        drop(state);
        self.builds.0.asked.notify_one();
        true
    }

    /// Ends a request that cannot go on for a reason which is no failure: nothing is remembered.
    pub(super) fn give_up(&self, id: RequestId, drv: &StorePath, reason: String) {
        tracing::info!(%drv, %reason, "given up");
        let now = SystemTime::now();
        let failure = Failure {
            drv: drv.clone(),
            class: FailureClass::Passing,
            cause: drv.clone(),
            reason,
            failed_at: now,
            expires_at: now,
        };
        self.end(id, Err(Arc::new(failure)));
    }

    /// Has the outputs served, if they are valid. Waits for a lost daemon.
    async fn publish(&self, drv: &StorePath) -> Result<(), adopt::Error> {
        let attempt = || async {
            let outputs = {
                let mut daemon = self.builder.connections.pool.get().await?;
                self.builds.note_daemon();
                known_outputs(&mut daemon, drv).await?
            };
            self.adopter.adopt(&outputs).await
        };
        self.builds.patiently(drv, attempt, adopt::Error::lost).await
    }

    pub(super) async fn fail(&self, id: RequestId, drv: &StorePath, cause: Failure) {
        let failure = self.failures.record(drv, cause).await;
        self.end(id, Err(Arc::new(failure)));
    }

    fn end(&self, id: RequestId, ending: Ending) {
        let waiting = {
            let mut state = self.builds.0.lock();
            for held in &mut state.held {
                held.needed_by.remove(&id);
            }
            for done in state.held.extract_if(.., |held| held.needed_by.is_empty()) {
                done.outputs.iter().for_each(|output| self.builder.roots.release(output));
            }
            let past = match &ending {
                Ok(()) => RequestState::Served,
                Err(failure) => failure.as_ref().into(),
            };
            state.forget(id, past, &self.builds.0.metrics)
        };
        self.builds.0.changed.notify_one();
        self.builds.0.to_hold.notify_one();
        if let Some(waiting) = waiting {
            waiting.ending.send_replace(Some(ending));
        }
    }
}
