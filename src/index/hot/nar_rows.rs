//! Rows of the NARs that were served last, for a time in which the backend does not answer: their files are
//! here all the same. Never asked while it does.

use narinfo::NarHash;
use quick_cache::sync::Cache;

use crate::model::{NarRow, PathRow};

/// NARs whose rows are kept, a kilobyte or two each.
const ROWS_MAX: usize = 4_096;

/// A served path with its NAR, once that is stored.
pub(in crate::index) type NarOfPath = (PathRow, Option<NarRow>);

pub(super) struct NarRows(Cache<NarHash, NarOfPath>);

impl Default for NarRows {
    fn default() -> Self {
        Self(Cache::new(ROWS_MAX))
    }
}

impl NarRows {
    pub(super) fn get(&self, nar: NarHash) -> Option<NarOfPath> {
        self.0.get(&nar)
    }

    /// Notes what the backend has said.
    pub(super) fn note(&self, nar: NarHash, found: Option<&NarOfPath>) {
        match found {
            Some(found @ (_, Some(_))) => {
                if self.0.peek(&nar).is_none_or(|known| known != *found) {
                    self.0.insert(nar, found.clone());
                }
            }
            _ => {
                self.0.remove(&nar);
            }
        }
    }
}
