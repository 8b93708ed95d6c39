//! Uses, eviction and pins in memory.

use std::time::{Duration, SystemTime};

use narinfo::{NarHash, StorePathHash};

use super::{MemoryBackend, State, done};
use crate::index::AccessLog;
use crate::index::backend::{BackendFuture, Changes, Pins, RetentionStore};
use crate::model::{Candidate, Cursor, Decision, Evicted, EvictionBounds, NarRow, PinRow};

/// Candidates that one step looks at: few, so that tests see several steps.
const CANDIDATES: usize = 4;
/// Packed NARs in one batch.
const BATCH: usize = 16;
/// A path that was needed so shortly before is not touched again.
const SLACK: Duration = Duration::from_millis(250);

impl State {
    pub(super) fn nar_bytes(&self) -> u64 {
        self.nars.values().map(|nar| nar.file_size).sum()
    }

    fn record_uses(&mut self, now: SystemTime, log: &AccessLog) {
        for nar in log.take() {
            for hash in self.hashes_of(nar) {
                if let Some((_, used_at)) = self.pushed.get_mut(&hash) {
                    *used_at = now.max(*used_at);
                }
                self.touch(hash, micros(now));
            }
        }
    }

    /// Moves a path back with everything that it refers to, and gives its place: before all of that.
    fn touch(&mut self, hash: StorePathHash, at: i64) -> i64 {
        let Some(served) = self.paths.get(&hash) else { return i64::MAX };
        if served.needed_at_us >= at - i64::try_from(SLACK.as_micros()).unwrap_or(i64::MAX) {
            return served.needed_at_us;
        }
        let below: Vec<_> = served.row.info.references.iter().map(|path| path.hash()).collect();
        let below = below.into_iter().filter(|other| *other != hash);
        let place = below.fold(at, |place, other| place.min(self.touch(other, at).saturating_sub(1)));
        if let Some(served) = self.paths.get_mut(&hash) {
            served.needed_at_us = place;
        }
        place
    }

    /// The first candidates behind `after`, in order.
    fn candidates(&self, after: Option<Cursor>, pushed_since: SystemTime) -> Vec<Candidate> {
        let cursor =
            |hash: &StorePathHash| Cursor { needed_at_us: self.paths[hash].needed_at_us, hash: *hash };
        let mut order: Vec<Cursor> = self.paths.keys().map(cursor).collect();
        order.sort();
        let candidate = |at: &Cursor| {
            let row = &self.paths[&at.hash].row;
            let shared = order
                .iter()
                .any(|other| other > at && self.paths[&other.hash].row.info.nar_hash == row.info.nar_hash);
            let since_epoch = Duration::from_micros(u64::try_from(at.needed_at_us).unwrap_or(0));
            Candidate {
                path: row.info.path.clone(),
                nar: row.info.nar_hash,
                file_bytes: self.nars.get(&row.info.nar_hash).filter(|_| !shared).map(|nar| nar.file_size),
                needed_at: (at.needed_at_us > 0).then(|| SystemTime::UNIX_EPOCH + since_epoch),
                held: self.pins.keys().any(|(_, pinned)| *pinned == at.hash)
                    || self.pushed.get(&at.hash).is_some_and(|(_, used_at)| *used_at >= pushed_since)
                    || self.is_to_pack(row.info.nar_hash),
                cursor: *at,
            }
        };
        let behind = order.iter().filter(|at| after.is_none_or(|after| **at > after));
        behind.take(CANDIDATES).map(candidate).collect()
    }

