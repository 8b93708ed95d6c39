//! The index in memory: a second backend, for tests, which shows that the wall before backends carries. It
//! keeps plain rows under one lock, and nothing else of what the backend in SQLite does for speed or
//! durability.

mod builds;
mod catalogue;
mod closures;
pub(crate) mod cluster;
mod paths;
mod programs;
mod pushed;
mod retention;
pub(crate) mod shared;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use narinfo::{NarHash, Realisation, StorePath, StorePathHash};
use tokio::sync::mpsc;

use super::backend::{Backend, BackendFuture, Changes, Follower, Recovered, RecoveryStore, Unfit, Upkeep};
use crate::model::{
    Comparison, DemandRow, DurationRow, Failure, HourRow, NarRow, PathRow, PushedDerivation, RequestRow,
    TokenRow, UpstreamNar,
};
use catalogue::Sets;

/// An index in memory; clones share it.
#[derive(Clone, Default)]
pub(crate) struct MemoryBackend(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    paths: BTreeMap<StorePathHash, Served>,
    nars: BTreeMap<NarHash, NarRow>,
    upstream_nars: BTreeMap<(NarHash, String), UpstreamNar>,
    upstreams: BTreeMap<String, bool>,
    realisations: BTreeMap<String, Realisation>,
    former_nars: BTreeMap<NarHash, StorePathHash>,
    programs: BTreeSet<(String, NarHash)>,
    pins: BTreeMap<(String, StorePathHash), SystemTime>,
    pushed: BTreeMap<StorePathHash, (PushedDerivation, SystemTime)>,
    comparisons: BTreeMap<StorePathHash, (u64, Option<Comparison>)>,
    failures: BTreeMap<StorePath, Failure>,
    requests: BTreeMap<u64, RequestRow>,
    last_request: u64,
    durations: Vec<DurationRow>,
    demand: Vec<DemandRow>,
    prebuilt: (u64, Duration),
    sets: Sets,
    history: BTreeMap<u64, HourRow>,
    tokens: BTreeMap<u64, TokenRow>,
    last_token: u64,
    /// Number of writes so far: orders what has no other order.
    writes: u64,
    sequence: u64,
    follower: Option<Arc<dyn Follower>>,
    /// True while changes are not told.
    interrupted: bool,
}

/// A served path.
struct Served {
    row: PathRow,
    /// Place in the order in which paths came.
    came: u64,
    /// See [`crate::model::Cursor`].
    needed_at_us: i64,
}

impl MemoryBackend {
    /// Tells no change until [`MemoryBackend::resume`], as when the connection to a database is lost.
    pub(crate) fn interrupt(&self) {
        let mut state = self.state();
        state.interrupted = true;
        if let Some(follower) = &state.follower {
            follower.interrupted();
        }
    }

    /// Tells changes again, from the next one on. Those between were missed.
    pub(crate) fn resume(&self) {
        let mut state = self.state();
        state.interrupted = false;
        if let Some(follower) = &state.follower {
            follower.restarted(state.sequence);
            follower.resumed();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Tells the changes of a write.
    fn tell(&mut self, changes: &Changes) {
        if changes.is_empty() {
            return;
        }
        self.sequence += 1;
        if let (Some(follower), false) = (&self.follower, self.interrupted) {
            follower.apply(self.sequence, changes);
        }
    }
}

/// An answer that is there at once.
fn done<T: Send + 'static>(value: T) -> BackendFuture<'static, T> {
    Box::pin(ready(Ok(value)))
}

impl Backend for MemoryBackend {
    fn follow(&self, follower: Arc<dyn Follower>) {
        self.state().follower = Some(follower);
    }

    fn hash_count(&self) -> BackendFuture<'_, u64> {
        let state = self.state();
        done((state.paths.len() + state.sets.hashes().count() + state.pushed_outputs().count()) as u64)
    }

    fn hashes(&self, batches: mpsc::Sender<Vec<StorePathHash>>) -> BackendFuture<'_, ()> {
        let state = self.state();
        let all: Vec<_> =
            state.paths.keys().copied().chain(state.sets.hashes()).chain(state.pushed_outputs()).collect();
        drop(state);
        Box::pin(async move {
            // Where nobody receives it, nobody needs it.
            let _ = batches.send(all).await;
            Ok(())
        })
    }
}

impl Upkeep for MemoryBackend {
    fn maintain(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    fn check(&self) -> Pin<Box<dyn Future<Output = Result<(), Unfit>> + Send + '_>> {
        Box::pin(ready(Ok(())))
    }

    fn verify(&self) -> BackendFuture<'_, ()> {
        done(())
    }

    fn verify_totals(&self) -> BackendFuture<'_, bool> {
        // They are computed whenever they are asked for.
        done(true)
    }

    fn recompute_totals(&self) -> BackendFuture<'_, ()> {
        done(())
    }

    fn write_refused(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    fn close(&self) -> BackendFuture<'_, ()> {
        done(())
    }
}

impl RecoveryStore for MemoryBackend {
    fn restore_pushed(&self, pushed: Vec<PushedDerivation>) -> BackendFuture<'_, u64> {
        let (mut state, mut restored) = (self.state(), 0);
        for derivation in pushed {
            if state.serves(&derivation.drv) {
                state.pushed.insert(derivation.drv.hash(), (derivation, SystemTime::now()));
                restored += 1;
            }
        }
        state.tell(&Changes { everything: true, ..Changes::default() });
        done(restored)
    }

    fn recover(&self, batch: Vec<Recovered>) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        let mut changes = Changes { everything: true, ..Changes::default() };
        for recovered in batch {
            match recovered {
                Recovered::Gone(hash) => state.remove_path(hash),
                Recovered::Served(recorded) => {
                    let hash = recorded.path.info.path.hash();
                    state.remove_path(hash);
                    state.insert_path(recorded.path);
                    state.nars.extend(recorded.packed.map(|nar| (nar.nar_hash, nar)));
                    let upstreams = recorded.upstreams.into_iter();
                    state
                        .upstream_nars
                        .extend(upstreams.map(|nar| ((nar.nar_hash, nar.upstream.clone()), nar)));
                    changes.added.push(hash);
                }
            }
        }
        state.tell(&changes);
        done(())
    }

    fn forget_incomplete(&self) -> BackendFuture<'_, u64> {
        let mut state = self.state();
        let mut forgotten = 0;
        loop {
            let lacks = |served: &&Served| !served.row.info.references.iter().all(|path| state.serves(path));
            let incomplete: Vec<_> =
                state.paths.values().filter(lacks).map(|served| served.row.info.path.hash()).collect();
            if incomplete.is_empty() {
                state.tell(&Changes { everything: true, ..Changes::default() });
                return done(forgotten);
            }
            forgotten += incomplete.len() as u64;
            incomplete.into_iter().for_each(|hash| state.remove_path(hash));
        }
    }
}
