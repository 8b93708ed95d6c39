//! The NAR of a path from the daemon itself: for stores whose files are elsewhere or unreadable from here.
//! Its bytes are not verified; the reader knows the expected hash.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use narinfo::StorePath;
use tokio::sync::{mpsc, oneshot};

use super::add::NarChunks;
use super::connection::Daemon;
use super::error::DaemonError;
use super::operation::NAR_FROM_PATH;
use super::pool::{Pool, PooledDaemon};
use super::wire::{Patience, RequestBytes};

/// Bytes that are passed on at a time.
const CHUNK_BYTES: u64 = 256 * 1024;
/// Chunks that wait to be read.
const CHUNKS_WAITING_MAX: usize = 4;
/// Name of the operation in a time-out error.
const DOING: &str = "sending a NAR";
/// Reason where the task that reads a NAR has panicked.
const LOST: &str = "reading it from the Nix daemon stopped because of a bug of this server";

/// A NAR on its way from the daemon. Reading blocks.
#[derive(Debug)]
pub struct NarReader {
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
    /// `None` once the NAR has come to its end.
    ended: Option<oneshot::Receiver<Result<(), DaemonError>>>,
    failed: Option<oneshot::Sender<DaemonError>>,
}

impl Read for NarReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return self.end().map(|()| 0),
            }
        }
        let read = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

impl NarReader {
    /// Succeeds if the NAR came to its end; otherwise gives the reason.
    fn end(&mut self) -> io::Result<()> {
        let Some(ended) = &mut self.ended else { return Ok(()) };
        match ended.try_recv() {
            Ok(Err(error)) => {
                let text = error.to_string();
                if let Some(failed) = self.failed.take() {
                    let _ = failed.send(error);
                }
                Err(io::Error::other(text))
            }
            Ok(Ok(())) => {
                self.ended = None;
                Ok(())
            }
            Err(_) => Err(io::Error::other(LOST)),
        }
    }
}

impl Pool {
    /// Starts to send the NAR of a valid path, which must have so many bytes; further bytes are left. The
    /// second value receives an error on the way.
    ///
    /// # Errors
    /// If the daemon is lost or lacks the path.
    pub async fn nar(
        &self,
        path: &StorePath,
        bytes: u64,
    ) -> Result<(NarReader, oneshot::Receiver<DaemonError>), DaemonError> {
        let mut daemon = self.get_fresh().await?;
        if !daemon.is_valid_path(path).await? {
            return Err(DaemonError::Nix(format!("path {path} is not valid")));
        }
        let (reader, failure, _) = daemon.into_nar(path, bytes);
        Ok((reader, failure))
    }
}

impl PooledDaemon {
    /// Starts to send the NAR of a valid path, which must have so many bytes. The second value receives an
    /// error on the way, the third the connection once all of it was read.
    #[must_use]
    pub fn into_nar(
        mut self,
        path: &StorePath,
        bytes: u64,
    ) -> (NarReader, oneshot::Receiver<DaemonError>, oneshot::Receiver<Self>) {
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
        let (end, ended) = oneshot::channel();
        let (failed, failure) = oneshot::channel();
        let (give_back, connection) = oneshot::channel();
        let path = path.clone();
        // It ends with its reader, and a panic in it is an error of the reader.
        tokio::spawn(async move {
            let outcome = self.send_nar(&path, bytes, &sender).await;
            // Something may be left in it where that is not for its next user to find out.
            match give_back.send(self) {
                Ok(()) => {}
                Err(daemon) => daemon.discard(),
            }
            let _ = end.send(outcome);
        });
        let reader = NarReader { chunks, chunk: Bytes::new(), ended: Some(ended), failed: Some(failed) };
        (reader, failure, connection)
    }
}

impl NarChunks for NarReader {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        match self.chunks.recv().await {
            Some(chunk) => Ok(Some(chunk)),
            None => self.end().map(|()| None),
        }
    }
}

impl Daemon {
    async fn send_nar(
        &mut self,
        path: &StorePath,
        bytes: u64,
        chunks: &mpsc::Sender<Bytes>,
    ) -> Result<(), DaemonError> {
        let request = RequestBytes::default().number(NAR_FROM_PATH).text(&path.in_dir(&self.store_dir));
        let limit = self.operation_timeout;
        let mut reply = self.ask(DOING, request).await?;
        let mut left = bytes;
        while left > 0 {
            // However long all of it takes: it goes on.
            reply.set_patience(Some(Patience::new(DOING, limit)));
            let chunk = reply.some_bytes(left.min(CHUNK_BYTES)).await?;
            left -= chunk.len() as u64;
            // Whoever reads it has had enough, and the connection is of no more use.
            if chunks.send(chunk.into()).await.is_err() {
                return Ok(());
            }
        }
        reply.done(())
    }
}
