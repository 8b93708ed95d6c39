//! Body of an answer. Most are in memory and take no room beside their bytes; the others are streamed and
//! counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, SizeHint};

use super::traffic::Tally;

/// Body of an answer.
pub struct Body(BodyKind);

enum BodyKind {
    /// In memory; all or nothing of it is left.
    Ready(Bytes),
    /// Streamed, and counted on the way.
    Streamed(UnsyncBoxBody<Bytes, io::Error>, Option<Box<Tally>>),
}

impl Body {
    /// A streamed body.
    pub(super) fn streamed(
        body: impl hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    ) -> Self {
        Self(BodyKind::Streamed(body.boxed_unsync(), None))
    }

    /// Length of a body that is in memory.
    pub(super) fn ready_bytes(&self) -> Option<u64> {
        match &self.0 {
            BodyKind::Ready(bytes) => Some(bytes.len() as u64),
            BodyKind::Streamed(..) => None,
        }
    }

    /// Has `tally` count the bytes that are sent, and notice the end.
    pub(super) fn count(&mut self, mut tally: Box<Tally>) {
        match &mut self.0 {
            BodyKind::Ready(bytes) => {
                tally.gave(bytes.len());
                tally.ended();
            }
            BodyKind::Streamed(_, counted) => *counted = Some(tally),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::from(Bytes::new())
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(BodyKind::Ready(bytes))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.0 {
            BodyKind::Ready(bytes) if bytes.is_empty() => Poll::Ready(None),
            BodyKind::Ready(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            BodyKind::Streamed(body, tally) => {
                let frame = {
                    let _within = tally.as_ref().map(|tally| tally.enter());
                    ready!(Pin::new(body).poll_frame(context))
                };
                match (&frame, tally.as_mut()) {
                    (Some(Ok(frame)), Some(tally)) => {
                        tally.gave(frame.data_ref().map_or(0, Bytes::len));
                    }
                    (None, Some(_)) => tally.take().into_iter().for_each(|tally| tally.ended()),
                    _ => {}
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodyKind::Ready(bytes) => bytes.is_empty(),
            BodyKind::Streamed(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodyKind::Ready(bytes) => SizeHint::with_exact(bytes.len() as u64),
            BodyKind::Streamed(body, _) => body.size_hint(),
        }
    }
}
