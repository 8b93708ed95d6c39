//! Lookups in the local Nix store by hash: in Nix's database where that can be read, otherwise through the
//! daemon; and definite absence, from memory. Builds nothing and protects nothing: a found path may be
//! collected before it is used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use narinfo::{DrvOutput, NarHash, Realisation, Signature, StorePath, StorePathHash};
use tokio::sync::Semaphore;

use super::database::{Database, DatabaseError, Outputs};
use super::derivations::{Derivations, read_derivation};
use super::environment::Environment;
use super::error::DaemonError;
use super::known::{KnownHashes, Mark};
use super::pool::Pool;
use super::realisations::Realisations;
use super::resolved::SentDerivations;
use super::version::Version;
use crate::tasks::blocking;

/// The rest after the database could not be read for what is kept in memory.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The local store could not be asked: the database cannot be read (which was logged), and the
/// daemon does not answer.
#[derive(Debug, thiserror::Error)]
#[error("neither Nix's database nor the daemon can be asked")]
pub struct LocalStoreError(#[from] DaemonError);

impl LocalStoreError {
    /// The loss of the daemon, if that is the reason.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.0.lost()
    }
}

/// A version of Nix's database: as long as it is the same, nothing has been committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseVersion(Version);

/// Signatures of a valid path.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The path.
    pub path: StorePath,
    /// The hash of its NAR, which they sign.
    pub nar_hash: NarHash,
    /// Its signatures, without malformed ones.
    pub signatures: Vec<Signature>,
}

/// Knowledge of the local store about one hash.
#[derive(Clone, Debug, Default)]
pub struct StoreKnowledge {
    /// The valid path with this hash.
    pub valid: Option<StorePath>,
    /// The derivations in the store that give an output with this hash.
    pub derivers: Vec<StorePath>,
}

/// Looks things up in the local Nix store; clones share what it needs.
#[derive(Clone, Debug)]
pub struct LocalStore {
    pool: Pool,
    database: DatabaseReader,
    /// A separate connection for the in-memory hashes: reading all of a large store takes a while.
    scanned: DatabaseReader,
    known: Arc<KnownHashes>,
    derivations: Derivations,
    realisations: Realisations,
    /// Derivations that are to be built and that no store has.
    sent: SentDerivations,
    /// So that a database that cannot be read is told of once, not at every look-up.
    without_database: Arc<AtomicBool>,
}

/// A connection to the database.
#[derive(Clone, Debug)]
struct DatabaseReader {
    database: Arc<Database>,
    /// One read at a time: others wait without a thread.
    turn: Arc<Semaphore>,
}

impl LocalStore {
    /// The store of `environment`, to whose daemon `pool` connects.
    #[must_use]
    pub fn new(environment: Environment, pool: Pool) -> Self {
        let [database, scanned] = [(); 2].map(|()| DatabaseReader::new(&environment));
        let (known, derivations, without_database) = Default::default();
        let realisations = Realisations::new(pool.clone());
        let sent = SentDerivations::default();
        Self { pool, database, scanned, known, derivations, realisations, sent, without_database }
    }

    /// The same, which knows these derivations, too.
    #[must_use]
    pub fn with_sent(self, sent: SentDerivations) -> Self {
        Self { sent, ..self }
    }

    /// Derivations that are to be built and that no store has.
    #[must_use]
    pub fn sent(&self) -> &SentDerivations {
        &self.sent
    }

    /// True if the store has neither a path with this hash nor a derivation that gives one. False in doubt:
    /// then it has to be asked. Takes a moment, and never waits for SQLite.
    #[must_use]
    pub fn definitely_absent(&self, hash: StorePathHash) -> bool {
        self.known.definitely_absent(hash) && self.sent.makers_of(hash).is_empty()
    }

