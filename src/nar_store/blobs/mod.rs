//! Complete NAR files by NAR hash, behind one trait: a directory of this machine, or a bucket of an object
//! store. Dynamic dispatch happens once for each file that is opened and each range of an object, never for
//! each chunk of a file: bytes are written to, and read from, what `begin` and `open` return. Callers verify
//! a NAR before they commit it, and write its row afterwards.

#[cfg(feature = "object-store")]
mod bucket;
mod bucket_url;
mod cache_files;
mod local;
mod object;

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod memory;

use std::collections::HashMap;
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use narinfo::NarHash;

use crate::room::Room;
#[cfg(feature = "object-store")]
pub use bucket::Bucket;
#[cfg(feature = "object-store")]
use bucket_url::BucketService;
pub use bucket_url::BucketUrl;
pub use cache_files::{CacheFile, CacheFiles};
pub use local::LocalBlobs;
pub(super) use local::{open_file, spool_in};
pub(in crate::nar_store) use object::BlobObject;

/// Bytes of the file that shows whether files can be written again: a block of most file systems.
const PROBE_BYTES: usize = 4096;

/// Keys in one page of [`Blobs::list`], at most. Tests of pages have few files.
pub const LIST_PAGE_MAX: usize = if cfg!(test) { 8 } else { 1_000 };

/// Storage of complete, verified files. Every method but one blocks: call it on a thread that may wait.
pub trait Blobs: Debug + Send + Sync {
    /// The blob of a key, if it was committed, read from its start by each who opens it. A file can be read
    /// to its end even if it is deleted meanwhile; reading an object fails then.
    ///
    /// # Errors
    /// The blob is there and cannot be opened, or the storage does not answer ([`is_away`]).
    fn open(&self, key: NarHash) -> io::Result<Option<Blob>>;

    /// True where the blob of a key is there, as the memory of the system tells at once. False where the
    /// storage itself would have to tell. The one method that does not block.
    fn is_at_hand(&self, key: NarHash) -> bool {
        let _ = key;
        false
    }

    /// Begins an upload. Refused when there is no room but what the index needs.
    ///
    /// # Errors
    /// Nothing can be stored.
    fn begin(&self) -> io::Result<Box<dyn Upload>>;

    /// Deletes a blob, and returns true if there was one.
    ///
    /// # Errors
    /// The blob cannot be deleted.
    fn delete(&self, key: NarHash) -> io::Result<bool>;

    /// The keys behind `after`, in the order of their nixbase32 text: [`LIST_PAGE_MAX`] of them, fewer only
    /// at the end.
    ///
    /// # Errors
    /// The storage cannot be read.
    fn list(&self, after: Option<NarHash>) -> io::Result<Vec<NarHash>>;

    /// Address at which anybody can get a blob for this time; `None` where there is none.
    ///
    /// # Errors
    /// No address can be made.
    fn address(&self, key: NarHash, lifetime: Duration) -> io::Result<Option<String>> {
        let _ = (key, lifetime);
        Ok(None)
    }

    /// Storage of narinfos beside the blobs; `None` where nobody but this server reads it.
    fn cache_files(&self) -> Option<Arc<dyn CacheFiles>> {
        None
    }

    /// Sizes of all blobs, where asking for each by itself would take long.
    ///
    /// # Errors
    /// The storage cannot be read.
    fn sizes(&self) -> io::Result<Option<HashMap<NarHash, u64>>> {
        Ok(None)
    }

    /// Free and total room of the file system that takes uploads.
    ///
    /// # Errors
    /// The system call fails.
    fn room(&self) -> io::Result<Room>;

    /// True for storage elsewhere: it may be slow or away, and deleting its blobs gives that file system no
    /// room.
    fn is_remote(&self) -> bool {
        false
    }

    /// Checks by writing that something can be stored.
    ///
    /// # Errors
    /// With the reason why not.
    fn check_writable(&self) -> io::Result<()> {
        let upload = self.begin()?;
        upload.file().write_all_at(&[0; PROBE_BYTES], 0)?;
        upload.file().sync_all()
    }

    /// Moves a damaged blob out of the way, for an investigation of the cause; deletes it where it cannot be
    /// moved.
    ///
    /// # Errors
    /// The blob can neither be moved nor deleted.
    fn quarantine(&self, key: NarHash) -> io::Result<()> {
        self.delete(key).map(drop)
    }

    /// Deletes all quarantined blobs but the newest `left`.
    fn empty_quarantine(&self, left: usize) {
        let _ = left;
    }
}

/// A blob on its way: bytes in a file of this machine, which readers follow meanwhile. Dropped without a
/// commit, it leaves nothing behind.
pub trait Upload: Debug + Send + Sync {
    /// The file that takes the bytes, from its beginning on.
    fn file(&self) -> &Arc<File>;

    /// Checks that there is room for more on the file's file system. Called every few MiB.
    ///
    /// # Errors
    /// With the reason why nothing more can be stored.
    fn check_room(&self) -> io::Result<()> {
        Room::of_file(self.file())?.check()
    }

