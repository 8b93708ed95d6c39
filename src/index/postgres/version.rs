//! Versions of attributes: the derivations that each had, from the generation that had it first to the last
//! one.

use std::time::SystemTime;

use tokio_postgres::Row;

use super::Error;
use super::rows::{base_name, text};
use super::session::{DatabaseSession, column};
use crate::index::columns::{from_unix, to_unix, unsigned};
use crate::model::{AttributeName, AttributeRow, VersionRow};

/// Versions that the new generation does not have.
const END: &str = "UPDATE catalogue_version v SET last = $2 WHERE v.set_id = $1 AND v.last IS NULL AND NOT EXISTS \
    (SELECT 1 FROM catalogue_new_attribute n WHERE n.attribute = v.attribute AND n.system = v.system AND n.drv = v.drv)";
/// Versions that it has and the one before had not.
const BEGIN: &str = "INSERT INTO catalogue_version (set_id, attribute, system, first, drv, since) \
    SELECT $1, n.attribute, n.system, $2, n.drv, $3 FROM catalogue_new_attribute n \
    WHERE n.drv IS NOT NULL AND NOT EXISTS (SELECT 1 FROM catalogue_version v WHERE v.set_id = $1 \
    AND v.attribute = n.attribute AND v.system = n.system AND v.drv = n.drv AND v.last IS NULL)";

/// Versions of an attribute, the latest first.
pub(super) async fn versions(
    session: &DatabaseSession,
    name: &AttributeName,
    max: i64,
) -> Result<Vec<VersionRow>, Error> {
    let sql = "SELECT v.drv, v.first, v.last, v.since, g.replaced_at FROM catalogue_version v \
        LEFT JOIN catalogue_generation g ON g.id = v.last \
        WHERE v.set_id = (SELECT id FROM catalogue_set WHERE name = $1) AND v.attribute = $2 AND v.system = $3 \
        ORDER BY v.first DESC LIMIT $4";
    let rows = session.rows(sql, &[&name.set, &text(&name.attribute), &name.system, &max]).await?;
    rows.iter().map(version).collect()
}

fn version(row: &Row) -> Result<VersionRow, Error> {
    Ok(VersionRow {
        drv: base_name(row, 0)?,
        first: unsigned(column(row, 1)?),
        last: column::<Option<i64>>(row, 2)?.map(unsigned),
        since: from_unix(column(row, 3)?),
        until: column::<Option<i64>>(row, 4)?.map(from_unix),
    })
}

/// Records what a generation that takes the place of `before` has. Only differences are written.
pub(super) async fn swap(
    session: &DatabaseSession,
    set: i64,
    generation: i64,
    before: Option<i64>,
) -> Result<(), Error> {
    session.execute(END, &[&set, &before]).await?;
    session.execute(BEGIN, &[&set, &generation, &to_unix(SystemTime::now())]).await.map(drop)
}

/// Records an attribute that was evaluated later.
pub(super) async fn add(
    session: &DatabaseSession,
    set: i64,
    generation: i64,
    row: &AttributeRow,
) -> Result<(), Error> {
    let Ok(drv) = &row.outcome else { return Ok(()) };
    let sql = "INSERT INTO catalogue_version (set_id, attribute, system, first, drv, since) \
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (set_id, attribute, system, first) DO UPDATE SET \
        drv = excluded.drv, since = excluded.since, last = NULL";
    let (attribute, now) = (text(&row.attribute), to_unix(SystemTime::now()));
    let drv = drv.to_string();
    session.execute(sql, &[&set, &attribute, &row.system, &generation, &drv, &now]).await.map(drop)
}
