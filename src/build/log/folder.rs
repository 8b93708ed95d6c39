//! A folder of logs with a bound: the oldest are deleted when all of them are too long.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use narinfo::StorePath;

/// The end of the name of every log.
const EXTENSION: &str = "log";

/// Nobody has looked yet.
const UNKNOWN: u64 = u64::MAX;

/// The folder.
#[derive(Debug)]
pub(super) struct LogFolder {
    pub(super) dir: PathBuf,
    /// Bytes of all logs together, at most.
    bytes_max: u64,
    /// Bytes of all that are complete, at most: only above the bound the directory is read to know them.
    bytes_at_most: AtomicU64,
}

impl LogFolder {
    /// The folder at `dir`, which its user makes.
    pub(super) fn new(dir: PathBuf, bytes_max: u64) -> Self {
        Self { dir, bytes_max, bytes_at_most: AtomicU64::new(UNKNOWN) }
    }

    pub(super) fn file_of(&self, drv: &StorePath) -> PathBuf {
        self.dir.join(format!("{drv}.{EXTENSION}"))
    }

    /// Notes that a log of so many bytes is complete; `None` where they are not known.
    pub(super) fn add(&self, bytes: Option<u64>) {
        let add = |sum: u64| Some(sum.saturating_add(bytes.unwrap_or(UNKNOWN)));
        // Always updated: nothing is refused.
        let _ = self.bytes_at_most.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Deletes the oldest logs until the rest fits, where there may be too many. `delete` returns false for
    /// one that stays. Blocking.
    pub(super) fn make_room(&self, delete: impl Fn(&Path) -> io::Result<bool>) -> io::Result<()> {
        if self.bytes_at_most.load(Ordering::Relaxed) <= self.bytes_max {
            return Ok(());
        }
        // A log that ends meanwhile may be counted twice, and none is left out.
        self.bytes_at_most.store(0, Ordering::Relaxed);
        let left = self.delete_oldest(delete);
        self.add(left.as_ref().ok().copied());
        left.map(drop)
    }

    /// Gives the bytes that are left.
    fn delete_oldest(&self, delete: impl Fn(&Path) -> io::Result<bool>) -> io::Result<u64> {
        let mut logs = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            // One that went meanwhile takes no room.
            if path.extension().is_some_and(|extension| extension == EXTENSION)
                && let Ok(metadata) = path.metadata()
            {
                let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                logs.push((written, path, metadata.len()));
            }
        }
        let mut bytes: u64 = logs.iter().map(|(_, _, bytes)| bytes).sum();
        logs.sort_unstable();
        for (_, path, length) in logs {
            if bytes <= self.bytes_max {
                break;
            }
            match delete(&path) {
                Ok(false) => continue,
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(true) | Err(_) => bytes -= length,
            }
        }
        Ok(bytes)
    }
}
