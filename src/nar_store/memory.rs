//! Small NARs that were asked for lately, in memory: a request for one of them waits for no thread and no file. Bounded in
//! bytes; what is forgotten is not given any more, also not by who found it just before.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use moka::sync::Cache;
use narinfo::NarHash;

use super::Form;

/// Bytes of what is kept in memory at most, each.
pub(super) const SMALL_BYTES_MAX: u64 = 64 * 1024;
/// What an entry takes beside its bytes, roughly.
const ENTRY_BYTES: usize = 256;

/// All of a small file.
#[derive(Clone, Debug)]
pub struct Small {
    /// Its bytes.
    pub bytes: Bytes,
    /// Their SHA-256.
    pub hash: NarHash,
}

/// How many times something was forgotten: what was found before the last time may be gone since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

#[derive(Debug)]
pub(super) struct Memory {
    nars: Cache<(NarHash, Form), Small>,
    epoch: Mutex<u64>,
}

impl Memory {
    pub(super) fn new(bytes_max: u64) -> Self {
        let weight = |_: &(NarHash, Form), small: &Small| {
            u32::try_from(small.bytes.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        Self { nars: Cache::builder().max_capacity(bytes_max).weigher(weight).build(), epoch: Mutex::new(0) }
    }

    pub(super) fn get(&self, nar: NarHash, form: Form) -> Option<Small> {
        self.nars.get(&(nar, form))
    }

    /// To be asked before the index is.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(*self.epoch.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps what was found in `epoch`, unless something was forgotten since.
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
            self.nars.invalidate(&(nar, form));
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
        let memory = Memory::new(1 << 20);
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
        let memory = Memory::new(100_000);
        for number in 0..1000_u16 {
            let mut hash = [0; 32];
            hash[..2].copy_from_slice(&number.to_be_bytes());
            memory.keep(memory.epoch(), NarHash::from_bytes(hash), Form::Zstd, small(1000));
        }
        memory.nars.run_pending_tasks();
        assert!(memory.nars.weighted_size() <= 100_000 && memory.nars.entry_count() > 50);
    }
}
