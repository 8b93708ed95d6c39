//! Served paths, realisations, NARs and comparisons in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use narinfo::{DrvOutput, NarHash, Realisation, Signature, StorePath, StorePathHash};

use super::{MemoryBackend, Served, State, done};
use crate::index::backend::{
    BackendFuture, Changes, Comparisons, Nars, Paths, RealisationStore, UpstreamNars,
};
use crate::model::{Comparison, Counts, Hit, NarRow, NewNar, PathRow, RealisationOutcome, UpstreamNar};

/// Rows in one batch: few, so that tests see several.
const BATCH: usize = 16;
/// Signatures that a path may have in all.
const SIGNATURES_MAX: usize = 100;

impl State {
    pub(super) fn serves(&self, path: &StorePath) -> bool {
        self.paths.get(&path.hash()).is_some_and(|served| served.row.info.path == *path)
    }

    pub(super) fn insert_path(&mut self, row: PathRow) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let needed_at_us = -i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        self.writes += 1;
        let came = self.writes;
        self.paths.entry(row.info.path.hash()).or_insert(Served { row, came, needed_at_us });
    }

    pub(super) fn remove_path(&mut self, hash: StorePathHash) {
        let Some(Served { row, .. }) = self.paths.remove(&hash) else { return };
        self.former_nars.insert(row.info.nar_hash, hash);
        self.realisations.retain(|_, realisation| *realisation.path() != row.info.path);
        self.pushed.remove(&hash);
        if self.hashes_of(row.info.nar_hash).is_empty() {
            self.upstream_nars.retain(|(nar, _), _| *nar != row.info.nar_hash);
        }
    }

    /// Hashes of the served paths with this NAR.
    pub(super) fn hashes_of(&self, nar: NarHash) -> Vec<StorePathHash> {
        let with_nar = self.paths.values().filter(|served| served.row.info.nar_hash == nar);
        with_nar.map(|served| served.row.info.path.hash()).collect()
    }

    pub(super) fn publish<'a>(&mut self, rows: impl Iterator<Item = &'a PathRow> + Clone) -> Option<Changes> {
        let own: BTreeSet<_> = rows.clone().map(|row| &row.info.path).collect();
        let mut references = rows.clone().flat_map(|row| &row.info.references);
        if !references.all(|path| own.contains(path) || self.serves(path)) {
            return None;
        }
        rows.clone().for_each(|row| self.insert_path(row.clone()));
        Some(Changes::added(rows.map(|row| row.info.path.hash()).collect()))
    }

    /// The realisation of an output, if everything that it needs is there.
    fn whole_realisation(&self, id: &DrvOutput) -> Option<Realisation> {
        let (mut open, mut seen) = (vec![id.clone()], BTreeSet::new());
        while let Some(next) = open.pop() {
            for (needed, path) in self.realisations.get(&next.file())?.dependencies() {
                if self.realisations.get(&needed.file())?.path() != path {
                    return None;
                }
                if seen.insert(needed.clone()) {
                    open.push(needed.clone());
                }
            }
        }
        self.realisations.get(&id.file()).cloned()
    }

    /// True where only the Nix store has this NAR.
    pub(super) fn is_to_pack(&self, nar: NarHash) -> bool {
        !self.nars.contains_key(&nar) && self.upstreams_with(nar).is_empty()
    }

    fn upstreams_with(&self, nar: NarHash) -> Vec<UpstreamNar> {
        self.upstream_nars.values().filter(|known| known.nar_hash == nar).cloned().collect()
    }
}

