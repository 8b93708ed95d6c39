//! Room on a file system: free bytes and inodes, and the part of them that NARs and logs leave to the index.
//! Asks the system each time, and caches nothing.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{StatVfs, StatVfsMountFlags, fstatvfs, statvfs};

/// Bytes that NARs leave free on their file system, at most, so that the index can still be written: as many
/// as its write-ahead log may hold.
const SPARED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Part of a small file system that is left free, but no less than a few transactions take.
const SPARED_PART: u64 = 64;
const SPARED_BYTES_MIN: u64 = 1024 * 1024;
/// Inodes that NARs leave free.
const SPARED_INODES: u64 = 16;

/// The file system of a folder at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes of all of it.
    pub total_bytes: u64,
    /// Bytes that are free to this user.
    pub free_bytes: u64,
    /// Inodes in all, and those that are free; `None` where the file system has no fixed number of them.
    pub inodes: Option<(u64, u64)>,
    read_only: bool,
}

impl Room {
    /// The file system of `dir`.
    ///
    /// # Errors
    /// The system call fails.
    pub fn of(dir: &Path) -> io::Result<Self> {
        Ok(statvfs(dir)?.into())
    }

    /// The file system of an open file.
    ///
    /// # Errors
    /// The system call fails.
    pub fn of_file(file: impl AsFd) -> io::Result<Self> {
        Ok(fstatvfs(file)?.into())
    }

    /// A file system of so many bytes, for tests.
    #[cfg(test)]
    pub(crate) fn new(total_bytes: u64, free_bytes: u64, inodes: Option<(u64, u64)>) -> Self {
        Self { total_bytes, free_bytes, inodes, read_only: false }
    }

    /// Bytes that NARs leave to the index.
    #[must_use]
    pub fn spared_bytes(&self) -> u64 {
        (self.total_bytes / SPARED_PART).clamp(SPARED_BYTES_MIN, SPARED_BYTES_MAX)
    }

    /// Checks that more can be stored without taking the room that the index needs.
    ///
    /// # Errors
    /// With the reason, as the system's own error of a full or read-only disk.
    pub fn check(&self) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the file system is read-only"));
        }
        if self.free_bytes < self.spared_bytes() {
            let full = format!("the disk is full: {} bytes are left, which the index needs", self.free_bytes);
            return Err(io::Error::new(io::ErrorKind::StorageFull, full));
        }
        match self.inodes {
            Some((_, free)) if free < SPARED_INODES => {
                let full = format!("the disk is full: {free} inodes are left");
                Err(io::Error::new(io::ErrorKind::StorageFull, full))
            }
            _ => Ok(()),
        }
    }
}

impl From<StatVfs> for Room {
    fn from(stat: StatVfs) -> Self {
        Self {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: (stat.f_files > 0).then_some((stat.f_files, stat.f_favail)),
            read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_index_needs_is_a_part_of_the_disk_within_bounds_and_refused_to_all_else() {
        let room = Room::new;
        const MIB: u64 = 1024 * 1024;
        for (total, spared) in [(MIB, MIB), (128 * MIB, 2 * MIB), (1 << 50, 64 * MIB)] {
            assert_eq!(room(total, 0, None).spared_bytes(), spared);
            room(total, spared, None).check().expect("enough");
            let full = room(total, spared - 1, None).check().expect_err("too little");
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        }
        room(MIB, MIB, Some((100, 16))).check().expect("enough");
        let full = room(MIB, MIB, Some((100, 15))).check().expect_err("too few");
        assert!(full.to_string().contains("15 inodes"), "{full}");
        let read_only = Room { read_only: true, ..room(MIB, MIB, None) };
        assert_eq!(read_only.check().expect_err("read-only").kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}
