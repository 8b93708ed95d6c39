//! Waits for what nobody knows yet: a client that asks before someone has pushed. Bounded for each client and
//! in all, since an ordinary miss looks the same.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::client::network;

/// Requests of one client's network that may wait at a time.
const PER_CLIENT_MAX: usize = 100;
/// Requests of all clients that may wait at a time.
const TOTAL_MAX: usize = 10_000;

/// Requests that wait for what nobody knows; clones share them.
#[derive(Clone, Debug, Default)]
pub struct UnknownWaits(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One request that waits, as long as this exists.
#[derive(Debug)]
pub(super) struct UnknownSlot {
    waits: UnknownWaits,
    client: IpAddr,
}

impl UnknownWaits {
    /// A slot for a client; `None` where it, or all together, have too many.
    pub(super) fn enter(&self, client: IpAddr) -> Option<UnknownSlot> {
        let client = network(client);
        let mut waiting = self.lock();
        let total: usize = waiting.values().sum();
        let count = waiting.get(&client).copied().unwrap_or_default();
        if count >= PER_CLIENT_MAX || total >= TOTAL_MAX {
            return None;
        }
        waiting.insert(client, count + 1);
        Some(UnknownSlot { waits: self.clone(), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnknownSlot {
    fn drop(&mut self) {
        let mut waiting = self.waits.lock();
        if let Some(count) = waiting.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_slots_and_gets_them_back() {
        let waits = UnknownWaits::default();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|client| client.parse().expect("an address"));
        let slots: Vec<_> = (0..PER_CLIENT_MAX).map(|_| waits.enter(one).expect("a slot")).collect();
        assert!(waits.enter(one).is_none() && waits.enter(other).is_some());
        drop(slots);
        assert!(waits.lock().is_empty());
    }
}
