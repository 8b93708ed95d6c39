//! Rows of SQLite to types of the model.

use narinfo::{NarHash, StorePath, StorePathHash};
use rusqlite::Row;

use super::Error;
use crate::index::columns::{self, DamagedRow, FailureColumns, PathColumns};
pub(super) use crate::index::columns::{
    class_number, from_micros, from_unix, join, like_pattern, millis, signed, to_unix, unsigned,
};
use crate::model::{Failure, NarRow, PathRow};

pub(super) const PATH_COLUMNS: &str =
    "p.hash, p.name, p.nar_hash, p.nar_size, p.refs, p.deriver, p.ca, p.sigs, p.built";
/// Number of those columns.
pub(super) const PATH_COLUMN_COUNT: usize = 9;

pub(super) fn path_row(row: &Row<'_>) -> Result<PathRow, Error> {
    let columns = PathColumns {
        hash: row.get(0)?,
        name: row.get(1)?,
        nar_hash: row.get(2)?,
        nar_size: row.get(3)?,
        refs: row.get(4)?,
        deriver: row.get(5)?,
        ca: row.get(6)?,
        sigs: row.get(7)?,
        built: row.get(8)?,
    };
    Ok(columns.row()?)
}

pub(super) fn nar_row(row: &Row<'_>, first: usize) -> Result<NarRow, Error> {
    Ok(NarRow {
        nar_hash: NarHash::from_bytes(row.get(first)?),
        file_hash: NarHash::from_bytes(row.get(first + 1)?),
        file_size: unsigned(row.get(first + 2)?),
    })
}

pub(super) fn failure_row(row: &Row<'_>) -> Result<Failure, Error> {
    let columns = FailureColumns {
        drv: row.get(0)?,
        class: row.get(1)?,
        cause: row.get(2)?,
        reason: row.get(3)?,
        failed_at: row.get(4)?,
        expires_at: row.get(5)?,
    };
    Ok(columns.row()?)
}

pub(super) fn hash_text(hash: &StorePathHash) -> String {
    hash.as_str().to_owned()
}

pub(super) fn corrupt(row: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    DamagedRow::new(row, source).into()
}

/// The path of this base name.
pub(super) fn store_path(name: &str) -> Result<StorePath, Error> {
    Ok(columns::store_path(name)?)
}
