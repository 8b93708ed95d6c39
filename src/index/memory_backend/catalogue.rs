//! Package sets and their generations in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use narinfo::{StorePath, StorePathHash};

use super::{MemoryBackend, State, done};
use crate::index::backend::{BackendFuture, Changes, Generations, PackageSets};
use crate::model::{
    AttributeName, AttributeRow, Attributed, Generation, GenerationSize, Maker, NewGeneration, OutputRow,
    ProgramOwner, Search, SetRow, Swapped, VersionRow,
};

/// All package sets, and the generation that was started.
#[derive(Default)]
pub(super) struct Sets {
    /// In the order in which they were configured first.
    sets: Vec<Set>,
    last_generation: u64,
    new_attributes: BTreeMap<(String, String), AttributeRow>,
    new_outputs: BTreeMap<(StorePathHash, StorePath), bool>,
}

#[derive(Default)]
struct Set {
    name: String,
    tried_at: Option<SystemTime>,
    failure: Option<String>,
    /// The current one last.
    generations: Vec<Generation>,
    attributes: BTreeMap<(String, String), AttributeRow>,
    /// The latest last; `until` is that of the generation.
    versions: Vec<((String, String), VersionRow)>,
    outputs: Vec<Output>,
}

/// An output from the first generation that has it to the last.
struct Output {
    row: OutputRow,
    first: u64,
    last: Option<u64>,
}

impl Sets {
    /// Every hash that a set can build, or that the generation that was started will.
    pub(super) fn hashes(&self) -> impl Iterator<Item = StorePathHash> {
        let outputs = self.sets.iter().flat_map(|set| &set.outputs).map(|output| output.row.hash);
        outputs.chain(self.new_outputs.keys().map(|(hash, _)| *hash))
    }

    /// Names of programs by which packages are run.
    pub(super) fn programs(&self) -> impl Iterator<Item = String> {
        self.sets.iter().flat_map(|set| set.attributes.values()).filter_map(|row| row.program.clone())
    }

    /// The packages that are run by a program of this name, and those with an output at one of these paths.
    pub(super) fn program_owners(&self, program: &str, paths: &BTreeSet<StorePathHash>) -> Vec<ProgramOwner> {
        let mut found = Vec::new();
        for set in &self.sets {
            for row in set.attributes.values().filter(|row| row.outcome.is_ok() && !row.denied) {
                let (attribute, system) = (row.attribute.clone(), row.system.clone());
                let name = AttributeName { set: set.name.clone(), attribute, system };
                if row.program.as_deref() == Some(program) {
                    found.push(ProgramOwner { name: name.clone(), path: None });
                }
                let is_output =
                    |output: &&Output| output.last.is_none() && row.outcome.as_ref() == Ok(&output.row.drv);
                let hashes = set.outputs.iter().filter(is_output).map(|output| output.row.hash);
                let hashes: BTreeSet<StorePathHash> = hashes.filter(|hash| paths.contains(hash)).collect();
                let owner = |hash| ProgramOwner { name: name.clone(), path: Some(hash) };
                found.extend(hashes.into_iter().map(owner));
            }
        }
        found
    }

    fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }

    fn set_mut(&mut self, name: &str) -> Option<&mut Set> {
        self.sets.iter_mut().find(|set| set.name == name)
    }

    fn clear(&mut self) {
        self.new_attributes.clear();
        self.new_outputs.clear();
    }
}

impl Set {
    fn current(&self) -> Option<&Generation> {
        self.generations.last().filter(|generation| generation.replaced_at.is_none())
    }

    /// Ends the versions that a new generation does not have, and adds those that it has.
    fn add_versions(
        &mut self,
        attributes: &BTreeMap<(String, String), AttributeRow>,
        generation: u64,
        before: Option<u64>,
    ) {
        for (key, version) in self.versions.iter_mut().filter(|(_, version)| version.last.is_none()) {
            let drv = attributes.get(key).map(|row| row.outcome.as_ref());
            if drv != Some(Ok(&version.drv)) {
                version.last = before;
            }
        }
        for row in attributes.values() {
            self.add_version(row, generation);
        }
    }

    fn add_version(&mut self, row: &AttributeRow, generation: u64) {
        let Ok(drv) = row.outcome.clone() else { return };
        let key = (row.attribute.clone(), row.system.clone());
        let is_known = |(known, version): &((String, String), VersionRow)| {
            *known == key && version.drv == drv && version.last.is_none()
        };
        if !self.versions.iter().any(is_known) {
            let since = SystemTime::now();
            self.versions.push((key, VersionRow { drv, first: generation, last: None, since, until: None }));
        }
    }
}

