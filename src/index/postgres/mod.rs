//! The index in PostgreSQL, for several servers over one database: a pool of connections, and one more that
//! is told of the changes of others. No type of the driver leaves this folder.

mod address;
mod catalogue;
mod closure;
mod cluster;
#[cfg(test)]
mod cluster_tests;
mod error;
mod eviction;
mod failure;
mod feed;
mod generation;
mod hosts;
mod nar;
mod paths;
mod pin;
mod program;
mod pushed;
mod queue;
mod realisation;
mod recovery;
mod rows;
mod session;
mod shared_queue;
mod tables;
#[cfg(test)]
mod tests;
mod token;
mod transaction;
mod upkeep;
mod upstream;
mod version;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use narinfo::StorePathHash;
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::backend::{Backend, BackendFuture, Changes, Cluster, Follower};
use super::columns::unsigned;
use super::location::PostgresUrl;
use crate::model::Term;
use address::DatabaseAddress;
use error::Error;
use feed::ChangeFeed;
use paths::paths_of;
use session::{Connector, column};
use transaction::{Domain, Transactor, Work};

/// Every hash that is served, or is an output of a package set, of the generation being made, or of a pushed
/// derivation.
const HASHES: &str = "DECLARE hashes NO SCROLL CURSOR FOR SELECT hash FROM path \
    UNION ALL SELECT hash FROM catalogue_output UNION ALL SELECT hash FROM catalogue_new_output \
    UNION ALL SELECT hash FROM pushed_output";
/// Number of those, but for the generation.
const HASH_COUNT: &str = "SELECT (SELECT count(*) FROM path) + (SELECT count(*) FROM catalogue_output) \
    + (SELECT count(*) FROM pushed_output)";
/// Hashes that are sent at once.
const FETCH: &str = "FETCH 8192 FROM hashes";
/// Time for which a start waits for a server that is away.
const START_FOR: Duration = Duration::from_secs(10);
/// Pause between two tries of that.
const START_AGAIN: Duration = Duration::from_millis(200);
/// Number of the lock under which the schema is migrated.
const SCHEMA_LOCK: i64 = 0x6f6e_6469_6e65;

mod embedded {
    refinery::embed_migrations!("src/index/postgres/migrations");
}

/// An index in PostgreSQL; clones share it.
#[derive(Clone)]
pub struct Postgres {
    database: Transactor,
    /// Term that every write belongs to, for what the leader does.
    fence: Option<Term>,
    /// Connection by which the lease is renewed, and the moment before it was made.
    lease_session: Arc<Mutex<Option<(std::time::Instant, tokio_postgres::Client)>>>,
    listener: Arc<ListenerGuard>,
}

/// The task that listens for changes, which ends with this.
struct ListenerGuard(AbortHandle);

impl Drop for ListenerGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Postgres {
    /// Connects to a database, and makes or migrates the schema. Must be called within the runtime that is to
    /// drive the connections.
    ///
    /// # Errors
    /// A wrong URL or file, a server that does not answer for some seconds or lets us
    /// not in, or a schema of a newer version.
    pub async fn open(url: &PostgresUrl, password_file: Option<&Path>) -> Result<Self, super::Error> {
        Self::open_with(url, password_file, false).await
    }

    /// Opens an index that is empty, or was copied to in part.
    ///
    /// # Errors
    /// As [`Postgres::open`].
    pub async fn open_for_copy(
        url: &PostgresUrl,
        password_file: Option<&Path>,
    ) -> Result<Self, super::Error> {
        Self::open_with(url, password_file, true).await
    }

    async fn open_with(
        url: &PostgresUrl,
        password_file: Option<&Path>,
        is_copy: bool,
    ) -> Result<Self, super::Error> {
        let connector = connector(url, password_file)?;
        prepared(&connector, is_copy).await?;
        let feed = ChangeFeed::default();
        let database = Transactor::new(connector.clone(), feed.clone())?;
        let listening = feed.clone();
        let listener = tokio::spawn(async move { listening.listen(&connector).await }).abort_handle();
        let listener = Arc::new(ListenerGuard(listener));
        let index = Self { database, fence: None, lease_session: Arc::default(), listener };
        timeout(START_FOR, feed.live()).await.map_err(|_| Error::Slow(START_FOR))?;
        Ok(index)
    }

    /// Checks that a database could be opened, without changing anything.
    ///
    /// # Errors
    /// A wrong address, a server that lets us not in, or a schema of a newer version.
    pub async fn check(url: &PostgresUrl, password_file: Option<&Path>) -> Result<(), super::Error> {
        let connector = connector(url, password_file)?;
        let client = connector.client().await?;
        Ok(checked(&client).await?)
    }

