//! Worker of simulations: the queue and its record are those of the [`Worker`](super::Worker), and what that
//! has Nix do takes its time on a site, and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use narinfo::StorePath;
use tokio::task::JoinSet;

use super::record::QueueRecorder;
use super::{Finished, LOOK_FOR_ABANDONED_EVERY, Lane, Planned};
use crate::build::queue::RequestId;
use crate::build::runner::Built;
use crate::build::scheduler::{FollowUp, INDEX, Scheduler};
use crate::index::{self, Index};
use crate::model::{Failure, FailureClass, NarRow, PathRow, Term};

/// A step of a site.
pub(crate) type SiteFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Machine of one server: its Nix store and its way to the NARs of all.
pub(crate) trait BuildSite: Send + Sync + 'static {
    /// The derivations that this store lacks for one, each with its inputs among them.
    fn lacking(&self, drv: &StorePath) -> BTreeMap<StorePath, BTreeSet<StorePath>>;

    /// Begins a build at once; resolves with its duration, or with the reason of its failure.
    fn build(&self, epoch: u64, drv: &StorePath) -> SiteFuture<Result<Duration, String>>;

    /// Stores the NARs of the closure of what was built, inputs first.
    fn store(&self, drv: &StorePath) -> SiteFuture<Vec<(PathRow, NarRow)>>;
}

/// The worker of one server.
#[derive(Clone)]
pub(crate) struct SimulatedWorker {
    pub(crate) scheduler: Scheduler,
    pub(crate) index: Index,
    pub(crate) site: Arc<dyn BuildSite>,
    epoch: u64,
}

impl SimulatedWorker {
    pub(crate) fn new(scheduler: Scheduler, index: Index, site: Arc<dyn BuildSite>) -> Self {
        Self { scheduler, index, site, epoch: 0 }
    }

    /// The same, which records all that it does for a term.
    pub(crate) fn for_term(&self, term: &Term) -> Self {
        Self { index: self.index.fenced(term), epoch: term.epoch, ..self.clone() }
    }

    /// Works for as long as the term lasts.
    pub(crate) async fn run(self) {
        // Apart from the others, which do nothing each second.
        let (mut dropping, worker) = (JoinSet::new(), self.clone());
        dropping.spawn(async move { worker.drop_abandoned().await });
        tokio::join!(self.hold_all(), self.plan_all(), self.build_all(), self.recorder().record_all());
    }

    fn recorder(&self) -> QueueRecorder<'_> {
        QueueRecorder { scheduler: &self.scheduler, index: &self.index }
    }

    async fn hold_all(&self) {
        loop {
            let ids: Vec<_> =
                self.scheduler.root_changes().await.hold.into_iter().map(|(id, _)| id).collect();
            ids.iter().for_each(|id| self.scheduler.held(*id));
            if let Some(last) = ids.last() {
                self.scheduler.roots_held(*last);
            }
        }
    }

    async fn plan_all(&self) {
        loop {
            let (id, drv) = self.scheduler.next_unplanned().await;
            let planned = Planned { needs: self.site.lacking(&drv), ..Planned::default() };
            if self.scheduler.planned(id, planned) {
                self.deliver(id, drv).await;
            }
        }
    }

    async fn build_all(&self) {
        let (mut lanes, mut deliveries) = (JoinSet::new(), JoinSet::new());
        loop {
            while deliveries.try_join_next().is_some() {}
            while let Some((drv, _)) = self.scheduler.next(Lane::Main) {
                let building = self.site.build(self.epoch, &drv);
                lanes.spawn(async move { (drv, building.await) });
            }
            let (drv, built) = tokio::select! {
                biased;
                Some(Ok(ended)) = lanes.join_next() => ended,
                () = self.scheduler.work() => continue,
            };
            let finished = match built {
                Ok(took) => Finished::Built(Built { outputs: Vec::new(), worked: true, took }),
                Err(reason) => Finished::Failed(failure(&drv, reason)),
            };
            for follow_up in self.scheduler.finished(&drv, finished, Lane::Main) {
                let worker = self.clone();
                deliveries.spawn(async move {
                    match follow_up {
                        FollowUp::Deliver(id, wanted) => worker.deliver(id, wanted).await,
                        FollowUp::Fail(id, _, failure) => worker.scheduler.ended(id, Err(Arc::new(failure))),
                        FollowUp::Serve(..) | FollowUp::Remember(_) => {}
                    }
                });
            }
        }
    }

    /// Publishes a closure whose NARs are stored, and ends the request.
    async fn deliver(&self, id: RequestId, drv: StorePath) {
        let attempt = || async {
            let (paths, nars): (Vec<_>, Vec<_>) = self.site.store(&drv).await.into_iter().unzip();
            for nar in nars {
                self.index.record_packed(nar.into()).await?;
            }
            self.index.publish(paths).await
        };
        let lost = |error: &index::Error| error.is_transient().then(|| (INDEX, error.to_string()));
        match self.scheduler.patiently_for(&drv, attempt, lost).await {
            Ok(true) => self.scheduler.ended(id, Ok(())),
            Err(index::Error::Superseded) => self.scheduler.note_superseded(),
            trouble => {
                let reason = format!("it was built, but could not be published: {trouble:?}");
                self.scheduler.ended(id, Err(Arc::new(failure(&drv, reason))));
            }
        }
    }

    async fn drop_abandoned(&self) {
        let mut ticks = tokio::time::interval(LOOK_FOR_ABANDONED_EVERY);
        loop {
            ticks.tick().await;
            self.recorder().drop_unheld().await;
        }
    }
}

fn failure(drv: &StorePath, reason: String) -> Failure {
    let now = SystemTime::UNIX_EPOCH;
    let (class, cause) = (FailureClass::Permanent, drv.clone());
    Failure { drv: drv.clone(), class, cause, reason, failed_at: now, expires_at: now }
}
