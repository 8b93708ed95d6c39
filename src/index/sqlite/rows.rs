//! What the index holds, as the rest of the program sees it, and the way between those types and columns.
//! Must never let a malformed row pass as data: it is an error that names the row.

use std::time::{Duration, SystemTime};

use narinfo::{Compression, NarHash, NarInfo, PathInfo, StorePath, StorePathHash};
use rusqlite::Row;

use super::Error;

/// A store path that is served: everything a narinfo says except where its file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRow {
    /// The path and its contents, with every signature that is served, our own included.
    pub info: PathInfo,
    /// Whether it was built on this machine.
    pub built: bool,
}

/// A packed NAR: a complete, verified file in the NAR store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarRow {
    /// SHA-256 of the plain NAR; names the file.
    pub nar_hash: NarHash,
    /// SHA-256 of the zstd file.
    pub file_hash: NarHash,
    /// Bytes of the zstd file.
    pub file_size: u64,
}

/// A NAR that an upstream has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamNar {
    /// SHA-256 of the plain NAR.
    pub nar_hash: NarHash,
    /// The upstream's name: its URL.
    pub upstream: String,
    /// Where its file is, as the upstream's narinfo has it.
    pub url: String,
    /// How the file is compressed.
    pub compression: Compression,
    /// SHA-256 of the file, as the upstream says.
    pub file_hash: Option<NarHash>,
    /// Bytes of the file, as the upstream says.
    pub file_size: Option<u64>,
    /// Whether clients are sent there.
    pub redirect: bool,
}

/// What an upstream has of a path that was built here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The upstream's name: its URL.
    pub upstream: String,
    /// SHA-256 of its NAR.
    pub nar_hash: NarHash,
    /// Whether that is what was built here.
    pub same: bool,
}

/// An index hit: the path, and where its contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The path.
    pub row: PathRow,
    /// Its file; `None` while only the Nix store, or an upstream, has the contents.
    pub packed: Option<NarRow>,
    /// The upstream that clients are sent to for what is not packed.
    pub redirect: Option<UpstreamNar>,
}

impl Hit {
    /// What clients are told of it.
    #[must_use]
    pub fn narinfo(&self) -> NarInfo {
        let Hit { row, packed, redirect } = self;
        // The file that a client gets: ours, or the upstream's where it is sent there.
        let (compression, file_hash, file_size) = match redirect {
            Some(nar) => (nar.compression, nar.file_hash, nar.file_size),
            None => (Compression::Zstd, packed.map(|nar| nar.file_hash), packed.map(|nar| nar.file_size)),
        };
        NarInfo {
            path_info: row.info.clone(),
            url: format!("nar/{}.nar{}", row.info.nar_hash.to_nixbase32(), compression.file_ending()),
            compression,
            file_hash,
            file_size,
        }
    }
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The machine was in trouble.
    Transient,
    /// The build itself is wrong.
    Permanent,
    /// Nothing was tried: this server cannot build it, or will not.
    Refused,
}

impl FailureClass {
    /// The word for it in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::Refused => "refused",
        }
    }
}

/// Why something was not built, and until when nobody tries again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The derivation that was asked for.
    pub drv: StorePath,
    /// What it means.
    pub class: FailureClass,
    /// The derivation whose build failed: `drv`, or one that it needs.
    pub cause: StorePath,
    /// What the daemon said, without escape codes.
    pub reason: String,
    /// When it failed.
    pub failed_at: SystemTime,
    /// When the memory of it ends.
    pub expires_at: SystemTime,
}

/// How much the index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Store paths that are served.
    pub paths: u64,
    /// NARs on disk.
    pub nars: u64,
    /// Bytes of those files.
    pub nar_bytes: u64,
    /// Failures that are remembered.
    pub failures: u64,
    /// Own builds that an upstream has with the same contents.
    pub reproduced: u64,
    /// Own builds that an upstream has with other contents.
    pub not_reproduced: u64,
}

pub(super) const PATH_COLUMNS: &str =
    "p.hash, p.name, p.nar_hash, p.nar_size, p.refs, p.deriver, p.ca, p.sigs, p.built";
/// How many those are.
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

/// What nobody knows is not held for long.
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

pub(in crate::index) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn corrupt(row: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Corrupt { row: row.to_owned(), source: Box::new(source) }
}
