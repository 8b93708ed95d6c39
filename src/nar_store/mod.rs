//! The NAR store: zstd files named by the hash of the plain NAR that they hold, made of a file tree or
//! received, and the caches that serve them faster. Where the files are is the matter of `blobs`. Knows no
//! index, no Nix, no HTTP. A committed file is complete and verified, and never changes.

pub mod blobs;
mod draft;
mod mapped;
mod measured;
mod pack;
mod plain_cache;
mod receive;
mod small_cache;
mod stream;
mod unnamed;
mod verify;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use narinfo::{Compression, NarHash};

pub use blobs::{Blob, Commit, file_bytes, has_files};
use blobs::{BlobFile, Blobs, LocalBlobs};
pub use draft::{Draft, Growing};
pub use mapped::{FileRange, range_of};
pub use measured::Packed;
pub use pack::Received;
pub use plain_cache::CopySource;
use plain_cache::PlainCache;
pub use receive::file_bytes_max;
pub use small_cache::{Epoch, Small};
use small_cache::{SMALL_BYTES_MAX, SmallCache};
pub use stream::NarStream;
pub use unnamed::UnnamedMarks;
pub use verify::{Error as PackError, NarDigest, Promise};

use crate::decode;
use crate::room::Room;
use crate::tail_file::read_at;
use crate::trouble::Trouble;

/// Bytes of the file that shows whether files can be written again: a block of most file systems.
const PROBE_BYTES: usize = 4096;

/// Default for the threads that compress one NAR, at most.
const USUAL_THREADS_MAX: usize = 4;

/// Settings of the NAR store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// The zstd level, 1 to 19: higher is smaller and slower.
    pub zstd_level: i32,
    /// Threads that compress one NAR, 1 or more; high levels use one all the same.
    pub zstd_threads: u32,
    /// Bytes of small NARs that are cached in memory, at most.
    pub memory_bytes_max: u64,
    /// Bytes of the plain cache, at most.
    pub plain_bytes_max: u64,
}

impl Settings {
    /// Default number of threads: each of them holds a few MiB, and another one gains less than the one
    /// before.
    #[must_use]
    pub fn usual_threads() -> u32 {
        std::thread::available_parallelism().map_or(1, |cores| cores.get().min(USUAL_THREADS_MAX) as u32)
    }
}

/// Form in which a NAR is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// As it is stored.
    Zstd,
    /// Decompressed.
    Plain,
}

/// The store of packed NARs; clones share it.
#[derive(Clone, Debug)]
pub struct NarStore {
    blobs: Arc<dyn Blobs>,
    settings: Settings,
    plain: PlainCache,
    small: Arc<SmallCache>,
    unnamed: UnnamedMarks,
    /// The last failure to write, until a write works again.
    trouble: Trouble,
}

/// A NAR that can be sent now.
#[derive(Clone, Debug)]
pub enum Nar {
    /// Complete.
    Stored(Blob),
    /// Being written; follow it.
    Growing(Growing),
}

impl NarStore {
    /// Opens the store in the directory `dir`, creating it if needed.
    ///
    /// # Errors
    /// The directory cannot be created or read.
    pub fn open(dir: &Path, settings: Settings) -> io::Result<Self> {
        Self::new(Arc::new(LocalBlobs::open(dir)?), dir, settings)
    }

    /// Opens a store over `blobs`, with its plain cache and its marks in the directory `dir`.
    ///
    /// # Errors
    /// That directory cannot be created or read.
    pub fn new(blobs: Arc<dyn Blobs>, dir: &Path, settings: Settings) -> io::Result<Self> {
        let plain = PlainCache::open(&dir.join("plain"), settings.plain_bytes_max)?;
        let unnamed = UnnamedMarks::open(&dir.join("unnamed"))?;
        let small = Arc::new(SmallCache::new(settings.memory_bytes_max));
        Ok(Self { blobs, settings, plain, small, unnamed, trouble: Trouble::default() })
    }

    /// Room of the storage. Blocking.
    ///
    /// # Errors
    /// The system call fails.
    pub fn room(&self) -> io::Result<Room> {
        self.blobs.room()
    }

    /// Checks that NARs can be stored: there is room, and after a failure to write, writing works again.
    /// Blocking.
    ///
    /// # Errors
    /// With the reason why nothing can be stored.
    pub fn check_writable(&self) -> io::Result<()> {
        self.room()?.check()?;
        if self.trouble.get().is_none() {
            return Ok(());
        }
        let (draft, _) = Draft::new(self.blobs.begin()?, 0);
        (&draft).write_all(&[0; PROBE_BYTES])?;
        draft.sync()?;
        self.trouble.clear();
        Ok(())
    }

