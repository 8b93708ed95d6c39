//! Uses of served NARs, noted in memory until a backend records them. Noting costs no write and no lock that
//! anything slow holds; what was noted and not recorded is lost with the process.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narinfo::NarHash;

/// NARs that were used since uses were recorded last; clones share it. Bounded by what is served: each NAR
/// stands in it once.
#[derive(Clone, Debug, Default)]
pub struct AccessLog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    noted: Mutex<HashSet<NarHash>>,
    epoch: AtomicU32,
}

impl AccessLog {
    /// Notes a use of this NAR: a client gets it, or a narinfo that names it.
    pub fn note(&self, nar: NarHash) {
        self.noted().insert(nar);
    }

    /// The epoch, which rises with each [`AccessLog::take`]. A NAR noted in it need not be noted again.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.0.epoch.load(Ordering::Acquire)
    }

    /// Takes all noted uses, to record them. Those that are not recorded must be put back.
    #[must_use]
    pub fn take(&self) -> Vec<NarHash> {
        let mut noted = self.noted();
        self.0.epoch.fetch_add(1, Ordering::AcqRel);
        noted.drain().collect()
    }

    /// Puts back uses that were taken and not recorded.
    pub fn put_back(&self, nars: impl IntoIterator<Item = NarHash>) {
        self.noted().extend(nars);
    }

    fn noted(&self) -> MutexGuard<'_, HashSet<NarHash>> {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The epoch in which a use of something was noted last.
#[derive(Debug)]
pub(super) struct LastNoted(AtomicU32);

impl Default for LastNoted {
    fn default() -> Self {
        // Epochs begin at 0.
        Self(AtomicU32::new(u32::MAX))
    }
}

impl LastNoted {
    /// Sets the epoch. True where it was another one.
    pub(super) fn renew(&self, epoch: u32) -> bool {
        self.0.swap(epoch, Ordering::AcqRel) != epoch
    }
}
