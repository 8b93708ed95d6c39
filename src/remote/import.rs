//! Import of a cache in a directory: its files are uploaded as they are, each path after its references. The
//! server verifies every NAR. A path that is refused takes those with it that refer to it, and no others.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use narinfo::{NarHash, NarInfo, StoreDir, StorePath};
use sha2::{Digest, Sha256};
use tempfile::SpooledData;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::closure::in_order;
use super::connection::Remote;
use super::error::ErrorClass;
use super::file_cache::{FileCache, RejectedPath};
use super::packed_nar::PackedNar;
use super::upload::{AT_ONCE_MAX, panicked, send_nar, send_narinfo};
use super::{PushError, UploadCounts};

/// Bytes of a file that are hashed together.
const PIECE_BYTES: usize = 128 * 1024;

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
    cache: Arc<FileCache>,
    progress: impl Fn(UploadCounts),
) -> Result<ImportOutcome, PushError> {
    let narinfos = cache.narinfos();
    let infos = narinfos.iter().map(|(path, narinfo)| (path.clone(), narinfo.path_info.clone()));
    let ordered = in_order(infos.collect());
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
        let Some(narinfo) = narinfos.get(&info.path).cloned() else { continue };
        let (remote, store_dir, cache) = (remote.clone(), store_dir.clone(), Arc::clone(&cache));
        tasks.spawn(async move {
            let _permit = permit;
            let ended = import_path(&remote, &store_dir, &cache, narinfo, needed).await;
            sender.send_replace(ended.is_ok());
            (info.path, ended)
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
    cache: &Arc<FileCache>,
    mut narinfo: NarInfo,
    needed: Vec<watch::Receiver<bool>>,
) -> Result<u64, PushError> {
    let path = narinfo.path_info.path.to_string();
    let failed = |reason: String| PushError::Pack { path: path.clone(), reason };
    for mut reference in needed {
        if reference.wait_for(|done| *done).await.is_err() {
            return Err(failed("a path that it refers to was refused".to_owned()));
        }
    }
    let (opened, url) = (Arc::clone(cache), narinfo.clone());
    let packed = tokio::task::spawn_blocking(move || measured(opened.open_nar(&url)?)).await;
    let mut packed = packed.map_err(panicked)?.map_err(|error| failed(error.to_string()))?;
    let ending = narinfo.compression.file_ending();
    narinfo.url = format!("nar/{}.nar{ending}", packed.hash.to_nixbase32());
    (narinfo.file_hash, narinfo.file_size) = (Some(packed.hash), Some(packed.bytes));
    send_nar(remote, &narinfo.url, &mut packed).await?;
    send_narinfo(remote, store_dir, &narinfo).await?;
    Ok(packed.bytes)
}

/// The file with its hash and its size, which name it to the server.
fn measured(mut file: File) -> io::Result<PackedNar> {
    let (mut digest, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => {
                digest.update(&piece[..read]);
                bytes += read as u64;
            }
        }
    }
    Ok(PackedNar {
        hash: NarHash::from_bytes(digest.finalize().into()),
        bytes,
        data: SpooledData::OnDisk(file),
    })
}
