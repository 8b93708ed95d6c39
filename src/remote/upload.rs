//! Uploads by the PUT requests of the binary-cache protocol: NARs in parallel, and each narinfo after those
//! of its references. What the server has of a closure is not sent, so an upload that was interrupted goes on
//! where it stopped.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use narinfo::{Compression, NarInfo, PathInfo, StoreDir, StorePath};
use reqwest::Body;
use serde::{Deserialize, Serialize};
use tempfile::SpooledData;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::closure::LocalClosure;
use super::connection::Remote;
use super::error::Error;
use super::packed_nar::{CompressedNar, PackedNar, pack};
use super::programs::ProgramError;

/// Paths in one question for what is missing.
const ASKED_MAX: usize = 10_000;
/// NARs that are packed and sent at once.
pub(super) const AT_ONCE_MAX: usize = 8;
/// Paths whose upload has begun and not ended: a server drops NARs whose narinfo does not come.
const UNDER_WAY_MAX: usize = 64;
/// Tries of one request.
const TRIES_MAX: u32 = 5;
/// Pause after the first failed try; it doubles with each.
const PAUSE: Duration = Duration::from_millis(500);
/// Reason for a path that is not as it was.
const DAMAGED: &str = "its contents are not those that Nix has registered: nix-store --verify-path shows it, and nix-store \
                       --repair-path repairs it";

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
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

/// Uploads what the server lacks of a closure; `progress` is told of each path that is done.
///
/// # Errors
/// A path cannot be packed, or the server does not take it.
pub async fn upload(
    remote: &Remote,
    store_dir: &StoreDir,
    closure: LocalClosure,
    progress: impl Fn(UploadCounts),
) -> Result<UploadCounts, PushError> {
    let paths = closure.paths();
    let missing = remote.missing_paths(paths.iter().map(|info| &info.path)).await?;
    let mut counts = UploadCounts { paths: paths.len(), ..UploadCounts::default() };
    let mut note = |ended: UploadedPath| {
        counts.sent += 1;
        counts.bytes += ended.bytes;
        progress(counts);
    };
    let at_once = Arc::new(Semaphore::new(AT_ONCE_MAX));
    let mut uploads = Uploads::new(remote, store_dir, Unsigned::Fail);
    for info in closure.into_those(&missing) {
        let (at_once, source, promised) = (Arc::clone(&at_once), info.path.in_dir(store_dir), info.clone());
        let packing = async move {
            let _permit = at_once.acquire().await;
            let reason = |reason: String| PushError::Pack { path: source.clone(), reason };
            let from = source.clone();
            let packed = tokio::task::spawn_blocking(move || pack(&from)).await.map_err(panicked)?;
            let packed = packed.map_err(|error| reason(error.to_string()))?;
            match packed.is_of(&promised) {
                true => Ok(packed),
                false => Err(reason(DAMAGED.to_owned())),
            }
        };
        // In the order of references: whoever waits for others has them all under way.
        uploads.begin(info, packing).await?.into_iter().for_each(&mut note);
    }
    uploads.finish().await?.into_iter().for_each(&mut note);
    Ok(counts)
}

/// Treatment of a path that the server does not believe without a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsigned {
    /// The upload fails.
    Fail,
    /// The path is left out, with all that refer to it and are not named by their contents.
    LeaveOut,
}

/// A path whose upload has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedPath {
    /// The path.
    pub path: StorePath,
    /// Bytes that were sent for it.
    pub bytes: u64,
    /// Reason for which it was left out.
    pub left_out: Option<String>,
}

/// Progress of the upload of a path, for those that refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UploadStep {
    UnderWay,
    Served,
    LeftOut,
}

/// Uploads under way, in an order in which each path comes after its references.
pub struct Uploads {
    remote: Remote,
    store_dir: StoreDir,
    unsigned: Unsigned,
    under_way: Arc<Semaphore>,
    steps: HashMap<StorePath, watch::Receiver<UploadStep>>,
    tasks: JoinSet<Result<UploadedPath, PushError>>,
}

