//! Condition of the index in PostgreSQL: sound, damaged, or not writable. Noted from failures.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Error;
use crate::trouble::Trouble;

/// Interval of test writes to an index that could not be written.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// The state; clones share it.
#[derive(Clone, Default)]
pub(super) struct ServerCondition(Arc<Shared>);

#[derive(Default)]
struct Shared {
    damage: Trouble,
    writes: Trouble,
    probed_at: Mutex<Option<Instant>>,
}

impl ServerCondition {
    /// Notes the outcome of a read.
    pub(super) fn note_read<T>(&self, outcome: &Result<T, Error>) {
        if let Err(error) = outcome
            && error.is_damage()
        {
            if self.0.damage.get().is_none() {
                let error = error as &dyn std::error::Error;
                tracing::error!(error, "the index in PostgreSQL is damaged; restore it from a backup");
            }
            self.0.damage.note(error);
        }
    }

    /// Notes the outcome of a write.
    pub(super) fn note_write<T>(&self, outcome: &Result<T, Error>) {
        self.note_read(outcome);
        match outcome {
            Ok(_) => {
                if self.0.writes.clear() {
                    tracing::info!("index writable again");
                }
            }
            Err(error) if error.is_refused_by_the_system() => self.0.writes.note(error),
            Err(_) => {}
        }
    }

    /// The damage that was found.
    pub(super) fn damage(&self) -> Option<String> {
        self.0.damage.get()
    }

    /// Why the latest write was refused, unless one has worked since.
    pub(super) fn refused(&self) -> Option<String> {
        self.0.writes.get()
    }

    /// Resolves once a write was refused since this resolved last.
    pub(super) async fn write_refused(&self) {
        self.0.writes.noted().await;
    }

    /// True where the next test write is due; then that is noted as made.
    pub(super) fn is_time_to_probe(&self) -> bool {
        let mut probed_at = self.0.probed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = probed_at.is_none_or(|at| at.elapsed() >= PROBE_EVERY);
        if due {
            *probed_at = Some(Instant::now());
        }
        due
    }
}
