//! The closure of a set's derivations, read from their .drv files: what each of them gives.
//! Streams what it finds; holds the names of the derivations and nothing else of them.

use std::collections::HashSet;

use narinfo::{StoreDir, StorePath};

use crate::index::OutputRow;
use crate::nix::read_derivation;

/// Outputs that are handed on at a time.
pub(super) const ROWS_CHUNK: usize = 4_000;
/// Derivations of one set at most.
const DERIVATIONS_MAX: usize = 2_000_000;

/// Why a closure cannot be read. The text is for who runs the server.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// A file is missing or malformed.
    #[error("{drv} cannot be read: {reason}")]
    Unreadable {
        /// The derivation.
        drv: StorePath,
        /// Why.
        reason: String,
    },
    /// There are too many.
    #[error("the set has more than {DERIVATIONS_MAX} derivations")]
    TooMany,
    /// Nobody wants it any more.
    #[error("it was given up")]
    GivenUp,
}

/// Reads the closure of the derivations in `allowed`, and of those in `denied` that are not in it, only themselves. Gives
/// the outputs to `sink`, some thousands at a time, with the number of derivations read so far; `sink` returns false when it
/// wants no more. Gives the number of derivations in the closure. Blocks.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn read(
    store_dir: &StoreDir,
    allowed: impl IntoIterator<Item = StorePath>,
    denied: impl IntoIterator<Item = StorePath>,
    mut sink: impl FnMut(Vec<OutputRow>, u64) -> bool,
) -> Result<u64, GraphError> {
    let mut seen: HashSet<StorePath> = HashSet::new();
    let mut open: Vec<StorePath> = Vec::new();
    for drv in allowed {
        if seen.insert(drv.clone()) {
            open.push(drv);
        }
    }
    let mut rows = Vec::with_capacity(ROWS_CHUNK);
    let mut count = 0;
    while let Some(drv) = open.pop() {
        let derivation = read_one(store_dir, &drv)?;
        count += 1;
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
        if rows.len() >= ROWS_CHUNK && !sink(std::mem::take(&mut rows), count) {
            return Err(GraphError::GivenUp);
        }
    }
    for drv in denied {
        if seen.insert(drv.clone()) {
            let derivation = read_one(store_dir, &drv)?;
            add(&mut rows, &drv, derivation.outputs.into_values(), true);
            if rows.len() >= ROWS_CHUNK && !sink(std::mem::take(&mut rows), count) {
                return Err(GraphError::GivenUp);
            }
        }
    }
    if sink(rows, count) { Ok(count) } else { Err(GraphError::GivenUp) }
}

fn read_one(store_dir: &StoreDir, drv: &StorePath) -> Result<narinfo::Derivation, GraphError> {
    read_derivation(store_dir, drv).map_err(|reason| GraphError::Unreadable { drv: drv.clone(), reason })
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
