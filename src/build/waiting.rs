//! Everyone who has not been answered, and how many of them came from each client's network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Instant, SystemTime};

use narinfo::StorePath;
use tokio::sync::watch;

use super::Ending;
use super::eta::Told;
use super::queue::RequestId;
use crate::client::network;

/// A request that has not ended.
pub(super) struct Waiting {
    pub(super) drv: StorePath,
    pub(super) ending: watch::Sender<Option<Ending>>,
    pub(super) asked_at: SystemTime,
    /// What was foretold when it was planned.
    pub(super) told: Option<(Told, Instant)>,
    /// Whether a build was started for it.
    pub(super) begun: bool,
    pub(super) asked_by: Option<IpAddr>,
    /// How often it was complete and then was not.
    pub(super) returns: u32,
}

/// The requests that have not ended: in the queue, or being delivered.
#[derive(Default)]
pub(super) struct Everyone {
    waiting: HashMap<RequestId, Waiting>,
    /// By network; only those of which some wait.
    of_client: HashMap<IpAddr, usize>,
}

impl Everyone {
    /// A request begins to wait; one that waits already goes on.
    pub(super) fn join(&mut self, id: RequestId, make: impl FnOnce() -> Waiting) -> &Waiting {
        let of_client = &mut self.of_client;
        self.waiting.entry(id).or_insert_with(|| {
            let waiting = make();
            if let Some(client) = waiting.asked_by {
                *of_client.entry(network(client)).or_default() += 1;
            }
            waiting
        })
    }

    /// A request has ended.
    pub(super) fn leave(&mut self, id: RequestId) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        if let Some(client) = waiting.asked_by
            && let Some(count) = self.of_client.get_mut(&network(client))
        {
            *count -= 1;
            if *count == 0 {
                self.of_client.remove(&network(client));
            }
        }
        Some(waiting)
    }

    /// Requests that this address, or another of its network, was the first to make.
    pub(super) fn of_client(&self, client: IpAddr) -> usize {
        self.of_client.get(&network(client)).copied().unwrap_or_default()
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Waiting> {
        self.waiting.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Waiting> {
        self.waiting.get_mut(&id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = RequestId> {
        self.waiting.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_of_an_address_are_counted_while_they_wait() {
        let mut everyone = Everyone::default();
        let drv = StorePath::parse("0123456789abcdfghijklmnpqrsvwxyz-p.drv").expect("a path");
        let [one, other] =
            ["10.0.0.1", "10.0.0.2"].map(|client| client.parse::<IpAddr>().expect("an address"));
        let waiting = |asked_by| Waiting {
            drv: drv.clone(),
            ending: watch::channel(None).0,
            asked_at: SystemTime::UNIX_EPOCH,
            told: None,
            begun: false,
            asked_by,
            returns: 0,
        };
        for (id, client) in [(1, Some(one)), (2, Some(one)), (2, Some(other)), (3, Some(other)), (4, None)] {
            everyone.join(RequestId(id), || waiting(client));
        }
        assert_eq!((everyone.of_client(one), everyone.of_client(other)), (2, 1));
        for id in [1, 1, 4] {
            everyone.leave(RequestId(id));
        }
        assert_eq!((everyone.of_client(one), everyone.of_client(other)), (1, 1));
        everyone.leave(RequestId(2));
        everyone.leave(RequestId(3));
        assert!(everyone.of_client.is_empty(), "an address that waits for nothing is remembered");

        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (id, client) in [(5, "2001:db8::1"), (6, "2001:db8::2:1"), (7, "2001:db8:0:1::1")] {
            everyone.join(RequestId(id), || waiting(Some(address(client))));
        }
        assert_eq!(
            everyone.of_client(address("2001:db8::3")),
            2,
            "the addresses of one network count as one"
        );
        for id in 5..=7 {
            everyone.leave(RequestId(id));
        }
        assert!(everyone.of_client.is_empty());
    }
}