/// True where a text is like a pattern, in which a star stands for anything; upper and lower case are alike.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern) = (text.to_ascii_lowercase(), pattern.to_ascii_lowercase());
    let Some((first, rest)) = pattern.split_once('*') else { return text.contains(&pattern) };
    let Some(mut left) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = rest.split('*').collect();
    let (last, between) = parts.split_last().unwrap_or((&"", &[]));
    for part in between {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

fn makers(state: &State, hash: StorePathHash) -> Vec<Maker> {
    let mut rows: Vec<(&Output, &Set)> = Vec::new();
    for set in &state.sets.sets {
        let outputs = set.outputs.iter().filter(|output| output.row.hash == hash);
        rows.extend(outputs.map(|output| (output, set)));
    }
    rows.sort_by_key(|(output, _)| {
        (output.last.is_some(), output.row.denied, std::cmp::Reverse(output.first))
    });
    let mut found: Vec<Maker> = Vec::new();
    for (output, set) in rows {
        if found.iter().all(|maker| maker.drv != output.row.drv) {
            let denied_by = output.row.denied.then(|| set.name.clone());
            found.push(Maker { drv: output.row.drv.clone(), denied_by });
        }
    }
    for drv in state.pushed_makers(hash) {
        if found.iter().all(|maker| maker.drv != drv) {
            found.push(Maker { drv, denied_by: None });
        }
    }
    found
}

impl PackageSets for MemoryBackend {
    fn makers(&self, hash: StorePathHash) -> BackendFuture<'_, Vec<Maker>> {
        done(makers(&self.state(), hash))
    }

    fn makers_of_all(
        &self,
        hashes: Vec<StorePathHash>,
    ) -> BackendFuture<'_, BTreeMap<StorePathHash, Vec<Maker>>> {
        let state = self.state();
        let makers = hashes.into_iter().map(|hash| (hash, makers(&state, hash)));
        done(makers.filter(|(_, makers)| !makers.is_empty()).collect())
    }

    fn attribute(
        &self,
        set: String,
        attribute: String,
        system: String,
    ) -> BackendFuture<'_, Option<Attributed>> {
        let state = self.state();
        let current = state.sets.set(&set).and_then(|set| Some((set, set.current()?)));
        done(current.map(|(set, generation)| Attributed {
            generation: generation.id,
            row: set.attributes.get(&(attribute, system)).cloned(),
        }))
    }

    fn listed(&self, set: String, search: Search) -> BackendFuture<'_, Option<(u64, Vec<AttributeRow>)>> {
        let state = self.state();
        let Some((set, current)) = state.sets.set(&set).and_then(|set| Some((set, set.current()?))) else {
            return done(None);
        };
        let Search { like, after, system, max } = search;
        let like = |row: &&AttributeRow| {
            let Some(pattern) = &like else { return true };
            let drv = row.outcome.as_ref().ok().map(|drv| drv.name().trim_end_matches(".drv").to_owned());
            let names = [Some(row.attribute.clone()), Some(row.attribute.replace('"', "")), drv];
            names.into_iter().flatten().any(|name| is_like(&name, pattern))
        };
        let rows = set.attributes.values().filter(|row| row.attribute > after && row.system == system);
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        done(Some((current.id, rows.filter(like).take(max).cloned().collect())))
    }

    fn attributes(&self, attribute: String) -> BackendFuture<'_, Vec<(String, AttributeRow)>> {
        let state = self.state();
        let mut found = Vec::new();
        for set in &state.sets.sets {
            let rows = set.attributes.values().filter(|row| row.attribute == attribute);
            found.extend(rows.map(|row| (set.name.clone(), row.clone())));
        }
        done(found)
    }

    fn allowed_derivations(&self, set: String) -> BackendFuture<'_, BTreeSet<StorePath>> {
        let state = self.state();
        let rows = state.sets.set(&set).into_iter().flat_map(|set| set.attributes.values());
        done(rows.filter(|row| !row.denied).filter_map(|row| row.outcome.clone().ok()).collect())
    }

    fn has_derivation(&self, set: String, drv: StorePath) -> BackendFuture<'_, bool> {
        let state = self.state();
        let mut rows = state.sets.set(&set).into_iter().flat_map(|set| set.attributes.values());
        done(rows.any(|row| row.outcome.as_ref() == Ok(&drv)))
    }

    fn failed_attributes(&self, set: String, max: u32) -> BackendFuture<'_, Vec<AttributeRow>> {
        let state = self.state();
        let rows = state.sets.set(&set).into_iter().flat_map(|set| set.attributes.values());
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        done(rows.filter(|row| row.outcome.is_err()).take(max).cloned().collect())
    }

    fn set(&self, name: String) -> BackendFuture<'_, SetRow> {
        let state = self.state();
        done(state.sets.set(&name).map_or_else(SetRow::default, |set| SetRow {
            tried_at: set.tried_at,
            failure: set.failure.clone(),
            generations: set.generations.iter().rev().cloned().collect(),
        }))
    }

    fn holders(&self) -> BackendFuture<'_, Vec<StorePath>> {
        let state = self.state();
        let all = state.sets.sets.iter().flat_map(|set| &set.generations);
        done(all.map(|generation| generation.holder.clone()).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn names_of(&self, drvs: Vec<StorePath>) -> BackendFuture<'_, BTreeMap<StorePath, AttributeName>> {
        let state = self.state();
        let name = |drv: StorePath| {
            let in_set = |set: &Set| {
                let row = set.attributes.values().find(|row| row.outcome.as_ref() == Ok(&drv))?;
                let (attribute, system) = (row.attribute.clone(), row.system.clone());
                Some(AttributeName { set: set.name.clone(), attribute, system })
            };
            let name = state.sets.sets.iter().find_map(in_set)?;
            Some((drv, name))
        };
        done(drvs.into_iter().filter_map(name).collect())
    }

    fn versions(&self, name: AttributeName, max: u32) -> BackendFuture<'_, Vec<VersionRow>> {
        let state = self.state();
        let key = (name.attribute, name.system);
        let Some(set) = state.sets.set(&name.set) else { return done(Vec::new()) };
        let replaced_at = |id: u64| set.generations.iter().find(|it| it.id == id)?.replaced_at;
        let versions = set.versions.iter().rev().filter(|(known, _)| *known == key);
        let version = |(_, version): &((String, String), VersionRow)| VersionRow {
            until: version.last.and_then(replaced_at),
            ..version.clone()
        };
        done(versions.take(max as usize).map(version).collect())
    }

    fn derivations_named(&self, names: Vec<AttributeName>) -> BackendFuture<'_, Vec<Option<StorePath>>> {
        let state = self.state();
        let drv = |AttributeName { set, attribute, system }: AttributeName| {
            let row = state.sets.set(&set)?.attributes.get(&(attribute, system))?;
            row.outcome.clone().ok().filter(|_| !row.denied)
        };
        done(names.into_iter().map(drv).collect())
    }
}

