//! Columns of a database to types of the model and back, alike in every backend that has columns.
//! Must never let a malformed row pass as data: it is an error that names the row.

use std::time::{Duration, SystemTime};

use narinfo::{Compression, NarHash, PathInfo, StorePath};

use crate::model::{Failure, FailureClass, PathRow, UpstreamNar};

/// A row that is not as it was written.
#[derive(Debug, thiserror::Error)]
#[error("the index row of {row} is damaged")]
pub(super) struct DamagedRow {
    /// The row's key.
    pub(super) row: String,
    /// The fault.
    pub(super) source: Box<dyn std::error::Error + Send + Sync>,
}

impl DamagedRow {
    pub(super) fn new(row: &str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { row: row.to_owned(), source: Box::new(source) }
    }
}

/// A compression that no version of this program has written.
#[derive(Debug, thiserror::Error)]
#[error("there is no compression {0:?}")]
struct UnknownCompression(String);

/// Columns of a served path.
pub(super) struct PathColumns {
    pub(super) hash: String,
    pub(super) name: String,
    pub(super) nar_hash: [u8; 32],
    pub(super) nar_size: i64,
    pub(super) refs: String,
    pub(super) deriver: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) sigs: String,
    pub(super) built: bool,
}

impl PathColumns {
    pub(super) fn row(self) -> Result<PathRow, DamagedRow> {
        let base = format!("{}-{}", self.hash, self.name);
        let references = self.refs.split_ascii_whitespace();
        let info = PathInfo {
            path: store_path(&base)?,
            nar_hash: NarHash::from_bytes(self.nar_hash),
            nar_size: unsigned(self.nar_size),
            references: references
                .map(|r| StorePath::parse(r).map_err(|e| DamagedRow::new(&base, e)))
                .collect::<Result<_, _>>()?,
            deriver: self
                .deriver
                .map(|d| StorePath::parse(&d).map_err(|e| DamagedRow::new(&base, e)))
                .transpose()?,
            ca: self.ca.map(|c| c.parse().map_err(|e| DamagedRow::new(&base, e))).transpose()?,
            signatures: self
                .sigs
                .lines()
                .map(|s| s.parse().map_err(|e| DamagedRow::new(&base, e)))
                .collect::<Result<_, _>>()?,
        };
        Ok(PathRow { info, built: self.built })
    }
}

/// Columns of a failure.
pub(super) struct FailureColumns {
    pub(super) drv: String,
    pub(super) class: i64,
    pub(super) cause: String,
    pub(super) reason: String,
    pub(super) failed_at: i64,
    pub(super) expires_at: i64,
}

impl FailureColumns {
    pub(super) fn row(self) -> Result<Failure, DamagedRow> {
        let Self { drv, class: number, cause, reason, failed_at, expires_at } = self;
        Ok(Failure {
            cause: StorePath::parse(&cause).map_err(|e| DamagedRow::new(&drv, e))?,
            drv: store_path(&drv)?,
            class: class(number),
            reason,
            failed_at: from_unix(failed_at),
            expires_at: from_unix(expires_at),
        })
    }
}

/// Columns of a NAR that an upstream has.
pub(super) struct UpstreamColumns {
    pub(super) nar_hash: [u8; 32],
    pub(super) upstream: String,
    pub(super) url: String,
    pub(super) compression: String,
    pub(super) file_hash: Option<[u8; 32]>,
    pub(super) file_size: Option<i64>,
    pub(super) redirect: bool,
}

impl UpstreamColumns {
    pub(super) fn row(self) -> Result<UpstreamNar, DamagedRow> {
        let Self { nar_hash, upstream, url, compression, file_hash, file_size, redirect } = self;
        let known = Compression::from_name(&compression);
        Ok(UpstreamNar {
            nar_hash: NarHash::from_bytes(nar_hash),
            upstream,
            compression: known.ok_or_else(|| DamagedRow::new(&url, UnknownCompression(compression)))?,
            url,
            file_hash: file_hash.map(NarHash::from_bytes),
            file_size: file_size.map(unsigned),
            redirect,
        })
    }
}

/// A store path in a column of its own.
pub(super) fn store_path(base: &str) -> Result<StorePath, DamagedRow> {
    StorePath::parse(base).map_err(|error| DamagedRow::new(base, error))
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

/// Unix seconds; a clock before 1970 counts as 1970.
pub(super) fn to_unix(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

pub(super) fn from_unix(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(unsigned(seconds))
}

/// Unix microseconds; a clock before 1970 counts as 1970.
pub(super) fn to_micros(time: SystemTime) -> i64 {
    micros(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn from_micros(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(unsigned(micros))
}

/// Sizes are below 2^63 in every file system; SQL has no unsigned integers.
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

/// A pattern of [`crate::model::Search`] as SQL has it, with backslashes before what is meant as it stands.
pub(super) fn like_pattern(like: &str) -> String {
    let character = |c| match c {
        '*' => "%".to_owned(),
        '%' | '_' | '\\' => format!("\\{c}"),
        c => c.to_string(),
    };
    let pattern: String = like.chars().map(character).collect();
    if like.contains('*') { pattern } else { format!("%{pattern}%") }
}
