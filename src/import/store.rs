//! Pushed derivations on their way into the Nix store: with all that they refer to, when a build needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use narinfo::StorePath;

use super::Importer;
use crate::index;
use crate::model::PathRow;
use crate::nar_store::{Form, NarStream};
use crate::nix::{Daemon, DaemonError, NarChunks};
use crate::packer;

/// Paths in the closure of derivations that are brought at once, at most.
const CLOSURE_PATHS_MAX: usize = 1_000_000;

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
    /// The contents of a path cannot be read.
    #[error("the contents of {path} cannot be read")]
    Contents {
        /// The path.
        path: StorePath,
        /// The error of the packer.
        source: packer::Error,
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
            Self::Daemon { source, .. } if source.is_connection_lost() => Ok(source),
            other => Err(other),
        }
    }
}

impl NarChunks for NarStream {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.next_piece().await
    }
}

impl Importer {
    /// Adds those of `drvs` to the Nix store that are served and not valid there, each with all that it
    /// refers to. The connection holds them from then on. Those that are not served are left out.
    ///
    /// # Errors
    /// When the daemon, the index or the NAR store fails; what was added by then stays.
    pub async fn bring_into_store(&self, daemon: &mut Daemon, drvs: &[StorePath]) -> Result<(), StoreError> {
        let mut lacking = BTreeMap::new();
        let mut level: BTreeSet<StorePath> = drvs.iter().cloned().collect();
        let mut seen = level.clone();
        while !level.is_empty() {
            let mut valid = BTreeSet::new();
            for path in &level {
                let failed = |source| StoreError::Daemon { path: path.clone(), source };
                // First, so that none of them is collected once it was found to be valid.
                daemon.add_temp_root(path).await.map_err(failed)?;
                if daemon.is_valid_path(path).await.map_err(failed)? {
                    valid.insert(path.clone());
                }
            }
            let mut next = BTreeSet::new();
            for path in level.into_iter().filter(|path| !valid.contains(path)) {
                let hit = self.0.index.find(path.hash()).await?;
                if let Some(hit) = hit.filter(|hit| hit.row.info.path == path) {
                    let references = hit.row.info.references.iter();
                    next.extend(references.filter(|other| seen.insert((*other).clone())).cloned());
                    lacking.insert(path, hit.row);
                }
            }
            level = next;
            if lacking.len() > CLOSURE_PATHS_MAX {
                return Err(StoreError::TooLarge);
            }
        }
        for row in references_first(lacking) {
            self.add(daemon, &row).await?;
        }
        Ok(())
    }

    async fn add(&self, daemon: &mut Daemon, row: &PathRow) -> Result<(), StoreError> {
        let path = &row.info.path;
        let contents = |source| StoreError::Contents { path: path.clone(), source };
        let gone = || packer::Error::NotToBeHad(io::ErrorKind::NotFound.into());
        let served = self.0.packer.find(row.info.nar_hash, None).await.map_err(contents)?;
        let mut served = served.ok_or_else(|| contents(gone()))?;
        let (nar, form) = self.0.packer.open(&mut served, Form::Zstd).await.map_err(contents)?;
        let whole = 0..row.info.nar_size;
        let nar = match form {
            Form::Plain => NarStream::as_it_is(nar, whole),
            Form::Zstd => {
                NarStream::decoded(nar, whole).map_err(|error| contents(packer::Error::Store(error)))?
            }
        };
        let added = daemon.add_to_store(&row.info, nar).await;
        added.map_err(|source| StoreError::Daemon { path: path.clone(), source })?;
        tracing::debug!(%path, "added a pushed path to the Nix store");
        Ok(())
    }
}

/// The rows in an order in which each comes after all that it refers to. References have no cycle but to the
/// path itself.
fn references_first(mut rows: BTreeMap<StorePath, PathRow>) -> Vec<PathRow> {
    let mut ordered = Vec::with_capacity(rows.len());
    while let Some((path, row)) = rows.pop_first() {
        let mut pending = vec![(path, row)];
        while let Some((_, row)) = pending.last() {
            match row.info.references.iter().find_map(|reference| rows.remove_entry(reference)) {
                Some(first) => pending.push(first),
                None => ordered.extend(pending.pop().map(|(_, row)| row)),
            }
        }
    }
    ordered
}
