//! The NAR store: zstd files named by the hash of the plain NAR that they hold, made of a file tree or
//! received, and the caches that serve them faster. Where the files are is the matter of `blobs`. Knows no
//! index, no Nix, no HTTP. A committed file is complete and verified, and never changes.

pub mod blobs;
mod copy_cache;
mod draft;
mod mapped;
mod measured;
mod pack;
mod receive;
mod secrets;
mod small_cache;
mod stream;
mod unnamed;
mod verify;

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use narinfo::{Compression, NarHash};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

pub use blobs::{Blob, BucketUrl, CacheFile, CacheFiles, Commit, is_away};
use blobs::{Blobs, LocalBlobs};
use copy_cache::CopyCache;
pub use copy_cache::CopySource;
pub use draft::{Draft, Growing, PlacedDraft};
pub use mapped::{FileRange, range_of};
pub use measured::Packed;
pub use pack::Received;
pub use receive::file_bytes_max;
pub use secrets::Secrets;
pub use small_cache::{Epoch, Small};
use small_cache::{SMALL_BYTES_MAX, SmallCache};
pub use stream::NarStream;
pub use unnamed::UnnamedMarks;
pub use verify::{Error as PackError, NarDigest, Promise};

use crate::decode;
use crate::room::Room;
use crate::tail_file::reading;
use crate::trouble::Trouble;

/// Time for which an address elsewhere can be used: a client does so at once.
const ADDRESS_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Uses of storage elsewhere at a time, each by a thread: not those of files, for which nobody is to wait for
/// a slow storage.
static REMOTE_USES: Semaphore = Semaphore::const_new(128);
/// Default for the threads that compress one NAR, at most.
const USUAL_THREADS_MAX: usize = 4;

/// Reason for a bucket in the settings of a program that was built without them.
#[cfg(not(feature = "object-store"))]
const NO_BUCKETS: &str = "this program was built without support for buckets (the feature object-store)";

