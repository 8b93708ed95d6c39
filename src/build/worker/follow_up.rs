//! Consequences of the end of a build: a request whose closure is complete is delivered at once, one that
//! cannot be completed fails, and the failure is remembered.

use std::sync::Arc;
use std::time::SystemTime;

use narinfo::StorePath;

use super::Worker;
use crate::adopt;
use crate::build::Ending;
use crate::build::queue::RequestId;
use crate::build::runner::known_outputs;
use crate::build::scheduler::{DAEMON, FollowUp, INDEX, NAR_STORE};
use crate::build::verdict::Verdict;
use crate::causes::with_causes;
use crate::model::{Failure, FailureClass};

impl Worker {
    pub(super) async fn follow_up(self, follow_up: FollowUp) {
        match follow_up {
            FollowUp::Deliver(id, wanted) => self.deliver(id, wanted).await,
            FollowUp::Fail(id, wanted, failed) => self.fail(id, &wanted, failed).await,
            FollowUp::Serve(drv, outputs) => {
                // Adopting holds them, too; what cannot be adopted is tried again when someone asks.
                if self.publish(&drv).await.is_ok() {
                    tracing::info!(%drv, "pre-built");
                }
                outputs.iter().for_each(|output| self.runner.roots.release(output));
            }
            FollowUp::Remember(failure) => {
                let drv = failure.drv.clone();
                self.failures.record(&drv, failure).await;
            }
        }
    }

    /// Makes the outputs of a complete request served, and tells those who wait.
    pub(super) async fn deliver(&self, id: RequestId, drv: StorePath) {
        match self.publish(&drv).await {
            Ok(()) => {
                tracing::info!(request = id.0, %drv, "delivered");
                self.failures.built(&drv).await;
                self.end(id, Ok(()));
            }
            // It was never there, or was collected in this moment.
            Err(adopt::Error::NotValid(path)) if self.scheduler.put_back(id, &drv) => {
                tracing::info!(request = id.0, %drv, %path, "output not valid in the Nix store; request planned again");
            }
            // The leader of now goes on with it.
            Err(adopt::Error::Index(error)) if self.is_superseded(&error) => {}
            Err(error) => {
                tracing::error!(request = id.0, %drv, error = &error as &dyn std::error::Error, "cannot publish what was built");
                let verdict = match &error {
                    adopt::Error::Daemon(error) => Verdict::of_error(error),
                    error => Verdict::transient(format!("it was built, but could not be published: {error}")),
                };
                let failure = self.failures.note(&drv, verdict);
                self.fail(id, &drv, failure).await;
            }
        }
    }

    /// Ends a request that cannot go on for a reason which is no failure: nothing is remembered.
    pub(super) fn give_up(&self, id: RequestId, drv: &StorePath, class: FailureClass, reason: String) {
        tracing::info!(request = id.0, %drv, %reason, "request given up");
        let now = SystemTime::now();
        let failure =
            Failure { drv: drv.clone(), class, cause: drv.clone(), reason, failed_at: now, expires_at: now };
        self.end(id, Err(Arc::new(failure)));
    }

    /// Has the outputs served, if they are valid. Waits for a lost daemon and for an unavailable index.
    async fn publish(&self, drv: &StorePath) -> Result<(), adopt::Error> {
        let attempt = || async {
            let mut daemon = self.runner.connections.get().await?;
            self.scheduler.daemon_answers();
            let outputs = match self.adopter.local.sent().find(drv) {
                Some(sent) => sent.outputs.clone(),
                None => known_outputs(&mut daemon, drv).await?,
            };
            self.adopter.adopt_through(&mut daemon, &outputs).await?;
            // Its temporary roots are those of the build, and end with them.
            self.runner.connections.give_back(daemon);
            Ok(())
        };
        let lost = |error: &adopt::Error| match error {
            adopt::Error::Index(error) if error.is_transient() => Some((INDEX, with_causes(error))),
            adopt::Error::Pack(error) => Some((NAR_STORE, with_causes(error))),
            error => error.lost().map(|reason| (DAEMON, reason)),
        };
        self.scheduler.patiently_for(drv, attempt, lost).await
    }

    pub(super) async fn fail(&self, id: RequestId, drv: &StorePath, cause: Failure) {
        let failure = self.failures.record(drv, cause).await;
        self.end(id, Err(Arc::new(failure)));
    }

    fn end(&self, id: RequestId, ending: Ending) {
        self.scheduler.release(id).iter().for_each(|output| self.runner.roots.release(output));
        self.scheduler.ended(id, ending);
    }
}
