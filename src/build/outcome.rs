//! What follows from the end of a build: a request whose closure is complete is delivered at once, one that cannot be completed
//! fails, and what failed is remembered.

use std::sync::Arc;

use narinfo::StorePath;

use super::builder::known_outputs;
use super::queue::RequestId;
use super::verdict::Verdict;
use super::{Ending, RequestState, Worker};
use crate::index::Failure;

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
            Err(verdict) => {
                let failure = self.failures.note(&drv, verdict);
                self.fail(id, &drv, failure).await;
            }
        }
    }

    async fn publish(&self, drv: &StorePath) -> Result<(), Verdict> {
        let outputs =
            async { known_outputs(&mut *self.builder.connections.pool.get().await?, drv).await }.await;
        let outputs = outputs.map_err(|error| Verdict::of_error(&error))?;
        self.adopter.adopt(&outputs).await.map_err(|error| {
            tracing::error!(%drv, error = &error as &dyn std::error::Error, "built, but not published");
            Verdict::passing(format!("it was built, but could not be published: {error}"))
        })
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
        if let Some(waiting) = waiting {
            waiting.ending.send_replace(Some(ending));
        }
    }
}
