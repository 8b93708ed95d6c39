//! The files as such: which there are, whether one is still the same, and the end of one.
//! Looks only where NARs are kept, never into other folders beside them.

use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use narinfo::NarHash;

use super::{NarStore, Stored};

/// What the name of a stored file has after the hash.
pub(super) const FILE_ENDING: &str = ".nar.zst";
/// Characters of the hash that name the folder of a file.
pub(super) const FOLDER_CHARS: usize = 2;
/// The folder of damaged files, which are not served, and how many of them are there at most; the oldest go first.
const QUARANTINE: &str = "quarantine";
const QUARANTINED_MAX: usize = 16;

impl NarStore {
    /// Every file under its final name. Blocking.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn files(&self) -> io::Result<Vec<NarHash>> {
        let mut found = Vec::new();
        for folder in fs::read_dir(&self.dir)? {
            let folder = folder?;
            if folder.file_name().len() != FOLDER_CHARS {
                continue;
            }
            for file in fs::read_dir(folder.path())? {
                let name = file?.file_name();
                let hash = name.to_str().and_then(|name| name.strip_suffix(FILE_ENDING));
                found.extend(hash.and_then(|hash| NarHash::from_nixbase32(hash).ok()));
            }
        }
        Ok(found)
    }

    /// Removes the file of a NAR, and what else there is of it here; whoever reads it still gets all of it. Whether there was one. Blocking.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, nar: NarHash) -> io::Result<bool> {
        let removed = match fs::remove_file(self.file_of(nar)) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        self.forget(nar);
        Ok(removed)
    }
}

/// Bytes of the file of a NAR in the folder of a NAR store, if there is one. Blocking.
///
/// # Errors
/// When the system does not tell.
pub fn file_bytes(dir: &Path, nar: NarHash) -> io::Result<Option<u64>> {
    match fs::metadata(file_in(dir, nar)) {
        Ok(file) => Ok(Some(file.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether there is a folder of files of NARs in the folder of a NAR store. Blocking.
#[must_use]
pub fn has_files(dir: &Path) -> bool {
    let folders = fs::read_dir(dir).into_iter().flatten().flatten();
    folders.into_iter().any(|folder| folder.file_name().len() == FOLDER_CHARS)
}

/// Where the file of a NAR is. Two characters of the hash make the folder, so that no folder grows without end.
pub(super) fn file_in(dir: &Path, nar: NarHash) -> PathBuf {
    let name = nar.to_nixbase32();
    dir.join(&name[..FOLDER_CHARS]).join(format!("{name}{FILE_ENDING}"))
}

impl NarStore {
    /// Moves the file of a NAR out of the way, for whoever wants to know what has happened to it; it is not served any more.
    /// Blocking.
    ///
    /// # Errors
    /// When it can neither be moved nor removed.
    pub fn quarantine(&self, nar: NarHash) -> io::Result<()> {
        let (folder, file) = (self.dir.join(QUARANTINE), self.file_of(nar));
        let aside = folder.join(file.file_name().unwrap_or_default());
        if let Err(error) = fs::create_dir_all(&folder).and_then(|()| fs::rename(&file, &aside)) {
            tracing::debug!(%nar, %error, "not moved to the quarantine, but removed");
            return self.remove(nar).map(drop);
        }
        self.forget(nar);
        self.empty_quarantine(QUARANTINED_MAX);
        Ok(())
    }

    /// Removes all damaged files but the newest few. Blocking.
    pub fn empty_quarantine(&self, left: usize) {
        let entries = fs::read_dir(self.dir.join(QUARANTINE)).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries.map(|entry| (moved_at(&entry), entry.path())).collect();
        files.sort_unstable();
        for (_, file) in files.iter().rev().skip(left) {
            if let Err(error) = fs::remove_file(file) {
                tracing::warn!(%error, "cannot remove {}: remove it by hand", file.display());
            }
        }
    }
}

/// When a file came where it is.
fn moved_at(entry: &DirEntry) -> SystemTime {
    let changed = entry.metadata().map_or(0, |metadata| metadata.ctime().unsigned_abs());
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(changed)
}

/// Removes what has no business in a folder of files that are being written, a folder too.
pub(super) fn sweep(entry: &DirEntry) -> io::Result<()> {
    let path = entry.path();
    if entry.file_type()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

impl Stored {
    /// Whether `other` is this very file, and not one that has taken its place.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn is(&self, other: &Self) -> io::Result<bool> {
        let (own, other) = (self.file.metadata()?, other.file.metadata()?);
        Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
    }
}
