//! The files as such: which there are, whether one is still the same, and the end of one.
//! Looks only where NARs are kept, never into other folders beside them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use narinfo::NarHash;

use super::{NarStore, Stored};

/// What the name of a stored file has after the hash.
pub(super) const FILE_ENDING: &str = ".nar.zst";
/// Characters of the hash that name the folder of a file.
pub(super) const FOLDER_CHARS: usize = 2;

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
