//! Change detection for Nix's database without SQLite: reads the places where its file format counts
//! transactions (<https://www.sqlite.org/fileformat2.html>, <https://www.sqlite.org/walformat.html>). In
//! doubt it has changed.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Of the database's header: from the file format version to the end of the change counter.
const COUNTER_AT: u64 = 18;
/// Bytes of that.
const COUNTER_BYTES: usize = 10;
/// The version of a database with a write-ahead log.
const WITH_LOG: u8 = 2;
/// Bytes of the header of the index of a write-ahead log; two copies of it begin the file.
const LOG_HEADER_BYTES: usize = 48;
/// Where in it is said that it is in use.
const LOG_IN_USE: usize = 12;
/// Interval of the check that the open file is still the one of its name, which takes longer than the rest of
/// a request. A recreated store is noticed by then.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// State of the database: while it is equal, nothing has been committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// The file that tells. Where this is another one, so may everything be.
    pub(super) file: (u64, u64),
    mark: [u8; LOG_HEADER_BYTES],
}

/// The file in which transactions are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CounterFile {
    /// The database itself.
    Database(PathBuf),
    /// The index of its write-ahead log.
    Log(PathBuf),
}

/// The open files, the current one last. A process that closes a file loses the locks that it has on it
/// through any other descriptor (fcntl(2)), those of SQLite among them, and then other processes take the log
/// away: so what was opened stays open for as long as it is there.
#[derive(Debug, Default)]
pub(super) struct Watches(Vec<Watch>);

#[derive(Debug)]
struct Watch {
    counted: CounterFile,
    file: File,
    id: (u64, u64),
    opened: Instant,
    /// Last sight of the file, in milliseconds since it was opened.
    seen_at: AtomicU64,
}

impl Watches {
    /// Watches this file from now on; SQLite must have the database open, so that it is there, and stays.
    pub(super) fn watch(&mut self, counted: CounterFile) -> io::Result<()> {
        self.0.retain(Watch::is_there);
        match self.0.iter().position(|watch| watch.counted == counted) {
            Some(known) => {
                let known = self.0.remove(known);
                self.0.push(known);
            }
            None => self.0.push(Watch::open(counted)?),
        }
        Ok(())
    }

    /// State of the database now; `None` while somebody commits.
    pub(super) fn version(&self) -> Option<Version> {
        let watch = self.0.last()?;
        let mark = match watch.counted {
            CounterFile::Log(_) => watch.log_header(),
            CounterFile::Database(_) => watch.counter(),
        };
        mark.filter(|_| watch.was_there_lately()).map(|mark| Version { file: watch.id, mark })
    }
}

impl Watch {
    fn open(counted: CounterFile) -> io::Result<Self> {
        let file = File::open(counted.path())?;
        let metadata = file.metadata()?;
        let (opened, seen_at) = (Instant::now(), AtomicU64::new(0));
        Ok(Self { counted, file, id: (metadata.dev(), metadata.ino()), opened, seen_at })
    }

    fn was_there_lately(&self) -> bool {
        let now = self.opened.elapsed();
        if now < Duration::from_millis(self.seen_at.load(Ordering::Relaxed)) + LOOK_EVERY {
            return true;
        }
        let there = self.is_there();
        if there {
            self.seen_at.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        there
    }

    /// True if it is still the file of that name.
    fn is_there(&self) -> bool {
        let metadata = std::fs::metadata(self.counted.path());
        metadata.is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.id)
    }

    /// Every transaction changes it; the copies differ while one does.
    fn log_header(&self) -> Option<[u8; LOG_HEADER_BYTES]> {
        let mut copies = [[0; LOG_HEADER_BYTES]; 2];
        self.file.read_exact_at(copies.as_flattened_mut(), 0).ok()?;
        (copies[0] == copies[1] && copies[0][LOG_IN_USE] != 0).then_some(copies[0])
    }

    fn counter(&self) -> Option<[u8; LOG_HEADER_BYTES]> {
        let mut mark = [0; LOG_HEADER_BYTES];
        self.file.read_exact_at(&mut mark[..COUNTER_BYTES], COUNTER_AT).ok()?;
        // From now on, the log tells.
        (mark[0] != WITH_LOG).then_some(mark)
    }
}

impl CounterFile {
    fn path(&self) -> &Path {
        match self {
            Self::Database(path) | Self::Log(path) => path,
        }
    }
}
