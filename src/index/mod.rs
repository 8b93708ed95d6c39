//! The index: which store paths are served, which NARs are packed, which builds failed, and who waits.
//! [`Index`] is the handle that all others use: a hot layer in memory before an exchangeable backend. Must
//! never ask Nix, and never touch a NAR file.

mod access_log;
pub mod backend;
mod columns;
mod condition;
#[cfg(test)]
mod conformance;
#[cfg(feature = "postgres")]
mod copy;
mod error;
mod eviction_order;
mod hot;
mod location;
#[cfg(test)]
mod memory_backend;
#[cfg(feature = "postgres")]
mod postgres;
mod record;
#[cfg(test)]
pub(crate) mod samples;
mod sqlite;
#[cfg(feature = "postgres")]
mod tables;
#[cfg(test)]
mod tests;

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use narinfo::{NarHash, StorePathHash};
use tokio::sync::mpsc;

use crate::model::{Cursor, Evicted, EvictionBounds, Hit, NarRow, PathRow, Term};
pub use access_log::AccessLog;
use access_log::LastNoted;
use backend::Backend;
pub use backend::{Recovered, Unfit};
#[cfg(feature = "postgres")]
pub use copy::{CopyError, CopyPlace, CopyProgress};
pub use error::Error;
pub use hot::{CachedNarInfo, ChangedPaths};
use hot::{Hot, Moment};
pub use location::{IndexLocation, PostgresUrl, Settings};
#[cfg(test)]
pub(crate) use memory_backend::{MemoryBackend, cluster, shared};
#[cfg(feature = "postgres")]
pub use postgres::Postgres;
pub use record::{Record, Recorded};
pub use sqlite::{LedgerReader, Sqlite, has_ledger, salvage_pins};

/// The rest after the backend could not be read.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Batches of hashes on their way into the Bloom filter.
const BATCHES_WAITING_MAX: usize = 4;

/// A handle to the index; clones share it. Whatever is not answered in memory is a method of its [`Backend`],
/// to which it dereferences.
#[derive(Clone)]
pub struct Index {
    hot: Arc<Hot>,
    backend: Arc<dyn Backend>,
    lead: Arc<RwLock<Lead>>,
}

/// Share of this process in what only one of those that use the index may do.
#[derive(Clone, Debug)]
enum Lead {
    /// Nobody else can use the index.
    Alone,
    /// This process is the leader, for a term.
    Term(Term),
    /// Another one leads, or nobody.
    Follows,
}

/// A hit of the backend, whose narinfo is to be cached.
#[derive(Debug)]
pub struct FreshHit {
    /// The hit.
    pub hit: Hit,
    /// The moment before it was read.
    read_at: Moment,
}

impl Deref for Index {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.backend
    }
}

impl Index {
    /// An index over a backend, with room for so many bytes of narinfos in memory; 0 caches none.
    #[must_use]
    pub fn new(backend: impl Backend + 'static, narinfo_bytes_max: u64) -> Self {
        let (hot, backend) = (Arc::new(Hot::new(narinfo_bytes_max)), Arc::new(backend));
        backend.follow(Arc::clone(&hot) as _);
        let lead = if backend.cluster().is_none() { Lead::Alone } else { Lead::Follows };
        Self { hot, backend, lead: Arc::new(RwLock::new(lead)) }
    }

    /// The same index for the leader of several servers: its writes are refused once the term has ended.
    #[must_use]
    pub fn fenced(&self, term: &Term) -> Self {
        let cluster = self.backend.cluster();
        let backend =
            cluster.map_or_else(|| Arc::clone(&self.backend), |cluster| cluster.fenced(term.clone()));
        Self { hot: Arc::clone(&self.hot), backend, lead: Arc::clone(&self.lead) }
    }

