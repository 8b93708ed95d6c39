//! Paths and logs that clients add: packed here, uploaded to the server, and verified there.

use std::collections::BTreeSet;
use std::future::ready;
use std::io::{self, Write};

use narinfo::{ContentAddress, PathInfo, StorePath};
use sha2::{Digest, Sha256};

use super::session::{BuilderSession, NotDone};
use crate::nix::{ClientBody, ClientNews};
use crate::remote::{CompressedNar, NarPacker, PushError, Unsigned, UploadedPath, Uploads, pack, path_part};

/// Bytes of a log at most.
const LOG_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that are read at a time.
const PIECE_BYTES: u64 = 256 * 1024;
/// Paths that were left out and are named.
const NAMED_MAX: usize = 10;

impl BuilderSession {
    /// Takes several paths, each after its references.
    pub(super) async fn add_paths(&mut self, unchecked: bool) -> Result<(), NotDone> {
        let uploads = Uploads::new(&self.remote, self.client.store_dir(), unsigned(unchecked));
        let uploaded = self.client.body(async |mut body| {
            let count = body.path_count().await?;
            let (mut uploads, mut uploaded) = (uploads, Vec::new());
            for _ in 0..count {
                let info = body.path_info().await?;
                uploaded.extend(take_path(&mut body, &mut uploads, info).await?);
            }
            uploaded.extend(uploads.finish().await?);
            Ok(uploaded)
        });
        let uploaded: Result<Vec<UploadedPath>, NotDone> = uploaded.await?;
        self.tell_left_out(&uploaded?).await
    }

    /// Takes one path.
    pub(super) async fn add_path(&mut self, info: PathInfo, unchecked: bool) -> Result<(), NotDone> {
        let uploads = Uploads::new(&self.remote, self.client.store_dir(), unsigned(unchecked));
        let uploaded = self.client.body(async |mut body| {
            let mut uploads = uploads;
            let mut uploaded = take_path(&mut body, &mut uploads, info).await?;
            uploaded.extend(uploads.finish().await?);
            Ok(uploaded)
        });
        let uploaded: Result<Vec<UploadedPath>, NotDone> = uploaded.await?;
        self.tell_left_out(&uploaded?).await
    }

    /// Takes a file or folder that is named by its contents.
    pub(super) async fn add_contents(
        &mut self,
        name: String,
        method: &str,
        references: BTreeSet<StorePath>,
    ) -> Result<PathInfo, NotDone> {
        let taken = match method {
            "fixed:r:sha256" => self.client.body(async |body| take_nar(body).await).await?,
            "fixed:sha256" | "text:sha256" => self.client.body(async |body| take_file(body).await).await?,
            other => {
                // What follows is read, so that the connection goes on.
                self.client.body(async |_| ()).await?;
                let other = other.chars().take(40).collect::<String>();
                Err(NotDone::Refused(format!(
                    "contents of the kind {other:?} cannot be added here: fixed:r:sha256, fixed:sha256 and \
                     text:sha256 can"
                )))
            }
        };
        let (packed, contents_hash) = taken?;
        let ca = format!("{method}:{contents_hash}").parse::<ContentAddress>();
        let ca = ca.map_err(|error| NotDone::Refused(error.to_string()))?;
        let path = ca.path(self.client.store_dir(), &name, &references).ok_or_else(|| {
            NotDone::Refused(format!(
                "{name:?} is no name in a store, or its contents may not refer to others"
            ))
        })?;
        let (nar_hash, nar_size) = (packed.nar_hash, packed.nar_size);
        let info = PathInfo {
            path,
            nar_hash,
            nar_size,
            references,
            deriver: None,
            ca: Some(ca),
            signatures: Vec::new(),
        };
        let mut uploads = Uploads::new(&self.remote, self.client.store_dir(), Unsigned::Fail);
        uploads.begin(info.clone(), ready(Ok(packed))).await?;
        uploads.finish().await?;
        Ok(info)
    }

