//! Requests that have not ended, and the number of those that came from each client's network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use narinfo::StorePath;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::build::Ending;
use crate::build::forecast::eta::Forecast;
use crate::build::queue::RequestId;
use crate::client::network;

/// A request that has not ended.
pub(super) struct PendingRequest {
    pub(super) drv: StorePath,
    pub(super) ending: watch::Sender<Option<Ending>>,
    pub(super) asked_at: SystemTime,
    /// Forecast that was made when it was planned, and when that was.
    pub(super) forecast: Option<(Forecast, Instant)>,
    /// True once a build was started for it.
    pub(super) started: bool,
    pub(super) asked_by: Option<IpAddr>,
    /// Name of the machine that alone may build what it wants.
    pub(super) builder: Option<String>,
    /// Number of times that it was complete and then was not.
    pub(super) returns: u32,
    /// Shared with each of its tickets.
    pub(super) tickets: Arc<()>,
}

impl PendingRequest {
    /// Number of its tickets.
    pub(super) fn tickets(&self) -> usize {
        Arc::strong_count(&self.tickets) - 1
    }
}

/// Requests in the queue and those being delivered.
#[derive(Default)]
pub(super) struct Waiters {
    pending: HashMap<RequestId, PendingRequest>,
    /// Number of requests by network; only networks that wait for some.
    of_client: HashMap<IpAddr, usize>,
}

impl Waiters {
    /// Adds a request, unless it waits already.
    pub(super) fn join(&mut self, id: RequestId, make: impl FnOnce() -> PendingRequest) -> &PendingRequest {
        let of_client = &mut self.of_client;
        self.pending.entry(id).or_insert_with(|| {
            let request = make();
            if let Some(client) = request.asked_by {
                *of_client.entry(network(client)).or_default() += 1;
            }
            request
        })
    }

    /// Removes a request that has ended.
    pub(super) fn leave(&mut self, id: RequestId) -> Option<PendingRequest> {
        let request = self.pending.remove(&id)?;
        if let Some(client) = request.asked_by
            && let Some(count) = self.of_client.get_mut(&network(client))
        {
            *count -= 1;
            if *count == 0 {
                self.of_client.remove(&network(client));
            }
        }
        Some(request)
    }

    /// Number of requests that this address, or another of its network, was the first to make.
    pub(super) fn of_client(&self, client: IpAddr) -> usize {
        self.of_client.get(&network(client)).copied().unwrap_or_default()
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&PendingRequest> {
        self.pending.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut PendingRequest> {
        self.pending.get_mut(&id)
    }

    /// True while a request for a derivation has not ended.
    pub(super) fn await_drv(&self, drv: &StorePath) -> bool {
        self.pending.values().any(|request| request.drv == *drv)
    }

    /// Requests that clients of this server wait for.
    pub(super) fn awaited(&self) -> impl Iterator<Item = RequestId> {
        self.pending.iter().filter(|(_, request)| request.tickets() > 0).map(|(id, _)| *id)
    }

    /// Removes the requests that no client of this server waits for.
    pub(super) fn retain_awaited(&mut self) {
        let unawaited = self.pending.iter().filter(|(_, request)| request.tickets() == 0);
        for id in unawaited.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.leave(id);
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = RequestId> {
        self.pending.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_of_an_address_are_counted_while_they_wait() {
        let mut waiters = Waiters::default();
        let drv = StorePath::parse("0123456789abcdfghijklmnpqrsvwxyz-p.drv").expect("a path");
        let [one, other] =
            ["10.0.0.1", "10.0.0.2"].map(|client| client.parse::<IpAddr>().expect("an address"));
        let request = |asked_by| PendingRequest {
            drv: drv.clone(),
            ending: watch::channel(None).0,
            asked_at: SystemTime::UNIX_EPOCH,
            forecast: None,
            started: false,
            asked_by,
            builder: None,
            returns: 0,
            tickets: Arc::default(),
        };
        for (id, client) in [(1, Some(one)), (2, Some(one)), (2, Some(other)), (3, Some(other)), (4, None)] {
            waiters.join(RequestId(id), || request(client));
        }
        assert_eq!((waiters.of_client(one), waiters.of_client(other)), (2, 1));
        for id in [1, 1, 4] {
            waiters.leave(RequestId(id));
        }
        assert_eq!((waiters.of_client(one), waiters.of_client(other)), (1, 1));
        waiters.leave(RequestId(2));
        waiters.leave(RequestId(3));
        assert!(waiters.of_client.is_empty(), "an address that waits for nothing is remembered");

        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (id, client) in [(5, "2001:db8::1"), (6, "2001:db8::2:1"), (7, "2001:db8:0:1::1")] {
            waiters.join(RequestId(id), || request(Some(address(client))));
        }
        assert_eq!(waiters.of_client(address("2001:db8::3")), 2, "the addresses of one network count as one");
        for id in 5..=7 {
            waiters.leave(RequestId(id));
        }
        assert!(waiters.of_client.is_empty());
    }
}
