//! Faults of a run, one after the other in the order of the seed, and the promise that another server leads
//! soon where one cannot.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::clock::Cause;
use super::network::{Dice, Weather};
use super::{SERVERS, World};

/// Time between two faults at most.
const FAULT_EVERY: Duration = Duration::from_secs(3600);
/// Duration of a fault at most.
const FAULT_FOR: Duration = Duration::from_secs(60);
/// Duration of a slow network at most.
const SLOW_FOR: Duration = Duration::from_secs(600);
/// Time that a message takes there at most.
const SLOW_BY: Duration = Duration::from_millis(400);
/// Time within which another server leads.
pub(super) const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(5);
/// Interval at which the leader is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time after which all has recovered from a fault.
const RECOVERED_AFTER: Duration = Duration::from_secs(20);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A server is killed, and started again.
    Killed,
    /// A server does not run for a while, and then goes on.
    Frozen,
    /// Nothing comes from a server to the database, and back.
    Parted,
    /// The database is away.
    DatabaseAway,
    /// Messages take their time, and some are lost.
    Slow,
}

impl World {
    /// Has one fault after the other happen until the time is over.
    pub(super) async fn suffer(self: &Arc<Self>, until: Duration) {
        let dice = &self.dice.of(5, 0);
        loop {
            sleep(RECOVERED_AFTER).await;
            self.clock.rest(Cause::Faults, dice.time(FAULT_EVERY)).await;
            if self.clock.elapsed() > until {
                return self.clock.end(Cause::Faults);
            }
            let server = usize::try_from(dice.below(SERVERS as u64)).expect("one of few");
            // Half of them meet the leader.
            let server = self.leader().filter(|_| dice.below(2) == 0).unwrap_or(server);
            match dice.below(10) {
                0..3 => self.meet(Fault::Killed, server, dice).await,
                3..5 => self.meet(Fault::Frozen, server, dice).await,
                5..7 => self.meet(Fault::Parted, server, dice).await,
                7..9 => self.lose_database(dice).await,
                _ => self.slow_down(dice).await,
            }
        }
    }

    /// A fault of one server.
    async fn meet(self: &Arc<Self>, fault: Fault, server: usize, dice: &Dice) {
        self.count_fault(fault);
        let (term, begun, lasts) = (self.database.term(), Instant::now(), dice.time(FAULT_FOR));
        match fault {
            Fault::Killed => self.kill(server),
            Fault::Frozen => self.network.set(server, Weather::Held),
            _ => self.network.set(server, Weather::Parted),
        }
        let epoch = term.as_ref().map(|term| term.epoch);
        if term.is_some_and(|term| term.holder == Self::node(server)) && lasts > TAKEN_OVER_WITHIN {
            while self.epoch() == epoch {
                if begun.elapsed() > TAKEN_OVER_WITHIN {
                    self.breaks(format!("{fault:?}: nobody else leads after {:?}", begun.elapsed()));
                    break;
                }
                sleep(LOOK_EVERY).await;
            }
            self.note_takeover(begun.elapsed());
        }
        sleep(lasts.saturating_sub(begun.elapsed())).await;
        match fault {
            Fault::Killed => self.start(server),
            _ => self.network.set(server, Weather::Calm),
        }
    }

    async fn lose_database(&self, dice: &Dice) {
        self.count_fault(Fault::DatabaseAway);
        self.network.set_database(false);
        sleep(dice.time(FAULT_FOR)).await;
        self.database.restarted();
        self.network.set_database(true);
    }

    /// Other faults happen meanwhile, without a promise of who leads when.
    async fn slow_down(self: &Arc<Self>, dice: &Dice) {
        self.count_fault(Fault::Slow);
        let until = Instant::now() + dice.time(SLOW_FOR);
        (0..SERVERS).for_each(|server| self.network.set(server, Weather::Slow(SLOW_BY)));
        while Instant::now() < until {
            sleep(dice.time(FAULT_FOR)).await;
            let server = usize::try_from(dice.below(SERVERS as u64)).expect("one of few");
            match dice.below(3) {
                0 => {
                    self.count_fault(Fault::Killed);
                    self.kill(server);
                    sleep(dice.time(RECOVERED_AFTER)).await;
                    self.start(server);
                }
                1 => self.lose_database(dice).await,
                _ => {
                    self.count_fault(Fault::Frozen);
                    self.network.set(server, Weather::Held);
                    sleep(dice.time(RECOVERED_AFTER)).await;
                    self.network.set(server, Weather::Slow(SLOW_BY));
                }
            }
        }
        (0..SERVERS).for_each(|server| self.network.set(server, Weather::Calm));
    }
}
