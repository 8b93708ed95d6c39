//! Signatures of served paths, read and replaced in batches.

use narinfo::{Signature, StorePathHash};

use super::rows::{PATH_COLUMNS, join, path_row};
use super::{Error, Index, PathRow};

/// Paths in one batch: some milliseconds of the writer.
const BATCH: usize = 500;

impl Index {
    /// Served paths in the order of their hashes, a batch of those behind `after`; none at the end.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn paths_after(&self, after: Option<StorePathHash>) -> Result<Vec<PathRow>, Error> {
        self.readers
            .run(move |connection| {
                let sql = format!(
                    "SELECT {PATH_COLUMNS} FROM path p WHERE p.hash > ?1 ORDER BY p.hash LIMIT {BATCH}"
                );
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query([after.as_ref().map_or("", StorePathHash::as_str)])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push(path_row(row)?);
                }
                Ok(found)
            })
            .await
    }

    /// Replaces the signatures of served paths. A path that is not served any more is passed over.
    ///
    /// # Errors
    /// When SQLite fails; nothing is replaced then.
    pub async fn set_signatures(&self, paths: Vec<(StorePathHash, Vec<Signature>)>) -> Result<(), Error> {
        self.change(move |transaction| {
            let mut update = transaction.prepare_cached("UPDATE path SET sigs = ?2 WHERE hash = ?1")?;
            for (hash, signatures) in &paths {
                update.execute((hash.as_str(), join(signatures, "\n")))?;
            }
            Ok((paths.into_iter().map(|(hash, _)| hash).collect(), ()))
        })
        .await
    }
}
