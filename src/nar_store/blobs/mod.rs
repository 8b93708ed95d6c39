//! Complete NAR files by NAR hash, behind one trait: a directory of this machine today, other storage without
//! a change outside this folder and the variant of [`Blob`] that it needs. Dynamic dispatch happens once for
//! each file that is opened, never for each chunk: bytes are written to, and read from, what `begin` and
//! `open` return. Callers verify a NAR before they commit it, and write its row afterwards.

mod local;

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod memory;

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use narinfo::NarHash;

use crate::room::Room;
pub use local::{LocalBlobs, file_bytes, has_files};
pub(super) use local::{open_file, spool_in};

/// Keys in one page of [`Blobs::list`], at most. Tests of pages have few files.
pub const LIST_PAGE_MAX: usize = if cfg!(test) { 8 } else { 1_000 };

/// Storage of complete, verified files. Every method blocks: call it on a thread that may wait.
pub trait Blobs: Debug + Send + Sync {
    /// The blob of a key, if it was committed, read from its start by each who opens it. It can be read to
    /// its end even if it is deleted meanwhile.
    ///
    /// # Errors
    /// The blob is there and cannot be opened.
    fn open(&self, key: NarHash) -> io::Result<Option<Blob>>;

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

    /// Free and total room of the storage.
    ///
    /// # Errors
    /// The system call fails.
    fn room(&self) -> io::Result<Room>;

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

    /// Makes the bytes durable under `key`, unless that has a blob already: of concurrent commits one wins,
    /// and a blob never changes. The winner's blob is durable when this returns.
    ///
    /// # Errors
    /// The storage fails; nothing is kept then.
    fn commit(self: Box<Self>, key: NarHash) -> io::Result<Commit>;
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
}

/// An open file of this machine that never changes.
#[derive(Clone, Debug)]
pub struct BlobFile {
    pub(super) file: Arc<File>,
    pub(super) bytes: u64,
}

impl Blob {
    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let Self::File(BlobFile { bytes, .. }) = self;
        *bytes
    }

    /// True if `other` is this very file, and not one that has taken its place.
    ///
    /// # Errors
    /// The system call fails.
    pub fn is(&self, other: &Self) -> io::Result<bool> {
        let (Self::File(own), Self::File(other)) = (self, other);
        let (own, other) = (own.file.metadata()?, other.file.metadata()?);
        Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
    }
}
