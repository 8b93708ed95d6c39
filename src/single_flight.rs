//! Single-flight: one run for all who ask for the same key at the same time. The first to ask leads, all
//! others follow what it publishes. A leader that panics or is cancelled takes the key off the map on its way
//! out, and the next one leads, so that no key is under way for ever. Its lock guards the map alone: nothing
//! waits or opens files under it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Flights by key; each receives the value that its leader publishes.
type Flights<K, T> = Mutex<HashMap<K, watch::Receiver<Option<T>>>>;

/// The flights under way; clones share them.
pub struct SingleFlight<K, T>(Arc<Flights<K, T>>);

/// Part of one who asks.
pub enum Joined<K: Eq + Hash, T> {
    /// Nobody is under way: this one is to publish a value.
    Leads(Flight<K, T>),
    /// Another one leads, and has published this.
    Follows(T),
}

/// The leader's guard. The flight ends when it is dropped.
pub struct Flight<K: Eq + Hash, T> {
    key: K,
    flights: Arc<Flights<K, T>>,
    value: watch::Sender<Option<T>>,
}

impl<K, T> Clone for SingleFlight<K, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, T> Default for SingleFlight<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash, T: Clone> SingleFlight<K, T> {
    /// Joins the flight of a key, or leads it. A follower waits until its leader publishes or gives up.
    pub async fn join(&self, key: &K) -> Joined<K, T> {
        loop {
            let mut following = match self.follow_or_lead(key) {
                Ok(following) => following,
                Err(flight) => return Joined::Leads(flight),
            };
            // An error is a leader that gave up, and has left the map by now.
            if let Ok(value) = following.wait_for(Option::is_some).await
                && let Some(value) = value.as_ref()
            {
                return Joined::Follows(value.clone());
            }
        }
    }

    /// Waits until nobody is under way for a key that was when this was called.
    pub async fn ended(&self, key: &K) {
        let flight = lock(&self.0).get(key).cloned();
        if let Some(mut flight) = flight {
            // An error is its end.
            while flight.changed().await.is_ok() {}
        }
    }

    fn follow_or_lead(&self, key: &K) -> Result<watch::Receiver<Option<T>>, Flight<K, T>> {
        let mut flights = lock(&self.0);
        if let Some(following) = flights.get(key) {
            return Ok(following.clone());
        }
        let (value, following) = watch::channel(None);
        flights.insert(key.clone(), following);
        Err(Flight { key: key.clone(), flights: Arc::clone(&self.0), value })
    }
}

impl<K: Eq + Hash, T> Flight<K, T> {
    /// Gives `value` to all who follow, and to those who join before the flight ends.
    pub fn publish(&self, value: T) {
        self.value.send_replace(Some(value));
    }
}

impl<K: Eq + Hash, T> Drop for Flight<K, T> {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.key);
    }
}

fn lock<K, T>(flights: &Flights<K, T>) -> MutexGuard<'_, HashMap<K, watch::Receiver<Option<T>>>> {
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = SingleFlight<&'static str, u32>;

    fn leads(joined: Joined<&'static str, u32>) -> Flight<&'static str, u32> {
        match joined {
            Joined::Leads(flight) => flight,
            Joined::Follows(value) => panic!("somebody has published {value}"),
        }
    }

    fn follows(joined: Joined<&'static str, u32>) -> u32 {
        match joined {
            Joined::Follows(value) => value,
            Joined::Leads(_) => panic!("nobody is under way"),
        }
    }

    #[tokio::test]
    async fn one_leads_and_all_others_follow_what_it_publishes_until_it_ends() {
        let numbers = Numbers::default();
        let flight = leads(numbers.join(&"a").await);
        let waiting = numbers.join(&"a");
        drop(leads(numbers.join(&"b").await));
        flight.publish(7);
        assert_eq!((follows(waiting.await), follows(numbers.join(&"a").await)), (7, 7));
        drop(flight);
        drop(leads(numbers.join(&"a").await));
        assert!(lock(&numbers.0).is_empty());
    }

    #[tokio::test]
    async fn a_leader_that_panics_or_is_cancelled_leaves_the_lead_to_one_who_waits() {
        let numbers = Arc::new(Numbers::default());
        for panics in [true, false] {
            let flight = leads(numbers.join(&"a").await);
            let leader = tokio::spawn(async move {
                let _flight = flight;
                tokio::task::yield_now().await;
                assert!(!panics, "a leader that was to panic");
                std::future::pending::<()>().await;
            });
            let following = tokio::spawn({
                let numbers = Arc::clone(&numbers);
                async move { leads(numbers.join(&"a").await).publish(1) }
            });
            tokio::task::yield_now().await;
            if !panics {
                assert!(!following.is_finished(), "the leader is under way");
                leader.abort();
            }
            following.await.expect("it leads");
            assert!(lock(&numbers.0).is_empty());
        }
    }
}