impl Paths for MemoryBackend {
    fn find(&self, hash: StorePathHash) -> BackendFuture<'_, Option<Hit>> {
        let state = self.state();
        done(state.paths.get(&hash).map(|served| {
            let row = served.row.clone();
            let packed = state.nars.get(&row.info.nar_hash).copied();
            let redirect = match packed {
                Some(_) => None,
                None => state.upstreams_with(row.info.nar_hash).into_iter().find(|nar| nar.redirect),
            };
            Hit { row, packed, redirect }
        }))
    }

    fn served(&self, hashes: Vec<StorePathHash>) -> BackendFuture<'_, BTreeMap<StorePathHash, StorePath>> {
        let state = self.state();
        let served = |hash| Some((hash, state.paths.get(&hash)?.row.info.path.clone()));
        done(hashes.into_iter().filter_map(served).collect())
    }

    fn publish(&self, rows: Vec<PathRow>) -> BackendFuture<'_, bool> {
        let mut state = self.state();
        let changes = state.publish(rows.iter());
        state.tell(&changes.clone().unwrap_or_default());
        done(changes.is_some())
    }

    fn publish_from_upstream(&self, rows: Vec<(PathRow, UpstreamNar)>) -> BackendFuture<'_, bool> {
        let mut state = self.state();
        let Some(mut changes) = state.publish(rows.iter().map(|(row, _)| row)) else { return done(false) };
        for (_, nar) in rows {
            changes.changed.extend(state.hashes_of(nar.nar_hash));
            state.upstream_nars.insert((nar.nar_hash, nar.upstream.clone()), nar);
        }
        state.tell(&changes);
        done(true)
    }

    fn forget_paths(&self, nar: NarHash) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        let removed = state.hashes_of(nar);
        removed.iter().for_each(|hash| state.remove_path(*hash));
        state.tell(&Changes::removed(removed));
        done(())
    }

    fn paths_after(&self, after: Option<StorePathHash>) -> BackendFuture<'_, Vec<PathRow>> {
        let state = self.state();
        let behind = state.paths.iter().filter(|(hash, _)| after.is_none_or(|after| **hash > after));
        done(behind.take(BATCH).map(|(_, served)| served.row.clone()).collect())
    }

    fn set_signatures(&self, paths: Vec<(StorePathHash, Vec<Signature>)>) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        let mut changed = Vec::new();
        for (hash, signatures) in paths {
            if let Some(served) = state.paths.get_mut(&hash) {
                served.row.info.signatures = signatures;
                changed.push(hash);
            }
        }
        state.tell(&Changes::changed(changed));
        done(())
    }

    fn add_signatures(&self, new: Vec<(StorePathHash, NarHash, Vec<Signature>)>) -> BackendFuture<'_, usize> {
        let mut state = self.state();
        let mut changed = Vec::new();
        for (hash, nar, signatures) in new {
            let Some(served) = state.paths.get_mut(&hash).filter(|served| served.row.info.nar_hash == nar)
            else {
                continue;
            };
            let all = &mut served.row.info.signatures;
            let before = all.len();
            for signature in signatures {
                if all.len() < SIGNATURES_MAX && !all.contains(&signature) {
                    all.push(signature);
                }
            }
            if all.len() > before {
                changed.push(hash);
            }
        }
        let count = changed.len();
        state.tell(&Changes::changed(changed));
        done(count)
    }

    fn counts(&self) -> BackendFuture<'_, Counts> {
        let state = self.state();
        let compared = |same| {
            let found = state.comparisons.values().filter_map(|(_, comparison)| comparison.as_ref());
            found.filter(|comparison| comparison.same == same).count() as u64
        };
        done(Counts {
            paths: state.paths.len() as u64,
            nars: state.nars.len() as u64,
            nar_bytes: state.nar_bytes(),
            failures: state.failures.len() as u64,
            reproduced: compared(true),
            not_reproduced: compared(false),
        })
    }
}

impl RealisationStore for MemoryBackend {
    fn realisation(&self, id: DrvOutput) -> BackendFuture<'_, Option<Realisation>> {
        done(self.state().whole_realisation(&id))
    }

    fn publish_realisations(&self, realisations: Vec<Realisation>) -> BackendFuture<'_, RealisationOutcome> {
        let mut state = self.state();
        let mut new = Vec::new();
        for realisation in realisations {
            if !state.serves(realisation.path()) {
                return done(RealisationOutcome::Lacks(realisation.path().clone()));
            }
            match state.whole_realisation(realisation.id()) {
                Some(first) if first.path() == realisation.path() => {}
                Some(first) => {
                    let (id, known) = (first.id().clone(), first.path().clone());
                    return done(RealisationOutcome::Conflict { id, known });
                }
                None => new.push(realisation),
            }
        }
        for realisation in new {
            state.realisations.insert(realisation.id().file(), realisation);
        }
        done(RealisationOutcome::Published)
    }
}

