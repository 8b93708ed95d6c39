//! The future of an answer, as a connection polls it. Nearly all answers are there at once, from memory:
//! those take no box and no look at a clock, which is why this is no `async` block (hyper keeps room for the
//! future as long as the connection lives, and an `async` block's is as large as the largest handler's).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::answer::{self, Answer};
use super::error::{Audience, Error};
use super::traffic::{AccessLine, RouteLabel, Tally, Traffic};

/// Bytes of a body that the buffer of a socket takes at once, beside the head.
const INSTANT_BYTES_MAX: u64 = 16 * 1024;

/// An answer that is there or will be.
pub(super) struct ResponseFuture {
    /// The body is not wanted.
    head: bool,
    audience: Audience,
    /// Shared caches may not keep it.
    private: bool,
    /// Counter of the answer, where it is not counted yet.
    tally: Option<Box<Tally>>,
    stage: ResponseStage,
}

enum ResponseStage {
    /// Taken only once.
    Ready(Option<Answer>),
    /// Becomes an answer once its readers are known.
    Failed(Option<Error>),
    Pending(Pin<Box<dyn Future<Output = Result<Answer, Error>> + Send>>),
}

impl ResponseFuture {
    pub(super) fn ready(answer: Answer) -> Self {
        Self::at(ResponseStage::Ready(Some(answer)))
    }

    pub(super) fn failed(error: Error) -> Self {
        Self::at(ResponseStage::Failed(Some(error)))
    }

    pub(super) fn pending(answer: impl Future<Output = Result<Answer, Error>> + Send + 'static) -> Self {
        Self::at(ResponseStage::Pending(Box::pin(answer)))
    }

    fn at(stage: ResponseStage) -> Self {
        Self { head: false, audience: Audience::Person, private: false, tally: None, stage }
    }

    /// True where all of the answer is there, and a socket takes it at once.
    pub(super) fn is_instant(&self) -> bool {
        let ResponseStage::Ready(Some(answer)) = &self.stage else { return false };
        answer.body().ready_bytes().is_some_and(|bytes| bytes <= INSTANT_BYTES_MAX)
    }

    /// The same for readers of this kind, who may not want its body.
    pub(super) fn read_by(mut self, audience: Audience, head: bool) -> Self {
        (self.audience, self.head) = (audience, head);
        if let ResponseStage::Failed(error) = &mut self.stage {
            let answer = error.take().map(|error| error.answer(audience));
            self.stage = ResponseStage::Ready(answer);
        }
        self
    }

    /// The same, kept by no cache that several share where that is so.
    pub(super) fn private(mut self, private: bool) -> Self {
        self.private = private;
        self
    }

    /// The same, counted: now, where all of it is there, else when it has ended.
    pub(super) fn counted(
        mut self,
        traffic: &Arc<Traffic>,
        thread: usize,
        label: RouteLabel,
        line: Option<Box<AccessLine>>,
    ) -> Self {
        let at_once = match &self.stage {
            ResponseStage::Ready(Some(answer)) if line.as_ref().is_none_or(|line| !line.is_logged()) => {
                answer.body().ready_bytes().map(|bytes| (answer, bytes))
            }
            _ => None,
        };
        match at_once {
            Some((answer, bytes)) => {
                let bytes = if self.head { 0 } else { bytes };
                traffic.count(thread, label, answer::outcome(answer), bytes);
            }
            None => self.tally = Some(Tally::new(traffic, thread, label, line)),
        }
        self
    }
}

impl From<Result<Answer, Error>> for ResponseFuture {
    fn from(result: Result<Answer, Error>) -> Self {
        result.map_or_else(Self::failed, Self::ready)
    }
}

impl Future for ResponseFuture {
    type Output = Result<Answer, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { audience, tally, stage, .. } = &mut *self;
        let audience = *audience;
        let result = match stage {
            ResponseStage::Ready(answer) => answer.take().map(Ok),
            ResponseStage::Failed(error) => error.take().map(Err),
            ResponseStage::Pending(answer) => {
                let _within = tally.as_ref().map(|tally| tally.enter());
                Some(ready!(answer.as_mut().poll(context)))
            }
        };
        let result = result.expect("a future that has ended is not polled again");
        let mut answer = result.unwrap_or_else(|error| error.answer(audience));
        if self.private {
            answer::make_private(&mut answer);
        }
        if let Some(mut tally) = self.tally.take() {
            tally.begun(answer.status().as_u16(), answer::outcome(&answer), answer::length(&answer));
            if self.head {
                tally.ended();
            } else {
                answer.body_mut().count(tally);
            }
        }
        Poll::Ready(Ok(if self.head { answer::without_body(answer) } else { answer }))
    }
}
