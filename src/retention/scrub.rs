//! The scrub: stored NARs are read and verified while the server is idle, a few bytes a second, so that
//! damage is found before a client finds it. Gives way to everything else; begins anywhere, since a server
//! may never run for a whole round.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use narinfo::NarHash;
use tokio::time::{Instant, sleep};

use super::{Error, Retention};
use crate::causes::with_causes;
use crate::model::NarRow;
use crate::packer::{Corruption, Look};

/// The rest between two files at most, and where there is nothing to do: the next one may be large.
const REST_MAX: Duration = Duration::from_secs(3600);
/// The rest after something could not be read or written, and where nothing is stored.
const RETRY_AFTER: Duration = Duration::from_secs(60);

impl Retention {
    /// Verifies one NAR after the other, for as long as the server runs.
    pub async fn scrub(self) {
        let Some(every) = self.0.settings.scrub_every else { return std::future::pending().await };
        let mut after = Some(somewhere());
        loop {
            if !self.0.index.leads() {
                sleep(RETRY_AFTER).await;
                continue;
            }
            match self.scrub_behind(after, every).await {
                Ok(last) => {
                    if last.is_none() && after.is_none() {
                        sleep(RETRY_AFTER.min(every)).await;
                    }
                    after = last;
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot verify stored NARs; it is tried again"
                    );
                    sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    /// Verifies a few NARs, and gives the last one; `None` at the end.
    async fn scrub_behind(&self, after: Option<NarHash>, every: Duration) -> Result<Option<NarHash>, Error> {
        let rows = self.0.index.nars(after).await?;
        for row in &rows {
            let begun = Instant::now();
            self.scrub_one(row).await?;
            // Each file has the part of the time that it has of the bytes.
            let stored = self.0.index.nar_bytes().await?.max(row.file_size).max(1);
            let share = every.mul_f64(row.file_size as f64 / stored as f64).min(REST_MAX);
            sleep(share.saturating_sub(begun.elapsed())).await;
        }
        Ok(rows.last().map(|row| row.nar_hash))
    }

    async fn scrub_one(&self, row: &NarRow) -> Result<(), Error> {
        let flaw = self.0.packer.inspect(row, Look::Gently).await?;
        self.0.metrics.scrubbed(row.file_size);
        match flaw {
            // What is missing or short is seen, and put right, when it is asked for.
            Some(flaw) if flaw.is_damage() => {
                let (nar, fault) = (row.nar_hash, with_causes(&flaw.fault));
                tracing::error!(%nar, fault, "quarantined a corrupt NAR; it is packed or fetched again on request");
                self.set_aside(flaw).await
            }
            _ => Ok(()),
        }
    }

    /// Serves a damaged file no longer.
    pub(super) async fn set_aside(&self, flaw: Corruption) -> Result<(), Error> {
        self.0.packer.quarantine(flaw).await?;
        self.0.metrics.damaged();
        Ok(())
    }
}

/// A place among all hashes, another one at each start.
fn somewhere() -> NarHash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&RandomState::new().build_hasher().finish().to_be_bytes());
    NarHash::from_bytes(bytes)
}
