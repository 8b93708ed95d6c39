//! The logs of our builds: one file for each derivation, as the builder wrote it, escape codes and all;
//! readers follow the one that is being written. Logs that clients upload lie apart, and have a bound of
//! their own: they never take the place of ours. Must never grow past its bounds, and never stop a build
//! because a log cannot be written.

mod folder;
mod tail;
mod writer;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narinfo::StorePath;
use tokio::sync::watch;

use crate::tail_file::{TailCursor, TailReader, WriteProgress};
use folder::LogFolder;
pub use tail::{entered_phase, plain_line};
pub(super) use writer::LogWriter;

/// The folder of uploaded logs, in that of ours.
const UPLOADED: &str = "uploaded";

/// Bounds of build logs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Bytes that one build may write; one that writes more is stopped. A build that lost its daemon and is
    /// begun anew may write as much again, into the same log.
    pub log_bytes_max: u64,
    /// Bytes of all logs together. When a build ends, the oldest logs go until the rest fits. Uploaded logs
    /// may have as many beside them.
    pub logs_bytes_max: u64,
}

/// Bytes by which the daemon's limit is above ours: it drops what it has read and not passed on yet, up to a
/// few pages.
const DAEMON_SLACK_BYTES: u64 = 64 * 1024;

impl Settings {
    /// Nix's `max-build-log-size` for our builds: a daemon that trusts us counts within a line, too, which it
    /// holds in memory to its end.
    #[must_use]
    pub fn daemon_bytes_max(&self) -> u64 {
        self.log_bytes_max.saturating_add(DAEMON_SLACK_BYTES)
    }
}

/// The directory of build logs; clones share what is being written.
#[derive(Clone, Debug)]
pub struct Logs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ours: LogFolder,
    uploaded: LogFolder,
    settings: Settings,
    /// The logs that are being written, by their file.
    running: Mutex<HashMap<PathBuf, RunningLog>>,
}

/// A log that is being written, as its readers need it.
#[derive(Debug)]
struct RunningLog {
    file: Arc<File>,
    progress: watch::Receiver<WriteProgress>,
}

/// A log to read.
#[derive(Debug)]
pub struct Log {
    /// Its bytes. Those of a log that is being written end when the build does, and fail when it can go no
    /// further.
    pub reader: TailReader,
    /// Number of bytes; `None` while it is being written.
    pub bytes: Option<u64>,
}

impl Logs {
    /// Uses `dir`, making it when it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: &Path, settings: Settings) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let ours = LogFolder::new(dir.to_owned(), settings.logs_bytes_max);
        let uploaded = LogFolder::new(dir.join(UPLOADED), settings.logs_bytes_max);
        Ok(Self(Arc::new(Shared { ours, uploaded, settings, running: Mutex::default() })))
    }

    /// The log of a derivation, if it was built (or tried) here. Blocks for as long as opening a file takes.
    ///
    /// # Errors
    /// The log is there and cannot be opened.
    pub fn read(&self, drv: &StorePath) -> io::Result<Option<Log>> {
        let path = self.file_of(drv);
        // Held until the file is open: a build may begin, and put a new file in its place.
        let running = self.0.running();
        if let Some(RunningLog { file, progress }) = running.get(&path) {
            return Ok(Some(Log {
                reader: TailReader::new(file.clone(), TailCursor::following(progress.clone())),
                bytes: None,
            }));
        }
        complete(&path)
    }

    /// The log that a client has uploaded of a derivation, for one that has no other. Blocks for as long as
    /// opening a file takes.
    ///
    /// # Errors
    /// The log is there and cannot be opened.
    pub fn read_uploaded(&self, drv: &StorePath) -> io::Result<Option<Log>> {
        complete(&self.0.uploaded.file_of(drv))
    }

    /// The log that is being written of a derivation, from so many bytes before its end; `None` where no
    /// build writes one.
    #[must_use]
    pub fn follow(&self, drv: &StorePath, bytes_max: u64) -> Option<TailReader> {
        let path = self.file_of(drv);
        let running = self.0.running();
        let RunningLog { file, progress } = running.get(&path)?;
        let start = progress.borrow().bytes.saturating_sub(bytes_max);
        let cursor = TailCursor::following_part(progress.clone(), start..u64::MAX, 0);
        Some(TailReader::new(file.clone(), cursor))
    }

    /// The log of a derivation as far as it is written now, and true beside it while it is being written.
    /// Blocks for as long as opening a file takes.
    ///
    /// # Errors
    /// The log is there and cannot be opened.
    pub fn snapshot(&self, drv: &StorePath) -> io::Result<Option<(TailReader, bool)>> {
        let path = self.file_of(drv);
        if let Some(RunningLog { file, progress }) = self.0.running().get(&path) {
            let written = progress.borrow().bytes;
            return Ok(Some((TailReader::new(file.clone(), TailCursor::part(0..written)), true)));
        }
        Ok(self.read(drv)?.map(|log| (log.reader, false)))
    }

    /// The last `n` lines of a log, a thousand at most, as text without escape codes and control characters;
    /// none when there is no log. Blocking; reads a bounded number of bytes, however long the log is.
    ///
    /// # Errors
    /// The log is there and cannot be read.
    pub fn last_lines(&self, drv: &StorePath, n: usize) -> io::Result<Vec<String>> {
        match File::open(self.file_of(drv)) {
            Ok(file) => tail::last_lines(&file, n),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Bytes of a log, at most.
    #[must_use]
    pub fn log_bytes_max(&self) -> u64 {
        self.0.settings.log_bytes_max
    }

    /// Stores the log of a build elsewhere, unless this derivation has one; the oldest of these go for it.
    /// Returns true if it did. Blocking.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn store(&self, drv: &StorePath, log: &[u8]) -> io::Result<bool> {
        let (ours, path) = (self.file_of(drv), self.0.uploaded.file_of(drv));
        let is_ours = self.0.running().contains_key(&ours) || ours.exists();
        if is_ours || path.exists() {
            return Ok(false);
        }
        fs::create_dir_all(&self.0.uploaded.dir)?;
        let mut draft = tempfile::NamedTempFile::new_in(&self.0.uploaded.dir)?;
        draft.write_all(log)?;
        match draft.persist_noclobber(&path) {
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            persisted => drop(persisted.map_err(|error| error.error)?),
        }
        self.0.uploaded.add(Some(log.len() as u64));
        self.0.uploaded.make_room(|path| fs::remove_file(path).map(|()| true))?;
        Ok(true)
    }

    /// Begins a new log. An older one goes, though whoever reads it reads it to its end.
    pub(super) fn begin(&self, drv: &StorePath) -> LogWriter {
        let path = self.file_of(drv);
        let mut running = self.0.running();
        let _ = fs::remove_file(&path);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map(Arc::new).map_err(|error| {
            tracing::warn!(%drv, %error, "cannot create a log, the build goes on without; check the state directory");
        });
        let progress = watch::channel(WriteProgress::default());
        if let Ok(file) = &file {
            running.insert(path.clone(), RunningLog { file: file.clone(), progress: progress.1 });
        }
        drop(running);
        LogWriter::new(self.clone(), path, file.ok().map(|file| (file, progress.0)))
    }

    fn file_of(&self, drv: &StorePath) -> PathBuf {
        self.0.ours.file_of(drv)
    }

    /// Nothing more is written to this log.
    fn ended(&self, path: &Path) {
        if let Some(ended) = self.0.running().remove(path) {
            self.0.ours.add(ended.file.metadata().ok().map(|metadata| metadata.len()));
        }
    }

    /// Deletes the oldest of our logs until the rest fits, sparing those that are being written. Blocking.
    fn make_room(&self) -> io::Result<()> {
        self.0.ours.make_room(|path| {
            let running = self.0.running();
            if running.contains_key(path) {
                return Ok(false);
            }
            fs::remove_file(path).map(|()| true)
        })
    }
}

