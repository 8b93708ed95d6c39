//! Turns to ask an upstream: so many at a time, and where more want one, each client's share in its turn.
//! Written by hand: a semaphore is first come, first served, and one client that asks for thousands of paths
//! had everyone else wait for all of them (31 s in a test with 2,000 paths and an upstream that takes 500
//! ms).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Bits of an IPv6 address that are one client's: it has all of the network (RFC 6177).
const IPV6_NETWORK_BITS: u32 = 64;

/// Whose turn it is: a client's address, or its network; one share for all that this server asks for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Share(Option<IpAddr>);

impl Share {
    /// The share of a client.
    pub(super) fn of(client: Option<IpAddr>) -> Self {
        Self(client.map(|client| match client.to_canonical() {
            IpAddr::V6(ip) => {
                let network = u128::from(ip) & (u128::MAX << (u128::BITS - IPV6_NETWORK_BITS));
                IpAddr::V6(network.into())
            }
            ip @ IpAddr::V4(_) => ip,
        }))
    }
}

/// Gives turns; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// Waiting requests by share, the oldest of each at the front. No queue is empty.
    waiting: HashMap<Share, VecDeque<oneshot::Sender<Turn>>>,
    /// The shares that wait, the next one at the front.
    order: VecDeque<Share>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    /// `None` once it was passed on.
    turns: Option<Turns>,
}

impl Turns {
    /// So many at a time.
    pub(super) fn new(at_once: usize) -> Self {
        let state = State { free: at_once, waiting: HashMap::new(), order: VecDeque::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// A turn, once it is that of `share`.
    pub(super) async fn turn(&self, share: Share) -> Turn {
        let coming = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn { turns: Some(self.clone()) };
            }
            let (give, coming) = oneshot::channel();
            let State { waiting, order, .. } = &mut *state;
            let queue = waiting.entry(share).or_default();
            if queue.is_empty() {
                order.push_back(share);
            }
            queue.push_back(give);
            coming
        };
        // The list is never dropped while somebody waits here, and gives to everyone in it.
        coming.await.unwrap_or(Turn { turns: None })
    }

    /// Gives a turn to the next one who still waits.
    fn pass_on(&self) {
        let mut turn = Turn { turns: Some(self.clone()) };
        loop {
            let next = {
                let mut state = self.lock();
                let next = state.next();
                if next.is_none() {
                    state.free += 1;
                    turn.turns = None;
                }
                next
            };
            let Some(next) = next else { return };
            match next.send(turn) {
                Ok(()) => return,
                // That one has left.
                Err(back) => turn = back,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes the next one; its share goes to the end.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let share = self.order.pop_front()?;
        let queue = self.waiting.get_mut(&share)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&share);
        } else {
            self.order.push_back(share);
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(address: &str) -> Share {
        Share::of(Some(address.parse().expect("an address")))
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_ipv4_within_ipv6_is_ipv4() {
        assert_eq!(share("2001:db8::1"), share("2001:db8::ffff:1:2:3"));
        assert_ne!(share("2001:db8::1"), share("2001:db8:0:1::1"));
        assert_eq!(share("::ffff:192.0.2.1"), share("192.0.2.1"));
        assert_ne!(share("192.0.2.1"), share("192.0.2.2"));
        assert_ne!(Share::of(None), share("192.0.2.1"));
    }

    /// Has these ask one after the other while none is free; the order in which they get their turns.
    async fn order(turns: &Turns, asking: &[(&str, &'static str)]) -> Vec<&'static str> {
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        let held = turns.turn(Share::of(None)).await;
        for (address, name) in asking.iter().copied() {
            let (turns, told, share) = (turns.clone(), told.clone(), share(address));
            tokio::spawn(async move {
                let _turn = turns.turn(share).await;
                let _ = told.send(name);
            });
            tokio::task::yield_now().await;
        }
        drop((held, told));
        let mut names = Vec::new();
        while let Some(name) = order.recv().await {
            names.push(name);
        }
        names
    }

    #[tokio::test]
    async fn a_client_with_few_questions_does_not_wait_for_one_with_many() {
        let (greedy, honest) = ("192.0.2.1", "192.0.2.2");
        let asking = [(greedy, "a1"), (greedy, "a2"), (greedy, "a3"), (honest, "b1"), (honest, "b2")];
        assert_eq!(order(&Turns::new(1), &asking).await, ["a1", "b1", "a2", "b2", "a3"]);
    }

    #[tokio::test]
    async fn turns_of_those_who_left_come_back() {
        let turns = Turns::new(1);
        let held = turns.turn(Share::of(None)).await;
        {
            let waiting = turns.turn(share("192.0.2.1"));
            tokio::pin!(waiting);
            tokio::select! {
                biased;
                _ = &mut waiting => panic!("there was none"),
                () = tokio::task::yield_now() => {}
            }
        }
        drop(held);
        assert_eq!(order(&turns, &[("192.0.2.1", "a"), ("192.0.2.2", "b")]).await, ["a", "b"]);
        let state = turns.lock();
        assert!(state.free == 1 && state.waiting.is_empty() && state.order.is_empty(), "{state:?}");
    }
}
