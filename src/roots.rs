//! The GC roots that hold store paths until their NARs are packed: one symlink each in our own directory,
//! known to Nix as an indirect root. Must never outlive its reason: a root without an unpacked row is removed
//! at the next start.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use narinfo::{StoreDir, StorePath};

use crate::nix::{Daemon, DaemonError};
use crate::tasks::blocking;

/// Why a root could not be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The symlink could not be made.
    #[error("cannot make a GC root in {}", dir.display())]
    Link {
        /// The directory of roots.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon refused it.
    #[error("the Nix daemon did not register a GC root")]
    Daemon(#[from] DaemonError),
}

impl Error {
    /// The broken connection to the Nix daemon, if that is the reason.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        match self {
            Self::Daemon(error) => error.lost(),
            Self::Link { .. } => None,
        }
    }
}

/// The directory of our roots.
#[derive(Clone, Debug)]
pub struct Roots {
    dir: PathBuf,
    store_dir: StoreDir,
}

impl Roots {
    /// Uses `dir` (an absolute path that the daemon can follow), making it when it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: &Path, store_dir: StoreDir) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), store_dir })
    }

    /// Holds every one of `paths`. They must be held by something else (a temporary root) until this returns.
    ///
    /// # Errors
    /// A symlink cannot be made or the daemon does not register it.
    pub async fn hold<'a>(
        &self,
        daemon: &mut Daemon,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<(), Error> {
        let link_error = |source| Error::Link { dir: self.dir.clone(), source };
        let links: Vec<_> = paths.into_iter().map(|path| (self.link(path), path)).collect();
        if links.is_empty() {
            return Ok(());
        }
        let made = links.iter().map(|(link, path)| (link.clone(), path.in_dir(&self.store_dir))).collect();
        blocking(move || make_links(made)).await.map_err(link_error)?;
        // A collection under way may have read the roots before one was there, and reads temporary ones only
        // when those by which its path was held so far are gone. It is told of this one; a later one finds
        // the root. The links become durable meanwhile.
        let dir = self.dir.clone();
        let sync = blocking(move || File::open(dir)?.sync_all());
        let (told, synced) = tokio::join!(daemon.add_roots(&links), sync);
        told?;
        synced.map_err(link_error)
    }

    /// Lets go of a path. Nix drops its own half of the root at its next collection.
    pub fn release(&self, path: &StorePath) {
        match fs::remove_file(self.link(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%path, %error, "cannot remove a GC root; the store path stays until it is removed by hand");
            }
            _ => {}
        }
    }

    /// Every path that is held.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn held(&self) -> io::Result<Vec<StorePath>> {
        let mut held = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            if let Some(path) = entry?.file_name().to_str().and_then(|name| StorePath::parse(name).ok()) {
                held.push(path);
            }
        }
        Ok(held)
    }

    fn link(&self, path: &StorePath) -> PathBuf {
        self.dir.join(path.to_string())
    }
}

/// Makes symlinks to these store paths, as far as they are not there.
fn make_links(links: Vec<(PathBuf, String)>) -> io::Result<()> {
    for (link, target) in links {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
