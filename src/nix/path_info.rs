//! Nix's record of a path, as daemons and their clients send it.

use std::str::FromStr;

use narinfo::{NarHash, PathInfo, SIGNATURES_MAX, StoreDir, StorePath};

use super::error::DaemonError;
use super::wire::{LIST_ITEMS_MAX, Wire};

/// References of one path at most.
const REFERENCES_MAX: u64 = 1_000_000;

/// Nix's record of a valid path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidPath {
    /// The path, its contents and its signatures: no malformed ones, and the first few of very many.
    pub info: PathInfo,
    /// Built on this machine.
    pub ultimate: bool,
    /// Registration, in seconds since 1970.
    pub registration_time: u64,
}

/// The reply to a question about `path`.
pub(super) async fn optional_path_info(
    reply: &mut Wire,
    dir: &StoreDir,
    path: &StorePath,
) -> Result<Option<ValidPath>, DaemonError> {
    if reply.flag().await? { path_info(reply, dir, path).await.map(Some) } else { Ok(None) }
}

/// Nix's record of `path`, as daemons send it, and clients before the contents of a path.
pub(super) async fn path_info(
    reply: &mut Wire,
    dir: &StoreDir,
    path: &StorePath,
) -> Result<ValidPath, DaemonError> {
    let deriver = reply.optional_path(dir).await?;
    let nar_hash = nar_hash(&reply.text("the hash of a NAR").await?)?;
    let references = reply.paths_within(dir, REFERENCES_MAX).await?;
    let registration_time = reply.number().await?;
    let nar_size = reply.number().await?;
    let ultimate = reply.flag().await?;
    let mut signatures = Vec::new();
    for _ in 0..reply.count("a list of signatures", LIST_ITEMS_MAX).await? {
        let signature = reply.text("a signature").await?;
        if signatures.len() < SIGNATURES_MAX {
            signatures.extend(lenient(path, &signature));
        }
    }
    let ca = reply.text("a content address").await?;
    let ca = if ca.is_empty() { None } else { lenient(path, &ca) };
    let path = path.clone();
    let info = PathInfo { path, nar_hash, nar_size, references, deriver, ca, signatures };
    Ok(ValidPath { info, ultimate, registration_time })
}

/// Bare hex from every Nix so far; their own clients also take the other spellings, so we do.
fn nar_hash(text: &str) -> Result<NarHash, DaemonError> {
    let parsed = if text.contains([':', '-']) { text.parse() } else { NarHash::from_hex(text) };
    parsed.map_err(|error| DaemonError::Protocol(format!("{text:?} is no SHA-256: {error}")))
}

/// Leaves out unreadable values: a signature that somebody added makes no path unusable.
fn lenient<T: FromStr<Err: std::fmt::Display>>(path: &StorePath, text: &str) -> Option<T> {
    text.parse().map_err(|error| tracing::debug!(%path, %error, "skipped a malformed value: {text:?}")).ok()
}
