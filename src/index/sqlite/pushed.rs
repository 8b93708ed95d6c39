//! Uploads, and the derivations among them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use narinfo::derivation::InputHash;
use narinfo::{StorePath, StorePathHash};
use rusqlite::{Connection, Row, Transaction, params};

use super::nar::insert_new;
use super::paths::{first_lacking, insert_paths, paths_of};
use super::rows::{PATH_COLUMNS, corrupt, path_row, to_unix};
use super::{Error, Sqlite};
use crate::index::backend::{BackendFuture, Changes, Pushes};
use crate::model::{NewNar, PathRow, PushedDerivation, UploadOutcome};

impl Pushes for Sqlite {
    fn publish_upload(
        &self,
        path: PathRow,
        nar: NewNar,
        derivation: Option<PushedDerivation>,
    ) -> BackendFuture<'_, UploadOutcome> {
        self.change(move |transaction| {
            let hash = path.info.path.hash();
            let served = served(transaction, hash)?;
            let outcome = match served {
                Some(served) if !is_same(&served, &path) => {
                    return Ok((Changes::default(), UploadOutcome::Served(Box::new(served))));
                }
                Some(served) => UploadOutcome::Served(Box::new(served)),
                None => {
                    if let Some(lacking) = first_lacking(transaction, std::iter::once(&path))? {
                        return Ok((Changes::default(), UploadOutcome::Lacks(lacking)));
                    }
                    UploadOutcome::Published
                }
            };
            // The NAR first: a path without one is to be packed.
            insert_new(transaction, &nar)?;
            insert_paths(transaction, [&path])?;
            let mut changes = Changes::added(vec![hash]);
            changes.changed = paths_of(transaction, nar.row.nar_hash)?;
            if let Some(derivation) = derivation {
                insert(transaction, &derivation)?;
                changes.added.extend(derivation.outputs.values().map(StorePath::hash));
            }
            Ok((changes, outcome))
        })
    }

    fn pushed_outputs(
        &self,
        drvs: Vec<StorePath>,
    ) -> BackendFuture<'_, BTreeMap<StorePath, BTreeMap<String, StorePath>>> {
        self.read(move |connection| {
            let mut found = BTreeMap::new();
            for drv in drvs {
                let outputs = outputs_of(connection, &drv)?;
                if !outputs.is_empty() {
                    found.insert(drv, outputs);
                }
            }
            Ok(found)
        })
    }

    fn pushed_named(&self, name: String) -> BackendFuture<'_, Vec<StorePath>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT hash, name FROM pushed_derivation WHERE name = ?1 ORDER BY used_at DESC, hash",
            )?;
            let rows = statement.query_and_then([name], drv)?;
            rows.collect()
        })
    }

    fn pushed_input_hashes(&self, drvs: Vec<StorePath>) -> BackendFuture<'_, BTreeMap<StorePath, InputHash>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT input_hash, is_fixed FROM pushed_derivation WHERE hash = ?1 AND name = ?2",
            )?;
            let mut found = BTreeMap::new();
            for drv in drvs {
                let mut rows = statement.query([drv.hash().as_str(), drv.name()])?;
                if let Some(row) = rows.next()? {
                    let hash = input_hash(row, 0)?;
                    drop(rows);
                    found.insert(drv, hash);
                }
            }
            Ok(found)
        })
    }

    fn note_pushed_uses(&self, drvs: Vec<StorePath>, now: SystemTime) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            let mut update = transaction
                .prepare_cached("UPDATE pushed_derivation SET used_at = ?3 WHERE hash = ?1 AND name = ?2")?;
            for drv in drvs {
                update.execute(params![drv.hash().as_str(), drv.name(), to_unix(now)])?;
            }
            Ok(())
        })
    }
}

/// A pushed derivation with its outputs.
pub(super) fn recorded_pushed(
    connection: &Connection,
    hash: &str,
) -> Result<Option<PushedDerivation>, Error> {
    let mut statement = connection
        .prepare_cached("SELECT hash, name, input_hash, is_fixed FROM pushed_derivation WHERE hash = ?1")?;
    let mut rows = statement.query([hash])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let (drv, input_hash) = (drv(row)?, input_hash(row, 2)?);
    let outputs = outputs_of(connection, &drv)?;
    Ok(Some(PushedDerivation { drv, outputs, input_hash }))
}

fn outputs_of(connection: &Connection, drv: &StorePath) -> Result<BTreeMap<String, StorePath>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT o.output, o.hash || '-' || o.name FROM pushed_output o \
         JOIN pushed_derivation d ON d.hash = o.drv WHERE o.drv = ?1 AND d.name = ?2",
    )?;
    let mut outputs = BTreeMap::new();
    let mut rows = statement.query([drv.hash().as_str(), drv.name()])?;
    while let Some(row) = rows.next()? {
        let base: String = row.get(1)?;
        outputs.insert(row.get(0)?, StorePath::parse(&base).map_err(|e| corrupt(&base, e))?);
    }
    Ok(outputs)
}

/// The identity in two columns from this one on.
fn input_hash(row: &Row<'_>, column: usize) -> Result<InputHash, Error> {
    Ok(match (row.get::<_, Option<[u8; 32]>>(column)?, row.get(column + 1)?) {
        (Some(hash), true) => InputHash::Fixed(hash),
        (Some(hash), false) => InputHash::Regular(hash),
        (None, _) => InputHash::Deferred,
    })
}

/// The pushed derivations that have an output with this hash, the latest used first.
pub(super) fn makers(connection: &Connection, hash: StorePathHash) -> Result<Vec<StorePath>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT d.hash, d.name, d.used_at FROM pushed_output o \
         JOIN pushed_derivation d ON d.hash = o.drv WHERE o.hash = ?1 ORDER BY d.used_at DESC, d.hash",
    )?;
    let rows = statement.query_and_then([hash.as_str()], drv)?;
    rows.collect()
}

fn drv(row: &Row<'_>) -> Result<StorePath, Error> {
    let base = format!("{}-{}", row.get::<_, String>(0)?, row.get::<_, String>(1)?);
    StorePath::parse(&base).map_err(|error| corrupt(&base, error))
}

fn served(connection: &Connection, hash: StorePathHash) -> Result<Option<PathRow>, Error> {
    let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.hash = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([hash.as_str()])?;
    rows.next()?.map(path_row).transpose()
}

/// True where an upload has the name and the contents of what is served.
fn is_same(served: &PathRow, path: &PathRow) -> bool {
    (&served.info.path, served.info.nar_hash) == (&path.info.path, path.info.nar_hash)
}

/// Inserts a derivation, or notes that it was used again.
pub(super) fn insert(transaction: &Transaction<'_>, derivation: &PushedDerivation) -> Result<(), Error> {
    let PushedDerivation { drv, outputs, input_hash } = derivation;
    let (hash, is_fixed) = match input_hash {
        InputHash::Regular(hash) => (Some(hash), false),
        InputHash::Fixed(hash) => (Some(hash), true),
        InputHash::Deferred => (None, false),
    };
    let mut insert = transaction.prepare_cached(
        "INSERT INTO pushed_derivation (hash, name, input_hash, is_fixed, used_at) VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT (hash) DO UPDATE SET used_at = excluded.used_at",
    )?;
    insert.execute(params![drv.hash().as_str(), drv.name(), hash, is_fixed, to_unix(SystemTime::now())])?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO pushed_output (hash, drv, output, name) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
    )?;
    for (output, path) in outputs {
        insert.execute(params![path.hash().as_str(), drv.hash().as_str(), output, path.name()])?;
    }
    Ok(())
}
