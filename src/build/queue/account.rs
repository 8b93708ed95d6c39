//! Cost of overtaking for each request, and how much more it can bear.
//!
//! The due time of a request is the end of all work that stood when its latest owner arrived. What makes it
//! later than that is time spent on derivations whose owner is younger than that one, and time lost to builds
//! that were stopped. Both are charged here, and no build goes on when it would bring a request over its
//! bound.

use std::time::Duration;

use super::RequestId;

/// Bound up to which short requests go before older ones: no request is delivered later than its due time,
/// plus `budget`, plus `share_percent` of the work that stood before it when its latest owner arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overtaking {
    /// Delay that each request can bear from the start.
    pub budget: Duration,
    /// Part of the time spent on what it must wait for anyway that is added to that, in percent.
    pub share_percent: u32,
}

/// The account of one request. Nothing is charged before it is planned: until then nobody knows what it waits
/// for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// The latest owner among the derivations that it lacks.
    pub(super) due_owner: Option<RequestId>,
    /// Time spent on younger requests, or lost.
    pub(super) charged: Duration,
    /// Time spent on what it must wait for anyway.
    pub(super) earned: Duration,
    /// Since when it is charged.
    pub(super) since: Duration,
}

impl Account {
    /// The request is planned. One that was planned before a restart is charged already.
    pub(super) fn open(&mut self, now: Duration) {
        if self.due_owner.is_none() {
            self.since = now;
        }
    }

    /// Something of what the request lacks belongs to `owner`. Once it was charged, owners only change when a
    /// request leaves early: what was another's work is the request's own then, and is not charged to it.
    pub(super) fn wait_for(&mut self, owner: RequestId) -> bool {
        let later = self.due_owner.is_none_or(|due_owner| owner > due_owner);
        if later {
            self.due_owner = Some(owner);
        }
        later
    }

    /// Delay that it can still bear.
    pub(super) fn slack(&self, overtaking: Overtaking) -> Duration {
        let limit = overtaking.budget + self.earned * overtaking.share_percent / 100;
        limit.saturating_sub(self.charged)
    }

    /// Something was built (or failed) for `owner`.
    pub(super) fn spend(&mut self, owner: RequestId, since: Duration, until: Duration) {
        let Some(due_owner) = self.due_owner else { return };
        let spent = until.saturating_sub(since.max(self.since));
        if owner > due_owner {
            self.charged += spent;
        } else {
            self.earned += spent;
        }
    }

    /// A build for `owner` was stopped. That costs everyone, also those who came while it ran and counted on
    /// its end.
    pub(super) fn lose(
        &mut self,
        overtaking: Overtaking,
        owner: RequestId,
        since: Duration,
        until: Duration,
    ) {
        let Some(due_owner) = self.due_owner else { return };
        self.charged += until.saturating_sub(since);
        if owner <= due_owner {
            // When it is built again, more of it is earned than stood when the request came.
            self.charged += self.since.saturating_sub(since) * overtaking.share_percent / 100;
        }
    }
}
