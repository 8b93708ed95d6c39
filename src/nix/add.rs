//! Adding paths to the Nix store from their NARs, one or many. The daemon verifies each: a path that is named
//! by its contents needs neither a signature nor the daemon's trust.

use std::io;

use bytes::Bytes;
use narinfo::{PathInfo, StoreDir, StorePath};

use super::connection::Daemon;
use super::error::DaemonError;
use super::operation::{ADD_MULTIPLE_TO_STORE, ADD_TO_STORE_NAR};
use super::wire::{Patience, RequestBytes};

/// Name of the operation in a time-out error.
const DOING: &str = "adding a path to the store";
/// Bytes of many small paths that are sent at once.
const FRAME_BYTES: usize = 64 * 1024;

/// A plain NAR, piece by piece.
pub trait NarChunks: Send {
    /// The next bytes; `None` at the end.
    fn next_chunk(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;
}

/// Reasons why a path was not sent.
#[derive(Debug)]
pub enum AddError {
    /// Its NAR cannot be read.
    Contents(io::Error),
    /// The daemon is lost.
    Daemon(DaemonError),
}

impl From<DaemonError> for AddError {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error)
    }
}

/// Paths on their way into the store in one operation: over a network, an operation for each would take a
/// round trip each.
#[derive(Debug)]
pub struct Additions<'a> {
    daemon: &'a mut Daemon,
    /// Bytes that wait to be sent.
    frame: Vec<u8>,
    added: Vec<StorePath>,
}

impl Daemon {
    /// Adds a path whose references are valid. This connection is a temporary root of it.
    ///
    /// # Errors
    /// The NAR cannot be read, or the daemon refuses ([`DaemonError::Nix`]) or is lost. Unless the
    /// daemon has refused it, the connection is not usable afterwards.
    pub async fn add_to_store(
        &mut self,
        info: &PathInfo,
        mut nar: impl NarChunks,
    ) -> Result<(), DaemonError> {
        let request = with_info(RequestBytes::default().number(ADD_TO_STORE_NAR), info, &self.store_dir);
        let request = request
            .number(0) // do not repair
            .number(1); // believe us, where we are trusted
        self.has_temp_roots = true;
        self.begin_head(self.adding(), request).await?;
        while let Some(chunk) = nar.next_chunk().await? {
            self.send_frame(&chunk).await?;
        }
        self.end_frames().await?;
        self.held.insert(info.path.clone());
        Ok(())
    }

    /// Begins to add so many paths, each after all that it refers to. This connection is a temporary root of
    /// them. It is not usable before they are [finished](Additions::finish).
    ///
    /// # Errors
    /// The daemon is lost.
    pub async fn begin_additions(&mut self, count: usize) -> Result<Additions<'_>, DaemonError> {
        let request = RequestBytes::default()
            .number(ADD_MULTIPLE_TO_STORE)
            .number(0) // do not repair
            .number(1); // believe us, where we are trusted
        self.has_temp_roots = true;
        self.begin_head(self.adding(), request).await?;
        let frame = (count as u64).to_le_bytes().to_vec();
        Ok(Additions { daemon: self, frame, added: Vec::with_capacity(count) })
    }

    /// Patience with the next bytes of a path, however long all of it takes.
    fn adding(&self) -> Option<Patience> {
        Some(Patience::new(DOING, self.operation_timeout))
    }

    async fn send_frame(&mut self, bytes: &[u8]) -> Result<(), DaemonError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.wire.set_patience(self.adding());
        self.wire.queue(&(bytes.len() as u64).to_le_bytes()).await?;
        self.wire.queue(bytes).await
    }

    async fn end_frames(&mut self) -> Result<(), DaemonError> {
        self.wire.set_patience(self.adding());
        self.wire.send(&0_u64.to_le_bytes()).await?;
        self.await_reply(|_| {}).await?.done(())
    }
}

impl Additions<'_> {
    /// Sends the next path.
    ///
    /// # Errors
    /// The NAR cannot be read, or the daemon is lost. That the daemon refuses a path is told at the end.
    pub async fn add(&mut self, info: &PathInfo, mut nar: impl NarChunks) -> Result<(), AddError> {
        let head = with_info(RequestBytes::default(), info, &self.daemon.store_dir);
        self.push(head.as_bytes()).await?;
        while let Some(chunk) = nar.next_chunk().await.map_err(AddError::Contents)? {
            self.push(&chunk).await?;
        }
        self.added.push(info.path.clone());
        Ok(())
    }

    /// Waits until all are valid.
    ///
    /// # Errors
    /// The daemon refuses one, and with it all that follow ([`DaemonError::Nix`]), or is lost.
    pub async fn finish(mut self) -> Result<(), DaemonError> {
        self.flush().await?;
        self.daemon.end_frames().await?;
        self.daemon.held.extend(self.added);
        Ok(())
    }

    async fn push(&mut self, bytes: &[u8]) -> Result<(), DaemonError> {
        if self.frame.len() + bytes.len() <= FRAME_BYTES {
            self.frame.extend_from_slice(bytes);
            return Ok(());
        }
        self.flush().await?;
        self.daemon.send_frame(bytes).await
    }

    async fn flush(&mut self) -> Result<(), DaemonError> {
        self.daemon.send_frame(&self.frame).await?;
        self.frame.clear();
        Ok(())
    }
}

/// The record of a path, as the daemon reads it before the contents.
fn with_info(request: RequestBytes, info: &PathInfo, dir: &StoreDir) -> RequestBytes {
    let references: Vec<String> = info.references.iter().map(|path| path.in_dir(dir)).collect();
    let signatures: Vec<String> = info.signatures.iter().map(ToString::to_string).collect();
    request
        .text(&info.path.in_dir(dir))
        .text(&info.deriver.as_ref().map(|deriver| deriver.in_dir(dir)).unwrap_or_default())
        .text(&info.nar_hash.to_hex())
        .texts(&references)
        .number(0) // registered now
        .number(info.nar_size)
        .number(0) // not built by this daemon
        .texts(&signatures)
        .text(&info.ca.as_ref().map(ToString::to_string).unwrap_or_default())
}
