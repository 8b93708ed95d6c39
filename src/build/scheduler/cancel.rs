//! Cancellation of requests. One that somebody waits for goes on: whoever cancels gives up a place of their
//! own first.

use narinfo::StorePath;

use super::{EndSignal, Scheduler};
use crate::build::queue::RequestId;
use crate::build::view::RequestState;

/// Outcome of a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// The request is gone, and what ran for it alone is being stopped.
    Cancelled,
    /// So many others wait for it, and it goes on.
    Awaited(usize),
    /// Its heir has left, and it ends after the grace of abandoned requests unless somebody asks for it.
    Left,
    /// All is built for it, and it is about to end.
    Delivering,
}

impl Scheduler {
    /// Ends a request that nobody waits for, and stops what is being built for it alone. `None` where no such
    /// request waits.
    #[must_use]
    pub fn cancel(&self, id: u64) -> Option<Cancellation> {
        let (id, now) = (RequestId(id), self.0.now());
        let mut state = self.0.lock();
        state.waiters.get(id)?;
        if state.queue.wanted(id).is_none() {
            return Some(Cancellation::Delivering);
        }
        let clients = state.queue.clients(id);
        if clients > 0 {
            return Some(Cancellation::Awaited(clients));
        }
        if let Some(sharing) = &self.0.sharing {
            // Clients of other servers may wait for it.
            sharing.cancel(id.0);
            return Some(Cancellation::Left);
        }
        state.queue.cancel(id, now);
        let unneeded = state.held.release(id);
        state.unneeded.extend(unneeded);
        state.forget(id, RequestState::Cancelled, &self.0.metrics);
        state.forget_kinds();
        drop(state);
        self.0.changed.notify_one();
        self.0.roots_due.notify_one();
        // What runs looks again if it has to stop.
        self.0.planned.send_modify(|planned| *planned += 1);
        self.wake();
        Some(Cancellation::Cancelled)
    }

    /// Signal of the end of a request that waits.
    #[must_use]
    pub fn end_signal(&self, id: u64) -> Option<EndSignal> {
        self.0.lock().waiters.get(RequestId(id)).map(|request| EndSignal(request.ending.subscribe()))
    }

    /// Outputs that only cancelled requests held, to be released.
    pub(in crate::build) fn take_unneeded(&self) -> Vec<StorePath> {
        std::mem::take(&mut self.0.lock().unneeded)
    }
}
