//! Paths on their way into the store of a Nix daemon, on this machine or another: each with all that it
//! refers to, when a build needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use bytes::Bytes;
use narinfo::{PathInfo, StorePath};
use tokio::sync::mpsc;

use super::Importer;
use crate::index;
use crate::model::PathRow;
use crate::nar_store::{Form, NarStream};
use crate::nix::{Daemon, DaemonError, NarChunks, NarReader};
use crate::packer;
use crate::upstream::Asker;

/// Paths in the closure of derivations that are brought at once, at most.
const CLOSURE_PATHS_MAX: usize = 1_000_000;
/// Pieces of a tree's NAR that wait to be sent.
const PIECES_WAITING_MAX: usize = 4;

/// Reasons why a derivation was not brought into the Nix store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The daemon failed or refused a path.
    #[error("the Nix daemon did not take {path}")]
    Daemon {
        /// The path.
        path: StorePath,
        /// The daemon's error.
        source: DaemonError,
    },
    /// The daemon failed or refused one of several paths.
    #[error("the Nix daemon did not take {count} paths that a build needs")]
    Inputs {
        /// Number of the paths.
        count: usize,
        /// The daemon's error.
        source: DaemonError,
    },
    /// The contents of a path cannot be read.
    #[error("the contents of {path} cannot be read")]
    Contents {
        /// The path.
        path: StorePath,
        /// The error of the packer.
        source: packer::Error,
    },
    /// Nobody has the path.
    #[error("{0} is needed, and neither served here, nor in the Nix store, nor in another cache")]
    Absent(StorePath),
    /// The Nix store of this machine cannot be asked.
    #[error("the Nix store of this machine cannot be asked for {path}")]
    Local {
        /// The path.
        path: StorePath,
        /// The daemon's error.
        source: DaemonError,
    },
    /// The index failed.
    #[error("the index cannot be read")]
    Index(#[from] index::Error),
    /// Too many paths.
    #[error("they refer to more than {CLOSURE_PATHS_MAX} paths")]
    TooLarge,
}

impl StoreError {
    /// The lost connection to the Nix daemon, if that is the reason; else the error itself.
    ///
    /// # Errors
    /// With the error, when the daemon answers.
    pub fn lost(self) -> Result<DaemonError, Self> {
        match self {
            Self::Daemon { source, .. } | Self::Inputs { source, .. } if source.is_connection_lost() => {
                Ok(source)
            }
            other => Err(other),
        }
    }
}

impl NarChunks for NarStream {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.next_piece().await
    }
}

/// Place from which a path is taken.
pub(super) enum InputOrigin {
    /// The NAR store, or where its NARs are fetched from.
    Served,
    /// The Nix store of this machine.
    Local,
}

/// Origins that are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SearchScope {
    /// Served paths; anything else is left out.
    Served,
    /// Everything that this server can reach.
    Everywhere,
}

/// A path that a daemon lacks.
pub(super) struct Lacking {
    pub(super) row: PathRow,
    pub(super) origin: InputOrigin,
}

/// The NAR of a path.
pub(super) enum InputNar {
    Served(NarStream),
    Tree(TreeNar),
    /// Of a store whose files are elsewhere.
    Daemon(NarReader),
}

impl NarChunks for InputNar {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Served(nar) => nar.next_chunk().await,
            Self::Tree(nar) => nar.next_chunk().await,
            Self::Daemon(nar) => nar.next_chunk().await,
        }
    }
}

