//! Re-signing: adds signatures of keys that came after paths were published to every served path, in the
//! background. Answers do not wait for it: each is completed when it is rendered.

use std::time::Duration;

use narinfo::Signature;

use super::{Adopter, Error};
use crate::model::PathRow;

/// Pause between two batches, for other writers of the index.
const REST: Duration = Duration::from_millis(10);

impl Adopter {
    /// Adds the signatures that served paths lack, and returns the number of paths that lacked one.
    ///
    /// # Errors
    /// The index fails; signatures that were added by then stay.
    pub async fn resign(&self) -> Result<u64, Error> {
        let (mut after, mut resigned) = (None, 0);
        loop {
            let rows = self.index.paths_after(after).await?;
            let Some(last) = rows.last() else { return Ok(resigned) };
            after = Some(last.info.path.hash());
            let changed: Vec<_> = rows.into_iter().filter_map(|row| self.completed(row)).collect();
            if !changed.is_empty() {
                resigned += changed.len() as u64;
                self.index.set_signatures(changed).await?;
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// The path with all its signatures, if one was missing.
    fn completed(&self, row: PathRow) -> Option<(narinfo::StorePathHash, Vec<Signature>)> {
        let mut signatures = row.info.signatures.clone();
        let added = self.keys.complete(&mut signatures, || self.fingerprint(&row));
        added.then(|| (row.info.path.hash(), signatures))
    }
}
