//! The reserve: a file of no use but its room, given up on a full disk, where the index needs room to take
//! anything out of itself. Recreated once there is room. Must never be the reason why a disk is full.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use crate::room::Room;

/// The file in the state directory.
const FILE_NAME: &str = "reserve";
/// Bytes that are written at a time where the system sets none aside.
const BLOCK_BYTES: usize = 64 * 1024;

/// The file, there or not. Every call blocks for as long as the file system takes.
#[derive(Clone, Debug)]
pub struct Reserve {
    file: PathBuf,
    dir: PathBuf,
}

impl Reserve {
    /// The reserve of a state directory; makes nothing.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { file: state_dir.join(FILE_NAME), dir: state_dir.to_owned() }
    }

    /// Gives it up where there is hardly any other room. Whether it did.
    ///
    /// # Errors
    /// The file system does not tell, or the file cannot be removed.
    pub fn release_if_needed(&self) -> io::Result<bool> {
        let room = Room::of(&self.dir)?;
        if room.free_bytes >= room.spared_bytes() && room.inodes.is_none_or(|(_, free)| free > 0) {
            return Ok(false);
        }
        self.release()
    }

    /// Gives it up. Whether there was one.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn release(&self) -> io::Result<bool> {
        match fs::remove_file(&self.file) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes it where it is not there and as much again stays free. Whether it is there.
    ///
    /// # Errors
    /// The file cannot be written; nothing of it is left then.
    pub fn make(&self) -> io::Result<bool> {
        if self.file.exists() {
            return Ok(true);
        }
        let room = Room::of(&self.dir)?;
        let bytes = room.spared_bytes();
        if room.free_bytes < bytes.saturating_mul(2) {
            return Ok(false);
        }
        let draft = self.file.with_extension("new");
        let made = File::create(&draft).and_then(|file| fill(&file, bytes));
        let kept = made.and_then(|()| fs::rename(&draft, &self.file));
        if kept.is_err() {
            let _ = fs::remove_file(&draft);
        }
        kept.map(|()| true)
    }
}

/// Sets so many bytes aside.
fn fill(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(_) => write_out(file, bytes),
    }
}

/// Writes so many bytes, for file systems that set nothing aside in advance: such as do not compress.
fn write_out(mut file: &File, bytes: u64) -> io::Result<()> {
    let (mut state, mut left) = (0x9e37_79b9_7f4a_7c15_u64, bytes);
    let mut block = vec![0; BLOCK_BYTES];
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = usize::try_from(left).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
        file.write_all(&block[..part])?;
        left -= part as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_has_real_room_and_goes_when_it_is_released() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("a folder");
        let reserve = Reserve::of(folder.path());
        assert!(!reserve.release().expect("asked"), "there was none");
        assert!(reserve.make().expect("made") && reserve.make().expect("made before"));
        let made = folder.path().join(FILE_NAME).metadata().expect("it is there");
        assert_eq!(made.len(), Room::of(folder.path()).expect("told").spared_bytes());
        assert!(made.blocks() * 512 >= made.len(), "a hole sets nothing aside");
        assert!(!reserve.release_if_needed().expect("asked"), "there is room");
        assert!(reserve.release().expect("released"));
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 0);
    }

    #[test]
    fn without_help_of_the_file_system_it_is_written_out() {
        let file = tempfile::tempfile().expect("a file");
        let bytes = BLOCK_BYTES as u64 + 5;
        write_out(&file, bytes).expect("written");
        assert_eq!(file.metadata().expect("told").len(), bytes);
    }
}
