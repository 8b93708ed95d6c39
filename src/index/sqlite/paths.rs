//! Served paths: how one is found, published, signed and forgotten, and the totals of the index.

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use narinfo::{NarHash, Signature, StorePath, StorePathHash};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::nar::joined_nar_row;
use super::rows::{self, PATH_COLUMNS, hash_text, join, path_row, signed, to_unix};
use super::{Error, Sqlite, upstream};
use crate::index::backend::{BackendFuture, Changes, Paths};
use crate::model::{Counts, Hit, PathRow, UpstreamNar};

/// Signatures that a path may gain beside those it has, up to so many in all.
const SIGNATURES_MAX: usize = 100;
/// Paths in one batch: some milliseconds of the writer.
const BATCH: usize = 500;

impl Paths for Sqlite {
    fn find(&self, hash: StorePathHash) -> BackendFuture<'_, Option<Hit>> {
        self.read(move |connection| {
            let sql = format!(
                "SELECT {PATH_COLUMNS}, n.nar_hash, n.file_hash, n.file_size \
                     FROM path p LEFT JOIN nar n ON n.nar_hash = p.nar_hash WHERE p.hash = ?1"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([hash.as_str()])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let found = path_row(row)?;
            let packed = joined_nar_row(row)?;
            let redirect = match packed {
                Some(_) => None,
                None => upstream::redirect(connection, found.info.nar_hash)?,
            };
            Ok(Some(Hit { row: found, packed, redirect }))
        })
    }

    fn served(&self, hashes: Vec<StorePathHash>) -> BackendFuture<'_, BTreeMap<StorePathHash, StorePath>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached("SELECT name FROM path WHERE hash = ?1")?;
            let mut found = BTreeMap::new();
            for hash in hashes {
                let name: Option<String> =
                    statement.query_row([hash.as_str()], |row| row.get(0)).optional()?;
                if let Some(name) = name {
                    let base = format!("{hash}-{name}");
                    let path = StorePath::parse(&base).map_err(|error| rows::corrupt(&base, error))?;
                    found.insert(hash, path);
                }
            }
            Ok(found)
        })
    }

    fn publish(&self, rows: Vec<PathRow>) -> BackendFuture<'_, bool> {
        self.change(move |transaction| {
            if !serves_references(transaction, rows.iter())? {
                return Ok((Changes::default(), false));
            }
            insert_paths(transaction, &rows)?;
            Ok((Changes::added(rows.iter().map(|row| row.info.path.hash()).collect()), true))
        })
    }

    fn forget_paths(&self, nar: NarHash) -> BackendFuture<'_, ()> {
        self.change(move |transaction| {
            let changed = paths_of(transaction, nar)?;
            transaction.execute("DELETE FROM path WHERE nar_hash = ?1", [nar.as_bytes()])?;
            Ok((Changes::removed(changed), ()))
        })
    }

    fn publish_from_upstream(&self, rows: Vec<(PathRow, UpstreamNar)>) -> BackendFuture<'_, bool> {
        self.change(move |transaction| {
            if !serves_references(transaction, rows.iter().map(|(path, _)| path))? {
                return Ok((Changes::default(), false));
            }
            insert_paths(transaction, rows.iter().map(|(path, _)| path))?;
            let mut changes = Changes::added(rows.iter().map(|(path, _)| path.info.path.hash()).collect());
            for (_, nar) in &rows {
                upstream::insert(transaction, nar)?;
                changes.changed.extend(paths_of(transaction, nar.nar_hash)?);
            }
            Ok((changes, true))
        })
    }

    fn paths_after(&self, after: Option<StorePathHash>) -> BackendFuture<'_, Vec<PathRow>> {
        self.read(move |connection| {
            let sql =
                format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.hash > ?1 ORDER BY p.hash LIMIT {BATCH}");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([after.as_ref().map_or("", StorePathHash::as_str)])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(path_row(row)?);
            }
            Ok(found)
        })
    }

    fn set_signatures(&self, paths: Vec<(StorePathHash, Vec<Signature>)>) -> BackendFuture<'_, ()> {
        self.change(move |transaction| {
            let mut update = transaction.prepare_cached("UPDATE path SET sigs = ?2 WHERE hash = ?1")?;
            for (hash, signatures) in &paths {
                update.execute((hash.as_str(), join(signatures, "\n")))?;
            }
            Ok((Changes::changed(paths.into_iter().map(|(hash, _)| hash).collect()), ()))
        })
    }

    fn add_signatures(&self, new: Vec<(StorePathHash, NarHash, Vec<Signature>)>) -> BackendFuture<'_, usize> {
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
            Ok((Changes::changed(changed), count))
        })
    }

    fn counts(&self) -> BackendFuture<'_, Counts> {
        self.read(|connection| {
            let one = |sql: &str| -> Result<u64, Error> {
                let value: Option<i64> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
                Ok(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0))
            };
            Ok(Counts {
                paths: one("SELECT paths FROM stored")?,
                nars: one("SELECT nars FROM stored")?,
                nar_bytes: one("SELECT bytes FROM stored")?,
                failures: one("SELECT count(*) FROM failure")?,
                reproduced: one("SELECT count(*) FROM comparison WHERE same = 1")?,
                not_reproduced: one("SELECT count(*) FROM comparison WHERE same = 0")?,
            })
        })
    }
}

