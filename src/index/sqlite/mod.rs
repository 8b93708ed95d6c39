//! The index in SQLite: one file, one thread that writes, readers beside it.
//! The only place with SQL of our own; no type of rusqlite leaves it.

mod access;
mod backup;
mod catalogue;
#[cfg(test)]
mod catalogue_tests;
mod closure;
mod comparison;
mod condition;
mod demand;
mod error;
mod eviction;
mod failure;
mod generation;
mod ledger;
mod nar;
mod paths;
mod pin;
#[cfg(test)]
mod plans;
mod program;
mod pushed;
mod queue;
mod readers;
mod realisation;
mod recovery;
mod rows;
mod stored;
#[cfg(feature = "postgres")]
mod tables;
mod token;
mod upstream;
mod version;
mod writer;

use std::path::Path;
use std::sync::Arc;

use narinfo::StorePathHash;
use rusqlite::{Connection, Transaction};
use tokio::sync::mpsc;

use super::backend::{Backend, BackendFuture, Changes, Follower};
use condition::Condition;
use error::Error;
pub use ledger::{LedgerReader, has_ledger};
use paths::paths_of;
pub use pin::salvage_pins;
use readers::Readers;
use writer::Writer;

/// Every hash that is served, or is an output of a package set, of the generation being made, or of a pushed
/// derivation.
const HASHES: &str = "SELECT hash FROM path UNION ALL SELECT hash FROM catalogue_output \
    UNION ALL SELECT hash FROM catalogue_new_output UNION ALL SELECT hash FROM pushed_output";
/// Number of those, but for the generation.
const HASH_COUNT: &str = "SELECT (SELECT count(*) FROM path) + (SELECT count(*) FROM catalogue_output) \
    + (SELECT count(*) FROM pushed_output)";
/// Hashes that are sent at once.
const HASHES_AT_ONCE: usize = 4_096;

/// An index in a file of SQLite.
pub struct Sqlite {
    writer: Writer,
    readers: Arc<Readers>,
    condition: Condition,
}

impl Sqlite {
    /// Opens the file, making it when it is not there.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or is of a newer version.
    pub fn open(file: &Path) -> Result<Self, super::Error> {
        let condition = Condition::new(file);
        let writer = Writer::open(file, condition.clone())?;
        let readers = Readers::new(file, condition.clone());
        readers.open_ahead();
        Ok(Self { writer, readers, condition })
    }

    /// Checks that a file could be opened, without changing anything.
    ///
    /// # Errors
    /// The file is no index, or one of a newer version.
    pub fn check_file(file: &Path) -> Result<(), super::Error> {
        Ok(writer::check(file)?)
    }

    /// Writes a copy of the index of a file, as it is at this moment. A server may write to it.
    ///
    /// # Errors
    /// The file is no index that can be read, or the copy cannot be written.
    pub fn copy_file(file: &Path, to: &Path) -> Result<(), super::Error> {
        writer::check(file)?;
        Ok(backup::copy(file, to)?)
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> BackendFuture<'_, T> {
        Box::pin(async move { Ok(self.readers.run(work).await?) })
    }

    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> BackendFuture<'_, T> {
        Box::pin(async move { Ok(self.writer.run(work).await?) })
    }

    /// A write that changes answers.
    fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<(Changes, T), Error> + Send + 'static,
    ) -> BackendFuture<'_, T> {
        Box::pin(async move { Ok(self.writer.change(work).await?) })
    }
}

impl Backend for Sqlite {
    fn follow(&self, follower: Arc<dyn Follower>) {
        self.writer.follow(follower);
    }

    fn hash_count(&self) -> BackendFuture<'_, u64> {
        self.read(|connection| Ok(rows::unsigned(connection.query_row(HASH_COUNT, [], |row| row.get(0))?)))
    }

    fn hashes(&self, batches: mpsc::Sender<Vec<StorePathHash>>) -> BackendFuture<'_, ()> {
        self.read(move |connection| {
            let mut statement = connection.prepare(HASHES)?;
            let mut rows = statement.query([])?;
            let mut batch = Vec::with_capacity(HASHES_AT_ONCE);
            while let Some(row) = rows.next()? {
                // A hash that is none is never asked for.
                batch.extend(
                    row.get_ref(0)?.as_str().ok().and_then(|hash| hash.parse::<StorePathHash>().ok()),
                );
                if batch.len() == HASHES_AT_ONCE {
                    let full = std::mem::replace(&mut batch, Vec::with_capacity(HASHES_AT_ONCE));
                    if batches.blocking_send(full).is_err() {
                        return Ok(());
                    }
                }
            }
            // Where nobody receives it, nobody needs it.
            let _ = batches.blocking_send(batch);
            // All hashes were read: none of those pages is needed soon.
            connection.execute_batch("PRAGMA shrink_memory")?;
            Ok(())
        })
    }
}
