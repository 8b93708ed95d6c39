//! A file on its way into storage: written once, from its beginning to its end, and read by any number
//! meanwhile, who learn at its end whether it is right. Must never be committed before that.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use narinfo::NarHash;
use tokio::sync::watch;

use super::blobs::{Blob, BlobFile, Commit, PlacedBlob, Upload};
use crate::tail_file::{WriteProgress, abandoned};

/// Bytes between two checks for room.
const ROOM_CHECK_BYTES: u64 = 4 * 1024 * 1024;

/// Reading side of a draft: follows it, and learns at its end whether it is right.
#[derive(Clone, Debug)]
pub struct Growing {
    pub(super) file: Arc<File>,
    pub(super) progress: watch::Receiver<WriteProgress>,
    /// Bytes at its beginning that are known to be right before it ends.
    pub(super) trusted: u64,
    committed: watch::Receiver<bool>,
}

/// Writing side of a file that is not yet in storage; dropping it removes the file.
#[derive(Debug)]
pub struct Draft {
    upload: Box<dyn Upload>,
    file: Arc<File>,
    progress: watch::Sender<WriteProgress>,
    committed: watch::Sender<bool>,
}

/// A draft in its place in storage, which is committed once it is synced.
#[must_use]
pub struct PlacedDraft {
    placed: PlacedBlob,
    committed: watch::Sender<bool>,
}

impl Draft {
    /// Makes a draft of an upload, with a reading side that may trust the first `trusted` bytes.
    pub(super) fn new(upload: Box<dyn Upload>, trusted: u64) -> (Self, Growing) {
        let (progress, following) = watch::channel(WriteProgress::default());
        let (committed, waiting) = watch::channel(false);
        let file = Arc::clone(upload.file());
        let growing = Growing { file: Arc::clone(&file), progress: following, trusted, committed: waiting };
        (Self { upload, file, progress, committed }, growing)
    }

    /// True once readers may have seen some of it: then its bytes stand, right or wrong.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.progress.borrow().bytes > 0
    }

    /// True if anybody follows it but the list of what is under way.
    pub(crate) fn is_followed(&self) -> bool {
        self.progress.receiver_count() > 1
    }

    /// Its file as a blob of no bytes, for [`Blob::is`].
    #[must_use]
    pub fn as_blob(&self) -> Blob {
        Blob::File(BlobFile { file: Arc::clone(&self.file), bytes: 0 })
    }

    /// Name of its file, where that goes with the draft.
    pub(super) fn spool(&self) -> Option<&Path> {
        self.upload.spool()
    }

    /// Starts again from the first byte. No reader may have read any of it.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn rewind(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        (&*self.file).rewind()?;
        self.progress.send_modify(|progress| progress.bytes = 0);
        Ok(())
    }

    /// Ends it without a file, and gives its readers the reason.
    pub fn abandon(self, reason: &str) {
        self.progress.send_modify(|progress| progress.end = Some(Err(reason.to_owned())));
    }

    /// Tells the readers that it is complete and right: they need not wait for the commit.
    pub(super) fn is_right(&self) {
        self.progress.send_modify(|progress| progress.end = Some(Ok(())));
    }

    /// Waits until all that was written is durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Puts a draft in its place that is complete and right.
    pub(super) fn place(self, key: NarHash) -> io::Result<PlacedDraft> {
        let Self { upload, committed, .. } = self;
        Ok(PlacedDraft { placed: upload.place(key)?, committed })
    }
}

impl PlacedDraft {
    /// Tells if the NAR has these bytes now, or those of another file.
    pub fn outcome(&self) -> Commit {
        self.placed.outcome()
    }

    /// Version that it has in storage while no other one has taken its place.
    pub fn version(&self) -> Option<Arc<str>> {
        self.placed.version().cloned()
    }

    /// Makes it durable, and tells those who wait for that. Blocking.
    ///
    /// # Errors
    /// The storage fails; nothing is kept then.
    pub fn sync(self) -> io::Result<()> {
        self.placed.sync()?;
        self.committed.send_replace(true);
        Ok(())
    }
}

/// Writes to the file, and tells the readers how far it has grown.
impl Write for &Draft {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let before = self.progress.borrow().bytes;
        if before / ROOM_CHECK_BYTES != (before + data.len() as u64) / ROOM_CHECK_BYTES {
            self.upload.check_room()?;
        }
        let written = (&*self.file).write(data)?;
        self.progress.send_modify(|progress| progress.bytes += written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Growing {
    /// Waits until there is something to read, or a reason why there never will be.
    ///
    /// # Errors
    /// Nothing was written and nothing will be.
    pub async fn begun(&mut self) -> io::Result<()> {
        let begun = |progress: &WriteProgress| progress.bytes > 0 || progress.end.is_some();
        let progress = self.progress.wait_for(begun).await.map_err(|_| abandoned())?;
        match (progress.bytes, &progress.end) {
            (0, Some(Err(reason))) => Err(io::Error::other(reason.clone())),
            _ => Ok(()),
        }
    }

    /// True once the file is in storage.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        *self.committed.borrow()
    }

    /// Waits until the file is complete, verified and committed.
    ///
    /// # Errors
    /// The file will not be committed.
    pub async fn finished(&mut self) -> io::Result<()> {
        if self.committed.wait_for(|committed| *committed).await.is_ok() {
            return Ok(());
        }
        // The writer is gone without it.
        let end = self.progress.borrow().end.clone();
        Err(end.and_then(Result::err).map_or_else(abandoned, io::Error::other))
    }
}
