//! Rows of PostgreSQL to types of the model, and values of the model to what PostgreSQL takes.

use narinfo::{NarHash, StorePath, StorePathHash};
use tokio_postgres::Row;

use super::Error;
use super::session::column;
use crate::index::columns::{DamagedRow, FailureColumns, PathColumns, UpstreamColumns, store_path, unsigned};
use crate::model::{Failure, NarRow, PathRow, UpstreamNar};

pub(super) const PATH_COLUMNS: &str =
    "p.hash, p.name, p.nar_hash, p.nar_size, p.refs, p.deriver, p.ca, p.sigs, p.built";
/// Number of those columns.
pub(super) const PATH_COLUMN_COUNT: usize = 9;
/// Columns of [`upstream_nar`].
pub(super) const UPSTREAM_COLUMNS: &str =
    "u.nar_hash, u.upstream, u.url, u.compression, u.file_hash, u.file_size, u.redirect";

/// A hash that has another length.
#[derive(Debug, thiserror::Error)]
#[error("a hash of {0} bytes, not 32")]
struct HashLength(usize);

pub(super) fn path_row(row: &Row) -> Result<PathRow, Error> {
    let columns = PathColumns {
        hash: column(row, 0)?,
        name: column(row, 1)?,
        nar_hash: hash(row, 2)?,
        nar_size: column(row, 3)?,
        refs: column(row, 4)?,
        deriver: column(row, 5)?,
        ca: column(row, 6)?,
        sigs: column(row, 7)?,
        built: column(row, 8)?,
    };
    Ok(columns.row()?)
}

pub(super) fn nar_row(row: &Row, first: usize) -> Result<NarRow, Error> {
    Ok(NarRow {
        nar_hash: nar_hash(row, first)?,
        file_hash: nar_hash(row, first + 1)?,
        file_size: unsigned(column(row, first + 2)?),
    })
}

/// The stored file that stands behind the columns of a path, if there is one.
pub(super) fn joined_nar_row(row: &Row) -> Result<Option<NarRow>, Error> {
    let stored: Option<&[u8]> = column(row, PATH_COLUMN_COUNT)?;
    stored.map(|_| nar_row(row, PATH_COLUMN_COUNT)).transpose()
}

/// A NAR of an upstream in the columns from `first` on.
pub(super) fn upstream_nar(row: &Row, first: usize) -> Result<UpstreamNar, Error> {
    let columns = UpstreamColumns {
        nar_hash: hash(row, first)?,
        upstream: column(row, first + 1)?,
        url: column(row, first + 2)?,
        compression: column(row, first + 3)?,
        file_hash: optional_hash(row, first + 4)?,
        file_size: column(row, first + 5)?,
        redirect: column(row, first + 6)?,
    };
    Ok(columns.row()?)
}

pub(super) fn failure_row(row: &Row) -> Result<Failure, Error> {
    let columns = FailureColumns {
        drv: column(row, 0)?,
        class: column(row, 1)?,
        cause: column(row, 2)?,
        reason: column(row, 3)?,
        failed_at: column(row, 4)?,
        expires_at: column(row, 5)?,
    };
    Ok(columns.row()?)
}

pub(super) fn nar_hash(row: &Row, index: usize) -> Result<NarHash, Error> {
    Ok(NarHash::from_bytes(hash(row, index)?))
}

pub(super) fn hash(row: &Row, index: usize) -> Result<[u8; 32], Error> {
    let bytes: &[u8] = column(row, index)?;
    let key = || row.columns().get(index).map_or("a hash", tokio_postgres::Column::name);
    bytes.try_into().map_err(|_| DamagedRow::new(key(), HashLength(bytes.len())).into())
}

pub(super) fn optional_hash(row: &Row, index: usize) -> Result<Option<[u8; 32]>, Error> {
    column::<Option<&[u8]>>(row, index)?.map(|_| hash(row, index)).transpose()
}

/// A base name in a column of its own.
pub(super) fn base_name(row: &Row, index: usize) -> Result<StorePath, Error> {
    Ok(store_path(column(row, index)?)?)
}

pub(super) fn path_hash(row: &Row, index: usize) -> Result<StorePathHash, Error> {
    let text: &str = column(row, index)?;
    text.parse().map_err(|error| DamagedRow::new(text, error).into())
}

/// Hashes of paths, for an array.
pub(super) fn hash_texts<'a>(hashes: impl IntoIterator<Item = &'a StorePathHash>) -> Vec<&'a str> {
    hashes.into_iter().map(StorePathHash::as_str).collect()
}

/// Hashes of NARs, for an array.
pub(super) fn nar_bytes<'a>(nars: impl IntoIterator<Item = &'a NarHash>) -> Vec<&'a [u8]> {
    nars.into_iter().map(|nar| &nar.as_bytes()[..]).collect()
}

/// A text that others wrote, as PostgreSQL takes it: without NUL.
pub(super) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
