//! The attributes that an evaluation has found so far: they go to the index, some at a time, and their
//! derivations are protected until the generation is complete.

use std::collections::{BTreeSet, HashMap};

use narinfo::StorePath;
use sha2::{Digest, Sha256};

use super::attribute::{AttributePath, Evaluated, FoundDerivation};
use super::error::{ATTRIBUTES_MAX, RefreshError};
use super::settings::{Permission, SetSource};
use super::trouble::{self, Class};
use super::walk::Attribute;
use super::{ConfiguredSet, RefreshState};
use crate::index::Index;
use crate::model::{AttributeRow, GenerationSize};
use crate::nix::PooledDaemon;

/// Attributes that are brought in at a time.
const ROWS_CHUNK: usize = 1_000;
/// Paths that the daemon is asked of at a time.
const VALID_CHUNK: usize = 10_000;

/// The attributes found so far. Their derivations are protected as long as the connection lives.
pub(super) struct Gathered<'a> {
    set: &'a ConfiguredSet,
    index: Index,
    pub(super) daemon: PooledDaemon,
    rows: Vec<AttributeRow>,
    /// One path may come more than once.
    overlaps: bool,
    /// The best rank of each path, of the system at hand.
    ranks: HashMap<AttributePath, usize>,
    system: String,
    /// Derivations that one of their names allows.
    pub(super) allowed: BTreeSet<StorePath>,
    /// Derivations that one of their names does not allow.
    pub(super) denied: BTreeSet<StorePath>,
    /// Derivations that one of their names denies, and so all of them.
    forbidden: BTreeSet<StorePath>,
    pub(super) size: GenerationSize,
    /// One for each attribute, of all that makes one generation differ from another.
    digests: Vec<[u8; 32]>,
    pub(super) first_error: Option<(String, String)>,
    /// Attributes that could not be evaluated for what may pass, of the system at hand.
    troubled: Vec<(AttributePath, usize, String)>,
    /// Transient errors of all systems.
    pub(super) trouble: TransientErrors,
}

/// Attributes whose evaluation failed for what may pass.
#[derive(Debug, Default)]
pub(super) struct TransientErrors {
    /// Those that are as the generation before had them.
    kept: u64,
    /// Those that there is nothing of.
    lacking: u64,
    /// One of them with its error.
    first: Option<(String, String)>,
}

impl TransientErrors {
    /// A summary of the errors, if there are any.
    pub(super) fn told(&self) -> Option<String> {
        let (attribute, error) = self.first.as_ref()?;
        let error = error.lines().next().unwrap_or_default();
        let Self { kept, lacking, .. } = self;
        Some(format!(
            "{kept} attributes could not be evaluated for the time being and are as they were, {lacking} more have failed so; \
             all is evaluated again soon; the first, {attribute}: {error}"
        ))
    }
}

/// The error of an attribute whose derivation does not exist.
pub(super) fn not_there(drv: &StorePath) -> String {
    format!("its derivation {drv} is not in the Nix store")
}

/// The error of an attribute whose derivation is malformed.
pub(super) fn unreadable(drv: &StorePath, reason: &str) -> String {
    format!("its derivation {drv} cannot be read: {reason}")
}

impl<'a> Gathered<'a> {
    pub(super) fn new(set: &'a ConfiguredSet, index: Index, daemon: PooledDaemon) -> Self {
        let one_root = |origin: &SetSource| matches!(origin, SetSource::Expression { attributes, .. } if attributes.len() < 2);
        Self {
            overlaps: !one_root(&set.settings.origin),
            set,
            index,
            daemon,
            rows: Vec::new(),
            ranks: HashMap::new(),
            system: String::new(),
            allowed: BTreeSet::new(),
            denied: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            size: GenerationSize::default(),
            digests: Vec::new(),
            first_error: None,
            troubled: Vec::new(),
            trouble: TransientErrors::default(),
        }
    }

    pub(super) async fn take(&mut self, told: Attribute, system: &str) -> Result<(), RefreshError> {
        if self.system != system {
            self.settle_trouble().await?;
            system.clone_into(&mut self.system);
            self.ranks.clear();
        }
        let Attribute { attribute, rank, outcome } = told;
        match outcome {
            Err(error) if trouble::class(&error) != Class::Final => {
                self.troubled.push((attribute, rank, error));
                Ok(())
            }
            outcome => self.put(attribute, rank, outcome).await,
        }
    }

    /// Has what could not be evaluated for what may pass be as in the generation before, where that was made
    /// with the same settings and has it.
    async fn settle_trouble(&mut self) -> Result<(), RefreshError> {
        let troubled = std::mem::take(&mut self.troubled);
        if troubled.is_empty() {
            return Ok(());
        }
        let (name, made_by) = (self.set.settings.name.to_string(), self.set.settings.made_by());
        let current = self.index.set(name.clone()).await?.generations.into_iter().next();
        let is_alike = current.is_some_and(|current| current.made_by == made_by);
        for (attribute, rank, error) in troubled {
            let (text, system) = (attribute.to_string(), self.system.clone());
            let before = self.index.attribute(name.clone(), text.clone(), system).await?;
            let outcome = match before.filter(|_| is_alike).and_then(|before| before.row) {
                Some(AttributeRow { outcome: Ok(drv), output, program, .. }) => {
                    let name = drv.name().trim_end_matches(".drv").to_owned();
                    Ok(FoundDerivation { drv, name, output, program })
                }
                _ => Err(error.clone()),
            };
            // What is at its limits by itself would be so again, unless it was not before.
            if outcome.is_ok() || trouble::class(&error) == Class::Transient {
                let count = if outcome.is_ok() { &mut self.trouble.kept } else { &mut self.trouble.lacking };
                *count += 1;
                self.trouble.first.get_or_insert((text, error));
            }
            self.put(attribute, rank, outcome).await?;
        }
        Ok(())
    }

