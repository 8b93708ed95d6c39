//! The derivation of a path, learnt from the daemon and the .drv files: for machines where Nix's database
//! cannot be read. Slower than the database and blind to new derivations for some seconds. Keeps a bounded
//! number of derivations in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use narinfo::{Derivation, StoreDir, StorePath, StorePathHash};

use super::connection::Daemon;
use super::database::KnownOutput;
use super::error::DaemonError;

/// Derivations that are kept in mind at most, some 300 bytes for each of their outputs.
pub const DERIVATIONS_MAX: usize = 1_000_000;
/// Age at which the list of all paths is fetched again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// Bytes of a .drv file at most.
const DERIVATION_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The outputs of all derivations in the store, as far as they are known before they are built. Clones share
/// them.
#[derive(Clone, Debug, Default)]
pub struct Derivations(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<KnownDerivations>,
    /// One refresh at a time; it also has the time of the last one.
    refreshing: tokio::sync::Mutex<Option<Instant>>,
    warned: AtomicBool,
}

#[derive(Debug, Default)]
struct KnownDerivations {
    derivations: BTreeSet<StorePath>,
    outputs: BTreeMap<StorePathHash, Vec<KnownOutput>>,
}

impl Derivations {
    /// The outputs with this hash that some derivation in the store of `daemon` gives. Asks the daemon for
    /// all its paths, at most every five seconds, when the hash is not known.
    ///
    /// # Errors
    /// If the daemon fails. An unreadable .drv file is left out, with a warning.
    pub async fn derivers_of(
        &self,
        daemon: &mut Daemon,
        hash: StorePathHash,
    ) -> Result<Vec<KnownOutput>, DaemonError> {
        if let Some(outputs) = self.lock().outputs.get(&hash) {
            return Ok(outputs.clone());
        }
        let mut refreshed = self.0.refreshing.lock().await;
        if refreshed.is_none_or(|at| at.elapsed() >= REFRESH_INTERVAL) {
            self.refresh(daemon).await?;
            *refreshed = Some(Instant::now());
        }
        Ok(self.lock().outputs.get(&hash).cloned().unwrap_or_default())
    }

    async fn refresh(&self, daemon: &mut Daemon) -> Result<(), DaemonError> {
        let mut valid = daemon.query_all_valid_paths().await?;
        valid.retain(StorePath::is_derivation);
        let (this, store_dir) = (self.clone(), daemon.store_dir.clone());
        let read = tokio::task::spawn_blocking(move || this.update(&store_dir, valid));
        read.await.map_err(|error| DaemonError::Protocol(format!("reading .drv files failed: {error}")))
    }

    /// Forgets derivations that are gone and reads those that are new.
    fn update(&self, store_dir: &StoreDir, valid: BTreeSet<StorePath>) {
        let new: Vec<StorePath> = {
            let mut known = self.lock();
            if !known.derivations.is_subset(&valid) {
                known.derivations.retain(|drv| valid.contains(drv));
                known.outputs.retain(|_, makers| {
                    makers.retain(|maker| valid.contains(&maker.drv));
                    !makers.is_empty()
                });
            }
            valid.difference(&known.derivations).cloned().collect()
        };
        for drv in new {
            let read = read_derivation(store_dir, &drv);
            let mut known = self.lock();
            if known.derivations.len() >= DERIVATIONS_MAX {
                if !self.0.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        limit = DERIVATIONS_MAX,
                        "the store has more derivations than the limit; the rest is not built on request; let this user read Nix's database, which has no such limit"
                    );
                }
                return;
            }
            match read {
                Ok(derivation) => known.add(&drv, derivation),
                Err(reason) => tracing::warn!(%drv, reason, "skipped an unreadable derivation"),
            }
            // Also when it cannot be read: once is enough to try, as it never changes.
            known.derivations.insert(drv);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, KnownDerivations> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownDerivations {
    fn add(&mut self, drv: &StorePath, derivation: Derivation) {
        for (output, path) in derivation.outputs {
            if let Some(path) = path {
                let makers = self.outputs.entry(path.hash()).or_default();
                makers.push(KnownOutput { path, drv: drv.clone(), output });
            }
        }
    }
}

/// Reads the file of a derivation that is in the store. Blocks.
///
/// # Errors
/// With the reason, when it cannot be read, is too large or does not parse.
pub fn read_derivation(store_dir: &StoreDir, drv: &StorePath) -> Result<Derivation, String> {
    let mut bytes = Vec::new();
    let file = File::open(Path::new(&drv.in_dir(store_dir))).map_err(|error| error.to_string())?;
    file.take(DERIVATION_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > DERIVATION_BYTES_MAX {
        return Err(format!("it has more than {DERIVATION_BYTES_MAX} bytes"));
    }
    Derivation::parse(store_dir, drv, &bytes).map_err(|error| error.to_string())
}