impl Nars for MemoryBackend {
    fn path_with_nar(&self, nar: NarHash) -> BackendFuture<'_, Option<PathRow>> {
        let state = self.state();
        done(
            state
                .paths
                .values()
                .find(|served| served.row.info.nar_hash == nar)
                .map(|served| served.row.clone()),
        )
    }

    fn nar(&self, nar: NarHash) -> BackendFuture<'_, Option<(PathRow, Option<NarRow>)>> {
        let state = self.state();
        let served = state.paths.values().find(|served| served.row.info.nar_hash == nar);
        done(served.map(|served| (served.row.clone(), state.nars.get(&nar).copied())))
    }

    fn paths_with_nar(&self, nar: NarHash) -> BackendFuture<'_, Vec<StorePath>> {
        let state = self.state();
        let with_nar = state.paths.values().filter(|served| served.row.info.nar_hash == nar);
        done(with_nar.map(|served| served.row.info.path.clone()).collect())
    }

    fn packed(&self, nar: NarHash) -> BackendFuture<'_, Option<NarRow>> {
        done(self.state().nars.get(&nar).copied())
    }

    fn not_packed(&self, mut nars: Vec<NarHash>) -> BackendFuture<'_, Vec<NarHash>> {
        let state = self.state();
        nars.retain(|nar| !state.nars.contains_key(nar));
        done(nars)
    }

    fn unpacked(&self) -> BackendFuture<'_, Vec<PathRow>> {
        let state = self.state();
        let mut found: Vec<_> =
            state.paths.values().filter(|served| state.is_to_pack(served.row.info.nar_hash)).collect();
        found.sort_by_key(|served| served.came);
        done(found.into_iter().map(|served| served.row.clone()).collect())
    }

    fn nars(&self, after: Option<NarHash>) -> BackendFuture<'_, Vec<NarRow>> {
        let state = self.state();
        let behind = state.nars.values().filter(|row| after.is_none_or(|after| row.nar_hash > after));
        done(behind.take(BATCH).copied().collect())
    }

    fn record_packed(&self, nar: NewNar) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        let changed = state.hashes_of(nar.row.nar_hash);
        state.insert_new(nar);
        state.tell(&Changes::changed(changed));
        done(())
    }

    fn forget_packed(&self, nar: NarHash) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        state.nars.remove(&nar);
        let changed = state.hashes_of(nar);
        state.tell(&Changes::changed(changed));
        done(())
    }
}

impl UpstreamNars for MemoryBackend {
    fn upstreams_with(&self, nar: NarHash) -> BackendFuture<'_, Vec<UpstreamNar>> {
        done(self.state().upstreams_with(nar))
    }

    fn forget_upstream_nar(&self, nar: NarHash, upstream: String) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        state.upstream_nars.remove(&(nar, upstream));
        let changed = state.hashes_of(nar);
        state.tell(&Changes::changed(changed));
        done(())
    }

    fn sync_upstreams(&self, upstreams: BTreeMap<String, bool>) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        if state.upstreams == upstreams {
            return done(());
        }
        let gone: BTreeSet<NarHash> = state
            .upstream_nars
            .keys()
            .filter(|(_, upstream)| !upstreams.contains_key(upstream))
            .map(|(nar, _)| *nar)
            .collect();
        state.upstream_nars.retain(|(_, upstream), _| upstreams.contains_key(upstream));
        for ((_, upstream), nar) in &mut state.upstream_nars {
            nar.redirect = upstreams[upstream];
        }
        for nar in gone {
            if state.is_to_pack(nar) {
                state.hashes_of(nar).into_iter().for_each(|hash| state.remove_path(hash));
            }
        }
        state.upstreams = upstreams;
        state.tell(&Changes { everything: true, ..Changes::default() });
        done(())
    }
}

impl Comparisons for MemoryBackend {
    fn uncompared(&self, rows_max: usize) -> BackendFuture<'_, Vec<PathRow>> {
        let state = self.state();
        let looked_at = |served: &&Served| state.comparisons.get(&served.row.info.path.hash());
        let unknown = |served: &&Served| {
            served.row.built && looked_at(served).is_none_or(|(_, comparison)| comparison.is_none())
        };
        let mut found: Vec<_> = state.paths.values().filter(unknown).collect();
        found.sort_by_key(|served| looked_at(served).map_or(0, |(at, _)| *at));
        done(found.into_iter().take(rows_max).map(|served| served.row.clone()).collect())
    }

    fn record_comparison(
        &self,
        hash: StorePathHash,
        comparison: Option<Comparison>,
    ) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        state.writes += 1;
        let looked_at = state.writes;
        state.comparisons.insert(hash, (looked_at, comparison));
        done(())
    }

    fn comparison(&self, hash: StorePathHash) -> BackendFuture<'_, Option<Comparison>> {
        done(self.state().comparisons.get(&hash).and_then(|(_, comparison)| comparison.clone()))
    }
}
