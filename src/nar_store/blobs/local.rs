//! Blobs in a directory of this machine: `ab/<hash>.nar.zst`, where `ab` are the first characters of the
//! hash. Written under a temporary name, renamed without replacing, fsynced. Looks only into its own folders,
//! never into others beside them.

use std::collections::HashSet;
use std::fs::{self, DirEntry, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use narinfo::NarHash;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use tempfile::TempPath;

use super::{Blob, BlobFile, Blobs, Commit, LIST_PAGE_MAX, PlacedBlob, Upload};
use crate::room::Room;

/// End of a file's name, after the hash.
const FILE_ENDING: &str = ".nar.zst";
/// Characters of the hash that name the folder of a file, so that no folder grows without bound.
const FOLDER_CHARS: usize = 2;
/// Folder of uploads.
pub(super) const UPLOADS: &str = "tmp";
/// Folder of damaged files, which are not served, and the number of them that are kept; the oldest go first.
const QUARANTINE: &str = "quarantine";
const QUARANTINED_MAX: usize = 16;

/// The directory.
#[derive(Debug)]
pub struct LocalBlobs {
    dir: PathBuf,
    named: NamedFolders,
}

/// Folders whose names this run has made durable; clones share them.
#[derive(Clone, Debug, Default)]
struct NamedFolders(Arc<Mutex<HashSet<PathBuf>>>);

impl NamedFolders {
    /// Makes the name of a folder durable in `dir`, unless that was done.
    fn sync(&self, folder: &Path, dir: &Path) -> io::Result<()> {
        if self.lock().contains(folder) {
            return Ok(());
        }
        File::open(dir)?.sync_all()?;
        self.lock().insert(folder.to_owned());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalBlobs {
    /// Opens the directory, creating it if needed, and removes the uploads that an interrupted run left.
    ///
    /// # Errors
    /// The directory cannot be created or read.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let uploads = dir.join(UPLOADS);
        fs::create_dir_all(&uploads)?;
        for entry in fs::read_dir(&uploads)? {
            let entry = entry?;
            if let Err(error) = sweep(&entry) {
                tracing::warn!(%error, "cannot remove {}: remove it by hand", entry.path().display());
            }
        }
        Ok(Self { dir: dir.to_owned(), named: NamedFolders::default() })
    }

    fn path_of(&self, key: NarHash) -> PathBuf {
        file_in(&self.dir, &key.to_nixbase32())
    }
}

impl Blobs for LocalBlobs {
    fn open(&self, key: NarHash) -> io::Result<Option<Blob>> {
        open_file(&self.path_of(key))
    }

    fn is_at_hand(&self, key: NarHash) -> bool {
        let (flags, mode) = (OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        // Linux before 5.12 refuses.
        openat2(CWD, self.path_of(key), flags, mode, ResolveFlags::CACHED).is_ok()
    }

    fn begin(&self) -> io::Result<Box<dyn Upload>> {
        let (file, path) = spool_in(&self.dir.join(UPLOADS))?;
        Ok(Box::new(LocalUpload { file, path, dir: self.dir.clone(), named: self.named.clone() }))
    }

    fn delete(&self, key: NarHash) -> io::Result<bool> {
        match fs::remove_file(self.path_of(key)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, after: Option<NarHash>) -> io::Result<Vec<NarHash>> {
        let after = after.map(|key| key.to_nixbase32()).unwrap_or_default();
        let mut page = Vec::new();
        for folder in names_in(&self.dir)? {
            // A folder before that of `after` has nothing behind it.
            if folder.len() != FOLDER_CHARS || *folder < after[..FOLDER_CHARS.min(after.len())] {
                continue;
            }
            let names = names_in(&self.dir.join(&folder))?;
            let hashes = names.iter().filter_map(|name| name.strip_suffix(FILE_ENDING));
            let keys = hashes.filter(|hash| **hash > *after);
            page.extend(keys.filter_map(|hash| NarHash::from_nixbase32(hash).ok()));
            if page.len() >= LIST_PAGE_MAX {
                page.truncate(LIST_PAGE_MAX);
                break;
            }
        }
        Ok(page)
    }

    fn room(&self) -> io::Result<Room> {
        Room::of(&self.dir)
    }

    fn quarantine(&self, key: NarHash) -> io::Result<()> {
        let (folder, file) = (self.dir.join(QUARANTINE), self.path_of(key));
        let aside = folder.join(file.file_name().unwrap_or_default());
        if let Err(error) = fs::create_dir_all(&folder).and_then(|()| fs::rename(&file, &aside)) {
            tracing::debug!(nar = %key, %error, "cannot move a damaged file to the quarantine: deleting it");
            return self.delete(key).map(drop);
        }
        self.empty_quarantine(QUARANTINED_MAX);
        Ok(())
    }

    fn empty_quarantine(&self, left: usize) {
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

/// An upload; dropping its path removes the file.
#[derive(Debug)]
struct LocalUpload {
    file: Arc<File>,
    path: TempPath,
    dir: PathBuf,
    named: NamedFolders,
}

impl Upload for LocalUpload {
    fn file(&self) -> &Arc<File> {
        &self.file
    }

    fn place(self: Box<Self>, key: NarHash) -> io::Result<PlacedBlob> {
        let Self { file, path, dir, named } = *self;
        let target = file_in(&dir, &key.to_nixbase32());
        let folder = target.parent().unwrap_or(&dir).to_owned();
        if !folder.is_dir() {
            fs::create_dir_all(&folder)?;
            named.lock().remove(&folder);
        }
        // The name first: one write of the file system's journal makes the contents and the names durable. A
        // crash before that may leave a name of half a file: what has no row is verified before it gets one.
        let (commit, file) = match path.persist_noclobber(&target) {
            Ok(()) => (Commit::Won, file),
            // Another upload may have made the name and the folder a moment ago.
            Err(lost) if lost.error.kind() == io::ErrorKind::AlreadyExists => {
                (Commit::Lost, Arc::new(File::open(&target)?))
            }
            Err(failed) => return Err(failed.error),
        };
        Ok(PlacedBlob::unsynced(commit, move || {
            let durable = file
                .sync_all()
                .and_then(|()| File::open(&folder)?.sync_all())
                .and_then(|()| named.sync(&folder, &dir));
            if durable.is_err() && commit == Commit::Won {
                // The kernel may say that it is written the next time, though it is not.
                let _ = fs::remove_file(&target);
            }
            durable
        }))
    }
}

/// Opens a new file in `folder` under a temporary name. Refused when there is no room but what the index
/// needs.
pub(in crate::nar_store) fn spool_in(folder: &Path) -> io::Result<(Arc<File>, TempPath)> {
    Room::of(folder)?.check()?;
    let (file, path) = tempfile::Builder::new().prefix("nar-").tempfile_in(folder)?.into_parts();
    Ok((Arc::new(file), path))
}

/// Removes an entry of a folder of temporary files, be it a file or a folder.
fn sweep(entry: &DirEntry) -> io::Result<()> {
    let path = entry.path();
    if entry.file_type()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Opens a file, if it is there.
pub(in crate::nar_store) fn open_file(path: &Path) -> io::Result<Option<Blob>> {
    match File::open(path) {
        Ok(file) => {
            let bytes = file.metadata()?.len();
            Ok(Some(Blob::File(BlobFile { file: Arc::new(file), bytes })))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Path of the file of a NAR.
fn file_in(dir: &Path, hash: &str) -> PathBuf {
    dir.join(&hash[..FOLDER_CHARS]).join(format!("{hash}{FILE_ENDING}"))
}

/// Names in a folder, sorted.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// Time at which a file came into its folder.
fn moved_at(entry: &DirEntry) -> SystemTime {
    let changed = entry.metadata().map_or(0, |metadata| metadata.ctime().unsigned_abs());
    SystemTime::UNIX_EPOCH + Duration::from_secs(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_just_written_is_at_hand() {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = LocalBlobs::open(folder.path()).expect("opened");
        let key = NarHash::from_bytes([7; 32]);
        assert_eq!(blobs.begin().expect("begun").commit(key).expect("committed"), Commit::Won);
        assert!(blobs.is_at_hand(key));
    }
}
