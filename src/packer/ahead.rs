//! Prefetching: a client that fetches one path of a closure will ask for the others whose narinfos it has. A
//! few of those are fetched from upstreams meanwhile, never many, so that little is lost when the client goes
//! away. Plain code: decides which NARs to fetch, and fetches nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use narinfo::NarHash;

/// NARs that are fetched for a client before it asks for them, at most.
const AHEAD_MAX: usize = 8;
/// NARs that a client is expected to ask for, at most; the oldest are dropped.
const EXPECTED_MAX: usize = 10_000;
/// Clients whose requests are expected, at most.
const CLIENTS_MAX: usize = 256;
/// Time after its last request for which more is expected of a client.
pub(super) const EXPECTED_FOR: Duration = Duration::from_secs(120);

/// Expected requests, by client.
#[derive(Debug, Default)]
pub(super) struct Prefetch(HashMap<IpAddr, ExpectedRequests>);

#[derive(Debug)]
struct ExpectedRequests {
    /// NARs whose narinfos it has, the latest at the end: references come after their referrers, and are
    /// fetched first.
    nars: VecDeque<NarHash>,
    /// NARs that were fetched for it, and not asked for yet.
    ahead: HashSet<NarHash>,
    asked_at: Instant,
}

impl Prefetch {
    /// Notes that a client has the narinfo of a NAR that is not stored yet.
    pub(super) fn told(&mut self, client: IpAddr, nar: NarHash, now: Instant) {
        self.0.retain(|_, expected| now.saturating_duration_since(expected.asked_at) < EXPECTED_FOR);
        if self.0.len() >= CLIENTS_MAX && !self.0.contains_key(&client) {
            return;
        }
        let fresh = || ExpectedRequests { nars: VecDeque::new(), ahead: HashSet::new(), asked_at: now };
        let expected = self.0.entry(client).or_insert_with(fresh);
        expected.asked_at = now;
        if expected.nars.len() >= EXPECTED_MAX {
            expected.nars.pop_front();
        }
        expected.nars.push_back(nar);
    }

    /// Notes a request for a NAR, and returns the NARs to prefetch.
    pub(super) fn asks(&mut self, client: IpAddr, nar: NarHash, now: Instant) -> Vec<NarHash> {
        let Some(expected) = self.0.get_mut(&client) else { return Vec::new() };
        expected.asked_at = now;
        expected.ahead.remove(&nar);
        expected.nars.retain(|told| *told != nar);
        let mut next = Vec::new();
        while expected.ahead.len() < AHEAD_MAX
            && let Some(nar) = expected.nars.pop_back()
        {
            if expected.ahead.insert(nar) {
                next.push(nar);
            }
        }
        if expected.nars.is_empty() && expected.ahead.is_empty() {
            self.0.remove(&client);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nar(number: u16) -> NarHash {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        NarHash::from_bytes(bytes)
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn told(count: u16, now: Instant) -> Prefetch {
        let mut ahead = Prefetch::default();
        (0..count).for_each(|number| ahead.told(CLIENT, nar(number), now));
        ahead
    }

    #[test]
    fn what_was_told_last_is_read_ahead_first_and_only_for_who_fetches() {
        let now = Instant::now();
        let mut ahead = told(3, now);
        assert!(ahead.asks("192.0.2.1".parse().expect("an address"), nar(2), now).is_empty());
        assert_eq!(ahead.asks(CLIENT, nar(2), now), [nar(1), nar(0)]);
        assert!(ahead.asks(CLIENT, nar(1), now).is_empty() && ahead.asks(CLIENT, nar(0), now).is_empty());
        assert!(ahead.0.is_empty(), "nothing is expected any more");
    }

    #[test]
    fn no_more_than_a_few_are_ahead_of_a_client_that_stops() {
        let now = Instant::now();
        let mut ahead = told(100, now);
        assert_eq!(ahead.asks(CLIENT, nar(99), now).len(), AHEAD_MAX);
        assert!(ahead.asks(CLIENT, nar(99), now).is_empty(), "it did not go on");
        assert_eq!(ahead.asks(CLIENT, nar(98), now), [nar(98 - AHEAD_MAX as u16)]);
    }

    #[test]
    fn memory_is_bounded_and_ends() {
        let now = Instant::now();
        let mut ahead = told(u16::MAX, now);
        assert_eq!(ahead.0[&CLIENT].nars.len(), EXPECTED_MAX);
        for client in 0..2 * CLIENTS_MAX as u32 {
            ahead.told(IpAddr::V4(client.into()), nar(1), now);
        }
        assert_eq!(ahead.0.len(), CLIENTS_MAX);
        ahead.told(CLIENT, nar(1), now + EXPECTED_FOR);
        assert_eq!(ahead.0.len(), 1);
    }
}
