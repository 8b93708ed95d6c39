//! What an evaluation has brought so far: attributes go to the index, some at a time, and their derivations are held until the
//! generation is complete.

use std::collections::BTreeSet;

use narinfo::StorePath;
use sha2::{Digest, Sha256};

use super::error::{ATTRIBUTES_MAX, RefreshError};
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
    pub(super) allowed: BTreeSet<StorePath>,
    pub(super) denied: BTreeSet<StorePath>,
    pub(super) size: GenerationSize,
    /// One for each attribute, of all that makes one generation differ from another.
    digests: Vec<[u8; 32]>,
    pub(super) first_error: Option<(String, String)>,
}

impl<'a> Gathered<'a> {
    pub(super) fn new(set: &'a Set, index: Index, daemon: PooledDaemon) -> Self {
        Self {
            set,
            index,
            daemon,
            rows: Vec::new(),
            allowed: BTreeSet::new(),
            denied: BTreeSet::new(),
            size: GenerationSize::default(),
            digests: Vec::new(),
            first_error: None,
        }
    }

    pub(super) async fn take(&mut self, found: Attribute, system: &str) -> Result<(), RefreshError> {
        let Attribute { attribute, outcome } = found;
        let mut denied = false;
        let outcome = match outcome {
            Ok((drv, name)) => {
                denied = !self.set.settings.allows(&attribute, &name);
                self.size.attributes += 1;
                self.size.denied += u64::from(denied);
                if !self.allowed.contains(&drv) && !self.denied.contains(&drv) {
                    self.daemon.add_temp_root(&drv).await?;
                }
                let known = if denied { &mut self.denied } else { &mut self.allowed };
                known.insert(drv.clone());
                Ok(drv)
            }
            Err(error) => {
                self.size.errors += 1;
                self.first_error.get_or_insert_with(|| (attribute.clone(), error.clone()));
                Err(error)
            }
        };
        let outcome_text = outcome.as_ref().map(ToString::to_string);
        let told = format!("{attribute:?} {system:?} {denied} {outcome_text:?}");
        self.digests.push(Sha256::digest(told).into());
        self.rows.push(AttributeRow { attribute, system: system.to_owned(), outcome, denied });
        self.show(system);
        if self.size.attributes + self.size.errors > ATTRIBUTES_MAX {
            return Err(RefreshError::TooMany);
        }
        if self.rows.len() >= ROWS_CHUNK {
            self.index.add_attributes(std::mem::take(&mut self.rows)).await?;
        }
        Ok(())
    }

    pub(super) fn show(&self, system: &str) {
        let GenerationSize { attributes, errors, .. } = self.size;
        self.set.show(State::Evaluating { system: system.to_owned(), attributes, errors });
    }

    pub(super) async fn finish(mut self) -> Result<Self, RefreshError> {
        self.index.add_attributes(std::mem::take(&mut self.rows)).await?;
        Ok(self)
    }

    /// What makes this generation differ from another, in hexadecimal digits; not the order in which attributes came.
    pub(super) fn digest(&mut self) -> String {
        self.digests.sort_unstable();
        let digest = Sha256::digest(self.digests.as_flattened());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