    /// One step of an eviction, which evicts nothing yet.
    fn decide(&mut self, now: SystemTime, after: Option<Cursor>, bounds: &EvictionBounds) -> Evicted {
        let mut first = self.candidates(after, bounds.pushed_since);
        match bounds.decide(&first, self.nar_bytes()) {
            Decision::Evict(count) => {
                first.truncate(count);
                Evicted::Paths(first)
            }
            Decision::Retain(count) => {
                for candidate in first.into_iter().take(count) {
                    let came = Duration::from_micros(candidate.cursor.needed_at_us.unsigned_abs()) + SLACK;
                    let at = if candidate.needed_at.is_some() { now } else { SystemTime::UNIX_EPOCH + came };
                    self.touch(candidate.cursor.hash, micros(at));
                }
                Evicted::Reordered
            }
        }
    }
}

impl RetentionStore for MemoryBackend {
    fn record_uses(&self, now: SystemTime, log: &AccessLog) -> BackendFuture<'_, ()> {
        self.state().record_uses(now, log);
        done(())
    }

    fn evict(&self, now: SystemTime, bounds: EvictionBounds, log: &AccessLog) -> BackendFuture<'_, Evicted> {
        let mut state = self.state();
        state.record_uses(now, log);
        let evicted = state.decide(now, None, &bounds);
        if let Evicted::Paths(paths) = &evicted {
            for candidate in paths {
                state.remove_path(candidate.path.hash());
                if candidate.file_bytes.is_some() {
                    state.nars.remove(&candidate.nar);
                }
            }
            state.tell(&Changes::removed(paths.iter().map(|candidate| candidate.path.hash()).collect()));
        }
        done(evicted)
    }

    fn preview_eviction(
        &self,
        now: SystemTime,
        after: Option<Cursor>,
        bounds: EvictionBounds,
        log: &AccessLog,
    ) -> BackendFuture<'_, Evicted> {
        let mut state = self.state();
        state.record_uses(now, log);
        done(state.decide(now, after, &bounds))
    }

    fn unused_nars(&self, after: Option<NarHash>) -> BackendFuture<'_, Vec<NarRow>> {
        let state = self.state();
        let behind = state.nars.values().filter(|row| after.is_none_or(|after| row.nar_hash > after));
        let unused = behind.filter(|row| state.hashes_of(row.nar_hash).is_empty());
        done(unused.take(BATCH).copied().collect())
    }

    fn forget_unused_nars(&self, nars: Vec<NarHash>) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        for nar in nars {
            if state.hashes_of(nar).is_empty() {
                state.nars.remove(&nar);
            }
        }
        done(())
    }

    fn former_path(&self, nar: NarHash) -> BackendFuture<'_, Option<StorePathHash>> {
        done(self.state().former_nars.get(&nar).copied())
    }

    fn nar_bytes(&self) -> BackendFuture<'_, u64> {
        done(self.state().nar_bytes())
    }
}

impl Pins for MemoryBackend {
    fn pin(&self, name: String, hashes: Vec<StorePathHash>) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        for hash in hashes {
            state.pins.entry((name.clone(), hash)).or_insert_with(SystemTime::now);
        }
        done(())
    }

    fn unpin(&self, name: String, hash: Option<StorePathHash>) -> BackendFuture<'_, usize> {
        let mut state = self.state();
        let before = state.pins.len();
        state.pins.retain(|(under, pinned), _| *under != name && hash != Some(*pinned));
        done(before - state.pins.len())
    }

    fn pins(&self) -> BackendFuture<'_, Vec<PinRow>> {
        let state = self.state();
        let pin = |((name, hash), pinned_at): (&(String, StorePathHash), &SystemTime)| PinRow {
            hash: *hash,
            name: name.clone(),
            pinned_at: *pinned_at,
            path: state.paths.get(hash).map(|served| served.row.info.path.clone()),
        };
        done(state.pins.iter().map(pin).collect())
    }

    fn pin_count(&self) -> BackendFuture<'_, u64> {
        done(self.state().pins.len() as u64)
    }

    fn restore_pins(&self, pins: Vec<PinRow>) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        for pin in pins {
            state.pins.entry((pin.name, pin.hash)).or_insert(pin.pinned_at);
        }
        done(())
    }
}

fn micros(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}
