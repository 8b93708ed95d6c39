//! Signatures that served paths gain in the Nix store, as by `nix store sign`: searched for whenever Nix's
//! database has changed, in small parts with long pauses. Never asks the daemon, and nobody waits for it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use narinfo::Signature;
use tokio::time::sleep;

use super::{Adopter, Error};
use crate::nix::Signed;

/// Interval between two looks at the version of Nix's database.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pause after a part, as a multiple of the time that it took: builds change the database all the time.
const REST: u32 = 20;

impl Adopter {
    /// Adds new signatures of the Nix store to those of served paths, for as long as the server runs.
    pub async fn gather_new_signatures(&self) {
        let mut seen = None;
        loop {
            sleep(LOOK_EVERY).await;
            let version = self.local.version();
            if version.is_none() || version == seen {
                continue;
            }
            match self.gather_signatures().await {
                Ok(None) => {}
                Ok(Some(added)) => {
                    seen = version;
                    if added > 0 {
                        tracing::info!(paths = added, "added signatures that the Nix store has gained");
                    }
                }
                // Look-ups warn of a database that cannot be read.
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "cannot look for new signatures");
                }
            }
        }
    }

    /// Searches all served paths once, and returns the number of those that gained signatures; `None` if
    /// Nix's database cannot be read.
    async fn gather_signatures(&self) -> Result<Option<usize>, Error> {
        let (mut after, mut added) = (None, 0);
        // Ours are there, and others under our names are false.
        let is_other = |signature: &Signature| !self.keys.is_named_ours(signature);
        loop {
            let begun = Instant::now();
            let rows = self.index.paths_after(after).await?;
            let Some(last) = rows.last() else { return Ok(Some(added)) };
            after = Some(last.info.path.hash());
            let there = rows.iter().filter(|row| !self.local.definitely_absent(row.info.path.hash()));
            let paths = there.map(|row| row.info.path.clone()).collect();
            let Some(mut signed) = self.local.signatures(paths).await else { return Ok(None) };
            signed.iter_mut().for_each(|signed| signed.signatures.retain(is_other));
            let rows: HashMap<_, _> = rows.iter().map(|row| (&row.info.path, row)).collect();
            let is_new = |signed: &Signed| {
                rows.get(&signed.path)
                    .is_some_and(|row| signed.signatures.iter().any(|new| !row.info.signatures.contains(new)))
            };
            let new = signed.into_iter().filter(is_new);
            let new: Vec<_> = new.map(|new| (new.path.hash(), new.nar_hash, new.signatures)).collect();
            if !new.is_empty() {
                added += self.index.add_signatures(new).await?;
            }
            sleep(begun.elapsed() * REST).await;
        }
    }
}
