//! The body of an answer: most are small and there already, which takes no room beside the bytes; the others are written while
//! they are sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, SizeHint};

/// A body.
pub struct Body(Kind);

enum Kind {
    /// What is left of it: all or nothing.
    Ready(Bytes),
    /// It comes piece by piece.
    Written(UnsyncBoxBody<Bytes, io::Error>),
}

impl Body {
    /// A body that another one gives.
    pub(super) fn written(
        body: impl hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    ) -> Self {
        Self(Kind::Written(body.boxed_unsync()))
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
            Kind::Written(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Ready(bytes) => bytes.is_empty(),
            Kind::Written(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Ready(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Written(body) => body.size_hint(),
        }
    }
}
