//! Which upstreams have the NARs of served paths, and what their files are.

use std::collections::BTreeMap;
use std::sync::Arc;

use narinfo::{Compression, NarHash};
use rusqlite::{Connection, Row, Transaction, params};

use super::rows::{corrupt, signed, unsigned};
use super::{Error, Index, PathRow, UpstreamNar, insert_paths, paths_of, serves_references};

const COLUMNS: &str = "nar_hash, upstream, url, compression, file_hash, file_size, redirect";

/// A compression that no version of this program has written.
#[derive(Debug, thiserror::Error)]
#[error("there is no compression {0:?}")]
struct UnknownCompression(String);

impl Index {
    /// Publishes a closure that upstreams have, and where they have it: all rows or none. A hash that is served already
    /// keeps its first row, since clients may hold a narinfo for it. Whether it is published: it is not when it refers to
    /// what is not served, or not any more.
    ///
    /// # Errors
    /// When SQLite fails; nothing is published then.
    pub async fn publish_from_upstream(&self, rows: Vec<(PathRow, UpstreamNar)>) -> Result<bool, Error> {
        let known = Arc::clone(&self.known);
        self.change(move |transaction| {
            let mut changed = Vec::new();
            if !serves_references(transaction, rows.iter().map(|(path, _)| path))? {
                return Ok((changed, false));
            }
            insert_paths(transaction, &known, rows.iter().map(|(path, _)| path))?;
            for (_, nar) in &rows {
                insert(transaction, nar)?;
                changed.extend(paths_of(transaction, nar.nar_hash)?);
            }
            Ok((changed, true))
        })
        .await
    }

    /// Every upstream that has this NAR, and where.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn upstreams_with(&self, nar: NarHash) -> Result<Vec<UpstreamNar>, Error> {
        self.readers.run(move |connection| with_nar(connection, nar)).await
    }

    /// An upstream turned out not to have this NAR.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn forget_upstream_nar(&self, nar: NarHash, upstream: String) -> Result<(), Error> {
        self.change(move |transaction| {
            let sql = "DELETE FROM upstream_nar WHERE nar_hash = ?1 AND upstream = ?2";
            transaction.execute(sql, params![nar.as_bytes(), upstream])?;
            Ok((paths_of(transaction, nar)?, ()))
        })
        .await
    }

    /// Brings what is known of upstreams in line with those that there are: their names, and whether clients are sent
    /// there. What only others have is not served any more. Looks at rows only when that has changed.
    ///
    /// # Errors
    /// When SQLite fails; nothing is changed then.
    pub async fn keep_upstreams(&self, upstreams: BTreeMap<String, bool>) -> Result<(), Error> {
        let memory = Arc::clone(&self.memory);
        let keep = move |transaction: &Transaction<'_>| {
            let mut statement = transaction.prepare("SELECT url, redirect FROM upstream")?;
            let before = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if before.collect::<rusqlite::Result<BTreeMap<_, _>>>()? == upstreams {
                return Ok(());
            }
            transaction.execute("DELETE FROM upstream", [])?;
            for (url, redirect) in &upstreams {
                transaction.execute("INSERT INTO upstream VALUES (?1, ?2)", params![url, redirect])?;
            }
            transaction.execute_batch(
                "CREATE TEMP TABLE lost AS SELECT nar_hash FROM upstream_nar \
                     WHERE upstream NOT IN (SELECT url FROM upstream); \
                     DELETE FROM upstream_nar WHERE upstream NOT IN (SELECT url FROM upstream); \
                     DELETE FROM path WHERE nar_hash IN (SELECT nar_hash FROM lost) \
                     AND nar_hash NOT IN (SELECT nar_hash FROM nar) \
                     AND nar_hash NOT IN (SELECT nar_hash FROM upstream_nar); \
                     DROP TABLE lost; \
                     UPDATE upstream_nar SET redirect = \
                     (SELECT redirect FROM upstream u WHERE u.url = upstream_nar.upstream)",
            )?;
            Ok(())
        };
        self.writer.run_then(keep, move |()| memory.forget_all()).await
    }
}

/// Every upstream that has this NAR.
pub(super) fn with_nar(connection: &Connection, nar: NarHash) -> Result<Vec<UpstreamNar>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM upstream_nar WHERE nar_hash = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([nar.as_bytes()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(upstream_nar(row)?);
    }
    Ok(found)
}

/// Writes down where an upstream has the NAR of a served path.
pub(super) fn insert(transaction: &Transaction<'_>, nar: &UpstreamNar) -> Result<(), Error> {
    let mut insert = transaction.prepare_cached(&format!(
        "INSERT OR REPLACE INTO upstream_nar ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
    ))?;
    insert.execute(params![
        nar.nar_hash.as_bytes(),
        nar.upstream,
        nar.url,
        nar.compression.to_string(),
        nar.file_hash.as_ref().map(NarHash::as_bytes),
        nar.file_size.map(signed),
        nar.redirect,
    ])?;
    Ok(())
}

/// The upstream that clients are sent to for this NAR.
pub(super) fn redirect(connection: &Connection, nar: NarHash) -> Result<Option<UpstreamNar>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM upstream_nar WHERE nar_hash = ?1 AND redirect LIMIT 1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([nar.as_bytes()])?;
    rows.next()?.map(upstream_nar).transpose()
}

fn upstream_nar(row: &Row<'_>) -> Result<UpstreamNar, Error> {
    let (url, compression): (String, String) = (row.get(2)?, row.get(3)?);
    let known = Compression::from_name(&compression);
    Ok(UpstreamNar {
        nar_hash: NarHash::from_bytes(row.get(0)?),
        upstream: row.get(1)?,
        compression: known.ok_or_else(|| corrupt(&url, UnknownCompression(compression)))?,
        url,
        file_hash: row.get::<_, Option<[u8; 32]>>(4)?.map(NarHash::from_bytes),
        file_size: row.get::<_, Option<i64>>(5)?.map(unsigned),
        redirect: row.get(6)?,
    })
}