    /// Name of that file, which goes with the upload; `None` for one that has none, or that becomes the blob.
    fn spool(&self) -> Option<&Path> {
        None
    }

    /// Makes the bytes the blob of `key`, unless that has one already: of concurrent uploads one wins, and a
    /// blob never changes. Before [`PlacedBlob::sync`], a power failure may take the blob away or leave a
    /// part of it.
    ///
    /// # Errors
    /// The storage fails; nothing is kept then.
    fn place(self: Box<Self>, key: NarHash) -> io::Result<PlacedBlob>;

    /// The same, and makes the blob durable.
    ///
    /// # Errors
    /// The storage fails; nothing is kept then.
    fn commit(self: Box<Self>, key: NarHash) -> io::Result<Commit> {
        let placed = self.place(key)?;
        let outcome = placed.outcome();
        placed.sync()?;
        Ok(outcome)
    }
}

/// A blob in its place, which is durable once it is synced.
#[must_use]
pub struct PlacedBlob {
    commit: Commit,
    version: Option<Arc<str>>,
    sync: Option<Box<dyn FnOnce() -> io::Result<()> + Send>>,
}

impl PlacedBlob {
    /// One that is durable already, or that need not be.
    pub(super) fn durable(commit: Commit) -> Self {
        Self { commit, version: None, sync: None }
    }

    /// A durable one, of which another upload may have won, too: see [`PlacedBlob::version`].
    #[cfg(any(test, feature = "object-store"))]
    pub(super) fn contested(version: Arc<str>) -> Self {
        Self { commit: Commit::Won, version: Some(version), sync: None }
    }

    /// One that `sync` makes durable, or removes if it cannot.
    fn unsynced(commit: Commit, sync: impl FnOnce() -> io::Result<()> + Send + 'static) -> Self {
        Self { commit, version: None, sync: Some(Box::new(sync)) }
    }

    /// Outcome of the upload: the blob has its bytes, or those of another one.
    pub(super) fn outcome(&self) -> Commit {
        self.commit
    }

    /// Version that the blob has while it is the one of this upload; `None` where it never is another one.
    /// Some object stores let two uploads in parts win that are completed at the same moment: the later one
    /// stays.
    pub(super) fn version(&self) -> Option<&Arc<str>> {
        self.version.as_ref()
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// The storage fails; nothing is kept then.
    pub fn sync(self) -> io::Result<()> {
        self.sync.map_or(Ok(()), |sync| sync())
    }
}

/// Outcome of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Commit {
    /// This upload is the blob of its key.
    Won,
    /// The key had a blob already, which stays.
    Lost,
}

/// A complete file, open for reading. It has one variant for each way in which bytes are served; all users
/// destructure it exhaustively, so that another one does not compile until each of them knows it.
#[derive(Clone, Debug)]
pub enum Blob {
    /// A file of this machine, which is mapped and sent by the kernel.
    File(BlobFile),
    /// An object elsewhere, which is read by ranges.
    Object(BlobObject),
}

/// An open file of this machine that never changes.
#[derive(Clone, Debug)]
pub struct BlobFile {
    pub(super) file: Arc<File>,
    pub(super) bytes: u64,
}

impl Blob {
    /// Waits until it is durable, where that is up to this machine.
    ///
    /// # Errors
    /// The disk fails.
    pub fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(BlobFile { file, .. }) => file.sync_all(),
            Self::Object(_) => Ok(()),
        }
    }

    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File(BlobFile { bytes, .. }) | Self::Object(BlobObject { bytes, .. }) => *bytes,
        }
    }

    /// Version of an object, which differs for one that takes its place; `None` for a file.
    #[must_use]
    pub fn version(&self) -> Option<&Arc<str>> {
        match self {
            Self::File(_) => None,
            Self::Object(object) => Some(&object.version),
        }
    }

    /// True if `other` is this very file, and not one that has taken its place.
    ///
    /// # Errors
    /// The system call fails.
    pub fn is(&self, other: &Self) -> io::Result<bool> {
        match (self, other) {
            (Self::File(own), Self::File(other)) => {
                let (own, other) = (own.file.metadata()?, other.file.metadata()?);
                Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
            }
            (Self::Object(own), Self::Object(other)) => Ok(own.version == other.version),
            (Self::File(_), Self::Object(_)) | (Self::Object(_), Self::File(_)) => Ok(false),
        }
    }

    /// Reads all of it in order, independent of other readers, on a thread that may wait.
    pub(super) fn reader(&self) -> Box<dyn Read + Send> {
        match self {
            Self::File(BlobFile { file, .. }) => Box::new(FileReader { file: Arc::clone(file), at: 0 }),
            Self::Object(object) => Box::new(object.reader()),
        }
    }
}

/// A file from its start on, independent of other readers.
struct FileReader {
    file: Arc<File>,
    at: u64,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The error of storage elsewhere that does not answer, and may do so again.
#[cfg(feature = "object-store")]
fn away(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, reason)
}

/// True for the error of storage elsewhere that does not answer, and may do so again.
#[must_use]
pub fn is_away(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected
}