/// True where everything that the rows refer to is served, or among them.
fn serves_references<'a>(
    connection: &Connection,
    rows: impl Iterator<Item = &'a PathRow> + Clone,
) -> Result<bool, Error> {
    Ok(first_lacking(connection, rows)?.is_none())
}

/// A path that the rows refer to and that is neither served nor among them, by its own name: a client asks
/// for a hash, and refuses what comes under another name.
pub(super) fn first_lacking<'a>(
    connection: &Connection,
    rows: impl Iterator<Item = &'a PathRow> + Clone,
) -> Result<Option<StorePath>, Error> {
    let own: HashSet<&StorePath> = rows.clone().map(|row| &row.info.path).collect();
    let mut served = connection.prepare_cached("SELECT 1 FROM path WHERE hash = ?1 AND name = ?2")?;
    let others: HashSet<&StorePath> =
        rows.flat_map(|row| &row.info.references).filter(|path| !own.contains(path)).collect();
    for path in others {
        if !served.exists([path.hash().as_str(), path.name()])? {
            return Ok(Some(path.clone()));
        }
    }
    Ok(None)
}

/// Inserts paths. No narinfo is changed by this: a path that is served keeps its row.
pub(super) fn insert_paths<'a>(
    transaction: &Transaction<'_>,
    rows: impl IntoIterator<Item = &'a PathRow>,
) -> Result<(), Error> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO path (hash, name, nar_hash, nar_size, refs, deriver, ca, sigs, added_at, built) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (hash) DO NOTHING",
    )?;
    let now = to_unix(SystemTime::now());
    for row in rows {
        insert.execute(params![
            hash_text(&row.info.path.hash()),
            row.info.path.name(),
            row.info.nar_hash.as_bytes(),
            signed(row.info.nar_size),
            join(&row.info.references, " "),
            row.info.deriver.as_ref().map(ToString::to_string),
            row.info.ca.as_ref().map(ToString::to_string),
            join(&row.info.signatures, "\n"),
            now,
            row.built,
        ])?;
    }
    Ok(())
}

/// The served paths with this NAR: a write that concerns it changes their narinfos.
pub(super) fn paths_of(transaction: &Transaction<'_>, nar: NarHash) -> Result<Vec<StorePathHash>, Error> {
    let mut statement = transaction.prepare_cached("SELECT hash FROM path WHERE nar_hash = ?1")?;
    let mut rows = statement.query([nar.as_bytes()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(row.get_ref(0)?.as_str().ok().and_then(|hash| hash.parse::<StorePathHash>().ok()));
    }
    Ok(found)
}
