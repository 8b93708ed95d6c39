//! Adding a path to the Nix store from its NAR. The daemon verifies it: a path that is named by its contents
//! needs neither a signature nor the daemon's trust.

use std::io;

use bytes::Bytes;
use narinfo::PathInfo;

use super::connection::Daemon;
use super::error::DaemonError;
use super::operation::ADD_TO_STORE_NAR;
use super::wire::{Patience, RequestBytes};

/// Name of the operation in a time-out error.
const DOING: &str = "adding a path to the store";

/// A plain NAR, piece by piece.
pub trait NarChunks: Send {
    /// The next bytes; `None` at the end.
    fn next_chunk(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;
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
        let dir = self.store_dir.clone();
        let references: Vec<String> = info.references.iter().map(|path| path.in_dir(&dir)).collect();
        let signatures: Vec<String> = info.signatures.iter().map(ToString::to_string).collect();
        let request = RequestBytes::default()
            .number(ADD_TO_STORE_NAR)
            .text(&info.path.in_dir(&dir))
            .text(&info.deriver.as_ref().map(|deriver| deriver.in_dir(&dir)).unwrap_or_default())
            .text(&info.nar_hash.to_hex())
            .texts(&references)
            .number(0) // registered now
            .number(info.nar_size)
            .number(0) // not built by this daemon
            .texts(&signatures)
            .text(&info.ca.as_ref().map(ToString::to_string).unwrap_or_default())
            .number(0) // do not repair
            .number(1); // believe us, where we are trusted
        let limit = self.operation_timeout;
        let patience = || Some(Patience::new(DOING, limit));
        self.has_temp_roots = true;
        self.begin(patience(), request).await?;
        while let Some(chunk) = nar.next_chunk().await? {
            if !chunk.is_empty() {
                self.wire.set_patience(patience());
                self.wire.send(&(chunk.len() as u64).to_le_bytes()).await?;
                self.wire.send(&chunk).await?;
            }
        }
        self.wire.set_patience(patience());
        // The end of the frames.
        self.wire.send(&0_u64.to_le_bytes()).await?;
        self.await_reply(|_| {}).await?.done(())?;
        self.held.insert(info.path.clone());
        Ok(())
    }
}
