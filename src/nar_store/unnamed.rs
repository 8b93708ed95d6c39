//! Marks of NARs that were received and that no path has yet: a name for each of one empty file. They tell a
//! server that starts again which files an interrupted upload has left, among those that have lost their rows
//! otherwise.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use narinfo::NarHash;

/// The file that has the marks as its other names: to make and to remove a file for each takes a file system
/// longer.
const STAMP: &str = "mark";

/// The marks; clones share them. Blocking.
#[derive(Clone, Debug)]
pub struct UnnamedMarks {
    dir: PathBuf,
}

impl UnnamedMarks {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        File::create(dir.join(STAMP))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Marks a NAR whose file is about to be committed. The sync of that file makes the mark durable, too, on
    /// journalling file systems.
    ///
    /// # Errors
    /// The mark cannot be written.
    pub fn mark(&self, nar: NarHash) -> io::Result<()> {
        let mark = self.file_of(nar);
        match fs::hard_link(self.dir.join(STAMP), &mark) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // A file has that many names at most, or one only.
            Err(_) => File::create(mark).map(drop),
        }
    }

    /// Removes the mark of a NAR, if there is one.
    pub fn clear(&self, nar: NarHash) {
        match fs::remove_file(self.file_of(nar)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%nar, %error, "cannot remove the mark of an upload; the next start tries again");
            }
            _ => {}
        }
    }

    /// The marked NARs.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<NarHash>> {
        let mut marked = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            marked.extend(name.to_str().and_then(|name| NarHash::from_nixbase32(name).ok()));
        }
        Ok(marked)
    }

    fn file_of(&self, nar: NarHash) -> PathBuf {
        self.dir.join(nar.to_nixbase32())
    }
}