impl Generations for MemoryBackend {
    fn sync_sets(&self, names: Vec<String>) -> BackendFuture<'_, ()> {
        let sets = &mut self.state().sets;
        sets.clear();
        sets.sets.retain(|set| names.contains(&set.name));
        for name in names {
            if sets.set(&name).is_none() {
                sets.sets.push(Set { name, ..Set::default() });
            }
        }
        done(())
    }

    fn start_generation(&self) -> BackendFuture<'_, ()> {
        self.state().sets.clear();
        done(())
    }

    fn add_attributes(&self, rows: Vec<AttributeRow>) -> BackendFuture<'_, ()> {
        let named = rows.into_iter().map(|row| ((row.attribute.clone(), row.system.clone()), row));
        self.state().sets.new_attributes.extend(named);
        done(())
    }

    fn settle_attributes(
        &self,
        denied: Vec<StorePath>,
        allowed: Vec<StorePath>,
    ) -> BackendFuture<'_, GenerationSize> {
        let mut state = self.state();
        let mut size = GenerationSize::default();
        for row in state.sets.new_attributes.values_mut() {
            match &row.outcome {
                Ok(drv) => {
                    let settled = denied.contains(drv) || (row.denied && !allowed.contains(drv));
                    row.denied = settled;
                    size.attributes += 1;
                    size.denied += u64::from(settled);
                }
                Err(_) => size.errors += 1,
            }
        }
        done(size)
    }

    fn fail_attributes(&self, failures: Vec<(StorePath, String)>) -> BackendFuture<'_, u64> {
        let mut state = self.state();
        let mut count = 0;
        for (drv, reason) in failures {
            for row in state.sets.new_attributes.values_mut().filter(|row| row.outcome.as_ref() == Ok(&drv)) {
                (row.outcome, row.output, row.denied) = (Err(reason.clone()), None, false);
                row.program = None;
                count += 1;
            }
        }
        done(count)
    }

    fn explain_attribute(
        &self,
        generation: u64,
        name: AttributeName,
        error: String,
    ) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        let is_current = |set: &&mut Set| set.current().is_some_and(|current| current.id == generation);
        if let Some(set) = state.sets.sets.iter_mut().find(is_current)
            && let Some(row) = set.attributes.get_mut(&(name.attribute, name.system))
            && row.outcome.is_err()
        {
            row.outcome = Err(error);
        }
        done(())
    }

    fn add_outputs(&self, rows: Vec<OutputRow>) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        let added = rows.iter().map(|row| row.hash).collect();
        for OutputRow { hash, drv, denied } in rows {
            *state.sets.new_outputs.entry((hash, drv)).or_insert(true) &= denied;
        }
        state.tell(&Changes::added(added));
        done(())
    }

    fn swap_generation(&self, new: NewGeneration) -> BackendFuture<'_, Swapped> {
        let mut state = self.state();
        let state = &mut *state;
        let (attributes, outputs) =
            (std::mem::take(&mut state.sets.new_attributes), std::mem::take(&mut state.sets.new_outputs));
        state.sets.last_generation += 1;
        let mut swapped = Swapped { generation: state.sets.last_generation, added: 0, removed: 0 };
        let Some(set) = state.sets.set_mut(&new.set) else { return done(swapped) };
        let now = SystemTime::now();
        let before = set.current().map(|current| current.id);
        if let Some(replaced) = set.generations.last_mut() {
            replaced.replaced_at.get_or_insert(now);
        }
        for output in set.outputs.iter_mut().filter(|output| output.last.is_none()) {
            let key = (output.row.hash, output.row.drv.clone());
            if outputs.get(&key) != Some(&output.row.denied) {
                output.last = before;
                swapped.removed += 1;
                state.failures.remove(&output.row.drv);
            }
        }
        for ((hash, drv), denied) in outputs {
            let is_there =
                |output: &Output| output.last.is_none() && (output.row.hash, &output.row.drv) == (hash, &drv);
            if !set.outputs.iter().any(is_there) {
                let row = OutputRow { hash, drv, denied };
                set.outputs.push(Output { row, first: swapped.generation, last: None });
                swapped.added += 1;
            }
        }
        set.add_versions(&attributes, swapped.generation, before);
        set.attributes = attributes;
        (set.tried_at, set.failure) = (Some(now), None);
        set.generations.push(Generation {
            id: swapped.generation,
            made_by: new.made_by,
            holder: new.holder,
            made_at: now,
            replaced_at: None,
            size: new.size,
        });
        done(swapped)
    }

    fn add_evaluated(
        &self,
        generation: u64,
        row: AttributeRow,
        outputs: Vec<OutputRow>,
        holder: StorePath,
    ) -> BackendFuture<'_, bool> {
        let mut state = self.state();
        let is_current = |set: &&mut Set| set.current().is_some_and(|current| current.id == generation);
        let Some(set) = state.sets.sets.iter_mut().find(is_current) else { return done(false) };
        let (mut new, mut added) = (BTreeSet::new(), Vec::new());
        for output in outputs {
            added.push(output.hash);
            let is_there = |known: &&mut Output| {
                known.first == generation && (known.row.hash, &known.row.drv) == (output.hash, &output.drv)
            };
            match set.outputs.iter_mut().find(is_there) {
                Some(known) => known.row.denied &= output.denied,
                None => {
                    new.extend((!output.denied).then(|| output.drv.clone()));
                    set.outputs.push(Output { row: output, first: generation, last: None });
                }
            }
        }
        if let Some(current) = set.generations.last_mut() {
            current.holder = holder;
            current.size.attributes += u64::from(row.outcome.is_ok());
            current.size.denied += u64::from(row.denied);
            current.size.errors += u64::from(row.outcome.is_err());
            current.size.derivations += new.len() as u64;
        }
        set.add_version(&row, generation);
        set.attributes.insert((row.attribute.clone(), row.system.clone()), row);
        state.tell(&Changes::added(added));
        done(true)
    }

    fn record_refresh(&self, set: String, failure: Option<String>) -> BackendFuture<'_, ()> {
        let sets = &mut self.state().sets;
        sets.clear();
        if let Some(set) = sets.set_mut(&set) {
            (set.tried_at, set.failure) = (Some(SystemTime::now()), failure);
        }
        done(())
    }

    fn expire_generations(&self, set: String, keep: Duration) -> BackendFuture<'_, ()> {
        let now = SystemTime::now();
        let mut state = self.state();
        let Some(set) = state.sets.set_mut(&set) else { return done(()) };
        let is_expired = |generation: &Generation| {
            let replaced = generation.replaced_at.map(|at| at.min(now));
            replaced.is_some_and(|at| at.checked_add(keep).is_some_and(|end| end <= now))
        };
        let expired: BTreeSet<u64> =
            set.generations.iter().filter(|it| is_expired(it)).map(|generation| generation.id).collect();
        set.outputs.retain(|output| output.last.is_none_or(|last| !expired.contains(&last)));
        set.versions.retain(|(_, version)| version.last.is_none_or(|last| !expired.contains(&last)));
        set.generations.retain(|generation| !expired.contains(&generation.id));
        done(())
    }
}
