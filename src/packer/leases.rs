//! Leases: a file that has no row yet is not swept while a lease on its NAR is held. Taking one waits
//! for a removal of the same NAR that is under way, so that a file cannot go between its commit and its row.
//! Blocks, on threads that may wait; the lock guards the map alone.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use narinfo::NarHash;
use tokio::sync::Notify;

/// The leases; clones share them.
#[derive(Clone, Default)]
pub(super) struct Leases(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a removal has ended.
    removed: Condvar,
    /// Notified when a NAR is to be swept.
    unrecorded: Notify,
}

#[derive(Default)]
struct State {
    uses: HashMap<NarHash, Use>,
    /// NARs whose last lease has ended without a row: at most one entry for each lease that there was.
    unrecorded: Vec<NarHash>,
}

enum Use {
    Leased { leases: usize, is_recorded: bool },
    Removing,
}

/// The right to have the file of a NAR there without a row. Dropped before [`Lease::recorded`], it has the
/// file swept once no other lease protects it.
pub struct Lease {
    nar: NarHash,
    is_recorded: bool,
    leases: Leases,
}

/// The right to remove the file of a NAR.
pub(super) struct RemovalGuard {
    nar: NarHash,
    leases: Leases,
}

impl Leases {
    /// Takes a lease. Waits while the file is being removed.
    pub(super) fn take(&self, nar: NarHash) -> Lease {
        let is_removing = |state: &mut State| matches!(state.uses.get(&nar), Some(Use::Removing));
        let waited = self.0.removed.wait_while(self.state(), is_removing);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if let Use::Leased { leases, .. } =
            state.uses.entry(nar).or_insert(Use::Leased { leases: 0, is_recorded: true })
        {
            *leases += 1;
        }
        drop(state);
        Lease { nar, is_recorded: false, leases: self.clone() }
    }

    /// Begins a removal; `None` while a lease is held or another removal is under way.
    pub(super) fn remove(&self, nar: NarHash) -> Option<RemovalGuard> {
        let mut state = self.state();
        if state.uses.contains_key(&nar) {
            return None;
        }
        state.uses.insert(nar, Use::Removing);
        drop(state);
        Some(RemovalGuard { nar, leases: self.clone() })
    }

    /// True while a lease on the NAR is held.
    pub(super) fn is_leased(&self, nar: NarHash) -> bool {
        matches!(self.state().uses.get(&nar), Some(Use::Leased { .. }))
    }

    /// Takes the NARs whose last lease has ended without a row.
    pub(super) fn take_unrecorded(&self) -> Vec<NarHash> {
        std::mem::take(&mut self.state().unrecorded)
    }

    /// Resolves once there is one more of these since this resolved last.
    pub(super) async fn unrecorded(&self) {
        self.0.unrecorded.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Ends the lease of a NAR that has its row.
    pub fn recorded(mut self) {
        self.is_recorded = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.state();
        let Some(Use::Leased { leases, is_recorded }) = state.uses.get_mut(&self.nar) else { return };
        *leases -= 1;
        *is_recorded &= self.is_recorded;
        if let (0, is_recorded) = (*leases, *is_recorded) {
            state.uses.remove(&self.nar);
            if !is_recorded {
                state.unrecorded.push(self.nar);
                self.leases.0.unrecorded.notify_one();
            }
        }
    }
}

impl Drop for RemovalGuard {
    fn drop(&mut self) {
        self.leases.state().uses.remove(&self.nar);
        self.leases.0.removed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NAR: NarHash = NarHash::from_bytes([7; 32]);

    #[test]
    fn what_is_leased_is_not_removed_and_is_swept_after_its_last_lease_without_a_row() {
        let leases = Leases::default();
        let (first, second) = (leases.take(NAR), leases.take(NAR));
        drop(first);
        assert!(leases.is_leased(NAR) && leases.remove(NAR).is_none());
        assert_eq!(leases.take_unrecorded(), []);
        second.recorded();
        assert_eq!(leases.take_unrecorded(), [NAR], "the first has recorded nothing");
        leases.take(NAR).recorded();
        assert_eq!(leases.take_unrecorded(), []);
        assert!(!leases.is_leased(NAR) && leases.remove(NAR).is_some());
    }

    #[test]
    fn a_lease_waits_for_the_removal_that_is_under_way() {
        let leases = Leases::default();
        let removal = leases.remove(NAR).expect("nobody has a lease");
        assert!(leases.remove(NAR).is_none());
        let (taken, taking) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| taken.send(leases.take(NAR)).expect("it is waited for"));
            assert!(taking.recv_timeout(Duration::from_millis(50)).is_err());
            drop(removal);
            taking.recv().expect("a lease").recorded();
        });
    }
}
