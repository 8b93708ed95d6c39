//! What the index can say without SQLite: narinfos that it remembers, and hashes that it has not. Both are kept true by every
//! write, on the writer's thread.

mod narinfos;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use narinfo::StorePathHash;
use rusqlite::{Connection, Transaction};

use super::sqlite::rows::unsigned;
use super::sqlite::uses::Noted;
use super::{Error, Hit, Index};
pub(super) use narinfos::Memory;
pub use narinfos::Ready;

/// How long to rest when the index could not be read.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Every hash that is served, or that a package set knows how to build, or a generation that is being made will.
const HASHES: &str = "SELECT hash FROM path UNION ALL SELECT hash FROM catalogue_output \
    UNION ALL SELECT hash FROM catalogue_new_output";
/// How many those are, but for the generation.
const HASH_COUNT: &str = "SELECT (SELECT count(*) FROM path) + (SELECT count(*) FROM catalogue_output)";

impl Index {
    /// The same index with room for so many bytes of narinfos; 0 remembers none.
    #[must_use]
    pub fn remembering(self, bytes_max: u64) -> Self {
        Self { memory: Arc::new(Memory::new(bytes_max)), ..self }
    }

    /// The path with this hash, if it is remembered to be served.
    #[must_use]
    pub fn remembered(&self, hash: StorePathHash) -> Option<Arc<Ready>> {
        self.memory.get(hash)
    }

    /// The path with this hash, if it is served, remembered with the narinfo that `render` makes.
    ///
    /// # Errors
    /// When SQLite fails or the row is damaged.
    pub async fn find_ready(
        &self,
        hash: StorePathHash,
        render: impl FnOnce(&Hit) -> Bytes,
    ) -> Result<Option<Arc<Ready>>, Error> {
        let read_at = self.memory.moment();
        let Some(hit) = self.find(hash).await? else { return Ok(None) };
        let ready = Arc::new(Ready {
            narinfo: render(&hit),
            nar_hash: hit.row.info.nar_hash,
            to_come: hit.packed.is_none() && hit.redirect.is_none(),
            path: hit.row.info.path,
            deriver: hit.row.info.deriver,
            noted: Noted::default(),
        });
        self.memory.put(read_at, &ready);
        Ok(Some(ready))
    }

    /// Whether no row has this hash, neither of a served path nor of a package set. False in doubt.
    #[must_use]
    pub fn surely_lacks(&self, hash: StorePathHash) -> bool {
        !self.known.may_have(hash)
    }

    /// Keeps what [`Index::surely_lacks`] looks at, for as long as the server runs.
    pub async fn keep_known(&self) {
        loop {
            if let Err(error) = self.learn().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "misses are not settled in memory");
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            }
            self.known.outgrown().await;
        }
    }

    pub(super) async fn learn(&self) -> Result<(), Error> {
        let count = |connection: &Connection| Ok(connection.query_row(HASH_COUNT, [], |row| row.get(0))?);
        let count = unsigned(self.readers.run(count).await?);
        let known = Arc::clone(&self.known);
        // Between two transactions: what is written before is read below, what is written later is added by its writer.
        self.writer
            .run(move |_| {
                known.begin(count);
                Ok(())
            })
            .await?;
        let known = Arc::clone(&self.known);
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare(HASHES)?;
                let mut rows = statement.query([])?;
                while let Some(row) = rows.next()? {
                    // A hash that is none is never asked for.
                    known.add(row.get_ref(0)?.as_str().ok().and_then(|hash| hash.parse().ok()));
                }
                known.filled();
                // It has read all hashes, and will need none of those pages soon.
                connection.execute_batch("PRAGMA shrink_memory")?;
                Ok(())
            })
            .await
    }

    /// Runs a write that changes the narinfos of the paths that it gives. It is durable, and nobody is told what was true
    /// before, when this returns `Ok` with what it gives beside them.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<(Vec<StorePathHash>, T), Error> + Send + 'static,
    ) -> Result<T, Error> {
        let memory = Arc::clone(&self.memory);
        let then = move |(changed, beside): (Vec<_>, T)| {
            memory.forget(&changed);
            beside
        };
        self.writer.run_then(work, then).await
    }
}
