//! NARs of served paths that upstreams have, and their files there.

use std::collections::BTreeMap;

use narinfo::NarHash;
use rusqlite::{Connection, Row, Transaction, params};

use super::rows::signed;
use super::{Error, Sqlite, paths_of};
use crate::index::backend::{BackendFuture, Changes, UpstreamNars};
use crate::index::columns::UpstreamColumns;
use crate::model::UpstreamNar;

const COLUMNS: &str = "nar_hash, upstream, url, compression, file_hash, file_size, redirect";

impl UpstreamNars for Sqlite {
    fn upstreams_with(&self, nar: NarHash) -> BackendFuture<'_, Vec<UpstreamNar>> {
        self.read(move |connection| with_nar(connection, nar))
    }

    fn forget_upstream_nar(&self, nar: NarHash, upstream: String) -> BackendFuture<'_, ()> {
        self.change(move |transaction| {
            let sql = "DELETE FROM upstream_nar WHERE nar_hash = ?1 AND upstream = ?2";
            transaction.execute(sql, params![nar.as_bytes(), upstream])?;
            Ok((Changes::changed(paths_of(transaction, nar)?), ()))
        })
    }

    fn sync_upstreams(&self, upstreams: BTreeMap<String, bool>) -> BackendFuture<'_, ()> {
        self.change(move |transaction| {
            let mut statement = transaction.prepare("SELECT url, redirect FROM upstream")?;
            let before = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if before.collect::<rusqlite::Result<BTreeMap<_, _>>>()? == upstreams {
                return Ok((Changes::default(), ()));
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
            Ok((Changes { everything: true, ..Changes::default() }, ()))
        })
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

/// Records the address that an upstream has for the NAR of a served path.
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

/// The upstream that clients are redirected to for this NAR.
pub(super) fn redirect(connection: &Connection, nar: NarHash) -> Result<Option<UpstreamNar>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM upstream_nar WHERE nar_hash = ?1 AND redirect LIMIT 1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([nar.as_bytes()])?;
    rows.next()?.map(upstream_nar).transpose()
}

fn upstream_nar(row: &Row<'_>) -> Result<UpstreamNar, Error> {
    let columns = UpstreamColumns {
        nar_hash: row.get(0)?,
        upstream: row.get(1)?,
        url: row.get(2)?,
        compression: row.get(3)?,
        file_hash: row.get(4)?,
        file_size: row.get(5)?,
        redirect: row.get(6)?,
    };
    Ok(columns.row()?)
}