    /// Notes the success or failure of a write, for [`NarStore::check_writable`].
    pub fn note_written<T>(&self, written: &Result<T, PackError>) {
        match written {
            Ok(_) => drop(self.trouble.clear()),
            Err(PackError::Write(error)) => self.trouble.note(error),
            Err(_) => {}
        }
    }

    /// Empties the plain cache, but for copies that are just being made. Blocking.
    pub fn drop_copies(&self) {
        self.plain.drop_all();
    }

    /// Opens the file of a NAR, if it is there. Blocking.
    ///
    /// # Errors
    /// The file is there and cannot be opened.
    pub fn blob(&self, nar: NarHash) -> io::Result<Option<Blob>> {
        self.blobs.open(nar)
    }

    /// The NARs behind `after`, in the order of their nixbase32 text, one page at a time. Blocking.
    ///
    /// # Errors
    /// The storage cannot be read.
    pub fn list(&self, after: Option<NarHash>) -> io::Result<Vec<NarHash>> {
        self.blobs.list(after)
    }

    /// The plain copy of a NAR, complete or on its way; made of `source` if there is none. `None` if none can
    /// be made, or for a NAR so small that it is decompressed as fast. Blocking, within a tokio runtime.
    #[must_use]
    pub fn plain(&self, nar: NarDigest, source: CopySource) -> Option<Nar> {
        if nar.bytes <= SMALL_BYTES_MAX { None } else { self.plain.get(nar, source) }
    }

    /// Marks of the NARs that no path has yet.
    #[must_use]
    pub fn unnamed(&self) -> &UnnamedMarks {
        &self.unnamed
    }

    /// True while a plain copy is being made.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        self.plain.are_made()
    }

    /// A small NAR that was asked for lately. Waits for nothing.
    #[must_use]
    pub fn in_memory(&self, nar: NarHash, form: Form) -> Option<Small> {
        self.small.get(nar, form)
    }

    /// Epoch of the cache of small NARs: taken before the index is read, and given to [`NarStore::small`].
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.small.epoch()
    }

    /// All of a small NAR, cached for those who ask next; `None` for larger ones, and for one whose file is
    /// not there, or not as `packed` says. Blocking.
    #[must_use]
    pub fn small(&self, nar: NarDigest, packed: Packed, form: Form, epoch: Epoch) -> Option<Small> {
        let bytes = if form == Form::Zstd { packed.file_size } else { nar.bytes };
        if bytes > SMALL_BYTES_MAX {
            return None;
        }
        let Blob::File(BlobFile { file, bytes }) = self.blob(nar.hash).ok()??;
        if bytes != packed.file_size {
            return None;
        }
        let mut bytes = Vec::new();
        read_at(&file, 0..packed.file_size, &mut bytes).ok()?;
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
        self.small.keep(epoch, nar.hash, form, small.clone());
        Some(small)
    }

    /// Drops a NAR whose row has gone, or is not true, from the caches; its file stays. Blocking.
    pub fn forget(&self, nar: NarHash) {
        self.small.forget(nar);
        self.plain.forget(nar);
    }

    /// Removes the file of a NAR, and drops it from the caches; readers that have it open still get all of
    /// it. Returns true if there was one. Blocking.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, nar: NarHash) -> io::Result<bool> {
        let removed = self.blobs.delete(nar)?;
        self.forget(nar);
        Ok(removed)
    }

    /// Moves the damaged file of a NAR to the quarantine, for an investigation of the cause; it is not served
    /// any more. Blocking.
    ///
    /// # Errors
    /// The file can neither be moved nor removed.
    pub fn quarantine(&self, nar: NarHash) -> io::Result<()> {
        self.blobs.quarantine(nar)?;
        self.forget(nar);
        Ok(())
    }

    /// Removes all quarantined files but the newest `left`. Blocking.
    pub fn empty_quarantine(&self, left: usize) {
        self.blobs.empty_quarantine(left);
    }

    /// Begins a file, with a reading side that follows it. Blocking.
    ///
    /// # Errors
    /// Nothing can be stored.
    pub fn draft(&self) -> io::Result<(Draft, Growing)> {
        let upload = self.blobs.begin().inspect_err(|error| self.trouble.note(error))?;
        Ok(Draft::new(upload, 0))
    }
}
