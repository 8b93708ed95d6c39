//! Served paths: how one is found, published and forgotten, and how many there are of everything.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use narinfo::{NarHash, StorePath, StorePathHash};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::nar::joined_nar_row;
use super::rows::{self, PATH_COLUMNS, hash_text, join, path_row, signed, to_unix};
use super::{Counts, Error, Filter, Hit, Index, PathRow, upstream};

impl Index {
    /// The path with this hash, if it is served.
    ///
    /// # Errors
    /// When SQLite fails or the row is damaged.
    pub async fn find(&self, hash: StorePathHash) -> Result<Option<Hit>, Error> {
        self.readers
            .run(move |connection| {
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
            .await
    }

    /// Those of `hashes` that are served, each with the path that has it.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn served(
        &self,
        hashes: Vec<StorePathHash>,
    ) -> Result<BTreeMap<StorePathHash, StorePath>, Error> {
        self.readers
            .run(move |connection| {
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
            .await
    }

    /// Publishes a closure: all rows or none. A hash that is served already keeps its first row, since clients may hold a
    /// narinfo for it. Whether it is published: it is not when it refers to what is not served, or not any more.
    ///
    /// # Errors
    /// When SQLite fails; nothing is published then.
    pub async fn publish(&self, rows: Vec<PathRow>) -> Result<bool, Error> {
        let known = Arc::clone(&self.known);
        self.writer
            .run(move |transaction| {
                let served = serves_references(transaction, rows.iter())?;
                if served {
                    insert_paths(transaction, &known, &rows)?;
                }
                Ok(served)
            })
            .await
    }

    /// Stops serving every path with this NAR: neither the NAR store nor the Nix store has it any more.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn forget_paths(&self, nar: NarHash) -> Result<(), Error> {
        self.change(move |transaction| {
            let changed = paths_of(transaction, nar)?;
            transaction.execute("DELETE FROM path WHERE nar_hash = ?1", [nar.as_bytes()])?;
            Ok((changed, ()))
        })
        .await
    }

    /// How much is in the index.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn counts(&self) -> Result<Counts, Error> {
        self.readers
            .run(|connection| {
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
            .await
    }
}

/// Whether all that the rows refer to is served, or among them, each by its own name: a client asks for a hash, and refuses what
/// comes under another name.
pub(super) fn serves_references<'a>(
    connection: &Connection,
    rows: impl Iterator<Item = &'a PathRow> + Clone,
) -> Result<bool, Error> {
    let own: HashSet<&StorePath> = rows.clone().map(|row| &row.info.path).collect();
    let mut served = connection.prepare_cached("SELECT 1 FROM path WHERE hash = ?1 AND name = ?2")?;
    let others: HashSet<&StorePath> =
        rows.flat_map(|row| &row.info.references).filter(|path| !own.contains(path)).collect();
    for path in others {
        if !served.exists([path.hash().as_str(), path.name()])? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// No narinfo is changed by this: a path that is served keeps its row.
pub(super) fn insert_paths<'a>(
    transaction: &Transaction<'_>,
    known: &Filter,
    rows: impl IntoIterator<Item = &'a PathRow>,
) -> Result<(), Error> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO path (hash, name, nar_hash, nar_size, refs, deriver, ca, sigs, added_at, built) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (hash) DO NOTHING",
    )?;
    let now = to_unix(SystemTime::now());
    for row in rows {
        known.add([row.info.path.hash()]);
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

/// The served paths with this NAR: what is changed by a write that concerns it.
pub(super) fn paths_of(transaction: &Transaction<'_>, nar: NarHash) -> Result<Vec<StorePathHash>, Error> {
    let mut statement = transaction.prepare_cached("SELECT hash FROM path WHERE nar_hash = ?1")?;
    let mut rows = statement.query([nar.as_bytes()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(row.get_ref(0)?.as_str().ok().and_then(|hash| hash.parse::<StorePathHash>().ok()));
    }
    Ok(found)
}
