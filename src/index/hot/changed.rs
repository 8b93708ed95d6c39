//! Paths whose narinfos may have changed, gathered for one reader in the background.

use std::sync::{Mutex, MutexGuard, PoisonError};

use narinfo::StorePathHash;
use tokio::sync::Notify;

use crate::index::backend::Changes;

/// Hashes that are gathered; beyond, the reader has to look at everything.
const GATHERED_MAX: usize = 250_000;

/// Paths whose narinfos may have changed since the reader took them last.
#[derive(Debug, PartialEq, Eq)]
pub enum ChangedPaths {
    /// These, in the order of the changes, some of them more than once.
    Listed(Vec<StorePathHash>),
    /// Any, since changes were missed or too many.
    Any,
}

/// Log of changes; nothing is gathered before the reader begins.
#[derive(Debug, Default)]
pub(in crate::index) struct ChangeLog {
    gathered: Mutex<Option<ChangedPaths>>,
    noted: Notify,
}

impl ChangeLog {
    /// Takes what has changed since this was called last, and gathers from now on.
    pub(in crate::index) fn take(&self) -> ChangedPaths {
        let taken = self.gathered().replace(ChangedPaths::Listed(Vec::new()));
        taken.unwrap_or(ChangedPaths::Any)
    }

    /// Resolves once something has changed since this resolved last.
    pub(in crate::index) async fn noted(&self) {
        self.noted.notified().await;
    }

    pub(super) fn note(&self, changes: &Changes) {
        if changes.everything {
            return self.note_any();
        }
        let mut gathered = self.gathered();
        let Some(ChangedPaths::Listed(hashes)) = &mut *gathered else { return };
        hashes.extend([&changes.added, &changes.changed, &changes.removed].into_iter().flatten());
        if hashes.len() > GATHERED_MAX {
            *gathered = Some(ChangedPaths::Any);
        }
        drop(gathered);
        self.noted.notify_one();
    }

    pub(super) fn note_any(&self) {
        if let Some(gathered) = &mut *self.gathered() {
            *gathered = ChangedPaths::Any;
            self.noted.notify_one();
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Option<ChangedPaths>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::samples::path;

    #[test]
    fn what_changes_is_gathered_in_order_once_there_is_a_reader() {
        let log = ChangeLog::default();
        let [one, two] = [1, 2].map(|digit| path(digit).hash());
        log.note(&Changes::added(vec![one]));
        assert_eq!(log.take(), ChangedPaths::Any, "nobody knows what has changed before");
        log.note(&Changes::removed(vec![two]));
        log.note(&Changes::changed(vec![one]));
        assert_eq!(log.take(), ChangedPaths::Listed(vec![two, one]));
        assert_eq!(log.take(), ChangedPaths::Listed(Vec::new()));
        log.note(&Changes::added(vec![one; GATHERED_MAX + 1]));
        log.note(&Changes::added(vec![two]));
        assert_eq!(log.take(), ChangedPaths::Any);
        log.note_any();
        assert_eq!(log.take(), ChangedPaths::Any);
    }
}
