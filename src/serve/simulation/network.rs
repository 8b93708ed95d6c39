//! The network between servers and their database, by the virtual clock: messages come at once, late, after a
//! freeze, or not at all, as the seed has it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::index::shared::{Carried, Cut, Link};

/// Time after which a lost message is noticed.
const NOTICED_AFTER: Duration = Duration::from_secs(2);

/// Numbers that follow from a seed; clones share them.
#[derive(Clone)]
pub(super) struct Dice {
    seed: u64,
    state: Arc<Mutex<u64>>,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, state: Arc::new(Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))) }
    }

    /// Other numbers of the same seed, for one of many. Which of several acts first at one moment changes
    /// nothing for the others.
    pub(super) fn of(&self, kind: u64, number: u64) -> Self {
        let mixed = self.seed.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ kind.wrapping_mul(0x94d0_49bb_1331_11eb);
        Self::new(mixed.rotate_left(31) ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// A number below a bound.
    pub(super) fn below(&self, bound: u64) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % bound
    }

    /// A duration of at least a millisecond, and up to a bound.
    pub(super) fn time(&self, bound: Duration) -> Duration {
        Duration::from_millis(1 + self.below(u64::try_from(bound.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// State of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// Messages come at once.
    Calm,
    /// Each takes its time, up to this, and some are lost.
    Slow(Duration),
    /// None comes.
    Parted,
    /// All wait until this ends, and come then.
    Held,
}

/// The network; clones share it.
#[derive(Clone)]
pub(super) struct Network(Arc<Shared>);

struct Shared {
    /// Those of each way.
    dice: Vec<Dice>,
    state: Mutex<State>,
    /// Notified when the weather has changed.
    changed: Notify,
}

struct State {
    ways: Vec<Weather>,
    has_database: bool,
}

impl Network {
    /// A calm network of so many servers.
    pub(super) fn new(dice: &Dice, servers: usize) -> Self {
        let state = Mutex::new(State { ways: vec![Weather::Calm; servers], has_database: true });
        let dice = (0..servers).map(|server| dice.of(1, server as u64)).collect();
        Self(Arc::new(Shared { dice, state, changed: Notify::new() }))
    }

    /// The way of one server.
    pub(super) fn way(&self, server: usize) -> Way {
        Way { network: self.clone(), server }
    }

    pub(super) fn set(&self, server: usize, weather: Weather) {
        self.state().ways[server] = weather;
        self.0.changed.notify_waiters();
    }

    /// The database runs, or is away and takes no connection.
    pub(super) fn set_database(&self, runs: bool) {
        self.state().has_database = runs;
        self.0.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a server is frozen.
    pub(super) async fn thawed(&self, server: usize) {
        loop {
            let changed = self.0.changed.notified();
            if self.state().ways[server] != Weather::Held {
                return;
            }
            changed.await;
        }
    }
}

/// The way of one server to the database.
#[derive(Clone)]
pub(super) struct Way {
    network: Network,
    server: usize,
}

impl Way {
    fn weather(&self) -> Weather {
        self.network.state().ways[self.server]
    }
}

impl Link for Way {
    fn carry(&self) -> Carried {
        let way = self.clone();
        Box::pin(async move {
            let dice = &way.network.0.dice[way.server];
            if let Weather::Slow(most) = way.weather() {
                sleep(dice.time(most)).await;
                if dice.below(50) == 0 {
                    sleep(NOTICED_AFTER).await;
                    return Err(Cut("a message was lost"));
                }
            }
            way.network.thawed(way.server).await;
            if way.weather() == Weather::Parted {
                sleep(NOTICED_AFTER).await;
                return Err(Cut("nothing comes from the database"));
            }
            match way.network.state().has_database {
                true => Ok(()),
                false => Err(Cut("the database takes no connection")),
            }
        })
    }

    fn is_instant(&self) -> bool {
        let state = self.network.state();
        state.has_database && state.ways[self.server] == Weather::Calm
    }
}
