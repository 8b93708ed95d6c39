//! The queue's memory over a restart: every change is brought to the index, many at once where many come, and read back
//! at the next start. A queue that cannot be recorded goes on; it only does not survive the server.

use std::collections::BTreeSet;
use std::time::SystemTime;

use tokio::sync::watch;

use super::queue::{RequestId, Saved};
use super::{Builds, Held, State, Waiting};
use crate::index::{DurationRow, Index, RequestRow};
use crate::roots::Roots;

impl Builds {
    /// Puts back those who waited when the server ended, in their old order, and goes on from the highest number any request
    /// ever had. Their clients may come back.
    pub(super) fn restore(&self, rows: Vec<RequestRow>, last_id: u64) {
        if !rows.is_empty() {
            tracing::info!(requests = rows.len(), "the queue is as it was before the restart");
        }
        let now = self.0.now();
        let mut state = self.0.lock();
        state.queue.skip_to(RequestId(last_id));
        for row in rows {
            let (id, drv) = (RequestId(row.id), row.drv);
            state.queue.restore(
                Saved {
                    id,
                    wanted: drv.clone(),
                    started: row.started,
                    due_owner: row.due_owner.map(RequestId),
                    charged: row.charged,
                    earned: row.earned,
                },
                now,
            );
            state.unheld.push_back(id);
            let ending = watch::channel(None).0;
            state.waiting.join(id, || Waiting {
                drv,
                ending,
                told: None,
                begun: row.started,
                asked_at: row.asked_at,
                asked_by: row.asked_by,
                returns: 0,
            });
        }
    }

    /// Outputs that were held before a restart stay held for those who waited then.
    pub(super) fn keep_held(&self, roots: &Roots) {
        let mut state = self.0.lock();
        let needed_by: BTreeSet<_> = state.waiting.ids().collect();
        let outputs = roots.held().unwrap_or_default();
        if needed_by.is_empty() {
            outputs.iter().for_each(|output| roots.release(output));
        } else {
            state.held.push(Held { outputs, needed_by });
        }
    }

    /// Records changes for as long as the server runs.
    pub(super) async fn record_all(&self, index: &Index) {
        loop {
            let Changes { requests, gone, durations, asked } = self.0.lock().take_changes();
            if (!requests.is_empty() || !gone.is_empty() || !durations.is_empty())
                && let Err(error) = index.record_queue(requests, gone, durations).await
            {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "the queue is not recorded: a restart would lose what was just asked for"
                );
            }
            self.0.recorded.send_replace(asked);
            self.0.changed.notified().await;
        }
    }
}

/// What is not recorded yet.
struct Changes {
    requests: Vec<RequestRow>,
    gone: Vec<u64>,
    durations: Vec<DurationRow>,
    /// How many requests were made until now.
    asked: u64,
}

impl State {
    fn take_changes(&mut self) -> Changes {
        // Those that have left the queue are forgotten only once they are delivered.
        let changed = self.queue.take_changed().into_iter().filter_map(|(_, saved)| saved);
        let rows = changed.map(|saved| {
            let waiting = self.waiting.get(saved.id);
            RequestRow {
                id: saved.id.0,
                drv: saved.wanted,
                started: saved.started,
                asked_at: waiting.map_or_else(SystemTime::now, |waiting| waiting.asked_at),
                asked_by: waiting.and_then(|waiting| waiting.asked_by),
                due_owner: saved.due_owner.map(|owner| owner.0),
                charged: saved.charged,
                earned: saved.earned,
            }
        });
        Changes {
            requests: rows.collect(),
            gone: std::mem::take(&mut self.ended).into_iter().collect(),
            durations: std::mem::take(&mut self.learned),
            asked: self.asked,
        }
    }
}
