//! The NARs we serve: zstd files named by the hash of the plain NAR they hold, from a file tree or from another cache.
//! Knows files and nothing else: no index, no Nix, no HTTP. A file under its final name is always complete and verified.

mod pack;
mod shelf;
mod stream;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use narinfo::NarHash;
use tokio::sync::watch;

use crate::growing::{Growth, abandoned};
pub use pack::{Error as PackError, Expected, Packed};
pub use stream::{NarStream, Range};

/// How NARs are stored.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The zstd level, 1 to 19: higher is smaller and slower.
    pub zstd_level: i32,
}

/// The directory of packed NARs.
#[derive(Clone, Debug)]
pub struct NarStore {
    dir: PathBuf,
    settings: Settings,
}

/// A complete zstd file, open for reading.
#[derive(Clone, Debug)]
pub struct Stored {
    file: Arc<File>,
    bytes: u64,
}

impl Stored {
    /// Bytes of the zstd file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A zstd file that is being written: readers follow it, and learn at its end whether it is right.
#[derive(Clone, Debug)]
pub struct Growing {
    file: Arc<File>,
    growth: watch::Receiver<Growth>,
    kept: watch::Receiver<bool>,
}

/// A file that is not yet in the store; dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    file: tempfile::NamedTempFile,
    growth: watch::Sender<Growth>,
    /// Whether it has its final name.
    kept: watch::Sender<bool>,
}

impl Draft {
    /// Whether readers may have seen some of it: then its bytes stand, right or wrong.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.growth.borrow().bytes > 0
    }

    /// Ends it without a file; its readers hear why.
    pub fn abandon(self, reason: &str) {
        self.growth.send_modify(|g| g.end = Some(Err(reason.to_owned())));
    }
}

impl NarStore {
    /// Opens the store in `dir`, making it when it is not there, and removes what an interrupted run left half-written.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(dir: &Path, settings: Settings) -> io::Result<Self> {
        let store = Self { dir: dir.to_owned(), settings };
        fs::create_dir_all(store.drafts())?;
        for entry in fs::read_dir(store.drafts())? {
            fs::remove_file(entry?.path())?;
        }
        Ok(store)
    }

    /// The file of a NAR, if it is there.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn get(&self, nar: NarHash) -> io::Result<Option<Stored>> {
        match File::open(self.file_of(nar)) {
            Ok(file) => {
                let bytes = file.metadata()?.len();
                Ok(Some(Stored { file: Arc::new(file), bytes }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins a file, and gives the reading side that follows it.
    ///
    /// # Errors
    /// When no temporary file can be made.
    pub fn draft(&self) -> io::Result<(Draft, Growing)> {
        let file = tempfile::Builder::new().prefix("nar-").tempfile_in(self.drafts())?;
        let (growth, following) = watch::channel(Growth::default());
        let (kept, waiting) = watch::channel(false);
        let reading = Growing { file: Arc::new(file.reopen()?), growth: following, kept: waiting };
        Ok((Draft { file, growth, kept }, reading))
    }

    fn drafts(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// Two characters of the hash make the folder, so that no folder grows without end.
    fn file_of(&self, nar: NarHash) -> PathBuf {
        let name = nar.to_nixbase32();
        self.dir.join(&name[..shelf::FOLDER_CHARS]).join(format!("{name}{}", shelf::FILE_ENDING))
    }
}

impl Growing {
    /// Waits until there is something to read, or a reason why there never will be.
    ///
    /// # Errors
    /// When nothing was written and nothing will be.
    pub async fn begun(&mut self) -> io::Result<()> {
        let growth =
            self.growth.wait_for(|g| g.bytes > 0 || g.end.is_some()).await.map_err(|_| abandoned())?;
        match (growth.bytes, &growth.end) {
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
        Err(self.growth.borrow().end.clone().and_then(Result::err).map_or_else(abandoned, io::Error::other))
    }
}
