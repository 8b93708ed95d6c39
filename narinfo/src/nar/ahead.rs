//! Entries of a tree, read by several threads before they are written, since opening very many small files
//! takes longer than everything else that is done with them. They come back in the order in which they were
//! given, and few are on their way.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope};

use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlinkat};

use super::Error;

/// Bytes of a file at most that is read here: of a larger one the opening is nothing beside the reading.
const SMALL_BYTES_MAX: u64 = 32 * 1024;
/// Files of a batch, and entries of any kind.
const BATCH_FILES: usize = 32;
const BATCH_ENTRIES: usize = 256;
/// Batches that are read by whoever gives them: a tree that has no more is read before other threads have
/// started.
const ALONE_BATCHES: usize = 2;
/// Batches that are given and not back at most: with the two limits above, this bounds the memory.
const AHEAD_BATCHES_MAX: usize = 4;
/// Threads that read at most, one for each core: beyond that the file system has little to gain.
const READERS_MAX: usize = 4;

/// Why a file is refused that is not what it was.
pub(super) const CHANGED: &str = "it changed its size while it was read";
/// Owner-execute alone makes a file executable, as in Nix.
const EXECUTABLE: u32 = 0o100;

/// A folder that was opened.
pub(super) struct Folder {
    /// Nothing for that which the tree is in.
    pub(super) opened: Option<OwnedFd>,
    /// Where it is, for people.
    pub(super) path: PathBuf,
}

/// The next part of a NAR.
pub(super) enum Entry {
    /// A folder begins; the root of a NAR has no name.
    FolderStart(Option<CString>),
    /// The innermost folder ends.
    FolderEnd,
    /// A file, or a symlink.
    Leaf(Leaf),
}

/// A file or a symlink in a folder.
pub(super) struct Leaf {
    pub(super) folder: Arc<Folder>,
    pub(super) name: CString,
    pub(super) kind: FileType,
    /// The result of the look at it.
    pub(super) found: Option<Result<Found, Error>>,
}

/// The part of a file or a symlink.
pub(super) enum Found {
    /// All of it is in the batch.
    Small { executable: bool, contents: Range<usize> },
    /// A file of so many bytes, still to be read.
    Large { executable: bool, file: OwnedFd, bytes: u64 },
    /// Its target.
    Symlink(CString),
}

/// Some entries in a row.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Entry>,
    /// The contents of the small files in it.
    pub(super) contents: Vec<u8>,
    leaves: usize,
}

/// Hands out batches to be read.
pub(super) struct Ahead<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    readers: Readers,
    pending: VecDeque<Receiver<Batch>>,
}

enum Readers {
    /// None yet, and so many batches were read without.
    NotYet(usize),
    /// They take what is sent.
    Some(Sender<Job>),
    /// There will be none.
    None,
}

/// A batch, and where it goes when it was read.
type Job = (Batch, SyncSender<Batch>);

impl<'scope, 'env> Ahead<'scope, 'env> {
    /// Threads are started in `scope`, once there is enough to do.
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>) -> Self {
        Self { scope, readers: Readers::NotYet(0), pending: VecDeque::new() }
    }

    /// Has a batch read, and gives the next one that is to be written, if there must not be more on their
    /// way.
    ///
    /// # Errors
    /// If it was lost.
    pub(super) fn give(&mut self, mut batch: Batch) -> Result<Option<Batch>, Error> {
        if let Readers::NotYet(alone) = &mut self.readers {
            *alone += 1;
            if *alone > ALONE_BATCHES {
                self.readers = self.start();
            }
        }
        let Readers::Some(readers) = &self.readers else {
            batch.read();
            return Ok(Some(batch));
        };
        let (read, pending) = sync_channel(1);
        readers.send((batch, read)).map_err(|_| lost())?;
        self.pending.push_back(pending);
        if self.pending.len() < AHEAD_BATCHES_MAX { Ok(None) } else { self.next() }
    }

    /// The next one of those that were given and are not back.
    ///
    /// # Errors
    /// The next one was lost.
    pub(super) fn next(&mut self) -> Result<Option<Batch>, Error> {
        self.pending.pop_front().map(|pending| pending.recv().map_err(|_| lost())).transpose()
    }

    fn start(&self) -> Readers {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        if cores == 1 {
            return Readers::None;
        }
        let (jobs, taken) = channel::<Job>();
        let taken = Arc::new(Mutex::new(taken));
        for number in 0..cores.min(READERS_MAX) {
            let taken = Arc::clone(&taken);
            let read_all = move || {
                while let Some((mut batch, read)) = next_job(&taken) {
                    batch.read();
                    // Nobody waits for it once the writing has failed.
                    let _ = read.send(batch);
                }
            };
            let started = Builder::new().name("nar-reader".into()).spawn_scoped(self.scope, read_all);
            // The system gives none: some others are enough.
            if started.is_err() && number == 0 {
                return Readers::None;
            }
        }
        Readers::Some(jobs)
    }
}

