//! A streaming body whose writer is a future that runs inside it, on the connection's task, and is dropped
//! with it when the client leaves. It replaced a channel with a task for each answer, whose last chunk could
//! get lost and whose memory very many waiting clients multiplied. It is aborted unless its writer says that
//! it is complete, so that no error and no shutdown can make half an answer look whole. Bodies in memory need
//! none of this (`body.rs`).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Frame;

use super::body::Body;
use crate::escape::Lines;

/// The writing end, with room for one chunk.
pub(super) struct BodyWriter(Arc<Mutex<Option<Bytes>>>);

/// The body ends before it is complete.
#[derive(Debug)]
pub(super) struct Aborted;

/// A source of chunks.
pub(super) trait Chunks: Send {
    /// The next chunk; `None` at the end.
    fn next_chunk(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;
}

/// The reading end, as hyper polls it.
struct StreamBody {
    chunk: Arc<Mutex<Option<Bytes>>>,
    /// `None` once it has ended.
    writer: Option<Pin<Box<BodyTask>>>,
}

/// The future that writes the body.
type BodyTask = dyn Future<Output = Result<(), Aborted>> + Send;

/// A body that `write` writes. It is complete when that returns `Ok`.
pub(super) fn stream_body<W>(write: impl FnOnce(BodyWriter) -> W) -> Body
where
    W: Future<Output = Result<(), Aborted>> + Send + 'static,
{
    let chunk = Arc::new(Mutex::new(None));
    let writer = write(BodyWriter(Arc::clone(&chunk)));
    Body::streamed(StreamBody { chunk, writer: Some(Box::pin(writer)) })
}

impl BodyWriter {
    /// Sends a chunk, and returns once the client is ready for the next one.
    pub(super) async fn send(&mut self, chunk: impl Into<Bytes>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(chunk.into());
        // No waker is needed: this runs whenever the body is polled.
        poll_fn(|_| match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(_) => Poll::Pending,
            None => Poll::Ready(()),
        })
        .await;
    }

    /// Sends a line of text for a person.
    pub(super) async fn send_line(&mut self, text: String) {
        self.send(format!("{}\n", Lines(text))).await;
    }

    /// Sends all chunks of `source`; an error aborts the body.
    pub(super) async fn send_all(mut self, mut source: impl Chunks) -> Result<(), Aborted> {
        loop {
            match source.next_chunk().await {
                Ok(Some(chunk)) => self.send(chunk).await,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "answer aborted: its contents cannot be read");
                    return Err(Aborted);
                }
            }
        }
    }
}

impl hyper::body::Body for StreamBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some(writer) = &mut self.writer else { return Poll::Ready(None) };
        let ended = writer.as_mut().poll(context);
        // A writer that has sent a chunk waits until it is taken, so it has not ended then.
        if let Some(chunk) = self.chunk.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        ended.map(|ended| {
            self.writer = None;
            ended.err().map(|Aborted| Err(io::Error::other("aborted: the answer could not be completed")))
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_complete_body_has_all_its_pieces_in_order() {
        let reading = stream_body(|mut writer| async move {
            for piece in ["one ", "two ", "three"] {
                writer.send(piece).await;
                tokio::task::yield_now().await;
            }
            Ok(())
        });
        assert_eq!(reading.collect().await.expect("complete").to_bytes(), "one two three");
    }

    #[tokio::test]
    async fn a_body_that_is_not_said_to_be_complete_is_cut_after_its_last_piece() {
        let mut reading = stream_body(|mut writer| async move {
            writer.send("piece").await;
            Err(Aborted)
        });
        let first = reading.frame().await.expect("a piece").expect("no error yet");
        assert_eq!(first.into_data().expect("data"), "piece");
        assert!(reading.frame().await.expect("not the end").is_err());
    }

    #[tokio::test]
    async fn the_writer_goes_when_the_client_leaves() {
        let held = Arc::new(());
        let by_writer = Arc::clone(&held);
        let mut reading = stream_body(|mut writer| async move {
            writer.send("piece").await;
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
