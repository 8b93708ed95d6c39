//! The body of an answer: most are small and there already, which takes no room beside the bytes; the others are written while
//! they are sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, SizeHint};

use super::traffic::Tally;

/// A body.
pub struct Body(Kind);

enum Kind {
    /// What is left of it: all or nothing.
    Ready(Bytes),
    /// It comes piece by piece, and is counted.
    Written(UnsyncBoxBody<Bytes, io::Error>, Option<Box<Tally>>),
}

impl Body {
    /// A body that another one gives.
    pub(super) fn written(
        body: impl hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    ) -> Self {
        Self(Kind::Written(body.boxed_unsync(), None))
    }

    /// Bytes of a body that is there already.
    pub(super) fn ready_bytes(&self) -> Option<u64> {
        match &self.0 {
            Kind::Ready(bytes) => Some(bytes.len() as u64),
            Kind::Written(..) => None,
        }
    }

    /// Has `tally` count what is given of this body, and notice its end.
    pub(super) fn count(&mut self, mut tally: Box<Tally>) {
        match &mut self.0 {
            Kind::Ready(bytes) => {
                tally.gave(bytes.len());
                tally.ended();
            }
            Kind::Written(_, counted) => *counted = Some(tally),
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
        Self(Kind::Ready(bytes))
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
            Kind::Ready(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Ready(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Written(body, tally) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
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
            Kind::Ready(bytes) => bytes.is_empty(),
            Kind::Written(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Ready(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Written(body, _) => body.size_hint(),
        }
    }
}
