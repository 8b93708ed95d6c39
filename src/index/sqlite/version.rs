//! Versions of attributes: the derivations that each had, from the generation that had it first to the last
//! one.

use std::time::SystemTime;

use rusqlite::{Connection, Transaction, params};

use super::Error;
use super::rows::{from_unix, store_path, to_unix, unsigned};
use crate::model::{AttributeName, AttributeRow, VersionRow};

/// Versions of an attribute, the latest first.
pub(super) fn versions(
    connection: &Connection,
    name: &AttributeName,
    max: u32,
) -> Result<Vec<VersionRow>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT v.drv, v.first, v.last, v.since, g.replaced_at FROM catalogue_version v \
         LEFT JOIN catalogue_generation g ON g.id = v.last \
         WHERE v.set_id = (SELECT id FROM catalogue_set WHERE name = ?1) AND v.attribute = ?2 AND v.system = ?3 \
         ORDER BY v.first DESC LIMIT ?4",
    )?;
    let mut rows = statement.query(params![name.set, name.attribute, name.system, max])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(VersionRow {
            drv: store_path(&row.get::<_, String>(0)?)?,
            first: unsigned(row.get(1)?),
            last: row.get::<_, Option<i64>>(2)?.map(unsigned),
            since: from_unix(row.get(3)?),
            until: row.get::<_, Option<i64>>(4)?.map(from_unix),
        });
    }
    Ok(found)
}

/// Records what a generation that takes the place of `before` has. Only differences are written.
pub(super) fn swap(
    transaction: &Transaction<'_>,
    set: i64,
    generation: i64,
    before: Option<i64>,
) -> Result<(), Error> {
    transaction.execute(
        "UPDATE catalogue_version SET last = ?2 WHERE set_id = ?1 AND last IS NULL AND NOT EXISTS \
         (SELECT 1 FROM catalogue_new_attribute n WHERE n.attribute = catalogue_version.attribute \
          AND n.system = catalogue_version.system AND n.drv = catalogue_version.drv)",
        params![set, before],
    )?;
    transaction.execute(
        "INSERT INTO catalogue_version (set_id, attribute, system, first, drv, since) \
         SELECT ?1, n.attribute, n.system, ?2, n.drv, ?3 FROM catalogue_new_attribute n \
         WHERE n.drv IS NOT NULL AND NOT EXISTS \
         (SELECT 1 FROM catalogue_version v WHERE v.set_id = ?1 AND v.attribute = n.attribute \
          AND v.system = n.system AND v.drv = n.drv AND v.last IS NULL)",
        params![set, generation, to_unix(SystemTime::now())],
    )?;
    Ok(())
}

/// Records an attribute that was evaluated later.
pub(super) fn add(
    transaction: &Transaction<'_>,
    set: i64,
    generation: i64,
    row: &AttributeRow,
) -> Result<(), Error> {
    let Ok(drv) = &row.outcome else { return Ok(()) };
    let now = to_unix(SystemTime::now());
    transaction.execute(
        "INSERT OR REPLACE INTO catalogue_version (set_id, attribute, system, first, drv, since) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![set, row.attribute, row.system, generation, drv.to_string(), now],
    )?;
    Ok(())
}

/// Drops the versions that ended with a generation.
pub(super) fn expire(transaction: &Transaction<'_>, set: i64, generation: i64) -> Result<(), Error> {
    transaction
        .execute("DELETE FROM catalogue_version WHERE set_id = ?1 AND last = ?2", [set, generation])?;
    Ok(())
}
