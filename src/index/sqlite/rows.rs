//! Columns to types of the model and back.
//! Must never let a malformed row pass as data: it is an error that names the row.

use std::time::{Duration, SystemTime};

use narinfo::{NarHash, PathInfo, StorePath, StorePathHash};
use rusqlite::Row;

use super::Error;
use crate::model::{Failure, FailureClass, NarRow, PathRow};

pub(super) const PATH_COLUMNS: &str =
    "p.hash, p.name, p.nar_hash, p.nar_size, p.refs, p.deriver, p.ca, p.sigs, p.built";
/// Number of those columns.
pub(super) const PATH_COLUMN_COUNT: usize = 9;

pub(super) fn path_row(row: &Row<'_>) -> Result<PathRow, Error> {
    let (hash, name): (String, String) = (row.get(0)?, row.get(1)?);
    let base = format!("{hash}-{name}");
    let path = StorePath::parse(&base).map_err(|e| corrupt(&base, e))?;
    let refs: String = row.get(4)?;
    let references = refs
        .split_ascii_whitespace()
        .map(|r| StorePath::parse(r).map_err(|e| corrupt(&base, e)))
        .collect::<Result<_, _>>()?;
    let deriver: Option<String> = row.get(5)?;
    let ca: Option<String> = row.get(6)?;
    let sigs: String = row.get(7)?;
    let info = PathInfo {
        path,
        nar_hash: NarHash::from_bytes(row.get(2)?),
        nar_size: unsigned(row.get(3)?),
        references,
        deriver: deriver.map(|d| StorePath::parse(&d).map_err(|e| corrupt(&base, e))).transpose()?,
        ca: ca.map(|c| c.parse().map_err(|e| corrupt(&base, e))).transpose()?,
        signatures: sigs
            .lines()
            .map(|s| s.parse().map_err(|e| corrupt(&base, e)))
            .collect::<Result<_, _>>()?,
    };
    Ok(PathRow { info, built: row.get(8)? })
}

pub(super) fn nar_row(row: &Row<'_>, first: usize) -> Result<NarRow, Error> {
    Ok(NarRow {
        nar_hash: NarHash::from_bytes(row.get(first)?),
        file_hash: NarHash::from_bytes(row.get(first + 1)?),
        file_size: unsigned(row.get(first + 2)?),
    })
}

pub(super) fn failure_row(row: &Row<'_>) -> Result<Failure, Error> {
    let (drv, cause): (String, String) = (row.get(0)?, row.get(2)?);
    Ok(Failure {
        drv: StorePath::parse(&drv).map_err(|e| corrupt(&drv, e))?,
        class: class(row.get(1)?),
        cause: StorePath::parse(&cause).map_err(|e| corrupt(&drv, e))?,
        reason: row.get(3)?,
        failed_at: from_unix(row.get(4)?),
        expires_at: from_unix(row.get(5)?),
    })
}

/// The number of a class in the column of that name.
pub(super) fn class_number(class: FailureClass) -> i64 {
    match class {
        FailureClass::Transient => 0,
        FailureClass::Permanent => 1,
        FailureClass::Refused => 2,
    }
}

/// An unknown class is not held for long.
fn class(number: i64) -> FailureClass {
    match number {
        1 => FailureClass::Permanent,
        2 => FailureClass::Refused,
        _ => FailureClass::Transient,
    }
}

pub(super) fn join<T: ToString>(items: impl IntoIterator<Item = T>, separator: &str) -> String {
    items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(separator)
}

pub(super) fn hash_text(hash: &StorePathHash) -> String {
    hash.as_str().to_owned()
}

/// Unix seconds; a clock before 1970 counts as 1970.
pub(super) fn to_unix(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

pub(super) fn from_unix(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(unsigned(seconds))
}

/// Sizes are below 2^63 in every file system; SQLite has no unsigned integers.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Of no more than 292 million years.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn corrupt(row: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Corrupt { row: row.to_owned(), source: Box::new(source) }
}
