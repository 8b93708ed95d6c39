//! A body that is written over time. It is cut unless its writer says that it is complete, so that no error, no panic
//! and no shutdown can make half an answer look whole; and it ends only after its last piece was read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::answer::Body;

/// Pieces that may be under way to a client that reads slowly.
const PIECES_UNSENT_MAX: usize = 2;

/// The writing end.
pub(super) struct Pipe {
    pieces: mpsc::Sender<Bytes>,
    complete: Arc<AtomicBool>,
}

/// The client has left.
#[derive(Debug)]
pub(super) struct ClientGone;

/// What gives a body piece by piece.
pub(super) trait Pieces: Send {
    /// The next piece, once there is one; `None` at the end.
    fn next_piece(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;
}

/// The reading end. Whether the body is complete is looked at only when every piece was read and the writer is gone.
struct Written {
    pieces: mpsc::Receiver<Bytes>,
    complete: Arc<AtomicBool>,
}

/// A body and the end to write it with.
pub(super) fn pipe() -> (Pipe, Body) {
    let (sender, pieces) = mpsc::channel(PIECES_UNSENT_MAX);
    let complete = Arc::new(AtomicBool::new(false));
    let body = Written { pieces, complete: Arc::clone(&complete) };
    (Pipe { pieces: sender, complete }, body.boxed_unsync())
}

impl Pipe {
    /// Sends a piece, once there is room for it.
    pub(super) async fn send(&mut self, piece: impl Into<Bytes>) -> Result<(), ClientGone> {
        self.pieces.send(piece.into()).await.map_err(|_| ClientGone)
    }

    /// Sends all pieces of `source`, and completes the body after the last. An error cuts it, as does dropping this;
    /// it ends at once when the client leaves, even while there is no piece to send.
    pub(super) async fn send_all(mut self, mut source: impl Pieces) {
        loop {
            let piece = tokio::select! {
                piece = source.next_piece() => piece,
                () = self.pieces.closed() => return,
            };
            match piece {
                Ok(Some(piece)) => {
                    if self.send(piece).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return self.complete(),
                Err(error) => return tracing::warn!(%error, "an answer was cut"),
            }
        }
    }

    /// The body is complete. Dropping the pipe without this cuts it.
    pub(super) fn complete(self) {
        self.complete.store(true, Ordering::Release);
    }
}

impl hyper::body::Body for Written {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(match ready!(self.pieces.poll_recv(context)) {
            Some(piece) => Some(Ok(Frame::data(piece))),
            None if self.complete.load(Ordering::Acquire) => None,
            None => Some(Err(io::Error::other("cut: the answer could not be completed"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies written on one thread and read on another, often enough to meet the moments in between.
    const BODIES: usize = 200_000;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_complete_body_has_its_last_piece_however_writer_and_reader_meet() {
        for body in 0..BODIES {
            let (mut pipe, reading) = pipe();
            let writer = tokio::spawn(async move {
                pipe.send("piece").await.expect("the reader is there");
                pipe.complete();
            });
            let read = reading.collect().await.expect("complete").to_bytes();
            assert_eq!(read, "piece", "body {body}");
            writer.await.expect("written");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_body_that_is_not_said_to_be_complete_is_cut_after_its_last_piece() {
        for _ in 0..1_000 {
            let (mut pipe, mut reading) = pipe();
            tokio::spawn(async move { pipe.send("piece").await });
            let first = reading.frame().await.expect("a piece").expect("no error yet");
            assert_eq!(first.into_data().expect("data"), "piece");
            assert!(reading.frame().await.expect("not the end").is_err());
        }
    }

    #[tokio::test]
    async fn the_writer_learns_that_the_client_has_left() {
        let (mut pipe, reading) = pipe();
        drop(reading);
        assert!(pipe.send("piece").await.is_err());
    }
}
