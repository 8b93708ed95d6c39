//! Uploads of a closure by the PUT requests of the binary-cache protocol: NARs in parallel, and each narinfo
//! after those of its references. What the server has is not sent, so an upload that was interrupted goes on
//! where it stopped.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use narinfo::{Compression, NarHash, NarInfo, PathInfo, StoreDir, StorePath};
use reqwest::Body;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::{SpooledData, SpooledTempFile};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::closure::LocalClosure;
use super::connection::Remote;
use super::error::Error;
use super::programs::ProgramError;

/// Paths in one question for what is missing.
const ASKED_MAX: usize = 10_000;
/// NARs that are packed and sent at once.
pub(super) const AT_ONCE_MAX: usize = 8;
/// Paths whose upload has begun and not ended: a server drops NARs whose narinfo does not come.
const UNDER_WAY_MAX: usize = 64;
/// Bytes of a packed NAR that are held in memory; a larger one is in a temporary file.
const MEMORY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a NAR that are hashed and compressed together.
const PIECE_BYTES: usize = 128 * 1024;
/// Level of zstd: the server's own default is about the same.
const ZSTD_LEVEL: i32 = 3;
/// Tries of one request.
const TRIES_MAX: u32 = 5;
/// Pause after the first failed try; it doubles with each.
const PAUSE: Duration = Duration::from_millis(500);