    /// Takes the log of a build.
    pub(super) async fn add_log(&mut self, drv: &StorePath) -> Result<(), NotDone> {
        let log = self.client.body(async |mut body: ClientBody| {
            let mut log = Vec::new();
            while !body.is_at_end().await? {
                log.extend_from_slice(&body.some_bytes(PIECE_BYTES).await?);
                if log.len() > LOG_BYTES_MAX {
                    return Err(NotDone::Refused(format!(
                        "the log of {drv} has more than {LOG_BYTES_MAX} bytes"
                    )));
                }
            }
            Ok(log)
        });
        let log = log.await??;
        let bytes = log.len() as u64;
        self.remote.put(&format!("log/{}", path_part(&drv.to_string())), "text/plain", log, bytes).await?;
        Ok(())
    }

    /// Tells the user of paths that the server did not take, and what follows from it.
    async fn tell_left_out(&mut self, uploaded: &[UploadedPath]) -> Result<(), NotDone> {
        let left_out: Vec<_> = uploaded
            .iter()
            .filter_map(|uploaded| Some((&uploaded.path, uploaded.left_out.as_ref()?)))
            .collect();
        for (path, reason) in left_out.iter().take(NAMED_MAX) {
            let text = format!("{path} was not copied to {}: {reason}", self.remote.shown());
            self.client.tell(&ClientNews::Message(text)).await?;
        }
        if !left_out.is_empty() {
            let text = format!(
                "{} paths without a trusted signature were not copied; the server makes them itself where it needs \
                 them. The right \"vouch\" has it take them from this client",
                left_out.len()
            );
            self.client.tell(&ClientNews::Message(text)).await?;
        }
        Ok(())
    }
}

/// A client that builds copies all inputs of a build, signed or not: what the server does not believe it
/// builds. A client that was told to copy wants to hear that this did not work.
fn unsigned(unchecked: bool) -> Unsigned {
    if unchecked { Unsigned::LeaveOut } else { Unsigned::Fail }
}

async fn take_path(
    body: &mut ClientBody,
    uploads: &mut Uploads,
    info: PathInfo,
) -> Result<Vec<UploadedPath>, NotDone> {
    let (mut packer, mut left) = (NarPacker::new().map_err(unpacked)?, info.nar_size);
    while left > 0 {
        let bytes = body.some_bytes(left.min(PIECE_BYTES)).await?;
        left -= bytes.len() as u64;
        packer.write_all(&bytes).map_err(unpacked)?;
    }
    let packed = packer.finish().map_err(unpacked)?;
    if !packed.is_of(&info) {
        return Err(NotDone::Refused(format!(
            "the contents of {} are not those that its NAR hash promises; nix-store --verify-path shows it",
            info.path
        )));
    }
    Ok(uploads.begin(info, ready(Ok::<_, PushError>(packed))).await?)
}

/// A NAR that follows, and its hash.
async fn take_nar(mut body: ClientBody) -> Result<(CompressedNar, String), NotDone> {
    let mut packer = NarPacker::new().map_err(unpacked)?;
    while !body.is_at_end().await? {
        packer.write_all(&body.some_bytes(PIECE_BYTES).await?).map_err(unpacked)?;
    }
    let packed = packer.finish().map_err(unpacked)?;
    let hash = packed.nar_hash.to_nixbase32();
    Ok((packed, hash))
}

/// The NAR of a file whose bytes follow, and the hash of these.
async fn take_file(mut body: ClientBody) -> Result<(CompressedNar, String), NotDone> {
    let mut file = tempfile::NamedTempFile::new().map_err(unpacked)?;
    let mut digest = Sha256::new();
    while !body.is_at_end().await? {
        let bytes = body.some_bytes(PIECE_BYTES).await?;
        digest.update(&bytes);
        file.write_all(&bytes).map_err(unpacked)?;
    }
    let packed = pack(&file.path().to_string_lossy()).map_err(unpacked)?;
    Ok((packed, narinfo::NarHash::from_bytes(digest.finalize().into()).to_nixbase32()))
}

/// The NAR of a text.
pub(super) fn pack_text(text: &[u8]) -> Result<CompressedNar, NotDone> {
    let mut file = tempfile::NamedTempFile::new().map_err(unpacked)?;
    file.write_all(text).map_err(unpacked)?;
    pack(&file.path().to_string_lossy()).map_err(unpacked)
}

fn unpacked(error: io::Error) -> NotDone {
    NotDone::Refused(format!(
        "a temporary file cannot be written ({error}): is there room in the folder for them?"
    ))
}
