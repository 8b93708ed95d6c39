//! Owners of requests that no connection stands for. Such a request keeps its place until it ends, until its
//! owner cancels it, or until its owner has not asked for it for as long as `abandon-asked-after` says. It
//! counts as one waiting client, however many owners it has. A server that restarts finds the requests again,
//! and an owner who asks within `abandon-after` keeps its place.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::build::{Scheduler, Ticket};
use crate::caller::CallerKey;

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
    /// The times at which its owners have last asked for it.
    asked: BTreeMap<CallerKey, Instant>,
}

impl Owners {
    pub(super) fn new(builds: Scheduler, abandon_after: Duration) -> Self {
        Self { builds, abandon_after, held: Arc::default() }
    }

    /// Makes `owner` one of the owners of a request.
    pub(super) fn hold(&self, ticket: Ticket, owner: &CallerKey) {
        let id = ticket.id();
        let mut held = self.lock();
        let request = held.entry(id).or_insert_with(|| HeldRequest { ticket, asked: BTreeMap::new() });
        if request.asked.len() < OWNERS_MAX {
            request.asked.insert(*owner, Instant::now());
        }
    }

    /// Number of requests that an owner has.
    pub(super) fn count(&self, owner: &CallerKey) -> u64 {
        self.lock().values().filter(|request| request.asked.contains_key(owner)).count() as u64
    }

    pub(super) fn polled(&self, id: u64, owner: &CallerKey, adopts: bool) {
        let mut held = self.lock();
        match held.get_mut(&id) {
            Some(request) => {
                if let Some(asked) = request.asked.get_mut(owner) {
                    *asked = Instant::now();
                }
            }
            None if adopts && self.is_abandoned(id) => {
                drop(held);
                if let Some(ticket) = self.builds.rejoin(id) {
                    self.hold(ticket, owner);
                }
            }
            None => {}
        }
    }

    fn is_abandoned(&self, id: u64) -> bool {
        self.builds.request(id).is_some_and(|request| request.outlook.is_some() && request.clients == 0)
    }

    /// Gives up the place of one owner, or of all where that is the administrator.
    pub(super) fn leave(&self, id: u64, owner: &CallerKey) {
        let mut held = self.lock();
        let Some(request) = held.get_mut(&id) else { return };
        request.asked.remove(owner);
        let left =
            if *owner == CallerKey::Admin || request.asked.is_empty() { held.remove(&id) } else { None };
        // Outside of the lock: leaving locks the queue.
        drop(held);
        drop(left);
    }

    pub(super) async fn expire(&self) {
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        loop {
            ticks.tick().await;
            let mut held = self.lock();
            let gone: Vec<HeldRequest> = held
                .extract_if(|_, request| {
                    request.asked.retain(|_, asked| asked.elapsed() < self.abandon_after);
                    request.asked.is_empty() || request.ticket.has_ended()
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