    /// Keeps what [`LocalStore::definitely_absent`] looks at, for as long as the server runs.
    pub async fn maintain_filter(&self) {
        let mut mark = Mark::default();
        loop {
            let known = Arc::clone(&self.known);
            let learned = self.scanned.ask(&self.pool, move |database| known.learn(database, mark)).await;
            match learned {
                Ok(Some(learned)) => mark = learned,
                // Look-ups say it, if it stays so.
                Ok(None) | Err(_) => {
                    self.known.forget();
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
            self.known.outdated().await;
        }
    }

    /// Since when the daemon takes no connection, and how it does not.
    #[must_use]
    pub fn outage(&self) -> Option<(Duration, String)> {
        self.pool.outage()
    }

    /// The valid path with this hash.
    ///
    /// # Errors
    /// Neither the database nor the daemon answers.
    pub async fn valid_path(&self, hash: StorePathHash) -> Result<Option<StorePath>, LocalStoreError> {
        if let Some(path) = self.ask_database(move |database| database.valid_path(hash)).await {
            return Ok(path);
        }
        // In a box: this is rare and large, and those who ask the database are many.
        Box::pin(async { Ok(self.pool.get().await?.query_path_from_hash_part(hash).await?) }).await
    }

    /// The hash of the NAR of a path, where it is valid.
    ///
    /// # Errors
    /// Neither the database nor the daemon answers.
    pub async fn nar_hash(&self, path: &StorePath) -> Result<Option<NarHash>, LocalStoreError> {
        let wanted = path.clone();
        match self.ask_database(move |database| database.nar_hash(&wanted)).await {
            Some(found) => Ok(found.and_then(|hash| hash.parse().ok())),
            None => Ok(self.pool.get().await?.query_path_info(path).await?.map(|valid| valid.info.nar_hash)),
        }
    }

    /// The derivations in the store that give an output with this hash, whether or not it is there.
    ///
    /// # Errors
    /// Neither the database nor the daemon answers.
    pub async fn derivers_of(&self, hash: StorePathHash) -> Result<Vec<StorePath>, LocalStoreError> {
        let known = match self.ask_database(move |database| database.derivers_of(hash)).await {
            Some(known) => known,
            None => {
                let mut daemon = Box::pin(self.pool.get()).await?;
                Box::pin(self.derivations.derivers_of(&mut daemon, hash)).await?
            }
        };
        let known = known.into_iter().map(|output| output.drv);
        Ok(known.chain(self.sent.makers_of(hash)).collect())
    }

    /// Knowledge about many hashes, in their order, in one read of the database.
    ///
    /// # Errors
    /// Neither the database nor the daemon answers.
    pub async fn survey(&self, hashes: Vec<StorePathHash>) -> Result<Vec<StoreKnowledge>, LocalStoreError> {
        let all: Arc<[StorePathHash]> = hashes.into();
        let read = {
            let all = Arc::clone(&all);
            move |database: &Database| {
                let look = |hash: &StorePathHash| {
                    let derivers = database.derivers_of(*hash)?.into_iter().map(|output| output.drv);
                    Ok(StoreKnowledge { valid: database.valid_path(*hash)?, derivers: derivers.collect() })
                };
                all.iter().map(look).collect::<Result<Vec<_>, DatabaseError>>()
            }
        };
        if let Ok(mut found) = self.scanned.ask(&self.pool, read).await {
            for (hash, knowledge) in all.iter().zip(&mut found) {
                knowledge.derivers.extend(self.sent.makers_of(*hash));
            }
            return Ok(found);
        }
        let mut found = Vec::new();
        for hash in all.iter() {
            let (valid, derivers) = (self.valid_path(*hash).await?, self.derivers_of(*hash).await?);
            found.push(StoreKnowledge { valid, derivers });
        }
        Ok(found)
    }

    /// Outputs of those of `drvs` that are in the store, in one read of the database.
    ///
    /// # Errors
    /// Neither the database nor the daemon answers. A derivation that cannot be read is left out.
    pub async fn outputs_of(
        &self,
        drvs: Vec<StorePath>,
    ) -> Result<BTreeMap<StorePath, Outputs>, LocalStoreError> {
        let sent = drvs.iter().filter_map(|drv| Some((drv.clone(), self.sent.outputs_of(drv)?)));
        let sent: Vec<(StorePath, Outputs)> = sent.collect();
        let mut found = self.outputs_in_store(drvs).await?;
        found.extend(sent);
        Ok(found)
    }

    async fn outputs_in_store(
        &self,
        drvs: Vec<StorePath>,
    ) -> Result<BTreeMap<StorePath, Outputs>, LocalStoreError> {
        let drvs: Arc<[StorePath]> = drvs.into();
        let read = {
            let drvs = Arc::clone(&drvs);
            move |database: &Database| database.outputs_of(&drvs)
        };
        if let Ok(found) = self.scanned.ask(&self.pool, read).await {
            return Ok(found);
        }
        let (mut daemon, mut valid) = (self.pool.get().await?, Vec::new());
        for drv in drvs.iter() {
            if daemon.is_valid_path(drv).await? {
                valid.push(drv.clone());
            }
        }
        let store_dir = daemon.store_dir().clone();
        let outputs = move |drv: StorePath| Some((read_derivation(&store_dir, &drv).ok()?.outputs, drv));
        let read = blocking(move || valid.into_iter().filter_map(outputs).collect::<Vec<_>>()).await;
        Ok(read.into_iter().map(|(outputs, drv)| (drv, outputs)).collect())
    }

    /// Derivations in the store that need the outputs of one, at most `max`, the latest ones; none where
    /// Nix's database cannot be read.
    pub async fn dependants_of(&self, drv: &StorePath, max: u32) -> Vec<StorePath> {
        let drv = drv.clone();
        let found = self.ask_database(move |database| database.referrers(&drv, max)).await;
        let mut found = found.unwrap_or_default();
        found.retain(StorePath::is_derivation);
        found
    }

    /// The version of Nix's database, where that can be read. Takes a moment.
    #[must_use]
    pub fn version(&self) -> Option<DatabaseVersion> {
        self.known.version().map(DatabaseVersion)
    }

    /// The signatures of those of `paths` that are valid and have some; nothing where Nix's database cannot
    /// be read.
    pub async fn signatures(&self, paths: Vec<StorePath>) -> Option<Vec<Signed>> {
        let paths: Arc<[StorePath]> = paths.into();
        let read = self.scanned.ask(&self.pool, move |database| database.signatures(&paths)).await.ok()?;
        let signed = read.into_iter().filter_map(|(path, nar_hash, signatures)| {
            let nar_hash = nar_hash.parse().ok()?;
            let signatures = signatures.split_whitespace().filter_map(|text| text.parse().ok()).collect();
            Some(Signed { path, nar_hash, signatures })
        });
        Some(signed.collect())
    }

    /// The store's realisation of an output of a content-addressed derivation, even if its path is gone.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub async fn realisation(&self, id: &DrvOutput) -> Result<Option<Realisation>, LocalStoreError> {
        Ok(self.realisations.find(id).await?)
    }

    /// The database's answer, or `None` if it cannot be read.
    async fn ask_database<T: Send + 'static>(
        &self,
        read: impl Fn(&Database) -> Result<T, DatabaseError> + Clone + Send + 'static,
    ) -> Option<T> {
        let outcome = self.database.ask(&self.pool, read).await;
        match outcome {
            Ok(found) => {
                self.without_database.store(false, Ordering::Relaxed);
                Some(found)
            }
            Err(error) => {
                if !self.without_database.swap(true, Ordering::Relaxed) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        "cannot read Nix's database; asking the Nix daemon instead, which is slower"
                    );
                }
                None
            }
        }
    }
}

impl DatabaseReader {
    fn new(environment: &Environment) -> Self {
        Self { database: Arc::new(Database::lazy(environment)), turn: Arc::new(Semaphore::new(1)) }
    }

    async fn ask<T: Send + 'static>(
        &self,
        pool: &Pool,
        read: impl Fn(&Database) -> Result<T, DatabaseError> + Clone + Send + 'static,
    ) -> Result<T, DatabaseError> {
        match self.blocking(read.clone()).await {
            // In a box: this is rare and large, and those who ask are many.
            Err(error @ (DatabaseError::Open { .. } | DatabaseError::Read { .. })) => {
                Box::pin(async {
                    // Nix removes the files of the write-ahead log with its last connection, and only it may
                    // make them again. Once we have read them, they stay for as long as we run.
                    match pool.get().await {
                        Ok(_connection) => self.blocking(read).await,
                        Err(_) => Err(error),
                    }
                })
                .await
            }
            outcome => outcome,
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let database = self.database.clone();
        // The semaphore is never closed; the turn ends with the work, also where nobody waits for it any
        // more.
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let reading = move || {
            let _turn = turn;
            read(&database)
        };
        blocking(reading).await
    }
}
