//! Narinfos that were asked for most, as they are sent. Each is what the backend has: a write that changes
//! one takes it out before the write is acknowledged, and a reader that was slow never puts back what was
//! true before.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use narinfo::{NarHash, StorePath, StorePathHash};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::index::access_log::LastNoted;

/// Bytes of an entry beside its texts, roughly.
const ENTRY_BYTES: u64 = 256;
/// Bytes of a usual entry, for which the tables are laid out.
const USUAL_BYTES: u64 = 1024;

/// A path that is served, and its narinfo.
#[derive(Debug)]
pub struct CachedNarInfo {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of its plain NAR.
    pub nar_hash: NarHash,
    /// The derivation that produced it, where known.
    pub deriver: Option<StorePath>,
    /// True where its contents are yet to be packed or fetched by us.
    pub to_come: bool,
    /// The narinfo.
    pub narinfo: Bytes,
    /// The epoch of the access log in which its use was noted last.
    pub(in crate::index) noted: LastNoted,
}

/// Number of writes that had changed a narinfo when a reader began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::index) struct Moment(u64);

/// The narinfos, within a number of bytes.
pub(super) struct NarInfoCache {
    narinfos: Cache<StorePathHash, Arc<CachedNarInfo>, NarInfoWeight>,
    /// Locked for changes, never for look-ups.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    moment: Moment,
    /// True while changes are missed: nothing is put in.
    closed: bool,
}

#[derive(Clone)]
struct NarInfoWeight;

impl Weighter<StorePathHash, Arc<CachedNarInfo>> for NarInfoWeight {
    fn weight(&self, _: &StorePathHash, cached: &Arc<CachedNarInfo>) -> u64 {
        let deriver = cached.deriver.as_ref().map_or(0, |deriver| deriver.name().len());
        ENTRY_BYTES + (cached.narinfo.len() + cached.path.name().len() + deriver) as u64
    }
}

impl NarInfoCache {
    /// A cache of this many bytes; 0 caches nothing.
    pub(super) fn new(bytes_max: u64) -> Self {
        let entries = usize::try_from(bytes_max / USUAL_BYTES).unwrap_or(usize::MAX);
        let state = State { moment: Moment(0), closed: false };
        Self { narinfos: Cache::with_weighter(entries, bytes_max, NarInfoWeight), state: Mutex::new(state) }
    }

    pub(super) fn get(&self, hash: StorePathHash) -> Option<Arc<CachedNarInfo>> {
        self.narinfos.get(&hash)
    }

    /// To be taken before the backend is read.
    pub(super) fn moment(&self) -> Moment {
        self.state().moment
    }

    /// Caches a narinfo that was read after `read_at`, unless a write has changed one since.
    pub(super) fn put(&self, read_at: Moment, narinfo: &Arc<CachedNarInfo>) {
        let state = self.state();
        if state.moment == read_at && !state.closed {
            self.narinfos.insert(narinfo.path.hash(), Arc::clone(narinfo));
        }
    }

    /// Invalidates the narinfos that a write has changed. Called after its commit and before it is
    /// acknowledged.
    pub(super) fn forget<'a>(&self, changed: impl Iterator<Item = &'a StorePathHash>) {
        let mut state = self.state();
        state.moment.0 += 1;
        for hash in changed {
            self.narinfos.remove(hash);
        }
    }

    /// Invalidates everything, in the same way.
    pub(super) fn forget_all(&self) {
        let mut state = self.state();
        state.moment.0 += 1;
        self.narinfos.clear();
    }

    /// Caches nothing more until it is reopened; what is cached stays.
    pub(super) fn close(&self) {
        self.state().closed = true;
    }

    /// Caches again what is read from now on.
    pub(super) fn reopen(&self) {
        let mut state = self.state();
        state.closed = false;
        state.moment.0 += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
