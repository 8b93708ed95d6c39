//! `ondine backup`: a copy of what cannot be made again, for a backup program to take. Those are the signing
//! keys, and the index with tokens, pins, failures and learned build times. NARs are fetched, packed or built
//! again. Must never write into the state directory.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Settings;
use super::steps::Error;
use crate::index::{IndexLocation, Sqlite};
use crate::key;
use crate::state_dir::{INDEX, using};

/// Mode of directories.
const PRIVATE_DIR: u32 = 0o700;
/// Ending of a file that is being written.
const DRAFT: &str = "new";

/// Files that a backup consists of.
#[derive(Debug, Serialize)]
pub struct BackupReport {
    /// Their names in the directory.
    pub files: Vec<PathBuf>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// True if the index is in PostgreSQL, whose own tools back it up.
    pub index_is_elsewhere: bool,
}

/// Copies keys and index into a directory, each file under its name in the state directory. A server may run.
///
/// # Errors
/// The state directory cannot be read, or the other one cannot be written.
pub fn backup(settings: &Settings, to: &Path) -> Result<BackupReport, Error> {
    let from = using(&settings.state_dir, |dir| dir.canonicalize())?;
    let to = using(to, |to| {
        make_dir(to)?;
        let to = to.canonicalize()?;
        if to.starts_with(&from) {
            return Err(io::Error::other("it is in the state directory, whose loss a backup is made for"));
        }
        Ok(to)
    })?;
    let _lock = using(&to, lock)?;
    let mut report = BackupReport { files: Vec::new(), bytes: 0, index_is_elsewhere: false };
    let mut note = |name: &Path, bytes: u64| {
        report.files.push(name.to_owned());
        report.bytes += bytes;
    };
    for file in key::files(&from)? {
        let name = file.strip_prefix(&from).expect("it is in the state directory").to_owned();
        let copied = using(&file, |file| replace(&to.join(&name), |draft| fs::copy(file, draft)))?;
        note(&name, copied);
    }
    match settings.index.location {
        IndexLocation::Sqlite => {
            let bytes = copy_index(&from.join(INDEX), &to.join(INDEX))?;
            note(Path::new(INDEX), bytes);
        }
        IndexLocation::Postgres(_) => report.index_is_elsewhere = true,
    }
    Ok(report)
}

/// Locks a directory against another backup into it for as long as the file is open.
fn lock(dir: &Path) -> io::Result<File> {
    let dir = File::open(dir)?;
    match dir.try_lock() {
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another backup is being written there")),
        // Some network file systems lock no directories.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(dir),
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(dir)
}

/// Writes a file under another name, and gives it its own once it is durable.
fn replace(to: &Path, write: impl FnOnce(&Path) -> io::Result<u64>) -> io::Result<u64> {
    to.parent().map_or(Ok(()), make_dir)?;
    let draft = to.with_added_extension(DRAFT);
    let bytes = write(&draft)?;
    File::open(&draft)?.sync_all()?;
    fs::rename(&draft, to)?;
    Ok(bytes)
}

fn copy_index(from: &Path, to: &Path) -> Result<u64, Error> {
    let draft = to.with_added_extension(DRAFT);
    using(&draft, |draft| match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })?;
    Sqlite::copy_file(from, &draft)?;
    Ok(using(to, |to| {
        File::open(&draft)?.sync_all()?;
        fs::rename(&draft, to)?;
        Ok(fs::metadata(to)?.len())
    })?)
}
