//! The logs of our builds: one file for each derivation, as the builder wrote it, escape codes and all; readers follow the
//! one that is being written. Must never grow past its bounds, and never stop a build because a log cannot be written.

mod tail;
mod writer;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use narinfo::StorePath;
use tokio::sync::watch;

use crate::growing::{Growth, Place, Reader};
pub(super) use writer::LogWriter;

/// The end of the name of every log.
const EXTENSION: &str = "log";

/// How much of what builders say is kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes that one build may write; one that writes more is stopped. A build that lost its daemon and is begun anew may
    /// write as much again, into the same log.
    pub log_bytes_max: u64,
    /// Bytes of all logs together. When a build ends, the oldest logs go until the rest fits.
    pub logs_bytes_max: u64,
}

/// The directory of build logs; clones share what is being written.
#[derive(Clone, Debug)]
pub struct Logs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    settings: Settings,
    /// The logs that are being written, by their file.
    running: Mutex<HashMap<PathBuf, Running>>,
}

/// A log that is being written, as its readers need it.
#[derive(Debug)]
struct Running {
    file: Arc<File>,
    growth: watch::Receiver<Growth>,
}

/// A log to read.
#[derive(Debug)]
pub struct Log {
    /// Its bytes. Those of a log that is being written end when the build does, and fail when it can go no further.
    pub reader: Reader,
    /// How many there are; `None` while it is being written.
    pub bytes: Option<u64>,
}

impl Logs {
    /// Uses `dir`, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path, settings: Settings) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self(Arc::new(Shared { dir: dir.to_owned(), settings, running: Mutex::default() })))
    }

    /// The log of a derivation, if it was built (or tried) here. Blocks for as long as opening a file takes.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn read(&self, drv: &StorePath) -> io::Result<Option<Log>> {
        let path = self.file_of(drv);
        // Held until the file is open: a build may begin, and put a new file in its place.
        let running = self.0.running();
        if let Some(Running { file, growth }) = running.get(&path) {
            return Ok(Some(Log {
                reader: Reader::new(file.clone(), Place::following(growth.clone())),
                bytes: None,
            }));
        }
        match File::open(path) {
            Ok(file) => {
                let bytes = file.metadata()?.len();
                Ok(Some(Log {
                    reader: Reader::new(Arc::new(file), Place::part(0..bytes)),
                    bytes: Some(bytes),
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The last `n` lines of a log, a thousand at most, as text without escape codes and control characters; none when
    /// there is no log. Blocking; reads a bounded number of bytes, however long the log is.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn last_lines(&self, drv: &StorePath, n: usize) -> io::Result<Vec<String>> {
        match File::open(self.file_of(drv)) {
            Ok(file) => tail::last_lines(&file, n),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Begins a new log. An older one goes, though whoever reads it reads it to its end.
    pub(super) fn begin(&self, drv: &StorePath) -> LogWriter {
        let path = self.file_of(drv);
        let mut running = self.0.running();
        let _ = fs::remove_file(&path);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map(Arc::new).map_err(|error| {
            tracing::warn!(%drv, %error, "the build goes on without a log");
        });
        let growth = watch::channel(Growth::default());
        if let Ok(file) = &file {
            running.insert(path.clone(), Running { file: file.clone(), growth: growth.1 });
        }
        drop(running);
        LogWriter::new(self.clone(), path, file.ok().map(|file| (file, growth.0)))
    }

    fn file_of(&self, drv: &StorePath) -> PathBuf {
        self.0.dir.join(format!("{drv}.{EXTENSION}"))
    }

    /// Nothing more is written to this log.
    fn ended(&self, path: &Path) {
        self.0.running().remove(path);
    }

    /// Deletes the oldest logs until the rest fits, sparing those that are being written. Blocking.
    fn make_room(&self) -> io::Result<()> {
        let mut logs = Vec::new();
        for entry in fs::read_dir(&self.0.dir)? {
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
        if bytes <= self.0.settings.logs_bytes_max {
            return Ok(());
        }
        logs.sort_unstable();
        for (_, path, length) in logs {
            if bytes <= self.0.settings.logs_bytes_max {
                break;
            }
            let running = self.0.running();
            if running.contains_key(&path) {
                continue;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => bytes -= length,
            }
        }
        Ok(())
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<PathBuf, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    pub(super) fn logs(log_bytes_max: u64, logs_bytes_max: u64) -> (tempfile::TempDir, Logs) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let logs = Logs::open(folder.path(), Settings { log_bytes_max, logs_bytes_max });
        (folder, logs.expect("a folder that can be used"))
    }

    pub(super) fn drv(name: &str) -> StorePath {
        StorePath::parse(&format!("{}-{name}.drv", "a".repeat(32))).expect("a store path")
    }

    #[test]
    fn the_oldest_logs_go_until_the_rest_fits_and_none_that_is_written() {
        let (folder, logs) = logs(100, 250);
        let running = logs.begin(&drv("running"));
        running.line(&"x".repeat(99));
        let now = SystemTime::now();
        for (name, age) in [("newest", 1), ("oldest", 9), ("middle", 5)] {
            let file = File::create(logs.file_of(&drv(name))).expect("made");
            file.set_len(100).expect("written");
            file.set_modified(now - Duration::from_secs(age)).expect("aged");
        }
        let old = File::open(logs.file_of(&drv("running"))).expect("there");
        old.set_modified(now - Duration::from_secs(99)).expect("aged");
        fs::write(folder.path().join("no-log"), "x".repeat(1000)).expect("written");
        let left = || ["newest", "middle", "oldest", "running"].map(|name| logs.file_of(&drv(name)).exists());
        logs.make_room().expect("room");
        assert_eq!(left(), [true, false, false, true]);
        drop(running);
        logs.make_room().expect("room");
        assert_eq!(left(), [true, false, false, true], "what fits stays");
        assert!(folder.path().join("no-log").exists());
    }

    #[test]
    fn what_was_not_built_here_has_no_log_and_no_last_lines() {
        let (_folder, logs) = logs(100, 100);
        assert!(logs.read(&drv("a")).expect("no error").is_none());
        assert!(logs.last_lines(&drv("a"), 5).expect("no error").is_empty());
    }
}
