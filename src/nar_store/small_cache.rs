//! Cache of small NARs in memory: a request for one of them waits for no thread and no file. Bounded in
//! bytes. A forgotten NAR is not served any more, not even by a reader that has just looked it up.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use narinfo::NarHash;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::Form;

/// Bytes of one cached NAR, at most.
pub(super) const SMALL_BYTES_MAX: u64 = 64 * 1024;
/// Memory of an entry beside its bytes, roughly.
const ENTRY_BYTES: u64 = 256;
/// Bytes of a usual entry, for which the tables are laid out.
const USUAL_BYTES: u64 = 4096;

/// All of a small file.
#[derive(Clone, Debug)]
pub struct Small {
    /// Its bytes.
    pub bytes: Bytes,
    /// Their SHA-256.
    pub hash: NarHash,
}

/// Count of the NARs that were forgotten: a NAR that was read before the last one may be gone since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

#[derive(Debug)]
pub(super) struct SmallCache {
    nars: Cache<(NarHash, Form), Small, NarWeight>,
    epoch: Mutex<u64>,
}

#[derive(Clone, Debug)]
struct NarWeight;

impl Weighter<(NarHash, Form), Small> for NarWeight {
    fn weight(&self, _: &(NarHash, Form), small: &Small) -> u64 {
        ENTRY_BYTES + small.bytes.len() as u64
    }
}

impl SmallCache {
    pub(super) fn new(bytes_max: u64) -> Self {
        let entries = usize::try_from(bytes_max / USUAL_BYTES).unwrap_or(usize::MAX);
        Self { nars: Cache::with_weighter(entries, bytes_max, NarWeight), epoch: Mutex::new(0) }
    }

    pub(super) fn get(&self, nar: NarHash, form: Form) -> Option<Small> {
        self.nars.get(&(nar, form))
    }

    /// The current epoch, to be taken before the index is read.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(*self.epoch.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Caches a NAR that was read in `epoch`, unless something was forgotten since.
    pub(super) fn keep(&self, epoch: Epoch, nar: NarHash, form: Form, small: Small) {
        let now = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch == Epoch(*now) {
            self.nars.insert((nar, form), small);
        }
    }

    pub(super) fn forget(&self, nar: NarHash) {
        let mut now = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        *now += 1;
        for form in [Form::Zstd, Form::Plain] {
            self.nars.remove(&(nar, form));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAR: NarHash = NarHash::from_bytes([7; 32]);

    fn small(bytes: usize) -> Small {
        Small { bytes: vec![1; bytes].into(), hash: NAR }
    }

    #[test]
    fn what_is_forgotten_is_gone_also_for_who_found_it_just_before() {
        let memory = SmallCache::new(1 << 20);
        let found = memory.epoch();
        memory.keep(found, NAR, Form::Zstd, small(10));
        assert!(memory.get(NAR, Form::Zstd).is_some() && memory.get(NAR, Form::Plain).is_none());
        memory.forget(NAR);
        memory.keep(found, NAR, Form::Zstd, small(10));
        assert!(memory.get(NAR, Form::Zstd).is_none());
        memory.keep(memory.epoch(), NAR, Form::Zstd, small(10));
        assert!(memory.get(NAR, Form::Zstd).is_some());
    }

    #[test]
    fn it_takes_no_more_than_it_may() {
        let memory = SmallCache::new(100_000);
        for number in 0..1000_u16 {
            let mut hash = [0; 32];
            hash[..2].copy_from_slice(&number.to_be_bytes());
            memory.keep(memory.epoch(), NarHash::from_bytes(hash), Form::Zstd, small(1000));
        }
        assert!(memory.nars.weight() <= 100_000 && memory.nars.len() > 50);
    }
}
