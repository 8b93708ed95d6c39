//! The closure of a set's derivations, read from their .drv files: the outputs of each.
//! An unreadable one is reported and left out. Streams its results; keeps only the names of the derivations.

use std::collections::HashSet;

use narinfo::{StoreDir, StorePath};

use crate::model::OutputRow;
use crate::nix::read_derivation;

/// Outputs that are handed on at a time.
pub(super) const ROWS_CHUNK: usize = 4_000;
/// Derivations that cannot be read and are remembered.
const UNREADABLE_MAX: usize = 1_000;
/// Derivations of one set at most.
const DERIVATIONS_MAX: usize = 2_000_000;

/// Why a closure cannot be read. The text is for who runs the server.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// There are too many.
    #[error("the set has more than {DERIVATIONS_MAX} derivations")]
    TooMany,
    /// Nobody wants it any more.
    #[error("it was given up")]
    GivenUp,
}

/// The result of a read.
#[derive(Debug, Default)]
pub struct DerivationClosure {
    /// Derivations in it.
    pub derivations: u64,
    /// Those whose file is missing or malformed, and why: they give nothing, and spoil nothing else. A
    /// thousand at most.
    pub unreadable: Vec<(StorePath, String)>,
}

/// Reads the closure of the derivations in `allowed`, and of those in `denied` that are not in it, only
/// themselves. Gives the outputs to `sink`, some thousands at a time, with the number of derivations read so
/// far; `sink` returns false when it wants no more. Blocks.
///
/// # Errors
/// If there are too many, or `sink` wants no more.
pub(super) fn read(
    store_dir: &StoreDir,
    allowed: impl IntoIterator<Item = StorePath>,
    denied: impl IntoIterator<Item = StorePath>,
    mut sink: impl FnMut(Vec<OutputRow>, u64) -> bool,
) -> Result<DerivationClosure, GraphError> {
    let mut closure = DerivationClosure::default();
    let mut seen: HashSet<StorePath> = HashSet::new();
    let mut open: Vec<StorePath> = Vec::new();
    for drv in allowed {
        if seen.insert(drv.clone()) {
            open.push(drv);
        }
    }
    let mut rows = Vec::with_capacity(ROWS_CHUNK);
    while let Some(drv) = open.pop() {
        let Some(derivation) = closure.read(store_dir, &drv) else { continue };
        closure.derivations += 1;
        for input in derivation.input_derivations {
            if !seen.contains(&input) {
                seen.insert(input.clone());
                open.push(input);
            }
        }
        if seen.len() > DERIVATIONS_MAX {
            return Err(GraphError::TooMany);
        }
        add(&mut rows, &drv, derivation.outputs.into_values(), false);
        if rows.len() >= ROWS_CHUNK && !sink(std::mem::take(&mut rows), closure.derivations) {
            return Err(GraphError::GivenUp);
        }
    }
    for drv in denied {
        if seen.insert(drv.clone()) {
            let Some(derivation) = closure.read(store_dir, &drv) else { continue };
            add(&mut rows, &drv, derivation.outputs.into_values(), true);
            if rows.len() >= ROWS_CHUNK && !sink(std::mem::take(&mut rows), closure.derivations) {
                return Err(GraphError::GivenUp);
            }
        }
    }
    if sink(rows, closure.derivations) { Ok(closure) } else { Err(GraphError::GivenUp) }
}

impl DerivationClosure {
    fn read(&mut self, store_dir: &StoreDir, drv: &StorePath) -> Option<narinfo::Derivation> {
        match read_derivation(store_dir, drv) {
            Ok(derivation) => Some(derivation),
            Err(reason) => {
                if self.unreadable.len() < UNREADABLE_MAX {
                    self.unreadable.push((drv.clone(), reason));
                }
                None
            }
        }
    }
}

fn add(
    rows: &mut Vec<OutputRow>,
    drv: &StorePath,
    outputs: impl Iterator<Item = Option<StorePath>>,
    denied: bool,
) {
    // What has no path before its build cannot be asked for by hash.
    rows.extend(outputs.flatten().map(|path| OutputRow { hash: path.hash(), drv: drv.clone(), denied }));
}
