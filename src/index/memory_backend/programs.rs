//! Programs of packages in memory.

use std::collections::BTreeSet;

use narinfo::{NarHash, StorePathHash};

use super::{MemoryBackend, State, done};
use crate::index::backend::{BackendFuture, Programs};
use crate::model::{NewNar, ProgramOwner};

impl State {
    /// Records a packed NAR in place of an earlier file, with its programs.
    pub(super) fn insert_new(&mut self, nar: NewNar) {
        self.nars.insert(nar.row.nar_hash, nar.row);
        self.insert_programs(nar.row.nar_hash, nar.programs);
    }

    fn insert_programs(&mut self, nar: NarHash, programs: Vec<String>) {
        self.programs.extend(programs.into_iter().map(|program| (program, nar)));
    }

    /// Paths that have or had one of these NARs.
    fn hashes_of_all(&self, nars: &BTreeSet<NarHash>) -> BTreeSet<StorePathHash> {
        let served = self.paths.iter().filter(|(_, served)| nars.contains(&served.row.info.nar_hash));
        let former = self.former_nars.iter().filter(|(nar, _)| nars.contains(nar));
        served.map(|(hash, _)| *hash).chain(former.map(|(_, hash)| *hash)).collect()
    }
}

impl Programs for MemoryBackend {
    fn record_programs(&self, nar: NarHash, programs: Vec<String>) -> BackendFuture<'_, ()> {
        self.state().insert_programs(nar, programs);
        done(())
    }

    fn programs_of(&self, nar: NarHash, max: u32) -> BackendFuture<'_, Vec<String>> {
        let state = self.state();
        let names = state.programs.iter().filter(|(_, of)| *of == nar).map(|(name, _)| name.clone());
        done(names.take(max as usize).collect())
    }

    fn program_owners(&self, program: String, max: u32) -> BackendFuture<'_, Vec<ProgramOwner>> {
        let state = self.state();
        let nars = state.programs.iter().filter(|(name, _)| *name == program).map(|(_, nar)| *nar).collect();
        let hashes = state.hashes_of_all(&nars);
        let mut owners = state.sets.program_owners(&program, &hashes);
        owners.sort_by_cached_key(|owner| {
            (owner.path.is_some(), owner.name.attribute.len(), owner.name.attribute.clone())
        });
        owners.truncate(max as usize);
        done(owners)
    }

    fn programs_like(&self, beginning: String, max: u32) -> BackendFuture<'_, Vec<String>> {
        let state = self.state();
        let recorded = state.programs.iter().map(|(name, _)| name.clone());
        let names: BTreeSet<String> =
            recorded.chain(state.sets.programs()).filter(|name| name.starts_with(&beginning)).collect();
        done(names.into_iter().take(max as usize).collect())
    }
}
