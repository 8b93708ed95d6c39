//! GC roots of what was accepted: the derivation of each request, and with it all that it refers to, has one
//! from before anyone is told that it waits until it has ended, also over a restart. Nothing is planned
//! before it is held.

use narinfo::StorePath;

use super::Worker;
use crate::build::queue::RequestId;
use crate::build::scheduler::RootChanges;
use crate::build::verdict::Verdict;
use crate::model::FailureClass;
use crate::nix::{Daemon, DaemonError};
use crate::roots;

impl Worker {
    /// Holds derivations of new requests, those that came meanwhile together, and releases the others, for as
    /// long as the server runs. Nobody else makes or removes these roots.
    pub(super) async fn hold_derivations(&self) {
        self.release_requested(self.requested.held().unwrap_or_default());
        loop {
            let RootChanges { hold, release } = self.scheduler.root_changes().await;
            self.release_requested(release);
            if !hold.is_empty() {
                self.hold(hold).await;
            }
        }
    }

    /// Releases all but those that somebody has asked for again, who is not held yet or is by the same root.
    fn release_requested(&self, drvs: Vec<StorePath>) {
        for drv in drvs {
            if !self.scheduler.contains(&drv) {
                self.requested.release(&drv);
            }
        }
    }

    async fn hold(&self, new: Vec<(RequestId, StorePath)>) {
        let (ids, drvs): (Vec<RequestId>, Vec<StorePath>) = new.into_iter().unzip();
        let (Some(first), Some(last)) = (drvs.first(), ids.last().copied()) else { return };
        // No store has what was sent, so there is nothing to hold.
        let sent = self.adopter.local.sent();
        let in_store: Vec<StorePath> = drvs.iter().filter(|drv| sent.find(drv).is_none()).cloned().collect();
        let hold = || async {
            // Not one that was used before: see catalogue/holder.rs on Nix 2.5 to 2.9.
            let mut daemon = self.runner.connections.pool.get_unused().await?;
            self.scheduler.daemon_answers();
            // The connection holds them until our roots do.
            self.bring(&mut daemon, &in_store).await?;
            self.requested.hold(&mut daemon, &in_store).await?;
            let mut valid = Vec::new();
            for drv in &drvs {
                valid.push(!in_store.contains(drv) || daemon.is_valid_path(drv).await?);
            }
            daemon.discard();
            Ok(valid)
        };
        let attempt = async || tokio::join!(hold(), self.importer.note_uses(&in_store)).0;
        let lost = |error: &roots::Error| {
            let lost = error.lost();
            self.scheduler.roots_stuck(lost.is_some());
            lost
        };
        let held: Result<Vec<bool>, roots::Error> = self.scheduler.patiently(first, attempt, lost).await;
        for (at, (id, drv)) in ids.into_iter().zip(&drvs).enumerate() {
            match &held {
                Ok(valid) if !valid[at] => self.leave_out(id, drv),
                Err(roots::Error::Daemon(error)) if error.is_connection_lost() => {
                    self.scheduler.withdraw(id);
                    let failure = self.failures.note(drv, Verdict::of_error(error));
                    self.fail(id, drv, failure).await;
                }
                held => {
                    if let Err(error) = held {
                        let error = error as &dyn std::error::Error;
                        tracing::error!(
                            %drv,
                            error,
                            "cannot set a GC root: a garbage collection may take this derivation while it waits"
                        );
                    }
                    self.scheduler.held(id);
                }
            }
        }
        self.scheduler.roots_held(last);
    }

    /// Adds pushed derivations to the Nix store. Those that cannot be brought are left out by what follows.
    async fn bring(&self, daemon: &mut Daemon, drvs: &[StorePath]) -> Result<(), DaemonError> {
        let Err(error) = self.importer.bring_into_store(daemon, drvs).await else { return Ok(()) };
        let error = match error.lost() {
            Ok(lost) => return Err(lost),
            Err(error) => error,
        };
        let error = &error as &dyn std::error::Error;
        tracing::error!(error, "cannot add a pushed derivation to the Nix store");
        Ok(())
    }

    /// The derivation of a request is not there: it was collected before it could be held.
    pub(super) fn leave_out(&self, id: RequestId, drv: &StorePath) {
        self.scheduler.withdraw(id);
        let reason = format!("the derivation {drv} is not in the Nix store any more (garbage-collected?)");
        self.give_up(id, drv, FailureClass::Transient, reason);
    }
}
