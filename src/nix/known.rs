//! Hashes that the local Nix store may have, in memory: all valid paths and all outputs of derivations, as of
//! the current version of Nix's database. Must never report a path that came a moment ago as absent.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use narinfo::StorePathHash;
use tokio::sync::Notify;

use super::database::{Database, DatabaseError};
use super::version::{Version, Watches};
use crate::bloom::BloomFilter;

/// The hashes, kept by whoever runs [`KnownHashes::learn`] whenever [`KnownHashes::outdated`].
#[derive(Debug, Default)]
pub(super) struct KnownHashes {
    hashes: BloomFilter,
    watched: RwLock<Watched>,
    outdated: Notify,
}

#[derive(Debug, Default)]
struct Watched {
    watches: Watches,
    /// Version for which the hashes are complete; `None` while unknown.
    learned: Option<Version>,
}

/// Position up to which the database was read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    row: i64,
    /// The file that told the version.
    file: Option<(u64, u64)>,
}

impl KnownHashes {
    /// True if there is neither a valid path nor a derivation for it. False in doubt, as when the database
    /// has changed since it was read.
    pub(super) fn definitely_absent(&self, hash: StorePathHash) -> bool {
        // The version first: what is committed between the two need not be known.
        let current = self.read().is_current();
        if !current {
            self.outdated.notify_one();
        }
        current && !self.hashes.may_have(hash)
    }

    /// Resolves when somebody could not be told for want of what is new.
    pub(super) async fn outdated(&self) {
        tokio::select! {
            () = self.outdated.notified() => {}
            () = self.hashes.outgrown() => self.hashes.forget(),
        }
    }

    /// The version that the database has now, where that can be told.
    pub(super) fn version(&self) -> Option<Version> {
        self.read().watches.version()
    }

    /// Reads new rows since `mark`, or everything if that is of another database. `None` if the version is
    /// unknown while it is read. Blocking.
    pub(super) fn learn(&self, database: &Database, mark: Mark) -> Result<Option<Mark>, DatabaseError> {
        let counted = database.counted_in()?;
        let version = {
            let mut watched = self.write();
            watched.watches.watch(counted).ok().and_then(|()| watched.watches.version())
        };
        let Some(version) = version else { return Ok(None) };
        let more = self.hashes.is_filled() && mark.file == Some(version.file);
        let begin = |count| {
            if !more {
                self.hashes.begin(count);
            }
        };
        let add = |hash| self.hashes.add([hash]);
        let row = database.hashes_since(if more { mark.row } else { 0 }, begin, add)?;
        self.hashes.filled();
        // Where it was changed meanwhile, whoever asks next has the rest read.
        let mut watched = self.write();
        watched.learned = (watched.watches.version() == Some(version)).then_some(version);
        Ok(Some(Mark { row, file: Some(version.file) }))
    }

    /// The database cannot be read: nobody knows.
    pub(super) fn forget(&self) {
        self.write().learned = None;
    }

    fn read(&self) -> RwLockReadGuard<'_, Watched> {
        self.watched.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Watched> {
        self.watched.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    fn is_current(&self) -> bool {
        self.learned.is_some() && self.watches.version() == self.learned
    }
}
