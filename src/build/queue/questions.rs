//! Questions to the queue. Nothing here changes it.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use super::{Queue, Request, RequestId};

impl<D: Clone + Ord> Queue<D> {
    /// The request for `wanted`.
    #[must_use]
    pub fn request_for(&self, wanted: &D) -> Option<RequestId> {
        self.by_wanted.get(wanted).copied()
    }

    /// Derivation that a request wants.
    #[must_use]
    pub fn wanted(&self, id: RequestId) -> Option<&D> {
        self.requests.get(&id).map(|request| &request.wanted)
    }

    /// Number of clients that wait for a request.
    #[must_use]
    pub fn clients(&self, id: RequestId) -> usize {
        self.requests.get(&id).map_or(0, |request| request.clients)
    }

    /// Requests that nobody has waited for longer than `grace` and for which nothing was built yet.
    #[must_use]
    pub fn abandoned(&self, now: Duration, grace: Duration) -> Vec<RequestId> {
        let late = |since: Duration| now.saturating_sub(since) > grace;
        let abandoned = |request: &Request<D>| !request.started && request.abandoned_at.is_some_and(late);
        self.requests.iter().filter(|(_, request)| abandoned(request)).map(|(id, _)| *id).collect()
    }

    /// True while someone waits for a request, and for so long after the last one has left.
    #[must_use]
    pub fn is_within_grace(&self, id: RequestId, now: Duration, grace: Duration) -> bool {
        let within = |since: Duration| now.saturating_sub(since) <= grace;
        self.requests.get(&id).is_some_and(|request| request.abandoned_at.is_none_or(within))
    }

    /// Number of a request's derivations that are built, and of those that it lacked at first; `None` until
    /// it is planned.
    #[must_use]
    pub fn progress(&self, id: RequestId) -> Option<(usize, usize)> {
        let request = self.requests.get(&id)?;
        Some((request.steps - request.lacks.as_ref()?.len(), request.steps))
    }

    /// Derivations that a request lacks; `None` until it is planned.
    #[must_use]
    pub fn lacks(&self, id: RequestId) -> Option<&BTreeSet<D>> {
        self.requests.get(&id)?.lacks.as_ref()
    }

    /// The latest owner among what a request lacks: by the time that one is served, this one is, too.
    #[must_use]
    pub fn due_owner(&self, id: RequestId) -> Option<RequestId> {
        self.lacks(id)?.iter().filter_map(|drv| self.needed_by(drv).next()).max()
    }

    /// Derivations that are built for a request and not for an older one.
    pub fn owned_by(&self, id: RequestId) -> impl Iterator<Item = &D> {
        let lacks = self.lacks(id).into_iter().flatten();
        lacks.filter(move |drv| self.needed_by(drv).next() == Some(id))
    }

    /// The requests that need a derivation which is not built yet; the first one owns it.
    pub fn needed_by(&self, drv: &D) -> impl Iterator<Item = RequestId> {
        self.steps.get(drv).into_iter().flat_map(|step| step.needed_by.iter().copied())
    }

    /// Every derivation that is not built yet.
    pub fn lacking(&self) -> impl ExactSizeIterator<Item = &D> {
        self.steps.keys()
    }

    /// The requests, oldest first.
    pub fn requests(&self) -> impl Iterator<Item = RequestId> {
        self.requests.keys().copied()
    }

    /// Those that were made after this one.
    pub fn younger_than(&self, id: RequestId) -> impl Iterator<Item = RequestId> {
        let after = (Bound::Excluded(id), Bound::Unbounded);
        self.requests.range(after).map(|(id, _)| *id)
    }

    /// Number of requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// True when there is no request.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}
