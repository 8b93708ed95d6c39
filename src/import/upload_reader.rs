//! The body of an upload on its way from the connection's task to the thread that verifies it. A body that
//! breaks off is an error to its reader, never an end.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use narinfo::NarHash;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

use crate::nar_store::NarDigest;

/// Pieces that wait to be read; a connection gives a few KiB at a time.
const PIECES_WAITING_MAX: usize = 32;

enum Piece {
    Bytes(Bytes),
    End,
    Stalled,
}

/// Sending end, for the connection's task. Dropped before it ends, it breaks the upload off.
pub struct UploadFeed {
    pieces: mpsc::Sender<Piece>,
    bytes: u64,
    ended: watch::Sender<Option<u64>>,
}

/// Reading end. Blocks.
pub struct UploadReader {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
    digest: UploadDigest,
}

/// Hash and size of a body that is read; clones share them.
#[derive(Clone)]
pub struct UploadDigest {
    progress: Arc<Mutex<ReadProgress>>,
    /// Bytes of the body, once it has ended.
    ended: watch::Receiver<Option<u64>>,
}

#[derive(Default)]
struct ReadProgress {
    hasher: Sha256,
    bytes: u64,
    is_whole: bool,
}

/// A channel for one body.
#[must_use]
pub fn upload_channel() -> (UploadFeed, UploadReader) {
    let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    let (ended, end) = watch::channel(None);
    let digest = UploadDigest { progress: Arc::default(), ended: end };
    let feed = UploadFeed { pieces: sender, bytes: 0, ended };
    (feed, UploadReader { pieces, piece: Bytes::new(), digest })
}

impl UploadFeed {
    /// Passes bytes on; false once nobody reads them any more.
    pub async fn send(&mut self, bytes: Bytes) -> bool {
        self.bytes += bytes.len() as u64;
        self.pieces.send(Piece::Bytes(bytes)).await.is_ok()
    }

    /// Tells that the body is complete.
    pub async fn end(self) {
        self.ended.send_replace(Some(self.bytes));
        // Whoever has stopped reading does not need it.
        let _ = self.pieces.send(Piece::End).await;
    }

    /// Tells that the body makes no progress.
    pub async fn stall(self) {
        let _ = self.pieces.send(Piece::Stalled).await;
    }
}

impl UploadReader {
    /// The first bytes of the body, which are read all the same: so many, or all where it has fewer. Resolves
    /// once they are there, so that no thread waits for a client that sends nothing.
    ///
    /// # Errors
    /// The body breaks off or stalls before.
    pub async fn first(&mut self, bytes: usize) -> io::Result<Bytes> {
        while self.piece.len() < bytes && !self.is_whole() {
            let piece = self.pieces.recv().await;
            let more = self.note(piece)?;
            self.piece = [&self.piece[..], &more[..]].concat().into();
        }
        Ok(self.piece.slice(..bytes.min(self.piece.len())))
    }

    /// The bytes of the next piece; none at the end.
    fn note(&self, piece: Option<Piece>) -> io::Result<Bytes> {
        let mut progress = self.digest.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match piece {
            Some(Piece::Bytes(bytes)) => {
                progress.hasher.update(&bytes);
                progress.bytes += bytes.len() as u64;
                Ok(bytes)
            }
            Some(Piece::End) => {
                progress.is_whole = true;
                Ok(Bytes::new())
            }
            Some(Piece::Stalled) => Err(io::ErrorKind::TimedOut.into()),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the upload broke off")),
        }
    }

    fn is_whole(&self) -> bool {
        self.digest.progress.lock().unwrap_or_else(PoisonError::into_inner).is_whole
    }

    /// Digest of what is read, for after the reader has gone.
    #[must_use]
    pub fn digest(&self) -> UploadDigest {
        self.digest.clone()
    }
}

impl UploadDigest {
    /// Hash and size of the body, if all of it was read. Waits for its end: some decoders do not look for it.
    pub async fn whole(mut self) -> Option<NarDigest> {
        let sent = (*self.ended.wait_for(Option::is_some).await.ok()?)?;
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = NarHash::from_bytes(progress.hasher.clone().finalize().into());
        (progress.bytes == sent).then_some(NarDigest { hash, bytes: sent })
    }
}

impl Read for UploadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if self.is_whole() {
                return Ok(0);
            }
            let piece = self.pieces.blocking_recv();
            self.piece = self.note(piece)?;
        }
        let read = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_read_to_its_end_and_one_that_breaks_off_is_an_error() {
        for complete in [true, false] {
            let (mut feed, mut reader) = upload_channel();
            let digest = reader.digest();
            assert!(feed.send("o".into()).await);
            assert_eq!(reader.first(1).await.expect("there"), "o");
            let reading = tokio::task::spawn_blocking(move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).map(|_| all)
            });
            assert!(feed.send("ne ".into()).await && feed.send("two".into()).await);
            if complete {
                feed.end().await;
                assert_eq!(reading.await.expect("no panic").expect("all of it"), b"one two");
                let hash = NarHash::from_bytes(Sha256::digest(b"one two").into());
                assert_eq!(digest.whole().await, Some(NarDigest { hash, bytes: 7 }));
            } else {
                drop(feed);
                assert!(reading.await.expect("no panic").is_err());
                assert_eq!(digest.whole().await, None);
            }
        }
    }
}
