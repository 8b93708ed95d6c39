//! A small file system of its own, in memory, to be filled: its bytes, or its inodes. Needs the right to
//! mount.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{self, run};
use super::store::text;

/// File that takes up its room.
const FILLER: &str = "filler";

/// A file system, mounted as long as this lives.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one over the folder `at`, made when missing, with options such as `size=64m`.
    #[track_caller]
    pub fn mount(at: &Path, options: &str) -> SmallDisk {
        fs::create_dir_all(at).unwrap_or_else(|error| panic!("cannot make {}: {error}", at.display()));
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("mode=0700,{options}"), "tmpfs", text(at)]);
        let mounted = process::run(command);
        assert!(mounted.succeeded(), "this test mounts a small file system, and must run as root: {mounted}");
        SmallDisk { at: at.to_owned() }
    }

    /// Takes all its room.
    #[track_caller]
    pub fn fill(&self) {
        let mut filler = File::create(self.at.join(FILLER)).expect("there is an inode left");
        for block in [1 << 20, 1 << 12] {
            while filler.write_all(&vec![0; block]).is_ok() {}
        }
    }

    /// Takes all its inodes, but not its room.
    #[track_caller]
    pub fn fill_inodes(&self) {
        let folder = self.at.join(FILLER);
        fs::create_dir(&folder).expect("there is an inode left");
        for number in 0.. {
            if File::create(folder.join(number.to_string())).is_err() {
                break;
            }
        }
    }

    /// Gives back what was taken.
    #[track_caller]
    pub fn empty(&self) {
        let filler = self.at.join(FILLER);
        let removed = if filler.is_dir() { fs::remove_dir_all(&filler) } else { fs::remove_file(&filler) };
        removed.expect("what was taken can be given back");
    }

    /// Bytes that are free.
    #[track_caller]
    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.at).expect("the system tells");
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.args(["--lazy", text(&self.at)]);
        drop(run(command));
    }
}
