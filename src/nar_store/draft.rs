//! A file on its way into the store: written once, from its beginning to its end, and read by any number meanwhile, who learn
//! at its end whether it is right. Must never have its final name before that.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::Stored;
use crate::room::Room;
use crate::tail_file::{WriteProgress, abandoned};

/// Bytes after which it is looked again whether there is room for more.
const LOOK_EVERY_BYTES: u64 = 4 * 1024 * 1024;

/// A file that is being written: readers follow it, and learn at its end whether it is right.
#[derive(Clone, Debug)]
pub struct Growing {
    pub(super) file: Arc<File>,
    pub(super) progress: watch::Receiver<WriteProgress>,
    /// Bytes at its beginning that are known to be right before it ends.
    pub(super) trusted: u64,
    kept: watch::Receiver<bool>,
}

/// A file that is not yet in the store; dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    file: tempfile::NamedTempFile,
    progress: watch::Sender<WriteProgress>,
    /// Whether it has its final name.
    kept: watch::Sender<bool>,
}

impl Draft {
    /// Begins a file in `folder`, and gives the reading side that follows it and may trust so many bytes. Refused where there
    /// is no room but what the index needs.
    pub(super) fn begin(folder: &Path, trusted: u64) -> io::Result<(Self, Growing)> {
        Room::of(folder)?.check()?;
        let file = tempfile::Builder::new().prefix("nar-").tempfile_in(folder)?;
        let (progress, following) = watch::channel(WriteProgress::default());
        let (kept, waiting) = watch::channel(false);
        let reading = Growing { file: Arc::new(file.reopen()?), progress: following, trusted, kept: waiting };
        Ok((Self { file, progress, kept }, reading))
    }

    /// Whether readers may have seen some of it: then its bytes stand, right or wrong.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.progress.borrow().bytes > 0
    }

    /// Whether anybody follows it but the list of what is under way.
    pub(crate) fn is_followed(&self) -> bool {
        self.progress.receiver_count() > 1
    }

    /// One more reading side.
    ///
    /// # Errors
    /// When the file cannot be opened once more.
    pub fn follow(&self) -> io::Result<Growing> {
        let file = Arc::new(self.file.reopen()?);
        Ok(Growing { file, progress: self.progress.subscribe(), trusted: 0, kept: self.kept.subscribe() })
    }

    /// Its file, to be told apart from others; of no bytes yet.
    ///
    /// # Errors
    /// When it cannot be opened once more.
    pub fn as_stored(&self) -> io::Result<Stored> {
        Ok(Stored { file: Arc::new(self.file.reopen()?), bytes: 0 })
    }

    /// Begins anew. Nobody may have read any of it.
    ///
    /// # Errors
    /// When the file cannot be cut.
    pub fn rewind(&self) -> io::Result<()> {
        self.file.as_file().set_len(0)?;
        self.file.as_file().rewind()?;
        self.progress.send_modify(|progress| progress.bytes = 0);
        Ok(())
    }

    /// Ends it without a file; its readers hear why.
    pub fn abandon(self, reason: &str) {
        self.progress.send_modify(|g| g.end = Some(Err(reason.to_owned())));
    }

    /// Tells the readers that it is complete and right: they need not wait until it is kept.
    pub(super) fn is_right(&self) {
        self.progress.send_modify(|g| g.end = Some(Ok(())));
    }

    /// Waits until all that was written is durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.as_file().sync_all()
    }

    /// Gives it its final name.
    pub(super) fn persist(self, target: &Path) -> io::Result<Kept> {
        self.file.persist(target).map_err(|e| e.error)?;
        Ok(Kept(self.kept))
    }
}

/// Tells those who wait for it that a file is in the store.
#[must_use]
pub(super) struct Kept(watch::Sender<bool>);

impl Kept {
    pub(super) fn tell(self) {
        self.0.send_replace(true);
    }
}

/// Writes to the file, and tells the readers how far it has grown.
impl Write for &Draft {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let before = self.progress.borrow().bytes;
        if before / LOOK_EVERY_BYTES != (before + data.len() as u64) / LOOK_EVERY_BYTES {
            Room::of_file(self.file.as_file())?.check()?;
        }
        let written = self.file.as_file().write(data)?;
        self.progress.send_modify(|g| g.bytes += written as u64);
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
    /// When nothing was written and nothing will be.
    pub async fn begun(&mut self) -> io::Result<()> {
        let progress =
            self.progress.wait_for(|g| g.bytes > 0 || g.end.is_some()).await.map_err(|_| abandoned())?;
        match (progress.bytes, &progress.end) {
            (0, Some(Err(reason))) => Err(io::Error::other(reason.clone())),
            _ => Ok(()),
        }
    }

    /// Waits until the file is complete, verified, and durable under its final name.
    ///
    /// # Errors
    /// When it will not be.
    pub async fn finished(&mut self) -> io::Result<()> {
        if self.kept.wait_for(|kept| *kept).await.is_ok() {
            return Ok(());
        }
        // The writer is gone without it.
        Err(self.progress.borrow().end.clone().and_then(Result::err).map_or_else(abandoned, io::Error::other))
    }
}
