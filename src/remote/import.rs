//! Import of a cache on this machine: each path is uploaded after its references, and files as they are where
//! there are any. The server verifies every NAR. A path that is refused takes those with it that refer to it,
//! and no others.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use narinfo::{Compression, NarInfo, PathInfo, StoreDir, StorePath};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::attic::AtticStore;
use super::closure::in_order;
use super::connection::Remote;
use super::error::ErrorClass;
use super::file_cache::{FileCache, RejectedPath};
use super::packed_nar::PackedNar;
use super::upload::{AT_ONCE_MAX, panicked, send_nar, send_narinfo};
use super::{PushError, UploadCounts};

/// A cache on this machine.
#[derive(Debug)]
pub enum ImportSource {
    /// One in a directory, as Nix makes it.
    Files(FileCache),
    /// One of an attic server.
    Attic(AtticStore),
}

impl ImportSource {
    /// Number of paths that can be imported.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Files(cache) => cache.infos().len(),
            Self::Attic(store) => store.infos().len(),
        }
    }

    /// Paths that are not right.
    #[must_use]
    pub fn rejected(&self) -> &[RejectedPath] {
        match self {
            Self::Files(cache) => cache.rejected(),
            Self::Attic(store) => store.rejected(),
        }
    }

    /// Paths that can be imported, each after its references.
    fn in_order(&self) -> Vec<PathInfo> {
        let by_path = |info: &PathInfo| (info.path.clone(), info.clone());
        in_order(match self {
            Self::Files(cache) => cache.infos().map(by_path).collect(),
            Self::Attic(store) => store.infos().map(by_path).collect(),
        })
    }

    /// The NAR of a path, ready to be sent. Blocking.
    fn nar(&self, path: &StorePath) -> io::Result<(Compression, PackedNar)> {
        match self {
            Self::Files(cache) => cache.nar(path),
            Self::Attic(store) => store.nar(path).map(|nar| (Compression::Zstd, nar)),
        }
    }
}

/// The end of one path: its bytes, or the reason that it was refused.
type PathEnd = (StorePath, Result<u64, PushError>);

/// Result of an import.
#[derive(Debug, Default)]
pub struct ImportOutcome {
    /// Counts of what was sent.
    pub counts: UploadCounts,
    /// Paths that the server, or this program, did not take.
    pub refused: Vec<RejectedPath>,
}

/// Uploads what the server lacks of a cache; `progress` is told of each path that is done.
///
/// # Errors
/// The server cannot be reached, or refuses the caller.
pub async fn import(
    remote: &Remote,
    store_dir: &StoreDir,
    source: Arc<ImportSource>,
    progress: impl Fn(UploadCounts),
) -> Result<ImportOutcome, PushError> {
    let ordered = source.in_order();
    let lacked = remote.missing_paths(ordered.iter().map(|info| &info.path)).await?;
    let mut outcome = ImportOutcome::default();
    outcome.counts.paths = ordered.len();
    let at_once = Arc::new(Semaphore::new(AT_ONCE_MAX));
    let mut done: HashMap<StorePath, watch::Receiver<bool>> = HashMap::new();
    let mut tasks: JoinSet<PathEnd> = JoinSet::new();
    for info in ordered.into_iter().filter(|info| lacked.contains(&info.path)) {
        let permit = loop {
            tokio::select! {
                permit = Arc::clone(&at_once).acquire_owned() => break permit,
                Some(ended) = tasks.join_next() => note(&mut outcome, ended.map_err(panicked)?, &progress)?,
            }
        };
        let (sender, receiver) = watch::channel(false);
        let others = info.references.iter().filter(|path| **path != info.path);
        let needed: Vec<_> = others.filter_map(|path| done.get(path).cloned()).collect();
        done.insert(info.path.clone(), receiver);
        let (remote, store_dir, source) = (remote.clone(), store_dir.clone(), Arc::clone(&source));
        tasks.spawn(async move {
            let _permit = permit;
            let path = info.path.clone();
            let ended = import_path(&remote, &store_dir, source, info, needed).await;
            sender.send_replace(ended.is_ok());
            (path, ended)
        });
    }
    while let Some(ended) = tasks.join_next().await {
        note(&mut outcome, ended.map_err(panicked)?, &progress)?;
    }
    Ok(outcome)
}

/// Counts the end of a path. What concerns all of them ends the import.
fn note(
    outcome: &mut ImportOutcome,
    (path, ended): PathEnd,
    progress: &impl Fn(UploadCounts),
) -> Result<(), PushError> {
    match ended {
        Ok(bytes) => {
            outcome.counts.sent += 1;
            outcome.counts.bytes += bytes;
            progress(outcome.counts);
        }
        Err(PushError::Server(error)) if error.class() != ErrorClass::Other => return Err(error.into()),
        Err(error) => {
            outcome.refused.push(RejectedPath { path: path.to_string(), reason: error.to_string() });
        }
    }
    Ok(())
}

async fn import_path(
    remote: &Remote,
    store_dir: &StoreDir,
    source: Arc<ImportSource>,
    info: PathInfo,
    needed: Vec<watch::Receiver<bool>>,
) -> Result<u64, PushError> {
    let path = info.path.clone();
    let failed = |reason: String| PushError::Pack { path: path.to_string(), reason };
    for mut reference in needed {
        if reference.wait_for(|done| *done).await.is_err() {
            return Err(failed("a path that it refers to was refused".to_owned()));
        }
    }
    let wanted = path.clone();
    let packed = tokio::task::spawn_blocking(move || source.nar(&wanted)).await.map_err(panicked)?;
    let (compression, mut packed) = packed.map_err(|error| failed(error.to_string()))?;
    let narinfo = NarInfo {
        path_info: info,
        url: format!("nar/{}.nar{}", packed.hash.to_nixbase32(), compression.file_ending()),
        compression,
        file_hash: Some(packed.hash),
        file_size: Some(packed.bytes),
    };
    send_nar(remote, &narinfo.url, &mut packed).await?;
    send_narinfo(remote, store_dir, &narinfo).await?;
    Ok(packed.bytes)
}