/// The reason that an upload did not go through.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The server did not take it.
    #[error(transparent)]
    Server(#[from] Error),
    /// The Nix of this machine does not have it.
    #[error("{0}")]
    Nix(#[from] ProgramError),
    /// The path cannot be packed.
    #[error("{path} cannot be packed: {reason}")]
    Pack {
        /// The path.
        path: String,
        /// The defect.
        reason: String,
    },
}

/// The server's error, if this is one.
#[must_use]
pub fn server_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Error> {
    match error.downcast_ref() {
        Some(PushError::Server(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

/// Counts of an upload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadCounts {
    /// Paths of the closure.
    pub paths: usize,
    /// Paths that the server lacked.
    pub sent: usize,
    /// Bytes that were sent for them.
    pub bytes: u64,
}

#[derive(Serialize)]
struct MissingQuestion<'a> {
    paths: &'a [String],
}

#[derive(Deserialize)]
struct MissingReply {
    missing: Vec<String>,
}

/// A NAR that is packed.
pub(super) struct PackedNar {
    pub(super) hash: NarHash,
    pub(super) bytes: u64,
    pub(super) data: SpooledData,
}

/// Uploads what the server lacks of a closure; `progress` is told of each path that is done.
///
/// # Errors
/// When a path cannot be packed, or the server does not take it.
pub async fn upload(
    remote: &Remote,
    store_dir: &StoreDir,
    closure: LocalClosure,
    progress: impl Fn(UploadCounts),
) -> Result<UploadCounts, PushError> {
    let total = closure.paths().len();
    let missing = missing(remote, closure.paths()).await?;
    let mut counts = UploadCounts { paths: total, ..UploadCounts::default() };
    let at_once = Arc::new(Semaphore::new(AT_ONCE_MAX));
    let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut done: HashMap<StorePath, watch::Receiver<bool>> = HashMap::new();
    let mut tasks: JoinSet<Result<u64, PushError>> = JoinSet::new();
    let mut note = |bytes: u64| {
        counts.sent += 1;
        counts.bytes += bytes;
        progress(counts);
    };
    for info in closure.into_those(&missing) {
        // In the order of references: whoever waits for others has them all under way.
        let permit = loop {
            tokio::select! {
                permit = Arc::clone(&under_way).acquire_owned() => break permit,
                Some(ended) = tasks.join_next() => note(ended.map_err(panicked)??),
            }
        };
        let (sender, receiver) = watch::channel(false);
        let needed: Vec<_> = info
            .references
            .iter()
            .filter(|path| **path != info.path)
            .filter_map(|path| done.get(path).cloned())
            .collect();
        done.insert(info.path.clone(), receiver);
        let (remote, store_dir, at_once) = (remote.clone(), store_dir.clone(), Arc::clone(&at_once));
        tasks.spawn(async move {
            let _permit = permit;
            let bytes = upload_path(&remote, &store_dir, info, &at_once, needed).await?;
            sender.send_replace(true);
            Ok(bytes)
        });
    }
    while let Some(ended) = tasks.join_next().await {
        note(ended.map_err(panicked)??);
    }
    Ok(counts)
}

pub(super) fn panicked(error: tokio::task::JoinError) -> PushError {
    Error::Answer(format!("an upload ended early: {error}")).into()
}

/// Paths that the server lacks.
pub(super) async fn missing(remote: &Remote, infos: &[PathInfo]) -> Result<BTreeSet<StorePath>, Error> {
    let mut missing = BTreeSet::new();
    let names: Vec<String> = infos.iter().map(|info| info.path.to_string()).collect();
    for paths in names.chunks(ASKED_MAX) {
        let reply: MissingReply =
            remote.post("api/v1/missing", &MissingQuestion { paths }).await?.json().await?;
        for name in reply.missing {
            missing.insert(StorePath::parse(&name).map_err(|error| Error::OtherVersion(error.to_string()))?);
        }
    }
    Ok(missing)
}

async fn upload_path(
    remote: &Remote,
    store_dir: &StoreDir,
    info: PathInfo,
    at_once: &Semaphore,
    needed: Vec<watch::Receiver<bool>>,
) -> Result<u64, PushError> {
    let (packed, url) = {
        let _permit = at_once.acquire().await;
        let (source, promised) = (info.path.in_dir(store_dir), info.clone());
        let packed = tokio::task::spawn_blocking(move || pack(&source, &promised)).await.map_err(panicked)?;
        let mut packed = packed.map_err(|reason| PushError::Pack {
            path: info.path.in_dir(store_dir),
            reason: reason.to_string(),
        })?;
        let url = format!("nar/{}.nar.zst", packed.hash.to_nixbase32());
        send_nar(remote, &url, &mut packed).await?;
        (packed, url)
    };
    for mut reference in needed {
        // A reference that failed ends the whole with its own error.
        let _ = reference.wait_for(|done| *done).await;
    }
    let narinfo = NarInfo {
        path_info: info,
        url,
        compression: Compression::Zstd,
        file_hash: Some(packed.hash),
        file_size: Some(packed.bytes),
    };
    send_narinfo(remote, store_dir, &narinfo).await?;
    Ok(packed.bytes)
}

pub(super) async fn send_narinfo(
    remote: &Remote,
    store_dir: &StoreDir,
    narinfo: &NarInfo,
) -> Result<(), PushError> {
    let name = format!("{}.narinfo", narinfo.path_info.path.hash());
    let text = Bytes::from(narinfo.render(store_dir));
    let mut tries = 1;
    loop {
        match remote.put(&name, "text/x-nix-narinfo", text.clone(), text.len() as u64).await {
            Err(error) if error.is_transient() && tries < TRIES_MAX => pause(tries).await,
            other => return Ok(other.map(drop)?),
        }
        tries += 1;
    }
}

pub(super) async fn send_nar(remote: &Remote, url: &str, packed: &mut PackedNar) -> Result<(), PushError> {
    let mut tries = 1;
    loop {
        let body = match &mut packed.data {
            SpooledData::InMemory(data) => Ok(Body::from(Bytes::copy_from_slice(data.get_ref()))),
            SpooledData::OnDisk(file) => again(file).map(|file| Body::from(tokio::fs::File::from_std(file))),
        };
        let body =
            body.map_err(|error| PushError::Pack { path: url.to_owned(), reason: error.to_string() })?;
        match remote.put(url, "application/zstd", body, packed.bytes).await {
            Err(error) if error.is_transient() && tries < TRIES_MAX => pause(tries).await,
            other => return Ok(other.map(drop)?),
        }
        tries += 1;
    }
}

/// The file from its beginning.
fn again(file: &mut File) -> io::Result<File> {
    file.seek(SeekFrom::Start(0))?;
    file.try_clone()
}

async fn pause(tries: u32) {
    tokio::time::sleep(PAUSE * 2_u32.pow(tries - 1)).await;
}

/// Packs a path, and checks that it is the one that Nix has registered. Blocking.
fn pack(source: &str, info: &PathInfo) -> io::Result<PackedNar> {
    let file = HashedWriter { to: SpooledTempFile::new(MEMORY_BYTES_MAX), digest: Sha256::new(), bytes: 0 };
    let mut encoder = zstd::Encoder::new(file, ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    let plain = HashedWriter { to: encoder, digest: Sha256::new(), bytes: 0 };
    let mut plain = BufWriter::with_capacity(PIECE_BYTES, plain);
    narinfo::nar::dump(source.as_ref(), &mut plain).map_err(io::Error::other)?;
    let plain = plain.into_inner().map_err(io::IntoInnerError::into_error)?;
    let hash = NarHash::from_bytes(plain.digest.finalize().into());
    if hash != info.nar_hash || plain.bytes != info.nar_size {
        return Err(io::Error::other(
            "its contents are not those that Nix has registered: nix-store --verify-path shows it, and nix-store \
             --repair-path repairs it",
        ));
    }
    let file = plain.to.finish()?;
    let (hash, bytes) = (NarHash::from_bytes(file.digest.finalize().into()), file.bytes);
    Ok(PackedNar { hash, bytes, data: file.to.into_inner() })
}

/// A writer that hashes and counts what goes through it.
struct HashedWriter<W> {
    to: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> Write for HashedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