impl Uploads {
    /// None so far.
    #[must_use]
    pub fn new(remote: &Remote, store_dir: &StoreDir, unsigned: Unsigned) -> Self {
        Self {
            remote: remote.clone(),
            store_dir: store_dir.clone(),
            unsigned,
            under_way: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
            steps: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Begins to upload a path once there is room; `packing` gives its NAR. Gives those that have ended.
    ///
    /// # Errors
    /// An upload has failed.
    pub async fn begin(
        &mut self,
        info: PathInfo,
        packing: impl Future<Output = Result<CompressedNar, PushError>> + Send + 'static,
    ) -> Result<Vec<UploadedPath>, PushError> {
        let mut ended = Vec::new();
        let permit = loop {
            tokio::select! {
                permit = Arc::clone(&self.under_way).acquire_owned() => break permit,
                Some(task) = self.tasks.join_next() => ended.push(task.map_err(panicked)??),
            }
        };
        let (sender, receiver) = watch::channel(UploadStep::UnderWay);
        let references = info.references.iter().filter(|path| **path != info.path);
        let needed = references.filter_map(|path| self.steps.get(path).cloned()).collect();
        self.steps.insert(info.path.clone(), receiver);
        let (remote, store_dir, unsigned) = (self.remote.clone(), self.store_dir.clone(), self.unsigned);
        self.tasks.spawn(async move {
            let _permit = permit;
            let uploaded = upload_path(&remote, &store_dir, info, packing.await?, needed, unsigned).await?;
            let is_served = uploaded.left_out.is_none();
            sender.send_replace(if is_served { UploadStep::Served } else { UploadStep::LeftOut });
            Ok(uploaded)
        });
        Ok(ended)
    }

    /// Waits for the rest.
    ///
    /// # Errors
    /// An upload has failed.
    pub async fn finish(mut self) -> Result<Vec<UploadedPath>, PushError> {
        let mut ended = Vec::new();
        while let Some(task) = self.tasks.join_next().await {
            ended.push(task.map_err(panicked)??);
        }
        Ok(ended)
    }
}

pub(super) fn panicked(error: tokio::task::JoinError) -> PushError {
    Error::Answer(format!("an upload ended early: {error}")).into()
}

impl Remote {
    /// Those of `paths` that the server lacks.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn missing_paths(
        &self,
        paths: impl IntoIterator<Item = &StorePath>,
    ) -> Result<BTreeSet<StorePath>, Error> {
        let mut missing = BTreeSet::new();
        let names: Vec<String> = paths.into_iter().map(ToString::to_string).collect();
        for paths in names.chunks(ASKED_MAX) {
            let reply: MissingReply =
                self.post("api/v1/missing", &MissingQuestion { paths }).await?.json().await?;
            for name in reply.missing {
                let path = StorePath::parse(&name);
                missing.insert(path.map_err(|error| Error::OtherVersion(error.to_string()))?);
            }
        }
        Ok(missing)
    }
}

async fn upload_path(
    remote: &Remote,
    store_dir: &StoreDir,
    info: PathInfo,
    packed: CompressedNar,
    needed: Vec<watch::Receiver<UploadStep>>,
    unsigned: Unsigned,
) -> Result<UploadedPath, PushError> {
    let mut packed = packed.file;
    let mut uploaded = UploadedPath { path: info.path.clone(), bytes: packed.bytes, left_out: None };
    let may_be_left_out = unsigned == Unsigned::LeaveOut && info.ca.is_none();
    let url = format!("nar/{}.nar.zst", packed.hash.to_nixbase32());
    send_nar(remote, &url, &mut packed).await?;
    for mut reference in needed {
        // A reference that failed ends the whole with its own error.
        let step = reference.wait_for(|step| *step != UploadStep::UnderWay).await;
        if may_be_left_out && step.is_ok_and(|step| *step == UploadStep::LeftOut) {
            uploaded.left_out = Some("it refers to a path that was left out".to_owned());
            return Ok(uploaded);
        }
    }
    let narinfo = NarInfo {
        path_info: info,
        url,
        compression: Compression::Zstd,
        file_hash: Some(packed.hash),
        file_size: Some(packed.bytes),
    };
    match send_narinfo(remote, store_dir, &narinfo).await {
        Err(PushError::Server(Error::Refused { reason, .. })) if may_be_left_out => {
            uploaded.left_out = Some(reason);
        }
        other => other?,
    }
    Ok(uploaded)
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
