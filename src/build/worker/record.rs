//! Record of the queue over a restart: every change is brought to the index, many at once where many come. A
//! queue that cannot be recorded goes on; it only does not survive the server.

use std::time::Duration;

use tokio::time::sleep;

use super::Worker;
use crate::backoff::Backoff;
use crate::build::scheduler::{QueueChanges, Scheduler};
use crate::causes::with_causes;
use crate::index::{self, Index};
use crate::model::{EndingRow, QueueOutcome};

/// Pauses before endings are recorded again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Recorder of the queue of one server, in an index that may refuse it.
#[derive(Clone, Copy)]
pub(super) struct QueueRecorder<'a> {
    pub(super) scheduler: &'a Scheduler,
    pub(super) index: &'a Index,
}

impl Worker {
    /// Outputs that were held before a restart stay held for those who waited then.
    pub(super) fn restore_held(&self) {
        let roots = &self.runner.roots;
        let held = roots.held().unwrap_or_default();
        self.scheduler.restore_held(held).iter().for_each(|output| roots.release(output));
    }

    pub(super) fn recorder(&self) -> QueueRecorder<'_> {
        QueueRecorder { scheduler: &self.scheduler, index: &self.index }
    }

    /// True where another server leads; then that is seen to.
    pub(super) fn is_superseded(&self, error: &index::Error) -> bool {
        self.recorder().is_superseded(error)
    }
}

impl QueueRecorder<'_> {
    /// Records changes for as long as the server runs.
    pub(super) async fn record_all(self) {
        loop {
            let changes = self.scheduler.take_changes();
            let QueueChanges { requests, gone, durations, endings, made } = changes;
            if (!requests.is_empty() || !gone.is_empty() || !durations.is_empty())
                && let Err(error) = self.index.record_queue(requests, gone, durations).await
                && !self.is_superseded(&error)
            {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "cannot record the queue: a restart would lose the latest requests; check the disk of the state \
                     directory"
                );
            }
            if !endings.is_empty() {
                self.record_endings(endings).await;
            }
            self.scheduler.recorded(made);
            self.scheduler.changed().await;
        }
    }

    /// Records endings for all servers that share the queue, and tells of them here. Waits for an index that
    /// is away: those who wait are told nothing that another leader does not know.
    async fn record_endings(self, endings: Vec<EndingRow>) {
        let Some(cluster) = self.index.cluster() else { return };
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        loop {
            match cluster.end_requests(endings.clone()).await {
                Ok(()) => return self.scheduler.tell(endings),
                // The work of this term is dropped in a moment.
                Err(error) if self.is_superseded(&error) => return,
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::error!(error, "cannot record what was built; it is tried again");
                    sleep(backoff.pause()).await;
                }
            }
        }
    }

    fn is_superseded(self, error: &index::Error) -> bool {
        let is_superseded = matches!(error, index::Error::Superseded);
        if is_superseded {
            self.scheduler.note_superseded();
        }
        is_superseded
    }

    /// Drops the requests that no server holds any more.
    pub(super) async fn drop_unheld(self) {
        let abandoned = self.scheduler.abandoned();
        let Some(cluster) = self.index.cluster().filter(|_| !abandoned.is_empty()) else { return };
        // Those that were dropped come back as endings.
        if let Err(error) = cluster.end_unheld(abandoned, QueueOutcome::Dropped).await
            && !self.is_superseded(&error)
        {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(error, "cannot drop abandoned requests yet");
        }
    }
}