    fn read<'a, D: Sync + Send + 'a, T: Send + 'a>(
        &'a self,
        data: D,
        work: Work<D, T>,
    ) -> BackendFuture<'a, T> {
        Box::pin(async move { Ok(self.database.read(data, work).await?) })
    }

    /// A write in one transaction, and the changes of answers that it makes.
    fn write<D: Send + Sync + 'static, T: Send + 'static>(
        &self,
        domain: Domain,
        data: D,
        work: Work<D, (Changes, T)>,
    ) -> BackendFuture<'_, T> {
        Box::pin(async move { Ok(self.database.write(domain, self.fence.clone(), data, work).await?) })
    }

    /// On a connection of its own, which is closed where nobody waits for the hashes any more.
    async fn send_hashes(&self, batches: &mpsc::Sender<Vec<StorePathHash>>) -> Result<(), Error> {
        let client = self.database.connector().client().await?;
        // One transaction, so that all is of the same moment.
        client.batch_execute("BEGIN READ ONLY").await?;
        client.batch_execute(HASHES).await?;
        let fetch = client.prepare(FETCH).await?;
        loop {
            let rows = client.query(&fetch, &[]).await?;
            let mut batch = Vec::with_capacity(rows.len());
            for row in &rows {
                // A hash that is none is never asked for.
                batch.extend(column::<&str>(row, 0)?.parse::<StorePathHash>().ok());
            }
            // Where nobody receives it, nobody needs it.
            if rows.is_empty() || batches.send(batch).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn connector(url: &PostgresUrl, password_file: Option<&Path>) -> Result<Connector, super::Error> {
    let address = DatabaseAddress::new(url, password_file)
        .map_err(|error| super::Error::Unavailable(Box::new(error)))?;
    let tls = address.tls()?;
    Ok(Connector::new(address, tls))
}

/// Waits for the server, and brings the schema up to date.
async fn prepared(connector: &Connector, is_copy: bool) -> Result<(), Error> {
    let until = Instant::now() + START_FOR;
    let mut client = loop {
        match connector.client().await {
            Err(error) if error.is_away() && Instant::now() < until => sleep(START_AGAIN).await,
            outcome => break outcome?,
        }
    };
    checked(&client).await?;
    // Held until the connection is dropped. Several servers may start at once.
    client.execute("SELECT pg_advisory_lock($1)", &[&SCHEMA_LOCK]).await?;
    embedded::migrations::runner().run_async(&mut client).await.map_err(Error::Schema)?;
    let mark = client.query_one("SELECT obj_description('path'::regclass, 'pg_class')", &[]).await?;
    match column::<Option<String>>(&mark, 0)? {
        Some(mark) if !is_copy => Err(Error::Copying(mark)),
        _ => Ok(()),
    }
}

/// Looks at the encoding and the version of the schema, as far as there is one.
async fn checked(client: &tokio_postgres::Client) -> Result<(), Error> {
    let encoding: String = column(&client.query_one("SHOW server_encoding", &[]).await?, 0)?;
    if encoding != "UTF8" {
        return Err(Error::Encoding(encoding));
    }
    let table = client.query_one("SELECT to_regclass('refinery_schema_history') IS NOT NULL", &[]).await?;
    if !column::<bool>(&table, 0)? {
        return Ok(());
    }
    let version = "SELECT coalesce(max(version), 0)::bigint FROM refinery_schema_history";
    let found: i64 = column(&client.query_one(version, &[]).await?, 0)?;
    let runner = embedded::migrations::runner();
    let known =
        runner.get_migrations().iter().map(|step| i64::from(step.version())).max().unwrap_or_default();
    if found > known { Err(Error::Newer { found, known }) } else { Ok(()) }
}

impl Backend for Postgres {
    fn follow(&self, follower: Arc<dyn Follower>) {
        self.database.feed().follow(follower);
    }

    fn hash_count(&self) -> BackendFuture<'_, u64> {
        self.read((), |session, ()| {
            Box::pin(async move { Ok(unsigned(column(&session.one(HASH_COUNT, &[]).await?, 0)?)) })
        })
    }

    fn hashes(&self, batches: mpsc::Sender<Vec<StorePathHash>>) -> BackendFuture<'_, ()> {
        Box::pin(async move { Ok(self.send_hashes(&batches).await?) })
    }

    fn cluster(&self) -> Option<&dyn Cluster> {
        Some(self)
    }
}
