//! References between served paths, and the history of the server's use, in memory.

use std::collections::{BTreeSet, VecDeque};

use narinfo::{StorePath, StorePathHash};

use super::{MemoryBackend, done};
use crate::index::backend::{BackendFuture, Closures, History};
use crate::model::{HourRow, PathRow};

impl Closures for MemoryBackend {
    fn closure(&self, hash: StorePathHash, max: u32) -> BackendFuture<'_, Vec<PathRow>> {
        let state = self.state();
        let (mut found, mut seen, mut next) = (Vec::new(), BTreeSet::from([hash]), VecDeque::from([hash]));
        while let Some(hash) = next.pop_front().filter(|_| found.len() < max as usize) {
            let Some(served) = state.paths.get(&hash) else { continue };
            let references = served.row.info.references.iter().map(StorePath::hash);
            next.extend(references.filter(|reference| seen.insert(*reference)));
            found.push(served.row.clone());
        }
        done(found)
    }

    fn referrers(&self, hash: StorePathHash, max: u32) -> BackendFuture<'_, Vec<StorePath>> {
        let state = self.state();
        let infos = state.paths.values().map(|served| &served.row.info);
        let refers = infos.filter(|info| {
            info.path.hash() != hash && info.references.iter().any(|path| path.hash() == hash)
        });
        done(refers.take(max as usize).map(|info| info.path.clone()).collect())
    }
}

impl History for MemoryBackend {
    fn record_hour(&self, row: HourRow, first: u64) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        state.history.retain(|hour, _| *hour >= first);
        let before = state.history.get(&row.hour).copied().unwrap_or_default();
        let row = HourRow {
            hits: before.hits + row.hits,
            misses: before.misses + row.misses,
            built: before.built + row.built,
            failed: before.failed + row.failed,
            building: before.building.with(row.building, |before, new| before + new),
            ..row
        };
        state.history.insert(row.hour, row);
        done(())
    }

    fn hours(&self, first: u64) -> BackendFuture<'_, Vec<HourRow>> {
        done(self.state().history.range(first..).map(|(_, row)| *row).collect())
    }
}
