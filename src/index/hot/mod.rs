//! Hot layer of the index: answers that need no backend. Narinfos that were asked for often, the Bloom filter
//! of all hashes, and the access log. Kept true by the backend's changes. While those come late it answers
//! "maybe", never "no", and serves the hits that it has; where some were missed, it forgets everything.

mod changed;
mod nar_rows;
mod narinfos;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narinfo::{NarHash, StorePathHash};
use tokio::sync::Notify;

use super::AccessLog;
use super::backend::{Changes, Follower};
use crate::bloom::BloomFilter;
pub(super) use changed::ChangeLog;
pub use changed::ChangedPaths;
pub(super) use nar_rows::NarOfPath;
use nar_rows::NarRows;
pub use narinfos::CachedNarInfo;
pub(super) use narinfos::Moment;
use narinfos::NarInfoCache;

/// Answers in memory.
pub(super) struct Hot {
    narinfos: NarInfoCache,
    nar_rows: NarRows,
    hashes: BloomFilter,
    access_log: AccessLog,
    changes: ChangeLog,
    /// Number of the latest change that was applied; `None` before the first.
    position: Mutex<Option<u64>>,
    /// True while changes come late. Set before, and cleared after, all else of an interruption.
    interrupted: AtomicBool,
    /// True where the filter could not be filled during an interruption.
    filter_wanted: AtomicBool,
    /// Notified when the filter is to be filled anew, or can be.
    refill: Notify,
}

impl Hot {
    /// Room for so many bytes of narinfos; 0 caches none.
    pub(super) fn new(narinfo_bytes_max: u64) -> Self {
        Self {
            narinfos: NarInfoCache::new(narinfo_bytes_max),
            nar_rows: NarRows::default(),
            hashes: BloomFilter::default(),
            access_log: AccessLog::default(),
            changes: ChangeLog::default(),
            position: Mutex::default(),
            interrupted: AtomicBool::new(false),
            filter_wanted: AtomicBool::new(false),
            refill: Notify::new(),
        }
    }

    pub(super) fn narinfo(&self, hash: StorePathHash) -> Option<Arc<CachedNarInfo>> {
        self.narinfos.get(hash)
    }

    /// To be taken before the backend is read for [`Hot::cache`].
    pub(super) fn moment(&self) -> Moment {
        self.narinfos.moment()
    }

    /// Caches a narinfo that was read since `read_at`, unless one has changed meanwhile.
    pub(super) fn cache(&self, read_at: Moment, narinfo: &Arc<CachedNarInfo>) {
        self.narinfos.put(read_at, narinfo);
    }

    /// Row of a NAR as the backend had it last, for a time in which that does not answer.
    pub(super) fn nar_row(&self, nar: NarHash) -> Option<NarOfPath> {
        self.nar_rows.get(nar)
    }

    /// Notes what the backend has said of a NAR.
    pub(super) fn note_nar_row(&self, nar: NarHash, found: Option<&NarOfPath>) {
        self.nar_rows.note(nar, found);
    }

    /// True where no write that was acknowledged has added this hash. False in doubt.
    pub(super) fn definitely_absent(&self, hash: StorePathHash) -> bool {
        !self.hashes.may_have(hash) && !self.interrupted.load(Ordering::SeqCst)
    }

    pub(super) fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    pub(super) fn changes(&self) -> &ChangeLog {
        &self.changes
    }

    /// Begins to fill the Bloom filter anew, for `count` hashes and some more: the backend's hashes are to be
    /// added from now on. False, and nothing is begun, as long as changes come late.
    pub(super) fn begin_filter(&self, count: u64) -> bool {
        let _position = self.position();
        let is_told = !self.interrupted.load(Ordering::SeqCst);
        if is_told {
            self.hashes.begin(count);
        }
        self.filter_wanted.store(!is_told, Ordering::SeqCst);
        is_told
    }

    pub(super) fn add_to_filter(&self, hashes: Vec<StorePathHash>) {
        self.hashes.add(hashes);
    }

    /// Uses the new filling, unless changes were missed since it was begun.
    pub(super) fn finish_filter(&self) {
        self.hashes.filled();
    }

    /// Resolves when the filter is to be filled anew.
    pub(super) async fn filter_outgrown(&self) {
        tokio::select! {
            () = self.hashes.outgrown() => {}
            () = self.refill.notified() => {}
        }
    }

    fn position(&self) -> MutexGuard<'_, Option<u64>> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower for Hot {
    fn apply(&self, sequence: u64, changes: &Changes) {
        let mut position = self.position();
        let is_next = position.is_none_or(|position| sequence == position + 1);
        *position = Some(sequence);
        if !is_next {
            self.forget();
            return;
        }
        self.changes.note(changes);
        self.hashes.add(changes.added.iter().copied());
        if changes.everything {
            self.narinfos.forget_all();
        } else if !(changes.changed.is_empty() && changes.removed.is_empty()) {
            self.narinfos.forget(changes.changed.iter().chain(&changes.removed));
        }
    }

    fn interrupted(&self) {
        let _position = self.position();
        self.interrupted.store(true, Ordering::SeqCst);
        self.narinfos.close();
    }

    fn resumed(&self) {
        let _position = self.position();
        self.narinfos.reopen();
        self.interrupted.store(false, Ordering::SeqCst);
        if self.filter_wanted.swap(false, Ordering::SeqCst) {
            self.refill.notify_one();
        }
    }

    fn restarted(&self, sequence: u64) {
        let mut position = self.position();
        *position = Some(sequence);
        self.forget();
    }
}

impl Hot {
    /// Forgets everything: changes were missed. To be called with the position locked.
    fn forget(&self) {
        self.changes.note_any();
        self.hashes.forget();
        self.narinfos.forget_all();
        self.refill.notify_one();
    }
}
