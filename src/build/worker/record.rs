//! Record of the queue over a restart: every change is brought to the index, many at once where many come. A
//! queue that cannot be recorded goes on; it only does not survive the server.

use super::Worker;
use crate::build::scheduler::QueueChanges;

impl Worker {
    /// Outputs that were held before a restart stay held for those who waited then.
    pub(super) fn restore_held(&self) {
        let roots = &self.runner.roots;
        let held = roots.held().unwrap_or_default();
        self.scheduler.restore_held(held).iter().for_each(|output| roots.release(output));
    }

    /// Records changes for as long as the server runs.
    pub(super) async fn record_all(&self) {
        loop {
            let changes = self.scheduler.take_changes();
            let QueueChanges { requests, gone, durations, made } = changes;
            if (!requests.is_empty() || !gone.is_empty() || !durations.is_empty())
                && let Err(error) = self.index.record_queue(requests, gone, durations).await
            {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "cannot record the queue: a restart would lose the latest requests; check the disk of the state \
                     directory"
                );
            }
            self.scheduler.recorded(made);
            self.scheduler.changed().await;
        }
    }
}