    /// True where other servers may use the index, too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.backend.cluster().is_some()
    }

    /// True where this process does what only one server may do, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        !matches!(*self.lead.read().unwrap_or_else(PoisonError::into_inner), Lead::Follows)
    }

    /// The same index for what only one server may do: of several, its writes are refused once the term of
    /// this one has ended. `None` where another one leads.
    #[must_use]
    pub fn for_leader(&self) -> Option<Self> {
        match &*self.lead.read().unwrap_or_else(PoisonError::into_inner) {
            Lead::Alone => Some(self.clone()),
            Lead::Term(term) => Some(self.fenced(term)),
            Lead::Follows => None,
        }
    }

    /// Notes the term for which this process is the leader of several; `None` where it is not.
    pub fn set_term(&self, term: Option<Term>) {
        *self.lead.write().unwrap_or_else(PoisonError::into_inner) = term.map_or(Lead::Follows, Lead::Term);
    }

    /// Opens an index in a file of SQLite, making it when it is not there. Caches no narinfo.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or is of a newer version.
    pub fn open(file: &Path) -> Result<Self, Error> {
        Ok(Self::new(Sqlite::open(file)?, 0))
    }

    /// Opens an index in PostgreSQL, with room for so many bytes of narinfos in memory. Must be called within
    /// the runtime that is to drive its connections.
    ///
    /// # Errors
    /// A server that does not answer or lets us not in, a schema of a newer version, or a program that
    /// was built without PostgreSQL.
    pub async fn open_postgres(
        url: &PostgresUrl,
        password_file: Option<&Path>,
        narinfo_bytes_max: u64,
    ) -> Result<Self, Error> {
        #[cfg(feature = "postgres")]
        let opened = Ok(Self::new(Postgres::open(url, password_file).await?, narinfo_bytes_max));
        #[cfg(not(feature = "postgres"))]
        let opened = {
            let _ = (password_file, narinfo_bytes_max);
            Err(Error::Unavailable(Box::new(location::NoPostgres(url.clone()))))
        };
        opened
    }

    /// Checks that an index in PostgreSQL could be opened, without changing anything.
    ///
    /// # Errors
    /// As [`Index::open_postgres`].
    pub async fn check_postgres(url: &PostgresUrl, password_file: Option<&Path>) -> Result<(), Error> {
        #[cfg(feature = "postgres")]
        let checked = Postgres::check(url, password_file).await;
        #[cfg(not(feature = "postgres"))]
        let checked = {
            let _ = password_file;
            Err(Error::Unavailable(Box::new(location::NoPostgres(url.clone()))))
        };
        checked
    }

    /// The narinfo of the path with this hash, if it is cached.
    #[must_use]
    pub fn lookup_cached(&self, hash: StorePathHash) -> Option<Arc<CachedNarInfo>> {
        self.hot.narinfo(hash)
    }

    /// The path with this hash, if it is served, for [`Index::cache`].
    ///
    /// # Errors
    /// The backend fails or the row is damaged.
    pub async fn lookup(&self, hash: StorePathHash) -> Result<Option<FreshHit>, Error> {
        let read_at = self.hot.moment();
        Ok(self.find(hash).await?.map(|hit| FreshHit { hit, read_at }))
    }

    /// A served path with this NAR, and its stored file; as they were read last where the backend does not
    /// answer.
    ///
    /// # Errors
    /// A backend that does not answer for a NAR that was not served lately, or a damaged row.
    pub async fn nar(&self, nar: NarHash) -> Result<Option<(PathRow, Option<NarRow>)>, Error> {
        match self.backend.nar(nar).await {
            Ok(found) => {
                self.hot.note_nar_row(nar, found.as_ref());
                Ok(found)
            }
            Err(error) if error.is_transient() => self.hot.nar_row(nar).map(Some).ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Caches the narinfo that was rendered of a hit, unless a write has changed one meanwhile.
    #[must_use]
    pub fn cache(&self, found: FreshHit, narinfo: Bytes) -> Arc<CachedNarInfo> {
        let FreshHit { hit, read_at } = found;
        let narinfo = Arc::new(CachedNarInfo {
            narinfo,
            nar_hash: hit.row.info.nar_hash,
            to_come: hit.packed.is_none() && hit.redirect.is_none(),
            path: hit.row.info.path,
            deriver: hit.row.info.deriver,
            noted: LastNoted::default(),
        });
        self.hot.cache(read_at, &narinfo);
        narinfo
    }

    /// True where neither a served path nor a package set has this hash. False in doubt.
    #[must_use]
    pub fn definitely_absent(&self, hash: StorePathHash) -> bool {
        self.hot.definitely_absent(hash)
    }

    /// Takes the paths whose narinfos may have changed since this was called last. For one caller.
    #[must_use]
    pub fn take_changed(&self) -> ChangedPaths {
        self.hot.changes().take()
    }

    /// Resolves once there are more of these. For the same caller.
    pub async fn changed(&self) {
        self.hot.changes().noted().await;
    }

    /// Log of uses, for whoever serves NARs.
    #[must_use]
    pub fn access_log(&self) -> &AccessLog {
        self.hot.access_log()
    }

    /// Notes a use of this path: a client gets its narinfo.
    pub fn note_use(&self, narinfo: &CachedNarInfo) {
        let log = self.access_log();
        if narinfo.noted.renew(log.epoch()) {
            log.note(narinfo.nar_hash);
        }
    }

    /// Records the uses that were noted, as of `now`.
    ///
    /// # Errors
    /// The backend fails; what was not recorded stays noted.
    pub async fn record_uses(&self, now: SystemTime) -> Result<(), Error> {
        self.backend.record_uses(now, self.access_log()).await
    }

    /// Evicts the paths that stand first, within the bounds; noted uses count.
    ///
    /// # Errors
    /// The backend fails; nothing is evicted then.
    pub async fn evict(&self, now: SystemTime, bounds: EvictionBounds) -> Result<Evicted, Error> {
        self.backend.evict(now, bounds, self.access_log()).await
    }

    /// The paths behind `after` that [`Index::evict`] would evict.
    ///
    /// # Errors
    /// The backend fails.
    pub async fn preview_eviction(
        &self,
        now: SystemTime,
        after: Option<Cursor>,
        bounds: EvictionBounds,
    ) -> Result<Evicted, Error> {
        self.backend.preview_eviction(now, after, bounds, self.access_log()).await
    }

    /// Maintains the Bloom filter of [`Index::definitely_absent`], for as long as the server runs.
    pub async fn maintain_filter(&self) {
        loop {
            if let Err(error) = self.fill_filter().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot fill the Bloom filter of the index; every miss is looked up, and it is tried again in a minute"
                );
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            }
            self.hot.filter_outgrown().await;
        }
    }

    /// Fills the Bloom filter with all hashes, in the order that loses none: the backend tells what is
    /// written meanwhile.
    async fn fill_filter(&self) -> Result<(), Error> {
        let count = self.backend.hash_count().await?;
        if !self.hot.begin_filter(count) {
            return Ok(());
        }
        let (sender, mut batches) = mpsc::channel(BATCHES_WAITING_MAX);
        let adding = async {
            while let Some(batch) = batches.recv().await {
                self.hot.add_to_filter(batch);
            }
        };
        let (sent, ()) = tokio::join!(self.backend.hashes(sender), adding);
        sent?;
        self.hot.finish_filter();
        Ok(())
    }
}