    async fn put(
        &mut self,
        attribute: AttributePath,
        rank: usize,
        outcome: Evaluated,
    ) -> Result<(), RefreshError> {
        let system = self.system.clone();
        let (outcome, output, program, verdict) = match outcome {
            Ok(found) => {
                let verdict = self.set.settings.verdict(&attribute, &found.names());
                self.take_derivation(&found.drv, verdict).await?;
                (Ok(found.drv), found.output, found.program, verdict)
            }
            Err(error) => {
                self.size.errors += 1;
                self.first_error.get_or_insert_with(|| (attribute.to_string(), error.clone()));
                (Err(error), None, None, Permission::Allowed)
            }
        };
        let text = attribute.to_string();
        let outcome_text = outcome.as_ref().map(ToString::to_string);
        let all = format!("{text:?} {rank} {system:?} {verdict:?} {output:?} {program:?} {outcome_text:?}");
        self.digests.push(Sha256::digest(all).into());
        if self.is_best(attribute, rank) {
            let (system, denied) = (system.clone(), verdict != Permission::Allowed);
            self.rows.push(AttributeRow { attribute: text, system, outcome, output, program, denied });
        }
        self.show(&system);
        if self.size.attributes + self.size.errors > ATTRIBUTES_MAX {
            return Err(RefreshError::TooMany);
        }
        if self.rows.len() >= ROWS_CHUNK {
            self.index.add_attributes(std::mem::take(&mut self.rows)).await?;
        }
        Ok(())
    }

    async fn take_derivation(&mut self, drv: &StorePath, verdict: Permission) -> Result<(), RefreshError> {
        self.size.attributes += 1;
        if !self.allowed.contains(drv) && !self.denied.contains(drv) {
            self.daemon.add_temp_root(drv).await?;
        }
        if verdict == Permission::Denied {
            self.forbidden.insert(drv.clone());
        }
        let known = if verdict == Permission::Allowed { &mut self.allowed } else { &mut self.denied };
        known.insert(drv.clone());
        Ok(())
    }

    /// True if no better result came for this path: a later one replaces an earlier one.
    fn is_best(&mut self, attribute: AttributePath, rank: usize) -> bool {
        if !self.overlaps {
            return true;
        }
        let best = self.ranks.entry(attribute).or_insert(rank);
        *best = rank.min(*best);
        *best == rank
    }

    pub(super) fn show(&self, system: &str) {
        let GenerationSize { attributes, errors, .. } = self.size;
        self.set.show(RefreshState::Evaluating { system: system.to_owned(), attributes, errors });
    }

    /// Brings in what is left, and has each derivation be denied or allowed under all of its names alike.
    pub(super) async fn finish(mut self) -> Result<Self, RefreshError> {
        self.settle_trouble().await?;
        self.index.add_attributes(std::mem::take(&mut self.rows)).await?;
        self.leave_out_what_is_not_there().await?;
        let of_both: Vec<StorePath> = self.allowed.intersection(&self.denied).cloned().collect();
        let also_allowed = self.allowed.intersection(&self.forbidden).cloned().collect::<Vec<_>>();
        for drv in also_allowed {
            self.allowed.remove(&drv);
        }
        self.denied.retain(|drv| !self.allowed.contains(drv));
        let (denied, allowed) = of_both.into_iter().partition(|drv| self.denied.contains(drv));
        let sized = self.index.settle_attributes(denied, allowed).await?;
        self.size = GenerationSize { derivations: self.size.derivations, ..sized };
        Ok(self)
    }

    /// Has attributes fail whose derivation does not exist: a source may name any.
    async fn leave_out_what_is_not_there(&mut self) -> Result<(), RefreshError> {
        let all: Vec<StorePath> = self.allowed.union(&self.denied).cloned().collect();
        for chunk in all.chunks(VALID_CHUNK) {
            let valid = self.daemon.query_valid_paths(chunk).await?;
            let gone: Vec<&StorePath> = chunk.iter().filter(|drv| !valid.contains(drv)).collect();
            for drv in &gone {
                self.allowed.remove(drv);
                self.denied.remove(drv);
            }
            let failures: Vec<_> = gone.into_iter().map(|drv| (drv.clone(), not_there(drv))).collect();
            if let Some((drv, error)) = failures.first() {
                self.first_error.get_or_insert_with(|| (drv.to_string(), error.clone()));
                self.index.fail_attributes(failures).await?;
            }
        }
        Ok(())
    }

    /// A digest of the generation's content, in hexadecimal digits, independent of the order of attributes.
    pub(super) fn digest(&mut self) -> String {
        self.digests.sort_unstable();
        let digest = Sha256::digest(self.digests.as_flattened());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