/// A log that nobody writes any more.
fn complete(path: &Path) -> io::Result<Option<Log>> {
    match File::open(path) {
        Ok(file) => {
            let bytes = file.metadata()?.len();
            let reader = TailReader::new(Arc::new(file), TailCursor::part(0..bytes));
            Ok(Some(Log { reader, bytes: Some(bytes) }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<PathBuf, RunningLog>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

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
        running.line(&"x".repeat(99), 0);
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
    fn the_directory_is_read_only_when_there_may_be_too_much_in_it() {
        let (_folder, logs) = logs(100, 250);
        let aged = |name: &str| {
            let file = File::create(logs.file_of(&drv(name))).expect("made");
            file.set_len(100).expect("written");
            file.set_modified(SystemTime::UNIX_EPOCH).expect("aged");
        };
        aged("before");
        logs.make_room().expect("room");
        ["unseen", "unseen-2", "unseen-3"].into_iter().for_each(aged);
        let there =
            || ["before", "unseen", "unseen-2", "unseen-3"].map(|name| logs.file_of(&drv(name)).exists());
        let build = |name: &str| {
            let log = logs.begin(&drv(name));
            log.line(&"x".repeat(99), 0);
            drop(log);
            logs.make_room().expect("room");
        };
        build("one");
        assert_eq!(there(), [true; 4], "200 bytes were known, and it was read");
        build("two");
        assert_eq!(there(), [false; 4], "300 bytes were known, and it was not read");
        assert!(["one", "two"].map(|name| logs.file_of(&drv(name)).exists()) == [true; 2]);
    }

    #[test]
    fn uploaded_logs_make_room_among_themselves_and_take_no_place_of_ours() {
        let (_folder, logs) = logs(100, 250);
        let ours = logs.begin(&drv("ours"));
        assert!(!logs.store(&drv("ours"), b"uploaded").expect("asked"), "it is being written");
        drop(ours);
        let old = File::open(logs.file_of(&drv("ours"))).expect("there");
        old.set_modified(SystemTime::UNIX_EPOCH).expect("aged");
        for number in 0..5 {
            assert!(logs.store(&drv(&number.to_string()), &[b'x'; 100]).expect("written"));
        }
        assert!(!logs.store(&drv("ours"), b"uploaded").expect("asked"));
        assert!(logs.read(&drv("ours")).expect("no error").is_some() && logs.file_of(&drv("ours")).exists());
        let left = (0..5).filter(|number| {
            let uploaded = logs.read_uploaded(&drv(&number.to_string()));
            assert!(logs.read(&drv(&number.to_string())).expect("no error").is_none(), "it is not ours");
            uploaded.expect("no error").is_some()
        });
        assert_eq!(left.count(), 2);
    }

    #[test]
    fn what_was_not_built_here_has_no_log_and_no_last_lines() {
        let (_folder, logs) = logs(100, 100);
        assert!(logs.read(&drv("a")).expect("no error").is_none());
        assert!(logs.last_lines(&drv("a"), 5).expect("no error").is_empty());
    }
}
