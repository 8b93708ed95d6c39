//! Condition of an index: sound, damaged, or not writable, noted from the outcomes of its reads and writes.
//! Alike in every backend on a database. Damage stays noted until the next start, since nothing here repairs
//! it.

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::trouble::Trouble;

/// Interval of test writes to an index that could not be written.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// An error of a database, as far as it tells the condition of the index.
pub(super) trait ConditionError: Error + 'static {
    /// Message for damage, with what to do.
    const DAMAGE: &'static str;

    /// True for damage of what is stored.
    fn is_damage(&self) -> bool;

    /// True where the system refuses to write.
    fn is_refused_by_the_system(&self) -> bool;
}

/// The condition.
#[derive(Default)]
pub(super) struct IndexCondition {
    damage: Trouble,
    writes: Trouble,
    probed_at: Mutex<Option<Instant>>,
}

impl IndexCondition {
    /// Notes the outcome of a read.
    pub(super) fn note_read<T, E: ConditionError>(&self, outcome: &Result<T, E>) {
        if let Err(error) = outcome
            && error.is_damage()
        {
            if self.damage.get().is_none() {
                let error = error as &dyn Error;
                tracing::error!(error, "{}", E::DAMAGE);
            }
            self.damage.note(error);
        }
    }

    /// Notes the outcome of a write.
    pub(super) fn note_write<T, E: ConditionError>(&self, outcome: &Result<T, E>) {
        self.note_read(outcome);
        match outcome {
            Ok(_) => {
                if self.writes.clear() {
                    tracing::info!("index writable again");
                }
            }
            Err(error) if error.is_refused_by_the_system() => self.writes.note(error),
            Err(_) => {}
        }
    }

    /// The damage that was found.
    pub(super) fn damage(&self) -> Option<String> {
        self.damage.get()
    }

    /// Why the latest write was refused, unless one has worked since.
    pub(super) fn refused(&self) -> Option<String> {
        self.writes.get()
    }

    /// Resolves once a write was refused since this resolved last.
    pub(super) async fn write_refused(&self) {
        self.writes.noted().await;
    }

    /// True where the next test write is due; then that is noted as made.
    pub(super) fn is_time_to_probe(&self) -> bool {
        let mut probed_at = self.probed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = probed_at.is_none_or(|at| at.elapsed() >= PROBE_EVERY);
        if due {
            *probed_at = Some(Instant::now());
        }
        due
    }
}
