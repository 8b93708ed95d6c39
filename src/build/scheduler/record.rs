//! Record of the queue: the changes since the last one, and the way back after a restart.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::{PendingRequest, Scheduler};
use crate::build::queue::{RequestId, Saved};
use crate::model::{DurationRow, EndingRow, RequestRow};

/// Changes that are not on record yet.
#[derive(Debug)]
pub(in crate::build) struct QueueChanges {
    pub(in crate::build) requests: Vec<RequestRow>,
    /// Requests that have ended.
    pub(in crate::build) gone: Vec<u64>,
    pub(in crate::build) durations: Vec<DurationRow>,
    /// Requests that end once that is on record, where several servers share the queue.
    pub(in crate::build) endings: Vec<EndingRow>,
    /// Number of requests that were made until now.
    pub(in crate::build) made: u64,
}

impl Scheduler {
    /// Puts back those who waited when the server ended, in their old order, and goes on from the highest
    /// number any request ever had. Their clients may come back.
    pub(super) fn restore(&self, rows: Vec<RequestRow>, last_id: u64) {
        if !rows.is_empty() {
            tracing::info!(requests = rows.len(), "restored the queue as it was before the restart");
        }
        self.0.lock().queue.skip_to(RequestId(last_id));
        self.put_back_rows(rows);
    }

    /// Adds requests that are on record, each in its place.
    pub(super) fn put_back_rows(&self, rows: Vec<RequestRow>) {
        let now = self.0.now();
        let mut state = self.0.lock();
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
            if row.started {
                state.interrupted.insert(id);
            }
            state.unheld.push_back(id);
            let ending = watch::channel(None).0;
            state.waiters.join(id, || PendingRequest {
                drv,
                ending,
                forecast: None,
                started: row.started,
                asked_at: row.asked_at,
                asked_by: row.asked_by,
                builder: row.builder,
                returns: 0,
                tickets: Arc::default(),
            });
        }
    }

    /// Changes since this was last called. Once they are on record, [`recorded`](Self::recorded) must follow.
    pub(in crate::build) fn take_changes(&self) -> QueueChanges {
        let mut state = self.0.lock();
        // Requests that have left the queue are forgotten only once they are delivered.
        let changed: Vec<_> = state.queue.take_changed().into_iter().filter_map(|(_, saved)| saved).collect();
        let row = |saved: Saved<_>| {
            let request = state.waiters.get(saved.id);
            RequestRow {
                id: saved.id.0,
                drv: saved.wanted,
                started: saved.started,
                asked_at: request.map_or_else(SystemTime::now, |request| request.asked_at),
                asked_by: request.and_then(|request| request.asked_by),
                due_owner: saved.due_owner.map(|owner| owner.0),
                charged: saved.charged,
                earned: saved.earned,
                builder: request.and_then(|request| request.builder.clone()),
            }
        };
        QueueChanges {
            requests: changed.into_iter().map(row).collect(),
            gone: std::mem::take(&mut state.ended).into_iter().collect(),
            durations: std::mem::take(&mut state.learned),
            endings: state.endings(),
            made: state.made,
        }
    }

    /// The first requests, so many, are on record, or cannot be recorded: their clients may wait.
    pub(in crate::build) fn recorded(&self, made: u64) {
        self.0.recorded.send_replace(made);
    }

    /// Waits for a change. For one caller.
    pub(in crate::build) async fn changed(&self) {
        self.0.changed.notified().await;
    }
}
