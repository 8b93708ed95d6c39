//! Signatures of served paths, read and replaced in batches.

use narinfo::{NarHash, Signature, StorePathHash};
use rusqlite::params;

use super::rows::{PATH_COLUMNS, join, path_row};
use super::{Error, Index, PathRow};

/// Signatures that a path may gain beside those it has, up to so many in all.
const SIGNATURES_MAX: usize = 100;

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

    /// Adds signatures, over NARs with these hashes, to those that served paths have: another NAR is not ours. Gives the number of
    /// paths that gained some.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged; nothing is added then.
    pub async fn add_signatures(
        &self,
        new: Vec<(StorePathHash, NarHash, Vec<Signature>)>,
    ) -> Result<usize, Error> {
        self.change(move |transaction| {
            let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.hash = ?1 AND p.nar_hash = ?2");
            let mut find = transaction.prepare_cached(&sql)?;
            let mut update = transaction.prepare_cached("UPDATE path SET sigs = ?2 WHERE hash = ?1")?;
            let mut changed = Vec::new();
            for (hash, nar_hash, signatures) in new {
                let mut rows = find.query(params![hash.as_str(), nar_hash.as_bytes()])?;
                let Some(row) = rows.next()? else { continue };
                let mut all = path_row(row)?.info.signatures;
                let before = all.len();
                for signature in signatures {
                    if all.len() < SIGNATURES_MAX && !all.contains(&signature) {
                        all.push(signature);
                    }
                }
                if all.len() > before {
                    update.execute((hash.as_str(), join(&all, "\n")))?;
                    changed.push(hash);
                }
            }
            let count = changed.len();
            Ok((changed, count))
        })
        .await
    }
}
