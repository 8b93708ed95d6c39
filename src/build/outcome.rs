//! What follows from the end of a build: a request whose closure is complete is delivered at once, one that cannot be completed
//! fails, and what failed is remembered.

use std::sync::Arc;
use std::time::SystemTime;

use narinfo::StorePath;

use super::builder::known_outputs;
use super::queue::RequestId;
use super::verdict::Verdict;
use super::{Ending, RequestState, Worker};
use crate::index::{Failure, FailureClass};

/// What did not succeed, and what it means.
#[derive(Clone)]
pub(super) struct Failed {
    pub(super) cause: StorePath,
    pub(super) verdict: Verdict,
}

/// What is to be done once a build has ended.
pub(super) enum After {
    /// A request is complete; with what it wanted.
    Deliver(RequestId, StorePath),
    /// A request cannot be completed; with what it wanted.
    Fail(RequestId, StorePath, Failed),
    /// Nobody has asked for it yet, and it is there; with its outputs, which are held.
    Serve(StorePath, Vec<StorePath>),
    /// Nobody has asked for it yet, and nobody need wait for it.
    Remember(Failed),
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
            After::Remember(failed) => {
                let drv = failed.cause.clone();
                self.remember(&drv, failed).await;
            }
        }
    }

    /// Makes the outputs of a complete request served, and tells those who wait.
    pub(super) async fn deliver(&self, id: RequestId, drv: StorePath) {
        match self.publish(&drv).await {
            Ok(()) => {
                tracing::info!(%drv, "delivered");
                self.forget_failure(drv).await;
                self.end(id, Ok(()));
            }
            Err(verdict) => {
                self.fail(id, &drv, Failed { cause: drv.clone(), verdict }).await;
            }
        }
    }

    /// A failure that was remembered is no longer true; that it stays a little longer harms nobody.
    pub(super) async fn forget_failure(&self, drv: StorePath) {
        if let Ok(Some(_)) = self.index.failure(drv.clone(), SystemTime::now()).await {
            let _ = self.index.forget_failure(drv).await;
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

    pub(super) async fn fail(&self, id: RequestId, drv: &StorePath, failed: Failed) {
        let failure = self.remember(drv, failed).await;
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

    /// Remembers the failure, for the derivation that failed as for the one that needed it.
    async fn remember(&self, drv: &StorePath, failed: Failed) -> Failure {
        let Failed { cause, verdict } = failed;
        let memory = match verdict.class {
            FailureClass::Permanent => self.settings.remember_permanent,
            FailureClass::Passing | FailureClass::Refused => self.settings.remember_passing,
        };
        let now = SystemTime::now();
        let failure = Failure {
            drv: drv.clone(),
            class: verdict.class,
            cause: cause.clone(),
            reason: verdict.reason,
            failed_at: now,
            expires_at: now + memory,
        };
        let mut remembered = self.index.remember_failure(failure.clone()).await;
        if remembered.is_ok() && cause != *drv {
            remembered = self.index.remember_failure(Failure { drv: cause, ..failure.clone() }).await;
        }
        if let Err(error) = remembered {
            tracing::error!(%drv, error = &error as &dyn std::error::Error, "the failure is not remembered");
        }
        failure
    }
}
