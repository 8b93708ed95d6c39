//! What was accepted is held: the derivation of each request, and with it all that it refers to, has a GC root from before anyone is
//! told that it waits until it has ended, also over a restart. Nothing is planned before it is held.

use narinfo::StorePath;

use super::Worker;
use super::queue::RequestId;
use super::verdict::Verdict;
use crate::roots;

/// How far the derivations of requests are held.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Holding {
    /// Those of all requests up to this one are held, or have ended.
    up_to: u64,
    /// The next ones wait for the daemon.
    stuck: bool,
}

impl Holding {
    /// Whether there is something to be told of this request.
    pub(super) fn has(self, id: RequestId) -> bool {
        self.stuck || self.up_to >= id.0
    }
}

impl Worker {
    /// Holds derivations of new requests, those that came meanwhile together, and lets go of the others, for as long as the server
    /// runs. Nobody else makes or removes these roots.
    pub(super) async fn hold_all(&self) {
        self.let_go_of(self.requested.held().unwrap_or_default());
        loop {
            let (new, gone) = {
                let mut state = self.builds.0.lock();
                let unheld = std::mem::take(&mut state.unheld);
                let wanted = |id: RequestId| Some((id, state.queue.wanted(id)?.clone()));
                let new: Vec<_> = unheld.iter().copied().filter_map(wanted).collect();
                (new, std::mem::take(&mut state.let_go))
            };
            self.let_go_of(gone);
            if new.is_empty() {
                self.builds.0.to_hold.notified().await;
            } else {
                self.hold(new).await;
            }
        }
    }

    /// Somebody may have asked for one of these again, who is not held yet or is by the same root.
    fn let_go_of(&self, drvs: Vec<StorePath>) {
        for drv in drvs {
            if !self.builds.contains(&drv) {
                self.requested.release(&drv);
            }
        }
    }

    async fn hold(&self, new: Vec<(RequestId, StorePath)>) {
        let (ids, drvs): (Vec<RequestId>, Vec<StorePath>) = new.into_iter().unzip();
        let (Some(first), Some(last)) = (drvs.first(), ids.last().copied()) else { return };
        let attempt = || async {
            // Not one that was used before: see catalogue/holder.rs on Nix 2.5 to 2.9.
            let mut daemon = self.builder.connections.pool.get_fresh().await?;
            self.builds.note_daemon();
            self.requested.hold(&mut daemon, &drvs).await?;
            let mut valid = Vec::new();
            for drv in &drvs {
                valid.push(daemon.is_valid_path(drv).await?);
            }
            daemon.discard();
            Ok(valid)
        };
        let lost = |error: &roots::Error| {
            let lost = error.lost();
            self.builds.0.holding.send_modify(|holding| holding.stuck = lost.is_some());
            lost
        };
        let held: Result<Vec<bool>, roots::Error> = self.builds.patiently(first, attempt, lost).await;
        for (at, (id, drv)) in ids.into_iter().zip(&drvs).enumerate() {
            match &held {
                Ok(valid) if !valid[at] => self.leave_out(id, drv),
                Err(roots::Error::Daemon(error)) if error.is_connection_lost() => {
                    self.builds.0.lock().queue.remove(id);
                    let failure = self.failures.note(drv, Verdict::of_error(error));
                    self.fail(id, drv, failure).await;
                }
                held => {
                    if let Err(error) = held {
                        let error = error as &dyn std::error::Error;
                        tracing::error!(%drv, error, "not held: a garbage collection may take it while it waits");
                    }
                    self.builds.0.lock().unplanned.push_back(id);
                }
            }
        }
        self.builds.0.holding.send_replace(Holding { up_to: last.0, stuck: false });
        self.builds.0.asked.notify_one();
    }

    /// The derivation of a request is not there: it was collected before it could be held.
    pub(super) fn leave_out(&self, id: RequestId, drv: &StorePath) {
        self.builds.0.lock().queue.remove(id);
        self.give_up(
            id,
            drv,
            format!("the derivation {drv} is not in the Nix store any more (garbage-collected?)"),
        );
    }
}
