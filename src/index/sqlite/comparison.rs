//! Own builds beside what upstreams have of the same paths.

use std::time::SystemTime;

use narinfo::{NarHash, StorePathHash};
use rusqlite::params;

use super::Sqlite;
use super::rows::{PATH_COLUMNS, hash_text, path_row, to_unix};
use crate::index::backend::{BackendFuture, Comparisons};
use crate::model::{Comparison, PathRow};

impl Comparisons for Sqlite {
    fn uncompared(&self, rows_max: usize) -> BackendFuture<'_, Vec<PathRow>> {
        self.read(move |connection| {
            let sql = format!(
                "SELECT {PATH_COLUMNS} FROM path p LEFT JOIN comparison c ON c.hash = p.hash \
                     WHERE p.built AND c.upstream IS NULL ORDER BY coalesce(c.looked_at, 0), p.hash LIMIT ?1"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([i64::try_from(rows_max).unwrap_or(i64::MAX)])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(path_row(row)?);
            }
            Ok(found)
        })
    }

    fn record_comparison(
        &self,
        hash: StorePathHash,
        comparison: Option<Comparison>,
    ) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            let comparison = comparison.as_ref();
            transaction.execute(
                "INSERT OR REPLACE INTO comparison (hash, looked_at, upstream, nar_hash, same) \
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    hash_text(&hash),
                    to_unix(SystemTime::now()),
                    comparison.map(|comparison| &comparison.upstream),
                    comparison.map(|comparison| comparison.nar_hash.as_bytes()),
                    comparison.map(|comparison| comparison.same),
                ],
            )?;
            Ok(())
        })
    }

    fn comparison(&self, hash: StorePathHash) -> BackendFuture<'_, Option<Comparison>> {
        self.read(move |connection| {
            let sql =
                "SELECT upstream, nar_hash, same FROM comparison WHERE hash = ?1 AND upstream IS NOT NULL";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([hash_text(&hash)])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let (upstream, nar_hash, same) = (row.get(0)?, NarHash::from_bytes(row.get(1)?), row.get(2)?);
            Ok(Some(Comparison { upstream, nar_hash, same }))
        })
    }
}
