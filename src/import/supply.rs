//! Inputs of a build on their way to a builder: large ones are fetched by its own Nix from this server, where
//! it may and can; all others are copied, in one operation, or over several connections where they are many
//! bytes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use narinfo::StorePath;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::Importer;
use super::spread::Spread;
use super::store::{InputOrigin, Lacking, SearchScope, StoreError};
use crate::causes::with_causes;
use crate::nix::{AddError, Connections, Daemon, DaemonError, Pool, PooledDaemon};
use crate::packer;

/// Bytes of NARs for which a builder is asked to fetch them: less is copied sooner.
const FETCHED_BYTES_MIN: u64 = 1 << 20;
/// Time that a builder has for it in any case, and the bytes for which it has a second more.
const FETCH_TIME_MIN: Duration = Duration::from_secs(30);
const FETCHED_BYTES_PER_SECOND: u64 = 256 << 10;
/// Time for which a builder that could not is not asked again.
const FETCHER_RESTS: Duration = Duration::from_secs(600);

/// Bytes of NARs that are copied over several connections: less is there before others are made.
const SPREAD_BYTES_MIN: u64 = 32 << 20;
/// Connections of a builder that help with copies, beside those of its builds: `benches/farm.rs -- --copies`
/// measures what four in all gain. An sshd refuses logins where ten are under way.
const HELPERS_MAX: usize = 3;

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

/// Connections of a builder that help the one of a build to copy its inputs. Clones share them.
#[derive(Clone)]
pub struct CopyHelpers {
    /// Name of the builder.
    name: Arc<str>,
    connections: Connections,
    turns: Arc<Semaphore>,
    /// One is made after the other.
    connecting: Arc<tokio::sync::Mutex<()>>,
}

/// A connection that has helped, and holds what it has copied.
struct Helper {
    daemon: PooledDaemon,
    _turn: OwnedSemaphorePermit,
}

impl CopyHelpers {
    /// At most `HELPERS_MAX` of the connections, which are kept for builds afterwards.
    #[must_use]
    pub fn new(name: &str, connections: Connections) -> Self {
        let turns = Arc::new(Semaphore::new(HELPERS_MAX));
        Self { name: name.into(), connections, turns, connecting: Arc::default() }
    }

    /// Helps with a copy to its end, once no other copy has all helpers. `None` where the connection is not
    /// to be had, or breaks: the others take its paths.
    async fn help(self, importer: Importer, lacking: Arc<[Lacking]>, spread: Arc<Spread>) -> Option<Helper> {
        let _turn = self.turns.acquire_owned().await.ok()?;
        let connected = {
            let _one = self.connecting.lock().await;
            self.connections.get().await
        };
        let log_loss = |error: DaemonError| {
            let reason = with_causes(&error);
            tracing::info!(builder = %self.name, reason, "lost a connection that copies inputs");
        };
        let mut daemon = connected.map_err(log_loss).ok()?;
        while let Some(batch) = spread.take().await {
            match importer.add_all(&mut daemon, &batch.of(&lacking)).await.map_err(StoreError::lost) {
                Ok(()) => batch.added(),
                Err(Ok(error)) => {
                    log_loss(error);
                    return None;
                }
                Err(Err(error)) => {
                    spread.fail(error);
                    return None;
                }
            }
        }
        Some(Helper { daemon, _turn })
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
        helpers: &CopyHelpers,
    ) -> Result<(), StoreError> {
        let mut lacking = self.lacking(daemon, absent, SearchScope::Everywhere).await?;
        if let Some(fetcher) = fetcher {
            let fetched = fetcher.fetch(&lacking).await;
            let absent = hold(daemon, &fetched, lacking.len()).await?;
            lacking.retain(|lacking| {
                let path = &lacking.row.info.path;
                !fetched.contains(path) || absent.contains(path)
            });
        }
        let bytes: u64 = lacking.iter().map(|lacking| lacking.row.info.nar_size).sum();
        if bytes < SPREAD_BYTES_MIN || lacking.len() == 1 {
            return self.add_all(daemon, &lacking.iter().collect::<Vec<_>>()).await;
        }
        let lacking: Arc<[Lacking]> = lacking.into();
        let absent = self.copy_over_several(daemon, &lacking, helpers).await?;
        // Those of a connection that broke may have been collected since.
        let again: Vec<&Lacking> =
            lacking.iter().filter(|lacking| absent.contains(&lacking.row.info.path)).collect();
        self.add_all(daemon, &again).await
    }

    /// Copies paths over this connection and those that help. Gives those that are not valid at the end.
    async fn copy_over_several(
        &self,
        daemon: &mut Daemon,
        lacking: &Arc<[Lacking]>,
        helpers: &CopyHelpers,
    ) -> Result<BTreeSet<StorePath>, StoreError> {
        let spread = Arc::new(Spread::new(lacking.iter().map(|lacking| &lacking.row.info)));
        let mut helping = JoinSet::new();
        for _ in 0..HELPERS_MAX {
            helping.spawn(helpers.clone().help(self.clone(), Arc::clone(lacking), Arc::clone(&spread)));
        }
        while let Some(batch) = spread.take().await {
            self.add_all(daemon, &batch.of(lacking)).await?;
            batch.added();
        }
        if let Some(error) = spread.take_failure() {
            return Err(error);
        }
        // The others hold what they have copied until this one does.
        let paths: Vec<&StorePath> = lacking.iter().map(|lacking| &lacking.row.info.path).collect();
        let absent = hold(daemon, paths, lacking.len()).await?;
        // Some may still wait for a connection.
        helping.abort_all();
        while let Some(helped) = helping.join_next().await {
            if let Ok(Some(Helper { daemon, .. })) = helped {
                helpers.connections.keep(daemon);
            }
        }
        Ok(absent)
    }

    /// Adds paths in this order, in one operation.
    async fn add_all(&self, daemon: &mut Daemon, lacking: &[&Lacking]) -> Result<(), StoreError> {
        let count = lacking.len();
        if count == 0 {
            return Ok(());
        }
        let not_taken = |source| StoreError::Inputs { count, source };
        let mut additions = daemon.begin_additions(count).await.map_err(not_taken)?;
        for Lacking { row, origin } in lacking {
            let added = additions.add(&row.info, self.nar(row, origin).await?).await;
            let path = || row.info.path.clone();
            added.map_err(|error| match error {
                AddError::Daemon(source) => StoreError::Daemon { path: path(), source },
                AddError::Contents(error) => {
                    StoreError::Contents { path: path(), source: packer::Error::Store(error) }
                }
            })?;
        }
        additions.finish().await.map_err(not_taken)
    }
}

/// Has a connection hold what is valid of the `count` inputs of a build. Gives what is not.
async fn hold(
    daemon: &mut Daemon,
    paths: impl IntoIterator<Item = &StorePath>,
    count: usize,
) -> Result<BTreeSet<StorePath>, StoreError> {
    daemon.hold_valid(paths).await.map_err(|source| StoreError::Inputs { count, source })
}
