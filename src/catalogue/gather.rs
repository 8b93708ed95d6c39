//! What an evaluation has brought so far: attributes go to the index, some at a time, and their derivations are held until the
//! generation is complete.

use std::collections::{BTreeSet, HashMap};

use narinfo::StorePath;
use sha2::{Digest, Sha256};

use super::attribute::AttributePath;
use super::error::{ATTRIBUTES_MAX, RefreshError};
use super::settings::{Origin, Verdict};
use super::walk::Attribute;
use super::{Set, State};
use crate::index::{AttributeRow, GenerationSize, Index};
use crate::nix::PooledDaemon;

/// Attributes that are brought in at a time.
const ROWS_CHUNK: usize = 1_000;

/// What an evaluation has brought so far. Its derivations are held as long as the connection lives.
pub(super) struct Gathered<'a> {
    set: &'a Set,
    index: Index,
    pub(super) daemon: PooledDaemon,
    rows: Vec<AttributeRow>,
    /// Whether one path may be told of more than once.
    overlaps: bool,
    /// The best rank of each path, of the system at hand.
    ranks: HashMap<AttributePath, usize>,
    system: String,
    /// What may be built by one of its names.
    pub(super) allowed: BTreeSet<StorePath>,
    /// What may not be built, by one of its names.
    pub(super) denied: BTreeSet<StorePath>,
    /// What is denied by one of its names, and so by all.
    forbidden: BTreeSet<StorePath>,
    pub(super) size: GenerationSize,
    /// One for each attribute, of all that makes one generation differ from another.
    digests: Vec<[u8; 32]>,
    pub(super) first_error: Option<(String, String)>,
}

impl<'a> Gathered<'a> {
    pub(super) fn new(set: &'a Set, index: Index, daemon: PooledDaemon) -> Self {
        let one_root =
            |origin: &Origin| matches!(origin, Origin::Expression { attributes, .. } if attributes.len() < 2);
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
        }
    }

    pub(super) async fn take(&mut self, told: Attribute, system: &str) -> Result<(), RefreshError> {
        if self.system != system {
            system.clone_into(&mut self.system);
            self.ranks.clear();
        }
        let Attribute { attribute, rank, outcome } = told;
        let (outcome, output, verdict) = match outcome {
            Ok(found) => {
                let verdict = self.set.settings.verdict(&attribute, &found.names());
                self.take_derivation(&found.drv, verdict).await?;
                (Ok(found.drv), found.output, verdict)
            }
            Err(error) => {
                self.size.errors += 1;
                self.first_error.get_or_insert_with(|| (attribute.to_string(), error.clone()));
                (Err(error), None, Verdict::Allowed)
            }
        };
        let text = attribute.to_string();
        let outcome_text = outcome.as_ref().map(ToString::to_string);
        let all = format!("{text:?} {rank} {system:?} {verdict:?} {output:?} {outcome_text:?}");
        self.digests.push(Sha256::digest(all).into());
        if self.is_best(attribute, rank) {
            let (system, denied) = (system.to_owned(), verdict != Verdict::Allowed);
            self.rows.push(AttributeRow { attribute: text, system, outcome, output, denied });
        }
        self.show(system);
        if self.size.attributes + self.size.errors > ATTRIBUTES_MAX {
            return Err(RefreshError::TooMany);
        }
        if self.rows.len() >= ROWS_CHUNK {
            self.index.add_attributes(std::mem::take(&mut self.rows)).await?;
        }
        Ok(())
    }

    async fn take_derivation(&mut self, drv: &StorePath, verdict: Verdict) -> Result<(), RefreshError> {
        self.size.attributes += 1;
        if !self.allowed.contains(drv) && !self.denied.contains(drv) {
            self.daemon.add_temp_root(drv).await?;
        }
        if verdict == Verdict::Denied {
            self.forbidden.insert(drv.clone());
        }
        let known = if verdict == Verdict::Allowed { &mut self.allowed } else { &mut self.denied };
        known.insert(drv.clone());
        Ok(())
    }

    /// Whether nothing better was told of this path: what comes later takes the place of what came before.
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
        self.set.show(State::Evaluating { system: system.to_owned(), attributes, errors });
    }

    /// Brings in what is left, and has each derivation be denied or allowed under all of its names alike.
    pub(super) async fn finish(mut self) -> Result<Self, RefreshError> {
        self.index.add_attributes(std::mem::take(&mut self.rows)).await?;
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

    /// What makes this generation differ from another, in hexadecimal digits; not the order in which attributes came.
    pub(super) fn digest(&mut self) -> String {
        self.digests.sort_unstable();
        let digest = Sha256::digest(self.digests.as_flattened());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
