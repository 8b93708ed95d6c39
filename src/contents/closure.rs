//! The closure of a served path, in an order in which no path comes before one that it refers to: the order
//! of Nix's own exports, and the same each time.

use std::collections::HashMap;

use narinfo::{StorePath, StorePathHash};
use sha2::{Digest, Sha256};

use super::{Contents, Error};
use crate::model::PathRow;

/// Paths of a closure at most.
pub(super) const CLOSURE_PATHS_MAX: usize = 100_000;

impl Contents {
    /// A served path with all that it refers to, dependencies first.
    ///
    /// # Errors
    /// The index fails, or the closure has more than a hundred thousand paths.
    pub async fn closure(&self, of: StorePathHash) -> Result<Vec<PathRow>, Error> {
        let mut rows = self.closure_rows(of).await?;
        let mut ordered = Vec::with_capacity(rows.len());
        // Each with whether all that it refers to is there by now.
        let mut stack = vec![(of, false)];
        while let Some((hash, complete)) = stack.pop() {
            if complete {
                ordered.extend(rows.remove(&hash));
            } else if let Some(row) = rows.get(&hash).filter(|row| !row.begun) {
                let references = row.references(hash);
                if let Some(row) = rows.get_mut(&hash) {
                    row.begun = true;
                }
                stack.push((hash, true));
                stack.extend(references.into_iter().map(|reference| (reference, false)));
            }
        }
        Ok(ordered.into_iter().map(|node| node.row).collect())
    }

    async fn closure_rows(&self, of: StorePathHash) -> Result<HashMap<StorePathHash, ClosureNode>, Error> {
        let (mut rows, mut next) = (HashMap::new(), vec![of]);
        while let Some(hash) = next.pop() {
            if rows.contains_key(&hash) {
                continue;
            }
            // A path is served only with all that it refers to.
            let row = self.0.index.find(hash).await?.ok_or(Error::Evicted)?.row;
            next.extend(row.info.references.iter().map(StorePath::hash));
            rows.insert(hash, ClosureNode { row, begun: false });
            if rows.len() > CLOSURE_PATHS_MAX {
                return Err(Error::TooLarge(CLOSURE_PATHS_MAX));
            }
        }
        Ok(rows)
    }
}

/// A path of a closure, and whether the walk has come to it.
struct ClosureNode {
    row: PathRow,
    begun: bool,
}

impl ClosureNode {
    /// The paths that it refers to beside itself, the last one first.
    fn references(&self, own: StorePathHash) -> Vec<StorePathHash> {
        let references = self.row.info.references.iter().rev().map(StorePath::hash);
        references.filter(|reference| *reference != own).collect()
    }
}

/// Identity of the contents of a closure: of its paths and their NARs.
#[must_use]
pub fn closure_digest(rows: &[PathRow]) -> String {
    let mut digest = Sha256::new();
    for row in rows {
        digest.update(format!("{} {}\n", row.info.path, row.info.nar_hash.to_nixbase32()));
    }
    digest.finalize().iter().take(20).map(|byte| format!("{byte:02x}")).collect()
}
