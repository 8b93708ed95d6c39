//! Uploads, and the derivations among them, in memory.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::SystemTime;

use narinfo::derivation::InputHash;
use narinfo::{StorePath, StorePathHash};

use super::{MemoryBackend, State, done};
use crate::index::backend::{BackendFuture, Pushes};
use crate::model::{NewNar, PathRow, PushedDerivation, UploadOutcome};

impl State {
    /// Hashes that pushed derivations can build.
    pub(super) fn pushed_outputs(&self) -> impl Iterator<Item = StorePathHash> {
        self.pushed.values().flat_map(|(derivation, _)| derivation.outputs.values().map(StorePath::hash))
    }

    /// The pushed derivations that have an output with this hash, the latest used first.
    pub(super) fn pushed_makers(&self, hash: StorePathHash) -> Vec<StorePath> {
        self.pushed_with(|pushed| pushed.outputs.values().any(|path| path.hash() == hash))
    }

    fn pushed_with(&self, wanted: impl Fn(&PushedDerivation) -> bool) -> Vec<StorePath> {
        let mut found: Vec<_> = self.pushed.values().filter(|(derivation, _)| wanted(derivation)).collect();
        found.sort_by_key(|(derivation, used_at)| (Reverse(*used_at), derivation.drv.hash()));
        found.into_iter().map(|(derivation, _)| derivation.drv.clone()).collect()
    }
}

impl Pushes for MemoryBackend {
    fn publish_upload(
        &self,
        path: PathRow,
        nar: NewNar,
        derivation: Option<PushedDerivation>,
    ) -> BackendFuture<'_, UploadOutcome> {
        let mut state = self.state();
        let served = state.paths.get(&path.info.path.hash()).map(|served| served.row.clone());
        let outcome = match served {
            Some(served)
                if (&served.info.path, served.info.nar_hash) != (&path.info.path, path.info.nar_hash) =>
            {
                return done(UploadOutcome::Served(Box::new(served)));
            }
            Some(served) => UploadOutcome::Served(Box::new(served)),
            None => UploadOutcome::Published,
        };
        let is_lacking = |reference: &&StorePath| **reference != path.info.path && !state.serves(reference);
        if outcome == UploadOutcome::Published
            && let Some(lacking) = path.info.references.iter().find(is_lacking)
        {
            return done(UploadOutcome::Lacks(lacking.clone()));
        }
        let mut changes = state.publish(std::iter::once(&path)).unwrap_or_default();
        changes.changed.extend(state.hashes_of(nar.row.nar_hash));
        state.insert_new(nar);
        if let Some(derivation) = derivation {
            changes.added.extend(derivation.outputs.values().map(StorePath::hash));
            state.pushed.insert(derivation.drv.hash(), (derivation, SystemTime::now()));
        }
        state.tell(&changes);
        done(outcome)
    }

    fn pushed_outputs(
        &self,
        drvs: Vec<StorePath>,
    ) -> BackendFuture<'_, BTreeMap<StorePath, BTreeMap<String, StorePath>>> {
        let state = self.state();
        let outputs = |drv: StorePath| {
            let (pushed, _) = state.pushed.get(&drv.hash()).filter(|(pushed, _)| pushed.drv == drv)?;
            Some((drv, pushed.outputs.clone())).filter(|(_, outputs)| !outputs.is_empty())
        };
        done(drvs.into_iter().filter_map(outputs).collect())
    }

    fn pushed_named(&self, name: String) -> BackendFuture<'_, Vec<StorePath>> {
        done(self.state().pushed_with(|pushed| pushed.drv.name() == name))
    }

    fn pushed_input_hashes(&self, drvs: Vec<StorePath>) -> BackendFuture<'_, BTreeMap<StorePath, InputHash>> {
        let state = self.state();
        let hash = |drv: StorePath| {
            let (pushed, _) = state.pushed.get(&drv.hash()).filter(|(pushed, _)| pushed.drv == drv)?;
            Some((drv, pushed.input_hash))
        };
        done(drvs.into_iter().filter_map(hash).collect())
    }

    fn note_pushed_uses(&self, drvs: Vec<StorePath>, now: SystemTime) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        for drv in drvs {
            if let Some((_, used_at)) =
                state.pushed.get_mut(&drv.hash()).filter(|(pushed, _)| pushed.drv == drv)
            {
                *used_at = now;
            }
        }
        done(())
    }
}
