//! Realisations that the local Nix store knows of content-addressed derivations. A question that the daemon
//! cannot answer counts as unknown: realisations are an experimental feature, which most daemons lack.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use narinfo::{DrvOutput, Realisation, StorePath};
use tokio::sync::Mutex;

use super::derivations::read_derivation;
use super::error::DaemonError;
use super::pool::Pool;
use crate::tasks::blocking;

/// Pause after a daemon hung up on such a question.
const REST: Duration = Duration::from_secs(600);

/// Asks the daemon for realisations; clones share what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Realisations {
    pool: Pool,
    /// Held while a daemon is asked that has not answered yet: one that hangs up does so by crashing.
    known: Arc<Mutex<QuerySupport>>,
    warned: Arc<AtomicBool>,
}

/// The daemon's behaviour so far.
#[derive(Clone, Copy, Debug, Default)]
enum QuerySupport {
    #[default]
    Nothing,
    /// Answered such a question.
    Answers,
    /// Hung up on one then.
    HungUp(Instant),
}

impl Realisations {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, known: Arc::default(), warned: Arc::default() }
    }

    /// The store's realisation of an output, even if its path is gone.
    ///
    /// # Errors
    /// If the daemon is lost.
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
        let mut known = self.known.lock().await;
        match *known {
            QuerySupport::HungUp(at) if at.elapsed() < REST => Ok(None),
            QuerySupport::Answers => {
                drop(known);
                let found = self.ask(id).await;
                known = self.known.lock().await;
                self.learn(&mut known, found)
            }
            QuerySupport::Nothing | QuerySupport::HungUp(_) => {
                let found = self.ask(id).await;
                self.learn(&mut known, found)
            }
        }
    }

    async fn ask(&self, id: &DrvOutput) -> Result<Option<Realisation>, DaemonError> {
        match self.pool.get().await?.query_realisation(id).await {
            Err(DaemonError::Closed) => {}
            other => return other,
        }
        // It may have been an old connection.
        self.pool.get_fresh().await?.query_realisation(id).await
    }

    fn learn(
        &self,
        known: &mut QuerySupport,
        found: Result<Option<Realisation>, DaemonError>,
    ) -> Result<Option<Realisation>, DaemonError> {
        match found {
            Err(DaemonError::Closed) => {
                *known = QuerySupport::HungUp(Instant::now());
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "the Nix daemon hangs up when it is asked for a realisation, as it does without the \
                         experimental feature ca-derivations; realisations come from other caches alone"
                    );
                }
                Ok(None)
            }
            Ok(_) | Err(DaemonError::Nix(_)) => {
                *known = QuerySupport::Answers;
                found
            }
            Err(_) => found,
        }
    }

    /// Asks by the path of the derivation. Only a derivation without input derivations names all its inputs;
    /// for others the answer would depend on the builds of those.
    async fn by_path(&self, id: &DrvOutput, drv: &StorePath) -> Result<Option<Realisation>, DaemonError> {
        let mut daemon = self.pool.get().await?;
        if !daemon.is_valid_path(drv).await? {
            return Ok(None);
        }
        let (store_dir, file) = (daemon.store_dir.clone(), drv.clone());
        let derivation = match blocking(move || read_derivation(&store_dir, &file)).await {
            Ok(derivation) => derivation,
            Err(reason) => {
                tracing::warn!(%drv, reason, "cannot read a derivation, so its realisation stays unknown");
                return Ok(None);
            }
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
