//! The narinfos that were asked for most, as they are sent. Each is what the index says: a write that changes one takes it
//! out before the write is acknowledged, and a reader that was slow never puts back what was true before.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use narinfo::{NarHash, StorePath, StorePathHash};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::index::sqlite::uses::Noted;

/// What an entry takes beside its texts, roughly.
const ENTRY_BYTES: u64 = 256;
/// Bytes of a usual entry: what the tables are laid out for.
const USUAL_BYTES: u64 = 1024;

/// A path that is served, and its narinfo.
#[derive(Debug)]
pub struct Ready {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of its plain NAR.
    pub nar_hash: NarHash,
    /// The derivation that produced it, where known.
    pub deriver: Option<StorePath>,
    /// Whether its contents are yet to be packed or fetched by us.
    pub to_come: bool,
    /// The narinfo.
    pub narinfo: Bytes,
    /// Whether its use is noted.
    pub(in crate::index) noted: Noted,
}

/// How many writes had changed a narinfo when a reader began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::index) struct Moment(u64);

/// The narinfos, within a number of bytes.
pub(in crate::index) struct Memory {
    ready: Cache<StorePathHash, Arc<Ready>, Weight>,
    /// Locked to change what is in there, never to look.
    moment: Mutex<Moment>,
}

#[derive(Clone)]
struct Weight;

impl Weighter<StorePathHash, Arc<Ready>> for Weight {
    fn weight(&self, _: &StorePathHash, ready: &Arc<Ready>) -> u64 {
        let deriver = ready.deriver.as_ref().map_or(0, |deriver| deriver.name().len());
        ENTRY_BYTES + (ready.narinfo.len() + ready.path.name().len() + deriver) as u64
    }
}

impl Memory {
    /// Room for so many bytes; 0 remembers nothing.
    pub(in crate::index) fn new(bytes_max: u64) -> Self {
        let entries = usize::try_from(bytes_max / USUAL_BYTES).unwrap_or(usize::MAX);
        Self { ready: Cache::with_weighter(entries, bytes_max, Weight), moment: Mutex::new(Moment(0)) }
    }

    pub(in crate::index) fn get(&self, hash: StorePathHash) -> Option<Arc<Ready>> {
        self.ready.get(&hash)
    }

    /// To be taken before the index is read.
    pub(in crate::index) fn moment(&self) -> Moment {
        *self.moment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts in what was read since `read_at`, unless something has been changed meanwhile.
    pub(in crate::index) fn put(&self, read_at: Moment, ready: &Arc<Ready>) {
        let moment = self.moment.lock().unwrap_or_else(PoisonError::into_inner);
        if *moment == read_at {
            self.ready.insert(ready.path.hash(), Arc::clone(ready));
        }
    }

    /// Takes out what a write has changed. To be called once that is committed, and before anyone is told.
    pub(in crate::index) fn forget(&self, changed: &[StorePathHash]) {
        let mut moment = self.moment.lock().unwrap_or_else(PoisonError::into_inner);
        moment.0 += 1;
        for hash in changed {
            self.ready.remove(hash);
        }
    }

    /// Takes out everything, in the same way.
    pub(in crate::index) fn forget_all(&self) {
        let mut moment = self.moment.lock().unwrap_or_else(PoisonError::into_inner);
        moment.0 += 1;
        self.ready.clear();
    }
}