fn next_job(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn lost() -> Error {
    Error::Io(io::Error::other("a thread that reads files has ended"))
}

impl Batch {
    /// An empty one that uses this room.
    pub(super) fn new(mut room: Vec<u8>) -> Self {
        room.clear();
        Self { contents: room, ..Self::default() }
    }

    /// Adds an entry. Whether that is enough.
    pub(super) fn add(&mut self, entry: Entry) -> bool {
        self.leaves += usize::from(matches!(entry, Entry::Leaf(_)));
        self.entries.push(entry);
        self.leaves >= BATCH_FILES || self.entries.len() >= BATCH_ENTRIES
    }

    /// Looks at every file and symlink in it.
    fn read(&mut self) {
        for entry in &mut self.entries {
            if let Entry::Leaf(leaf) = entry {
                leaf.found = Some(leaf.look(&mut self.contents));
            }
        }
    }
}

impl Folder {
    /// The folder, or the current one where paths begin.
    pub(super) fn at(&self) -> BorrowedFd<'_> {
        self.opened.as_ref().map_or(CWD, AsFd::as_fd)
    }

    /// Why a NAR cannot hold what has this name in it.
    pub(super) fn refused(&self, name: &CStr, why: &str) -> Error {
        let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
        Error::Refused(format!("{}: {why}", path.display()))
    }
}

impl Leaf {
    /// Its name in the NAR; the root has none.
    pub(super) fn nar_name(&self) -> Option<&[u8]> {
        self.folder.opened.as_ref().map(|_| self.name.to_bytes())
    }

    fn look(&self, contents: &mut Vec<u8>) -> Result<Found, Error> {
        if self.kind == FileType::Symlink {
            return Ok(Found::Symlink(readlinkat(self.folder.at(), &self.name, Vec::new()).map_err(failed)?));
        }
        // Not for ever, should it have become a pipe meanwhile.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat(self.folder.at(), &self.name, flags, Mode::empty()).map_err(failed)?;
        let stat = fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.folder.refused(&self.name, "it became something else while it was read"));
        }
        let executable = stat.st_mode & EXECUTABLE != 0;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if bytes > SMALL_BYTES_MAX {
            return Ok(Found::Large { executable, file, bytes });
        }
        let start = contents.len();
        let end = start + bytes as usize;
        // One byte more than there should be: a file that is as long as it says comes in one call, and its
        // end with it.
        contents.reserve(bytes as usize + 1);
        while contents.len() <= end {
            match rustix::io::read(&file, spare_capacity(contents)) {
                Ok(0) => break,
                // It has ended where it should, or the next call tells.
                Ok(_) if contents.len() == end => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if contents.len() != end {
            return Err(self.folder.refused(&self.name, CHANGED));
        }
        Ok(Found::Small { executable, contents: start..end })
    }
}

pub(super) fn failed(error: rustix::io::Errno) -> Error {
    Error::Io(error.into())
}
