//! Record of the builders that are drained, over a restart: an empty file for each.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Folder of the names of drained builders; clones share it.
#[derive(Clone, Debug)]
pub struct DrainedBuilders(PathBuf);

impl DrainedBuilders {
    /// Those of this folder, which is made where it is not there.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self(folder.to_owned()))
    }

    /// True where this builder was drained.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }

    /// Records that a builder is drained, or is used again. Blocks until that is on the disk.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn set(&self, name: &str, is_drained: bool) -> io::Result<()> {
        let file = self.0.join(name);
        if is_drained {
            File::create(file)?;
        } else {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::open(&self.0)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_builder_is_on_record_until_it_is_resumed() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || DrainedBuilders::open(&folder.path().join("drained")).expect("opened");
        open().set("big", true).expect("recorded");
        open().set("big", true).expect("recorded again");
        assert!(open().has("big") && !open().has("small"));
        open().set("big", false).expect("recorded");
        open().set("big", false).expect("recorded again");
        assert!(!open().has("big"));
    }
}
