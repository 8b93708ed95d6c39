//! When served paths were used last: noted in memory where they are used, and written down now and then.
//! What was noted and not written down yet is lost with the process; whoever reads uses in a transaction writes them first.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use narinfo::NarHash;
use rusqlite::{Transaction, params};

use super::rows::to_unix;
use super::{Error, Index, Ready};

/// What was used since uses were last written down; clones share it. Bounded by what is served: each NAR stands in it once.
#[derive(Clone, Debug, Default)]
pub struct Uses(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    noted: Mutex<HashSet<NarHash>>,
    epoch: AtomicU32,
}

impl Uses {
    /// A client was told of the paths with this NAR, or gets it.
    pub fn note(&self, nar: NarHash) {
        self.noted().insert(nar);
    }

    /// Rises whenever what was noted is written down: who has noted a NAR in this epoch need not note it again.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.0.epoch.load(Ordering::Acquire)
    }

    /// Writes down what was noted. It is noted still where that fails.
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let noted = {
            let mut noted = self.noted();
            self.0.epoch.fetch_add(1, Ordering::AcqRel);
            std::mem::take(&mut *noted)
        };
        let written = write_all(transaction, &noted);
        if written.is_err() {
            self.noted().extend(noted);
        }
        written
    }

    fn noted(&self) -> MutexGuard<'_, HashSet<NarHash>> {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_all(transaction: &Transaction<'_>, nars: &HashSet<NarHash>) -> Result<(), Error> {
    let mut update = transaction.prepare_cached("UPDATE path SET used_at = ?2 WHERE nar_hash = ?1")?;
    let now = to_unix(SystemTime::now());
    for nar in nars {
        update.execute(params![nar.as_bytes(), now])?;
    }
    Ok(())
}

/// In which epoch the use of something was noted last.
#[derive(Debug)]
pub(super) struct Noted(AtomicU32);

impl Default for Noted {
    fn default() -> Self {
        // Epochs begin at 0.
        Self(AtomicU32::new(u32::MAX))
    }
}

impl Index {
    /// Where uses are noted.
    #[must_use]
    pub fn uses(&self) -> &Uses {
        &self.uses
    }

    /// A client was told of this path.
    pub fn note_use(&self, ready: &Ready) {
        let epoch = self.uses.epoch();
        if ready.noted.0.swap(epoch, Ordering::AcqRel) != epoch {
            self.uses.note(ready.nar_hash);
        }
    }

    /// Writes down what was noted.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn write_uses(&self) -> Result<(), Error> {
        let uses = self.uses.clone();
        self.writer.run(move |transaction| uses.write(transaction)).await
    }
}
