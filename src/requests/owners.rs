//! Owners of requests that no connection stands for. Such a request keeps its place until it ends, until its
//! owner cancels it, or until its owner has not asked for it for as long as `abandon-asked-after` says (a
//! retry: to its end). It counts as one waiting client, however many owners it has. A server that restarts
//! finds the requests again, and an owner who asks within `abandon-after` keeps its place.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use narinfo::StorePath;

use crate::build::{Scheduler, Ticket};
use crate::caller::{Caller, CallerKey, QueuePlace};

/// Interval at which requests that have ended or that nobody asks for are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Owners of one request at most; a further one shares its place without being counted.
const OWNERS_MAX: usize = 1_000;

/// Requests and their owners; clones share them.
#[derive(Clone)]
pub(super) struct Owners {
    builds: Scheduler,
    abandon_after: Duration,
    held: Arc<Mutex<HashMap<u64, HeldRequest>>>,
}

/// A request that somebody owns.
struct HeldRequest {
    ticket: Ticket,
    owners: BTreeMap<CallerKey, Ownership>,
}

/// The part of an owner in a request.
struct Ownership {
    /// The time at which it has last asked for it.
    asked_at: Instant,
    stay: Stay,
    /// The place that it takes up of its token.
    _place: Option<QueuePlace>,
}

/// The time for which an owner keeps a request, and the right to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// Until it has not asked for it for too long.
    WhileAsked,
    /// Until the request ends.
    ToTheEnd,
    /// As [`Stay::WhileAsked`], of a request that nobody stood for and that another client may return to.
    Inherited,
}

/// Standing of a caller that gives up a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// An owner, who has asked for the build.
    Owner,
    /// An owner by inheritance alone.
    Heir,
    /// No owner.
    Stranger,
}

impl Owners {
    pub(super) fn new(builds: Scheduler, abandon_after: Duration) -> Self {
        Self { builds, abandon_after, held: Arc::default() }
    }

    /// Makes `owner` one of the owners of a request, with the place that it takes up of its token.
    pub(super) fn hold(&self, ticket: Ticket, owner: &CallerKey, place: Option<QueuePlace>, stay: Stay) {
        let id = ticket.id();
        let mut held = self.lock();
        let request = held.entry(id).or_insert_with(|| HeldRequest { ticket, owners: BTreeMap::new() });
        let asked_at = Instant::now();
        match request.owners.get_mut(owner) {
            Some(ownership) => {
                ownership.asked_at = asked_at;
                if ownership.stay != Stay::ToTheEnd && stay != Stay::Inherited {
                    ownership.stay = stay;
                }
            }
            None => {
                if request.owners.len() < OWNERS_MAX {
                    request.owners.insert(*owner, Ownership { asked_at, stay, _place: place });
                }
            }
        }
    }

    /// True where a request is one of this owner's.
    pub(super) fn has(&self, id: u64, owner: &CallerKey) -> bool {
        self.lock().get(&id).is_some_and(|request| request.owners.contains_key(owner))
    }

    pub(super) fn polled(&self, id: u64, owner: &CallerKey, heir: Option<&Caller>) {
        let mut held = self.lock();
        match held.get_mut(&id) {
            Some(request) => {
                if let Some(ownership) = request.owners.get_mut(owner) {
                    ownership.asked_at = Instant::now();
                }
            }
            None => {
                drop(held);
                // One whose token has no place left does not inherit it.
                if let Some((heir, drv)) = heir.zip(self.abandoned(id))
                    && let Ok(place) = heir.place(drv.name())
                    && let Some(ticket) = self.builds.rejoin(id)
                {
                    self.hold(ticket, owner, place, Stay::Inherited);
                }
            }
        }
    }

    /// The derivation of a request that nobody waits for.
    fn abandoned(&self, id: u64) -> Option<StorePath> {
        let request = self.builds.request(id)?;
        let is_abandoned = request.outlook.is_some() && request.clients == 0;
        StorePath::parse(&request.derivation).ok().filter(|_| is_abandoned)
    }

    /// Gives up the place of one owner.
    pub(super) fn leave(&self, id: u64, owner: &CallerKey) -> Leaving {
        let mut held = self.lock();
        let Some(request) = held.get_mut(&id) else { return Leaving::Stranger };
        let Some(gone) = request.owners.remove(owner) else { return Leaving::Stranger };
        let left = if request.owners.is_empty() { held.remove(&id) } else { None };
        // Outside of the lock: leaving locks the queue.
        drop(held);
        drop(left);
        if gone.stay == Stay::Inherited { Leaving::Heir } else { Leaving::Owner }
    }

    /// Gives up the places of all owners.
    pub(super) fn leave_all(&self, id: u64) {
        let gone = self.lock().remove(&id);
        // Outside of the lock, as above.
        drop(gone);
    }

    pub(super) async fn expire(&self) {
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        loop {
            ticks.tick().await;
            let mut held = self.lock();
            let gone: Vec<HeldRequest> = held
                .extract_if(|_, request| {
                    request.owners.retain(|_, ownership| {
                        ownership.stay == Stay::ToTheEnd || ownership.asked_at.elapsed() < self.abandon_after
                    });
                    request.owners.is_empty() || request.ticket.has_ended()
                })
                .map(|(_, request)| request)
                .collect();
            drop(held);
            drop(gone);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, HeldRequest>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
