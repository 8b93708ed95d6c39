//! Signatures of keys that came after paths were published: added to every served path, in the background. Answers do not wait for
//! it, since each is completed as it is rendered.

use std::time::Duration;

use narinfo::Signature;

use super::{Adopter, Error};
use crate::index::PathRow;

/// Rest between two batches, for whoever else writes to the index.
const REST: Duration = Duration::from_millis(10);

impl Adopter {
    /// Adds the signatures that served paths lack, and returns how many paths lacked one.
    ///
    /// # Errors
    /// When the index fails; what was added by then stays.
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

    /// The path with all its signatures, where one was missing.
    fn completed(&self, row: PathRow) -> Option<(narinfo::StorePathHash, Vec<Signature>)> {
        let mut signatures = row.info.signatures.clone();
        let added = self.keys.complete(&mut signatures, || self.fingerprint(&row));
        added.then(|| (row.info.path.hash(), signatures))
    }
}
