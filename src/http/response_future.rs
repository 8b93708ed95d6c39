//! The future of an answer, as a connection polls it. Nearly all answers are there at once, from memory: those take no box and no
//! look at a clock, which is why this is no `async` block (hyper keeps room for the future as long as the connection lives, and
//! an `async` block's is as large as the largest handler's).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::answer::{self, Answer};
use super::traffic::{Line, RouteLabel, Tally, Traffic};

/// An answer that is there or will be.
pub(super) struct ResponseFuture {
    /// The body is not wanted.
    head: bool,
    /// Counter of the answer, where it is not counted yet.
    tally: Option<Box<Tally>>,
    stage: Stage,
}

enum Stage {
    /// Taken only once.
    Ready(Option<Answer>),
    Pending(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl ResponseFuture {
    pub(super) fn ready(answer: Answer) -> Self {
        Self { head: false, tally: None, stage: Stage::Ready(Some(answer)) }
    }

    pub(super) fn pending(answer: impl Future<Output = Answer> + Send + 'static) -> Self {
        Self { head: false, tally: None, stage: Stage::Pending(Box::pin(answer)) }
    }

    /// Counts the answer: now, where all of it is there, else when it has ended.
    pub(super) fn count(
        mut self,
        head: bool,
        traffic: &Arc<Traffic>,
        thread: usize,
        label: RouteLabel,
        line: Option<Box<Line>>,
    ) -> Self {
        self.head = head;
        let at_once = match &self.stage {
            Stage::Ready(Some(answer)) if line.is_none() => {
                answer.body().ready_bytes().map(|bytes| (answer, bytes))
            }
            _ => None,
        };
        match at_once {
            Some((answer, bytes)) => {
                let bytes = if head { 0 } else { bytes };
                traffic.count(thread, label, answer::outcome(answer), bytes);
            }
            None => self.tally = Some(Tally::new(traffic, thread, label, line)),
        }
        self
    }
}

impl Future for ResponseFuture {
    type Output = Result<Answer, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = match &mut self.stage {
            Stage::Ready(answer) => answer.take().expect("a future that has ended is not polled again"),
            Stage::Pending(answer) => ready!(answer.as_mut().poll(context)),
        };
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
