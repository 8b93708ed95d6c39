//! A body that is written while it is read: its writer is a future that runs within it, on the task of the connection,
//! and goes with it when the client leaves. It is cut unless its writer says that it is complete, so that no error and no
//! shutdown can make half an answer look whole.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Frame;

use super::body::Body;
use crate::escape::Lines;

/// The writing end: room for one piece.
pub(super) struct Pipe(Arc<Mutex<Option<Bytes>>>);

/// The writer has no more to give, and the body is not complete.
#[derive(Debug)]
pub(super) struct Cut;

/// What gives a body piece by piece.
pub(super) trait Pieces: Send {
    /// The next piece, once there is one; `None` at the end.
    fn next_piece(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;
}

/// The reading end.
struct Written {
    piece: Arc<Mutex<Option<Bytes>>>,
    /// Gone once it has ended.
    writer: Option<Pin<Box<Writer>>>,
}

/// It runs to the end, or to the cut, of the body.
type Writer = dyn Future<Output = Result<(), Cut>> + Send;

/// A body that `write` writes. It is complete when that returns `Ok`.
pub(super) fn written<W>(write: impl FnOnce(Pipe) -> W) -> Body
where
    W: Future<Output = Result<(), Cut>> + Send + 'static,
{
    let piece = Arc::new(Mutex::new(None));
    let writer = write(Pipe(Arc::clone(&piece)));
    Body::written(Written { piece, writer: Some(Box::pin(writer)) })
}

impl Pipe {
    /// Gives a piece, and returns once the client is ready for the next one.
    pub(super) async fn send(&mut self, piece: impl Into<Bytes>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(piece.into());
        // Nothing need wake this: it runs whenever the body is read.
        poll_fn(|_| match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(_) => Poll::Pending,
            None => Poll::Ready(()),
        })
        .await;
    }

    /// Gives text for a person, and ends the line.
    pub(super) async fn send_line(&mut self, text: String) {
        self.send(format!("{}\n", Lines(text))).await;
    }

    /// Gives all pieces of `source`; an error cuts the body.
    pub(super) async fn send_all(mut self, mut source: impl Pieces) -> Result<(), Cut> {
        loop {
            match source.next_piece().await {
                Ok(Some(piece)) => self.send(piece).await,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "an answer was cut");
                    return Err(Cut);
                }
            }
        }
    }
}

impl hyper::body::Body for Written {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some(writer) = &mut self.writer else { return Poll::Ready(None) };
        let ended = writer.as_mut().poll(context);
        // A writer that has given a piece waits until it is taken, so it has not ended then.
        if let Some(piece) = self.piece.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        ended.map(|ended| {
            self.writer = None;
            ended.err().map(|Cut| Err(io::Error::other("cut: the answer could not be completed")))
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_complete_body_has_all_its_pieces_in_order() {
        let reading = written(|mut pipe| async move {
            for piece in ["one ", "two ", "three"] {
                pipe.send(piece).await;
                tokio::task::yield_now().await;
            }
            Ok(())
        });
        assert_eq!(reading.collect().await.expect("complete").to_bytes(), "one two three");
    }

    #[tokio::test]
    async fn a_body_that_is_not_said_to_be_complete_is_cut_after_its_last_piece() {
        let mut reading = written(|mut pipe| async move {
            pipe.send("piece").await;
            Err(Cut)
        });
        let first = reading.frame().await.expect("a piece").expect("no error yet");
        assert_eq!(first.into_data().expect("data"), "piece");
        assert!(reading.frame().await.expect("not the end").is_err());
    }

    #[tokio::test]
    async fn the_writer_goes_when_the_client_leaves() {
        let held = Arc::new(());
        let by_writer = Arc::clone(&held);
        let mut reading = written(|mut pipe| async move {
            pipe.send("piece").await;
            std::future::pending::<()>().await;
            drop(by_writer);
            Ok(())
        });
        reading.frame().await.expect("a piece").expect("no error");
        assert_eq!(Arc::strong_count(&held), 2);
        drop(reading);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
