//! Shares of what all clients have together: so much at once, of it so much for one of them, and so many of
//! one that hold or wait. No client keeps all others from theirs.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Bounds of shares, in units that their user chooses.
#[derive(Clone, Copy, Debug)]
pub struct ShareBounds {
    /// Units of all clients.
    pub all: u32,
    /// Units of one client.
    pub of_one: u32,
    /// Shares of one client that are held or waited for.
    pub open_of_one: usize,
    /// Longest wait for a share.
    pub within: Duration,
}

/// The reason why there is no share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoShare {
    /// The client holds and waits for as many as one may.
    Open,
    /// Its units, or those of all clients, were not free in time.
    Taken,
}

/// Shares of clients that `K` tells apart; clones share them.
#[derive(Clone)]
pub struct Shares<K: Eq + Hash> {
    bounds: ShareBounds,
    all: Arc<Semaphore>,
    clients: Arc<Mutex<HashMap<K, OpenShares>>>,
}

struct OpenShares {
    open: usize,
    units: Arc<Semaphore>,
}

/// A share, until it is dropped.
pub struct ClientShare<K: Eq + Hash> {
    _permits: Option<[OwnedSemaphorePermit; 2]>,
    clients: Arc<Mutex<HashMap<K, OpenShares>>>,
    client: K,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// Shares within these bounds.
    #[must_use]
    pub fn new(bounds: ShareBounds) -> Self {
        Self { bounds, all: Arc::new(Semaphore::new(bounds.all as usize)), clients: Arc::default() }
    }

    /// Waits for a share of so many units, and of no more than one client may have.
    ///
    /// # Errors
    /// The client has too many open, or the wait is too long.
    pub async fn take(&self, client: K, units: u32) -> Result<ClientShare<K>, NoShare> {
        let (mut share, own) = self.open(client)?;
        let (all, units) = (Arc::clone(&self.all), units.min(self.bounds.of_one));
        let permits = async {
            Some([own.acquire_many_owned(units).await.ok()?, all.acquire_many_owned(units).await.ok()?])
        };
        share._permits = timeout(self.bounds.within, permits).await.ok().flatten();
        if share._permits.is_some() { Ok(share) } else { Err(NoShare::Taken) }
    }

    /// A share of one unit, if there is one at once.
    #[must_use]
    pub fn try_take(&self, client: K) -> Option<ClientShare<K>> {
        let (mut share, own) = self.open(client).ok()?;
        let permits = [own.try_acquire_owned().ok()?, Arc::clone(&self.all).try_acquire_owned().ok()?];
        share._permits = Some(permits);
        Some(share)
    }

    fn open(&self, client: K) -> Result<(ClientShare<K>, Arc<Semaphore>), NoShare> {
        let mut clients = lock(&self.clients);
        let shares = clients.entry(client.clone()).or_insert_with(|| OpenShares {
            open: 0,
            units: Arc::new(Semaphore::new(self.bounds.of_one as usize)),
        });
        if shares.open >= self.bounds.open_of_one {
            return Err(NoShare::Open);
        }
        shares.open += 1;
        let own = Arc::clone(&shares.units);
        Ok((ClientShare { _permits: None, clients: Arc::clone(&self.clients), client }, own))
    }
}

impl<K: Eq + Hash> Drop for ClientShare<K> {
    fn drop(&mut self) {
        let mut clients = lock(&self.clients);
        if let Some(shares) = clients.get_mut(&self.client) {
            shares.open -= 1;
            if shares.open == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

fn lock<K>(clients: &Mutex<HashMap<K, OpenShares>>) -> MutexGuard<'_, HashMap<K, OpenShares>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: ShareBounds =
        ShareBounds { all: 8, of_one: 4, open_of_one: 16, within: Duration::from_millis(500) };

    #[tokio::test]
    async fn one_client_leaves_shares_to_others_and_has_a_bounded_number_open() {
        let shares = Shares::new(BOUNDS);
        let (greedy, other) = ("greedy", "other");
        let mut held = Vec::new();
        for _ in 0..BOUNDS.of_one {
            held.push(shares.take(greedy, 1).await.expect("a share"));
        }
        assert_eq!(shares.take(greedy, 1).await.err(), Some(NoShare::Taken));
        assert!(shares.try_take(greedy).is_none());
        let waiting: Vec<_> = (held.len()..BOUNDS.open_of_one)
            .map(|_| {
                let shares = shares.clone();
                tokio::spawn(async move { shares.take(greedy, 1).await.map(drop) })
            })
            .collect();
        while lock(&shares.clients)[greedy].open < BOUNDS.open_of_one {
            tokio::task::yield_now().await;
        }
        assert_eq!(shares.take(greedy, 1).await.err(), Some(NoShare::Open));
        drop(shares.try_take(other).expect("a share"));
        drop(held);
        for waiting in waiting {
            waiting.await.expect("no panic").expect("a share");
        }
        assert!(lock(&shares.clients).is_empty());
    }

    #[tokio::test]
    async fn a_share_has_the_units_that_it_asks_for_and_no_more_than_one_client_may_have() {
        let shares = Shares::new(BOUNDS);
        let whole = shares.take("greedy", 100).await.expect("a share");
        assert!(shares.try_take("greedy").is_none());
        let others: Vec<_> = (0..4).map(|other| shares.try_take(["a", "b", "c", "d"][other])).collect();
        assert!(others.iter().all(Option::is_some));
        assert!(shares.try_take("e").is_none(), "all are taken");
        drop(whole);
        assert!(shares.try_take("greedy").is_some());
    }
}
