//! Inputs of a build on their way to a builder: large ones are fetched by its own Nix from this server, where
//! it may and can; all others are copied, in one operation.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use narinfo::StorePath;

use super::Importer;
use super::store::{InputOrigin, Lacking, SearchScope, StoreError};
use crate::causes::with_causes;
use crate::nix::{AddError, Daemon, DaemonError, Pool};
use crate::packer;

/// Bytes of NARs for which a builder is asked to fetch them: less is copied sooner.
const FETCHED_BYTES_MIN: u64 = 1 << 20;
/// Time that a builder has for it in any case, and the bytes for which it has a second more.
const FETCH_TIME_MIN: Duration = Duration::from_secs(30);
const FETCHED_BYTES_PER_SECOND: u64 = 256 << 10;
/// Time for which a builder that could not is not asked again.
const FETCHER_RESTS: Duration = Duration::from_secs(600);

/// The Nix of a builder, which fetches inputs from this server. Clones share it.
#[derive(Clone)]
pub struct InputFetcher(Arc<Fetcher>);

struct Fetcher {
    /// Name of the builder.
    name: String,
    /// Connections of the builder whose substituter is this server.
    pool: Pool,
    rests_until: Mutex<Option<Instant>>,
}

impl InputFetcher {
    /// The Nix at the other end of these connections, whose substituter has to be this server.
    #[must_use]
    pub fn new(name: &str, pool: Pool) -> Self {
        Self(Arc::new(Fetcher { name: name.to_owned(), pool, rests_until: Mutex::new(None) }))
    }

    /// Has the builder fetch those of the paths that are served. Gives those that it has then: none where it
    /// may not or cannot.
    async fn fetch(&self, lacking: &[Lacking]) -> BTreeSet<StorePath> {
        let served = || lacking.iter().filter(|lacking| matches!(lacking.origin, InputOrigin::Served));
        let bytes: u64 = served().map(|lacking| lacking.row.info.nar_size).sum();
        if bytes < FETCHED_BYTES_MIN || self.rests() {
            return BTreeSet::new();
        }
        let paths = served().map(|lacking| &lacking.row.info.path);
        let limit = FETCH_TIME_MIN + Duration::from_secs(bytes / FETCHED_BYTES_PER_SECOND);
        let builder = &self.0.name;
        match self.ask(paths, limit).await {
            Ok(fetched) if fetched.is_empty() => {
                tracing::info!(
                    builder,
                    "a builder fetches no inputs from this server, so they are copied; have its Nix trust the \
                     user or the key of this server, and see that it reaches the address (cache-url)"
                );
                self.rest();
                fetched
            }
            Ok(fetched) => {
                tracing::info!(builder, paths = fetched.len(), bytes, "a builder has fetched inputs");
                fetched
            }
            Err(error) => {
                let reason = with_causes(&error);
                tracing::warn!(
                    builder,
                    reason,
                    "a builder cannot fetch inputs from this server; they are copied"
                );
                self.rest();
                BTreeSet::new()
            }
        }
    }

    /// Asks on a connection of its own, which may break.
    async fn ask(
        &self,
        paths: impl Iterator<Item = &StorePath>,
        limit: Duration,
    ) -> Result<BTreeSet<StorePath>, DaemonError> {
        let mut daemon = self.0.pool.get().await?;
        daemon.fetch_paths(paths, limit).await
    }

    fn rests(&self) -> bool {
        let rests_until = *self.0.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        rests_until.is_some_and(|until| Instant::now() < until)
    }

    fn rest(&self) {
        let until = Instant::now() + FETCHER_RESTS;
        *self.0.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}

impl Importer {
    /// Adds these paths, which the store of a builder does not have, each with all that it refers to, from
    /// wherever they are: served here, in the Nix store of this machine, or in another cache. The connection
    /// holds them from then on.
    ///
    /// # Errors
    /// One is nowhere, or a daemon, the index or the NAR store fails; what was added by then stays.
    pub async fn supply(
        &self,
        daemon: &mut Daemon,
        absent: BTreeSet<StorePath>,
        fetcher: Option<&InputFetcher>,
    ) -> Result<(), StoreError> {
        let mut lacking = self.lacking(daemon, absent, SearchScope::Everywhere).await?;
        if let Some(fetcher) = fetcher {
            let fetched = fetcher.fetch(&lacking).await;
            let absent = daemon.hold_valid(&fetched).await.map_err(|source| not_taken(&lacking, source))?;
            lacking.retain(|lacking| {
                let path = &lacking.row.info.path;
                !fetched.contains(path) || absent.contains(path)
            });
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let count = lacking.len();
        let mut additions =
            daemon.begin_additions(count).await.map_err(|source| not_taken(&lacking, source))?;
        for Lacking { row, origin } in &lacking {
            let added = additions.add(&row.info, self.nar(row, origin).await?).await;
            let path = || row.info.path.clone();
            added.map_err(|error| match error {
                AddError::Daemon(source) => StoreError::Daemon { path: path(), source },
                AddError::Contents(error) => {
                    StoreError::Contents { path: path(), source: packer::Error::Store(error) }
                }
            })?;
        }
        additions.finish().await.map_err(|source| StoreError::Inputs { count, source })
    }
}

fn not_taken(lacking: &[Lacking], source: DaemonError) -> StoreError {
    StoreError::Inputs { count: lacking.len(), source }
}
