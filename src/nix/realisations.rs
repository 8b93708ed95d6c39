//! What the local Nix store knows of the outputs of content-addressed derivations. Whatever the daemon has no answer to is
//! not known: realisations are an experimental feature, which most daemons have not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use narinfo::{DrvOutput, Realisation, StorePath};

use super::derivations::read_derivation;
use super::error::DaemonError;
use super::pool::Pool;

/// How long a daemon that hung up on such a question is not asked again.
const REST: Duration = Duration::from_secs(600);

/// Asks the daemon for realisations; clones share what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Realisations {
    pool: Pool,
    /// When the daemon hung up.
    hung_up: Arc<Mutex<Option<Instant>>>,
    warned: Arc<AtomicBool>,
}

impl Realisations {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, hung_up: Arc::default(), warned: Arc::default() }
    }

    /// What the store knows of an output, whether or not its path is still there.
    ///
    /// # Errors
    /// When the daemon is lost.
    pub(super) async fn find(&self, id: &DrvOutput) -> Result<Option<Realisation>, DaemonError> {
        let found = match id.drv() {
            Some(drv) => self.by_path(id, drv).await,
            None => self.by_hash(id).await,
        };
        match found {
            Err(error @ DaemonError::Nix(_)) => {
                tracing::debug!(%id, %error, "the Nix daemon has no realisation");
                Ok(None)
            }
            other => other,
        }
    }

    async fn by_hash(&self, id: &DrvOutput) -> Result<Option<Realisation>, DaemonError> {
        if self.hung_up.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < REST) {
            return Ok(None);
        }
        match self.pool.get().await?.query_realisation(id).await {
            Err(DaemonError::Closed) => {}
            other => return other,
        }
        // It may have been an old connection.
        match self.pool.get_fresh().await?.query_realisation(id).await {
            Err(DaemonError::Closed) => {}
            other => return other,
        }
        *self.hung_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the Nix daemon hangs up when it is asked for a realisation, as it does without the experimental \
                 feature ca-derivations; realisations come from other caches alone"
            );
        }
        Ok(None)
    }

    /// The daemon tells by the path of the derivation what its outputs are. Only a derivation without inputs that are
    /// derivations names all that it is built from; of others the answer would depend on which builds those had.
    async fn by_path(&self, id: &DrvOutput, drv: &StorePath) -> Result<Option<Realisation>, DaemonError> {
        let mut daemon = self.pool.get().await?;
        if !daemon.is_valid_path(drv).await? {
            return Ok(None);
        }
        let (store_dir, file) = (daemon.store_dir.clone(), drv.clone());
        let read = tokio::task::spawn_blocking(move || read_derivation(&store_dir, &file)).await;
        let derivation = match read {
            Ok(Ok(derivation)) => derivation,
            Ok(Err(reason)) => {
                tracing::warn!(%drv, reason, "no realisation of it: it cannot be read");
                return Ok(None);
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let output = id.output().as_str();
        let floating = derivation.outputs.get(output).is_some_and(Option::is_none);
        if !floating || !derivation.input_derivations.is_empty() {
            return Ok(None);
        }
        let mut outputs = daemon.query_derivation_output_map(drv).await?;
        Ok(outputs.remove(output).flatten().map(|path| Realisation::new(id.clone(), path)))
    }
}
