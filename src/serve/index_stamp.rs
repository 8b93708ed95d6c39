//! Stamp of the index that a server closed. A start that finds another index, such as one of a backup, looks
//! for the NARs that it promises; for the one that was left, the files are there as they were.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::state_dir::{CLOSED, INDEX};

/// The stamp of the index of one state directory.
pub(super) struct IndexStamp {
    index: PathBuf,
    stamp: PathBuf,
}

impl IndexStamp {
    pub(super) fn of(state_dir: &Path) -> Self {
        Self { index: state_dir.join(INDEX), stamp: state_dir.join(CLOSED) }
    }

    /// Takes the stamp away, before the index is opened. True where the index is the file that was stamped.
    pub(super) fn take(&self) -> bool {
        let Ok(stamped) = fs::read_to_string(&self.stamp) else { return false };
        // One that stays would be believed after a crash.
        fs::remove_file(&self.stamp).is_ok() && self.state().is_ok_and(|state| state == stamped)
    }

    /// Stamps an index that was closed.
    pub(super) fn leave(&self) -> io::Result<()> {
        fs::write(&self.stamp, self.state()?)
    }

    /// Identity of the file, and the time at which it was last changed in any way.
    fn state(&self) -> io::Result<String> {
        let file = fs::metadata(&self.index)?;
        Ok(format!(
            "{} {} {} {}.{:09}\n",
            file.dev(),
            file.ino(),
            file.len(),
            file.ctime(),
            file.ctime_nsec()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_once_and_for_the_file_that_was_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let stamp = IndexStamp::of(folder.path());
        assert!(!stamp.take(), "there is none");
        fs::write(folder.path().join(INDEX), "an index").expect("written");
        stamp.leave().expect("left");
        assert!(stamp.take());
        assert!(!stamp.take(), "it holds once");
        stamp.leave().expect("left");
        // The copy of a backup has the same length.
        fs::copy(folder.path().join(INDEX), folder.path().join("copy")).expect("copied");
        fs::rename(folder.path().join("copy"), folder.path().join(INDEX)).expect("restored");
        assert!(!stamp.take(), "it is another file");
        fs::remove_file(folder.path().join(INDEX)).expect("removed");
        assert!(stamp.leave().is_err(), "there is no index");
    }
}