/// Settings of the NAR store.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The bucket that NARs are stored in; `None` is the state directory.
    pub bucket: Option<BucketUrl>,
    /// File with the credentials of the bucket; `None` is the environment, or the machine's.
    pub credentials_file: Option<PathBuf>,
    /// True if narinfos are published in the bucket, beside the NARs.
    pub publishes: bool,
    /// True if clients are redirected to the bucket, where they come from one of these networks.
    pub redirects: bool,
    /// These networks.
    pub redirect_networks: Vec<IpNet>,
    /// Bytes of the local copies of NARs in a bucket, at most.
    pub copy_bytes_max: u64,
    /// The zstd level, 1 to 19: higher is smaller and slower.
    pub zstd_level: i32,
    /// Threads that compress one NAR, 1 or more; high levels use one all the same.
    pub zstd_threads: u32,
    /// Bytes of small NARs that are cached in memory, at most.
    pub memory_bytes_max: u64,
    /// Bytes of the plain cache, at most.
    pub plain_bytes_max: u64,
    /// Texts that no NAR may hold that others send.
    pub secrets: Secrets,
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
    plain: CopyCache,
    /// Copies of packed NARs; `None` where they are files of this machine.
    copies: Option<CopyCache>,
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
    /// Opens the store in the directory `dir`, creating it if needed, or in the bucket of the settings, with
    /// files of its own in `dir`. Must be called within a tokio runtime for a bucket.
    ///
    /// # Errors
    /// The directory cannot be created or read, or the bucket's credentials cannot.
    pub fn open(dir: &Path, settings: Settings) -> io::Result<Self> {
        let blobs: Arc<dyn Blobs> = match &settings.bucket {
            None => Arc::new(LocalBlobs::open(dir)?),
            #[cfg(feature = "object-store")]
            Some(url) => {
                let credentials = settings.credentials_file.as_deref();
                Arc::new(blobs::Bucket::open(url.clone(), credentials, settings.redirects, dir)?)
            }
            #[cfg(not(feature = "object-store"))]
            Some(_) => return Err(io::Error::new(io::ErrorKind::Unsupported, NO_BUCKETS)),
        };
        Self::new(blobs, dir, settings)
    }

    /// Looks whether a store with these settings can be used; changes nothing.
    ///
    /// # Errors
    /// With the reason why it cannot be used now; it may be later if that is [`is_away`].
    pub async fn check(settings: &Settings) -> io::Result<()> {
        match &settings.bucket {
            None => Ok(()),
            #[cfg(feature = "object-store")]
            Some(url) => {
                let credentials = settings.credentials_file.as_deref();
                blobs::Bucket::check(url, credentials, settings.redirects).await
            }
            #[cfg(not(feature = "object-store"))]
            Some(_) => Err(io::Error::new(io::ErrorKind::Unsupported, NO_BUCKETS)),
        }
    }

    /// Opens a store over `blobs`, with its caches and its marks in the directory `dir`.
    ///
    /// # Errors
    /// That directory cannot be created or read.
    pub fn new(blobs: Arc<dyn Blobs>, dir: &Path, settings: Settings) -> io::Result<Self> {
        let plain = CopyCache::plain(&dir.join("plain"), settings.plain_bytes_max)?;
        let copies = match blobs.is_remote() {
            true => Some(CopyCache::packed(&dir.join("cache"), settings.copy_bytes_max)?),
            false => None,
        };
        let unnamed = UnnamedMarks::open(&dir.join("unnamed"))?;
        let small = Arc::new(SmallCache::new(settings.memory_bytes_max));
        Ok(Self { blobs, settings, plain, copies, small, unnamed, trouble: Trouble::default() })
    }

    /// Runs `work`, which uses the storage, on a thread that may wait.
    ///
    /// # Errors
    /// That of the work.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let nars = self.clone();
        if !self.is_remote() {
            return reading(move || work(&nars)).await;
        }
        // The semaphore is never closed.
        let permit = REMOTE_USES.acquire().await.map_err(io::Error::other)?;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&nars)
        });
        done.await.map_err(io::Error::other)?
    }

    /// True where NARs are stored elsewhere, which may be slow or away.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.blobs.is_remote()
    }

    /// Storage of the narinfos that are published beside the NARs; `None` where none are.
    #[must_use]
    pub fn cache_files(&self) -> Option<Arc<dyn CacheFiles>> {
        self.blobs.cache_files().filter(|_| self.settings.publishes)
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
        self.blobs.check_writable()?;
        self.trouble.clear();
        Ok(())
    }

    /// Notes that a write has gone well, or its failure, for [`NarStore::check_writable`].
    pub fn note_written(&self, failure: Option<&io::Error>) {
        match failure {
            None => drop(self.trouble.clear()),
            Some(error) => self.trouble.note(error),
        }
    }

    /// Empties the caches of copies, but for copies that are just being made. Blocking.
    pub fn drop_copies(&self) {
        self.plain.drop_all();
        self.copies.iter().for_each(CopyCache::drop_all);
    }

    /// Bytes of the local copies of packed NARs that are stored elsewhere.
    #[must_use]
    pub fn copy_bytes(&self) -> Option<u64> {
        self.copies.as_ref().map(CopyCache::bytes)
    }

    /// True where the file of a NAR is there, and it takes no wait to know.
    #[must_use]
    pub fn is_at_hand(&self, nar: NarHash) -> bool {
        self.blobs.is_at_hand(nar)
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

    /// Address elsewhere at which a client gets a packed NAR for a while; `None` where it gets it here.
    ///
    /// # Errors
    /// No address can be signed.
    pub async fn address(&self, nar: NarHash, client: IpAddr) -> io::Result<Option<String>> {
        let Settings { redirects, redirect_networks, .. } = &self.settings;
        let client = client.to_canonical();
        if !redirects || !redirect_networks.iter().any(|network| network.contains(&client)) {
            return Ok(None);
        }
        self.run(move |nars| nars.blobs.address(nar, ADDRESS_LIFETIME)).await
    }

    /// Sizes of stored files. Blocking.
    ///
    /// # Errors
    /// The storage cannot be read.
    pub fn file_sizes(&self) -> io::Result<FileSizes> {
        Ok(FileSizes { nars: self.clone(), listed: self.blobs.sizes()? })
    }

    /// The plain copy of a NAR, complete or on its way; made of `source` if there is none. `None` if none can
    /// be made, or for a NAR so small that it is decompressed as fast. Blocking, within a tokio runtime.
    #[must_use]
    pub fn plain(&self, nar: NarDigest, source: CopySource) -> Option<Nar> {
        if nar.bytes <= SMALL_BYTES_MAX { None } else { self.plain.get(nar.hash, nar, source) }
    }

    /// A packed NAR as this machine has it, complete or on its way: its file, or a copy where it is stored
    /// elsewhere, also a plain one for that form. Blocking.
    #[must_use]
    pub fn near(&self, nar: NarDigest, packed: Packed, form: Form) -> Option<(Nar, Form)> {
        let Some(copies) = &self.copies else {
            // The reader that opens it for its bytes meets and reports the same error.
            let blob = self.blob(nar.hash).ok().flatten()?;
            return Some((Nar::Stored(blob), Form::Zstd));
        };
        let plain = (form == Form::Plain).then(|| self.plain.find(nar.hash, nar)).flatten();
        let copied = || copies.find(nar.hash, packed.contents()).map(|copy| (copy, Form::Zstd));
        plain.map(|copy| (copy, Form::Plain)).or_else(copied)
    }

    /// A copy of a packed NAR that is stored elsewhere, complete or on its way; begun if there is none.
    /// `None` if none is to be made. Blocking, within a tokio runtime.
    #[must_use]
    pub fn copy(&self, nar: NarHash, packed: Packed, stored: Blob) -> Option<Nar> {
        self.copies.as_ref()?.get(nar, packed.contents(), CopySource::Elsewhere(stored))
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

    /// All of a small NAR that is near, cached for those who ask next; `None` for larger ones, and for one
    /// whose file is not there, or not as `packed` says. Blocking.
    #[must_use]
    pub fn small(&self, nar: NarDigest, packed: Packed, form: Form, epoch: Epoch) -> Option<Small> {
        if !is_small(nar, packed, form) {
            return None;
        }
        match self.near(nar, packed, Form::Zstd)? {
            (Nar::Stored(blob), _) if blob.bytes() == packed.file_size => {
                let mut bytes = Vec::new();
                blob.reader().read_to_end(&mut bytes).ok()?;
                self.keep_small(nar, packed, form, epoch, bytes)
            }
            _ => None,
        }
    }

    /// Does the same with one that is stored elsewhere, of which there is a copy afterwards.
    ///
    /// # Errors
    /// The storage does not answer.
    pub fn fetch_small(
        &self,
        nar: NarDigest,
        packed: Packed,
        form: Form,
        epoch: Epoch,
    ) -> io::Result<Option<Small>> {
        if !is_small(nar, packed, form) {
            return Ok(None);
        }
        let Some(blob) = self.blob(nar.hash)?.filter(|blob| blob.bytes() == packed.file_size) else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        blob.reader().read_to_end(&mut bytes)?;
        // What comes over a network is verified before it is served.
        if NarHash::from_bytes(Sha256::digest(&bytes).into()) != packed.file_hash {
            return Ok(None);
        }
        if let Some(copies) = &self.copies {
            copies.put(nar.hash, packed.contents(), &bytes);
        }
        Ok(self.keep_small(nar, packed, form, epoch, bytes))
    }

    fn keep_small(
        &self,
        nar: NarDigest,
        packed: Packed,
        form: Form,
        epoch: Epoch,
        mut bytes: Vec<u8>,
    ) -> Option<Small> {
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
        self.forget_copy(nar);
    }

    /// Drops the local copy of a packed NAR that is stored elsewhere. Blocking.
    pub fn forget_copy(&self, nar: NarHash) {
        self.copies.iter().for_each(|copies| copies.forget(nar));
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

/// Sizes of stored files: of those of this machine one by one, else those that there were.
pub struct FileSizes {
    nars: NarStore,
    listed: Option<HashMap<NarHash, u64>>,
}

impl FileSizes {
    /// Bytes of the file of a NAR, if there is one. Blocking.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn get(&self, nar: NarHash) -> io::Result<Option<u64>> {
        match &self.listed {
            Some(listed) => Ok(listed.get(&nar).copied()),
            None => Ok(self.nars.blob(nar)?.map(|blob| blob.bytes())),
        }
    }
}

/// True for a NAR that is cached in memory in this form.
fn is_small(nar: NarDigest, packed: Packed, form: Form) -> bool {
    let bytes = if form == Form::Zstd { packed.file_size } else { nar.bytes };
    bytes <= SMALL_BYTES_MAX
}
