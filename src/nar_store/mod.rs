//! The NARs we serve: zstd files named by the hash of the plain NAR they hold, from a file tree or from another cache; and what
//! is made of them to be given faster. Knows files and nothing else: no index, no Nix, no HTTP. A file under its final name is
//! always complete and verified, and never changes.

mod draft;
mod mapped;
mod pack;
mod plain_cache;
mod shelf;
mod small_cache;
mod stream;
mod verify;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use narinfo::{Compression, NarHash};

use crate::decode;
use crate::room::Room;
use crate::tail_file::read_at;
use crate::trouble::Trouble;
pub use draft::{Draft, Growing};
pub use mapped::{FileRange, range_of};
pub use pack::Packed;
use plain_cache::PlainCache;
pub use plain_cache::Source;
pub use shelf::{file_bytes, has_files};
pub use small_cache::{Epoch, Small};
use small_cache::{SMALL_BYTES_MAX, SmallCache};
pub use stream::NarStream;
pub use verify::{Error as PackError, Expected};

/// Bytes of the file that shows whether files can be written again: a block of most file systems.
const PROBE_BYTES: usize = 4096;

/// Threads that compress one NAR at most, where nobody says how many.
const USUAL_THREADS_MAX: usize = 4;

/// How NARs are stored.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The zstd level, 1 to 19: higher is smaller and slower.
    pub zstd_level: i32,
    /// Threads that compress one NAR, 1 or more; for a high level it is one all the same.
    pub zstd_threads: u32,
    /// Bytes of small NARs that are kept in memory at most.
    pub memory_bytes_max: u64,
    /// Bytes of plain copies at most.
    pub plain_bytes_max: u64,
}

impl Settings {
    /// Threads where nobody says how many: each of them holds a few MiB, and another one wins less than the one before.
    #[must_use]
    pub fn usual_threads() -> u32 {
        std::thread::available_parallelism().map_or(1, |cores| cores.get().min(USUAL_THREADS_MAX) as u32)
    }
}

/// How a NAR is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// As it is stored.
    Zstd,
    /// Decompressed.
    Plain,
}

/// The directory of packed NARs; clones share it.
#[derive(Clone, Debug)]
pub struct NarStore {
    dir: PathBuf,
    settings: Settings,
    copies: PlainCache,
    memory: Arc<SmallCache>,
    /// Why the last file could not be written.
    trouble: Trouble,
}

/// A complete file, open for reading.
#[derive(Clone, Debug)]
pub struct Stored {
    file: Arc<File>,
    bytes: u64,
}

impl Stored {
    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A NAR that can be sent now.
#[derive(Clone, Debug)]
pub enum Nar {
    /// Complete.
    Stored(Stored),
    /// Being written; follow it.
    Growing(Growing),
}

impl NarStore {
    /// Opens the store in `dir`, making it when it is not there, and removes what an interrupted run left half-written.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(dir: &Path, settings: Settings) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let copies = PlainCache::open(&dir.join("plain"), settings.plain_bytes_max)?;
        let memory = Arc::new(SmallCache::new(settings.memory_bytes_max));
        let store = Self { dir: dir.to_owned(), settings, copies, memory, trouble: Trouble::default() };
        fs::create_dir_all(store.drafts())?;
        for entry in fs::read_dir(store.drafts())? {
            let entry = entry?;
            if let Err(error) = shelf::sweep(&entry) {
                tracing::warn!(%error, "cannot remove {}: remove it by hand", entry.path().display());
            }
        }
        Ok(store)
    }

    /// Room on the file system of the NARs.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn room(&self) -> io::Result<Room> {
        Room::of(&self.dir)
    }

    /// Whether NARs can be stored: there is room, and where the last one could not be written, another file can. Blocking.
    ///
    /// # Errors
    /// With the reason why nothing can be stored.
    pub fn check_writable(&self) -> io::Result<()> {
        self.room()?.check()?;
        if self.trouble.get().is_none() {
            return Ok(());
        }
        let (draft, _) = Draft::begin(&self.drafts(), 0)?;
        io::Write::write_all(&mut &draft, &[0; PROBE_BYTES])?;
        draft.sync()?;
        self.trouble.clear();
        Ok(())
    }

    /// Tells whether a file could be written, for [`NarStore::check_writable`].
    pub fn note_written<T>(&self, written: &Result<T, PackError>) {
        match written {
            Ok(_) => drop(self.trouble.clear()),
            Err(PackError::Write(error)) => self.trouble.note(error),
            Err(_) => {}
        }
    }

    /// Removes all plain copies that nobody is just making: they are made anew when they are asked for. Blocking.
    pub fn drop_copies(&self) {
        self.copies.drop_all();
    }

    /// The file of a NAR, if it is there.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn get(&self, nar: NarHash) -> io::Result<Option<Stored>> {
        opened(&self.file_of(nar))
    }

    /// The plain copy of a NAR, complete or on its way; made of `source` where there is none. `None` where none can be made, or
    /// where the NAR is so small that it is decompressed as fast. Blocking, within a tokio runtime.
    #[must_use]
    pub fn plain(&self, nar: Expected, source: Source) -> Option<Nar> {
        if nar.bytes <= SMALL_BYTES_MAX { None } else { self.copies.get(nar, source) }
    }

    /// Whether a plain copy is just being made.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        self.copies.are_made()
    }

    /// A small NAR that was asked for lately.
    #[must_use]
    pub fn in_memory(&self, nar: NarHash, form: Form) -> Option<Small> {
        self.memory.get(nar, form)
    }

    /// To be asked before the index is, and given to [`NarStore::small`].
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.memory.epoch()
    }

    /// All of a small NAR, which stays in memory for those who ask next; `None` for larger ones, and for one whose file is not
    /// there, or not as `packed` has it. Blocking.
    #[must_use]
    pub fn small(&self, nar: Expected, packed: Packed, form: Form, epoch: Epoch) -> Option<Small> {
        let bytes = if form == Form::Zstd { packed.file_size } else { nar.bytes };
        if bytes > SMALL_BYTES_MAX {
            return None;
        }
        let stored = self.get(nar.hash).ok()?.filter(|stored| stored.bytes == packed.file_size)?;
        let mut bytes = Vec::new();
        read_at(&stored.file, 0..stored.bytes, &mut bytes).ok()?;
        let hash = match form {
            Form::Zstd => packed.file_hash,
            Form::Plain => {
                bytes = decode::all(Compression::Zstd, &bytes, usize::try_from(nar.bytes).ok()?).ok()?;
                if bytes.len() as u64 != nar.bytes {
                    return None;
                }
                nar.hash
            }
        };
        let small = Small { bytes: bytes.into(), hash };
        self.memory.keep(epoch, nar.hash, form, small.clone());
        Some(small)
    }

    /// Gives nothing of a NAR any more but its file, whose row has gone, or is not true.
    pub fn forget(&self, nar: NarHash) {
        self.memory.forget(nar);
        self.copies.forget(nar);
    }

    /// Begins a file, and gives the reading side that follows it.
    ///
    /// # Errors
    /// When no temporary file can be made.
    pub fn draft(&self) -> io::Result<(Draft, Growing)> {
        Draft::begin(&self.drafts(), 0).inspect_err(|error| self.trouble.note(error))
    }

    fn drafts(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    fn file_of(&self, nar: NarHash) -> PathBuf {
        shelf::file_in(&self.dir, nar)
    }
}

fn opened(path: &Path) -> io::Result<Option<Stored>> {
    match File::open(path) {
        Ok(file) => {
            let bytes = file.metadata()?.len();
            Ok(Some(Stored { file: Arc::new(file), bytes }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
