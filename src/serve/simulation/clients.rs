//! Clients of a run: each asks one of the servers, waits, and asks again where it is cut off.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::clock::Cause;
use super::history::Event;
use super::network::Dice;
use super::site::{Package, drv, output};
use super::{FrontEnd, SERVERS, World, lock};

/// Pause before a client asks again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Time between two groups of requests at most.
const GROUP_EVERY: Duration = Duration::from_secs(3600);
/// Time that a build takes at most.
const BUILT_WITHIN: Duration = Duration::from_secs(240);
/// Time for which an impatient client waits at most.
const LEAVES_WITHIN: Duration = Duration::from_secs(120);
/// Time within which every client is answered once nothing fails any more.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3 * 3600);

impl World {
    /// Has clients come in groups until the time is over, and waits until all of them are gone.
    pub(super) async fn receive_clients(self: &Arc<Self>, until: Duration) {
        let (mut clients, dice) = (tokio::task::JoinSet::new(), self.dice.of(3, 0));
        loop {
            self.clock.rest(Cause::Clients, dice.time(GROUP_EVERY)).await;
            if self.clock.elapsed() > until {
                break;
            }
            while clients.try_join_next().is_some() {}
            for number in self.new_packages(&dice) {
                for _ in 0..=dice.below(2) {
                    let (world, client) = (Arc::clone(self), self.count(|counts| &mut counts.clients));
                    // Of those that come again some ask for what is there.
                    let wanted = if dice.below(10) == 0 { dice.below(number + 1) } else { number };
                    let patience = (dice.below(10) == 0).then(|| dice.time(LEAVES_WITHIN));
                    clients.spawn(async move { world.serve_client(client, wanted, patience).await });
                    if dice.below(3) == 0 {
                        sleep(dice.time(Duration::from_secs(5))).await;
                    }
                }
            }
        }
        self.clock.end(Cause::Clients);
        let all = async { while clients.join_next().await.is_some() {} };
        if timeout(ANSWERED_WITHIN, all).await.is_err() {
            self.breaks("clients are not answered hours after all is well".to_owned());
        }
    }

    /// Some derivations that nobody has asked for, with an input in common.
    fn new_packages(&self, dice: &Dice) -> Vec<u64> {
        let mut packages = self.packages();
        let mut next = packages.last_key_value().map_or(0, |(_, package)| package.number + 1);
        let mut add = |inputs: BTreeSet<u64>, fails: bool| {
            let package = Package { number: next, inputs, takes: dice.time(BUILT_WITHIN), fails };
            packages.insert(drv(next), package);
            next += 1;
            next - 1
        };
        let input = (dice.below(3) == 0).then(|| add(BTreeSet::new(), false));
        let count = 1 + dice.below(4);
        (0..count).map(|_| add(input.into_iter().collect(), dice.below(20) == 0)).collect()
    }

    async fn serve_client(self: Arc<Self>, client: u64, wanted: u64, patience: Option<Duration>) {
        let dice = self.dice.of(4, client);
        self.count(|counts| &mut counts.waiting);
        let asking = async {
            loop {
                let server = usize::try_from(dice.below(SERVERS as u64)).expect("one of few");
                let answered = match self.front_end(server) {
                    None => false,
                    Some(front) => tokio::select! {
                        biased;
                        () = self.killed(server) => false,
                        answered = self.ask(client, server, wanted, &front) => answered,
                    },
                };
                if answered {
                    return;
                }
                self.count(|counts| &mut counts.asked_again);
                sleep(AGAIN_AFTER + dice.time(AGAIN_AFTER)).await;
            }
        };
        let is_answered = match patience {
            Some(patience) => timeout(patience, asking).await.is_ok(),
            None => {
                asking.await;
                true
            }
        };
        if is_answered {
            self.count(|counts| &mut counts.answered);
        }
        lock(&self.counts).waiting -= 1;
        self.note(Event::Gone { client, is_answered });
    }

    /// Asks one server. False where there is no answer, and the client asks again.
    async fn ask(&self, client: u64, server: usize, wanted: u64, front: &FrontEnd) -> bool {
        if self.is_served(server, wanted, front).await {
            return true;
        }
        let Ok(mut ticket) = front.scheduler.join(&drv(wanted), None).await else { return false };
        self.network.thawed(server).await;
        self.note(Event::Acknowledged { client, request: ticket.id() });
        let ending = ticket.ended().await;
        self.network.thawed(server).await;
        match ending {
            Some(Ok(())) => self.is_served(server, wanted, front).await,
            Some(Err(failure)) => {
                if !self.package(&drv(wanted)).fails {
                    self.breaks(format!("client {client} is told of a failure: {}", failure.reason));
                }
                true
            }
            None => false,
        }
    }

    /// True where a server has the narinfo.
    async fn is_served(&self, server: usize, wanted: u64, front: &FrontEnd) -> bool {
        let found = front.index.find(output(wanted).hash()).await;
        self.network.thawed(server).await;
        match found {
            Ok(Some(hit)) => {
                if hit.packed.is_none() {
                    self.breaks(format!("{} is served without its NAR", hit.row.info.path));
                }
                true
            }
            Ok(None) | Err(_) => false,
        }
    }
}