impl Importer {
    /// Adds those of `paths` to the Nix store that are served and not valid there, each with all that it
    /// refers to. The connection holds them from then on. Those that are not served are left out.
    ///
    /// # Errors
    /// The daemon, the index or the NAR store fails; what was added by then stays.
    pub async fn bring_into_store<'p>(
        &self,
        daemon: &mut Daemon,
        paths: impl IntoIterator<Item = &'p StorePath> + Send,
    ) -> Result<(), StoreError> {
        let absent = lacked(daemon, paths.into_iter().cloned().collect()).await?;
        for lacking in self.lacking(daemon, absent, SearchScope::Served).await? {
            self.add(daemon, lacking).await?;
        }
        Ok(())
    }

    /// Paths that a daemon does not have, with what it lacks of all that they refer to, in an order in which
    /// each can be added. The connection holds what it has of that, and these once they are valid.
    pub(super) async fn lacking(
        &self,
        daemon: &mut Daemon,
        absent: BTreeSet<StorePath>,
        search: SearchScope,
    ) -> Result<Vec<Lacking>, StoreError> {
        let mut lacking = BTreeMap::new();
        let mut seen = absent.clone();
        let mut level = absent;
        while !level.is_empty() {
            let mut next = BTreeSet::new();
            for path in level {
                let Some(found) = self.origin_of(&path, search).await? else { continue };
                let references = found.row.info.references.iter();
                next.extend(references.filter(|other| seen.insert((*other).clone())).cloned());
                lacking.insert(path, found);
            }
            if lacking.len() > CLOSURE_PATHS_MAX {
                return Err(StoreError::TooLarge);
            }
            level = lacked(daemon, next).await?;
        }
        Ok(references_first(lacking, |lacking| &lacking.row.info))
    }

    /// Place from which a path is taken; `None` where only what is served counts, and it is not.
    async fn origin_of(&self, path: &StorePath, search: SearchScope) -> Result<Option<Lacking>, StoreError> {
        if let Some(row) = self.served_row(path).await? {
            return Ok(Some(Lacking { row, origin: InputOrigin::Served }));
        }
        if search == SearchScope::Served {
            return Ok(None);
        }
        if let Some(row) = self.local_row(path).await? {
            return Ok(Some(Lacking { row, origin: InputOrigin::Local }));
        }
        self.0.adopter.adopt_from_upstream(path.hash(), &Asker::default()).await;
        if let Some(row) = self.served_row(path).await? {
            return Ok(Some(Lacking { row, origin: InputOrigin::Served }));
        }
        // Nothing is served from some caches that builds may take inputs from.
        let local = |source| StoreError::Local { path: path.clone(), source };
        let fetched = self.0.adopter.pool.get().await.map_err(local)?.ensure_path(path).await;
        match fetched {
            Ok(()) => {}
            Err(DaemonError::Nix(reason)) => tracing::debug!(%path, reason, "Nix cannot fetch an input"),
            Err(error) => return Err(local(error)),
        }
        let row = self.local_row(path).await?.ok_or_else(|| StoreError::Absent(path.clone()))?;
        Ok(Some(Lacking { row, origin: InputOrigin::Local }))
    }

    async fn served_row(&self, path: &StorePath) -> Result<Option<PathRow>, StoreError> {
        let hit = self.0.index.find(path.hash()).await?;
        Ok(hit.map(|hit| hit.row).filter(|row| row.info.path == *path))
    }

    /// Row of a path that is valid in the Nix store of this machine, with our signature: another machine may
    /// trust nobody else.
    async fn local_row(&self, path: &StorePath) -> Result<Option<PathRow>, StoreError> {
        let local = |source| StoreError::Local { path: path.clone(), source };
        let mut daemon = self.0.adopter.pool.get().await.map_err(local)?;
        let Some(valid) = daemon.query_path_info(path).await.map_err(local)? else { return Ok(None) };
        let mut row = PathRow { info: valid.info, built: valid.ultimate };
        self.0.adopter.sign(&mut row);
        Ok(Some(row))
    }

    async fn add(&self, daemon: &mut Daemon, lacking: Lacking) -> Result<(), StoreError> {
        let Lacking { row, origin } = lacking;
        let path = &row.info.path;
        let added = daemon.add_to_store(&row.info, self.nar(&row, &origin).await?).await;
        added.map_err(|source| StoreError::Daemon { path: path.clone(), source })?;
        tracing::debug!(%path, "added a path to a Nix store");
        Ok(())
    }

    /// The NAR of a path.
    pub(super) async fn nar(&self, row: &PathRow, origin: &InputOrigin) -> Result<InputNar, StoreError> {
        let path = &row.info.path;
        if matches!(origin, InputOrigin::Served) {
            return Ok(InputNar::Served(self.served_nar(&row.info).await?));
        }
        let tree = std::path::PathBuf::from(path.in_dir(&self.0.store_dir));
        // A store that is elsewhere is read through its daemon.
        if tokio::fs::symlink_metadata(&tree).await.is_ok() {
            return Ok(InputNar::Tree(TreeNar::start(tree)));
        }
        let local = |source| StoreError::Local { path: path.clone(), source };
        let (nar, _) = self.0.adopter.pool.nar(path, row.info.nar_size).await.map_err(local)?;
        Ok(InputNar::Daemon(nar))
    }

    async fn served_nar(&self, info: &PathInfo) -> Result<NarStream, StoreError> {
        let contents = |source| StoreError::Contents { path: info.path.clone(), source };
        let gone = || packer::Error::NotToBeHad(io::ErrorKind::NotFound.into());
        let served = self.0.packer.find(info.nar_hash, None).await.map_err(contents)?;
        let mut served = served.ok_or_else(|| contents(gone()))?;
        let (nar, form) = self.0.packer.open(&mut served, Form::Zstd).await.map_err(contents)?;
        let whole = 0..info.nar_size;
        match form {
            Form::Plain => Ok(NarStream::as_it_is(nar, whole)),
            Form::Zstd => {
                NarStream::decoded(nar, whole).map_err(|error| contents(packer::Error::Store(error)))
            }
        }
    }
}

/// Those of the paths that a daemon lacks. The connection holds the others.
async fn lacked(daemon: &mut Daemon, paths: BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>, StoreError> {
    let Some(first) = paths.first().cloned() else { return Ok(paths) };
    daemon.hold_valid(&paths).await.map_err(|source| StoreError::Daemon { path: first, source })
}

/// The NAR of a file tree, made on a thread that may wait.
pub(super) struct TreeNar(mpsc::Receiver<io::Result<Bytes>>);

/// Passes on what is written.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl TreeNar {
    fn start(tree: std::path::PathBuf) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
        tokio::task::spawn_blocking(move || {
            let end = sender.clone();
            if let Err(error) = narinfo::nar::dump(&tree, &mut io::BufWriter::new(Pieces(sender))) {
                let _ = end.blocking_send(Err(io::Error::other(error)));
            }
        });
        Self(pieces)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl NarChunks for TreeNar {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.0.recv().await.transpose()
    }
}

/// The items in an order in which each path comes after all that it refers to. References have no cycle but
/// to the path itself.
pub(super) fn references_first<T>(
    mut items: BTreeMap<StorePath, T>,
    info: impl Fn(&T) -> &PathInfo,
) -> Vec<T> {
    let mut ordered = Vec::with_capacity(items.len());
    while let Some((path, item)) = items.pop_first() {
        let mut pending = vec![(path, item)];
        while let Some((_, item)) = pending.last() {
            match info(item).references.iter().find_map(|reference| items.remove_entry(reference)) {
                Some(first) => pending.push(first),
                None => ordered.extend(pending.pop().map(|(_, item)| item)),
            }
        }
    }
    ordered
}
