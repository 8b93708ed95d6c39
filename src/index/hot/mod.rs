//! Hot layer of the index: answers that need no backend. Narinfos that were asked for often, the Bloom filter
//! of all hashes, and the access log. Kept true by the backend's changes; where some may have been missed, it
//! answers "maybe" until it has read everything again, never "no", and never what was true before.

mod narinfos;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narinfo::StorePathHash;
use tokio::sync::Notify;

use super::AccessLog;
use super::backend::{Changes, Follower};
use crate::bloom::BloomFilter;
pub use narinfos::CachedNarInfo;
pub(super) use narinfos::Moment;
use narinfos::NarInfoCache;

/// Answers in memory.
pub(super) struct Hot {
    narinfos: NarInfoCache,
    hashes: BloomFilter,
    access_log: AccessLog,
    position: Mutex<Position>,
    /// Notified once changes were missed and are told again.
    resumed: Notify,
}

/// Position up to which the backend's changes were followed.
#[derive(Debug, Default)]
struct Position {
    sequence: u64,
    interrupted: bool,
}

impl Hot {
    /// Room for so many bytes of narinfos; 0 caches none.
    pub(super) fn new(narinfo_bytes_max: u64) -> Self {
        Self {
            narinfos: NarInfoCache::new(narinfo_bytes_max),
            hashes: BloomFilter::default(),
            access_log: AccessLog::default(),
            position: Mutex::default(),
            resumed: Notify::new(),
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

    /// True where no write that was acknowledged has added this hash. False in doubt.
    pub(super) fn definitely_absent(&self, hash: StorePathHash) -> bool {
        !self.hashes.may_have(hash)
    }

    pub(super) fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// Begins to fill the Bloom filter anew, for `count` hashes and some more: the backend's hashes are to be
    /// added from now on. False, and nothing is begun, as long as changes are missed.
    pub(super) fn begin_filter(&self, count: u64) -> bool {
        let position = self.position();
        if !position.interrupted {
            self.hashes.begin(count);
        }
        !position.interrupted
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
            () = self.resumed.notified() => {}
        }
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower for Hot {
    fn apply(&self, sequence: u64, changes: &Changes) {
        let mut position = self.position();
        let missed = position.interrupted || sequence != position.sequence + 1;
        *position = Position { sequence, interrupted: false };
        if missed {
            self.hashes.forget();
            self.narinfos.reopen();
            self.resumed.notify_one();
            return;
        }
        self.hashes.add(changes.added.iter().copied());
        if changes.everything {
            self.narinfos.forget_all();
        } else if !(changes.changed.is_empty() && changes.removed.is_empty()) {
            self.narinfos.forget(changes.changed.iter().chain(&changes.removed));
        }
    }

    fn interrupted(&self) {
        let mut position = self.position();
        position.interrupted = true;
        self.hashes.forget();
        self.narinfos.close();
    }
}
