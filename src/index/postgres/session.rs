//! Connections to PostgreSQL, and one request or transaction on each at a time.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Error;
use super::address::DatabaseAddress;
use super::hosts::{Connected, DatabaseHosts};

/// Connections of one server; a request beyond waits for one.
const CONNECTIONS_MAX: usize = 16;
/// Time for which a request waits for a connection that is free, or for a new one.
const CONNECT_FOR: Duration = Duration::from_secs(5);
const REPLACED: &str = "a replica has taken over from the server";
const NO_ANSWER: &str = "no host has let us in within 5 s";

/// Values of a statement.
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Connections to one database; clones share them.
#[derive(Clone)]
pub(super) struct Sessions {
    pool: Pool,
    hosts: Arc<DatabaseHosts>,
}

/// A connection that nobody else uses meanwhile.
pub(super) struct DatabaseSession {
    client: Object,
    hosts: Arc<DatabaseHosts>,
}

/// Connects on the runtime of the server: its threads for HTTP have runtimes of their own, which do other
/// work.
#[derive(Clone)]
pub(super) struct Connector {
    address: DatabaseAddress,
    hosts: Arc<DatabaseHosts>,
    tls: MakeRustlsConnect,
    runtime: Handle,
}

impl Connector {
    /// A connector that connects on this runtime.
    pub(super) fn new(address: DatabaseAddress, tls: MakeRustlsConnect) -> Self {
        let hosts = Arc::new(DatabaseHosts::of(address.config()));
        Self { address, hosts, tls, runtime: Handle::current() }
    }

    pub(super) fn hosts(&self) -> &DatabaseHosts {
        &self.hosts
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// A connection of its own, driven until it is dropped.
    pub(super) async fn client(&self) -> Result<Client, Error> {
        let started = timeout(CONNECT_FOR, self.start()).await;
        Ok(started.map_err(|_| Error::Away(NO_ANSWER.into()))??.0)
    }

    /// A connection that the caller drives.
    pub(super) async fn connect(&self) -> Result<Connected, Error> {
        let connected = timeout(CONNECT_FOR, self.hosts.connect(&self.tls)).await;
        Ok(connected.map_err(|_| Error::Away(NO_ANSWER.into()))??)
    }

    async fn start(&self) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let connector = self.clone();
        let started = self.runtime.spawn(async move {
            let (client, driver) = connector.hosts.connect(&connector.tls).await?;
            let driven = tokio::spawn(async move {
                // Whoever uses it gets the error, too.
                let _ = driver.await;
            });
            Ok((client, driven))
        });
        match started.await {
            Ok(started) => started,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends.
            Err(_) => std::future::pending().await,
        }
    }
}

impl deadpool_postgres::Connect for Connector {
    fn connect(
        &self,
        _: &tokio_postgres::Config,
    ) -> std::pin::Pin<
        Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + '_>,
    > {
        Box::pin(self.start())
    }
}

impl Sessions {
    pub(super) fn new(connector: &Connector) -> Result<Self, Error> {
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(connector.address.config().clone(), connector.clone(), config);
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS_MAX)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_FOR))
            .create_timeout(Some(CONNECT_FOR))
            .build();
        let pool = pool.map_err(|error| Error::Away(Box::new(error)))?;
        Ok(Self { pool, hosts: Arc::clone(&connector.hosts) })
    }

    pub(super) async fn get(&self) -> Result<DatabaseSession, Error> {
        loop {
            let client = self.pool.get().await?;
            if !self.hosts.is_replaced(Object::metrics(&client).created) {
                return Ok(DatabaseSession { client, hosts: Arc::clone(&self.hosts) });
            }
            // Its server may hang, and answer again.
            drop(Object::take(client));
        }
    }

    pub(super) fn close(&self) {
        self.pool.close();
    }
}

impl DatabaseSession {
    pub(super) async fn rows(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        let statement = self.client.prepare_cached(sql).await?;
        Ok(self.client.query(&statement, params).await?)
    }

    /// The first row.
    pub(super) async fn row(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>, Error> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    /// The row of a statement that always gives one.
    pub(super) async fn one(&self, sql: &str, params: Params<'_>) -> Result<Row, Error> {
        let statement = self.client.prepare_cached(sql).await?;
        Ok(self.client.query_one(&statement, params).await?)
    }

    /// Number of rows that were written.
    pub(super) async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        let statement = self.client.prepare_cached(sql).await?;
        Ok(self.client.execute(&statement, params).await?)
    }

    pub(super) async fn batch(&self, sql: &str) -> Result<(), Error> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// Closes the connection, on which an answer may be under way.
    pub(super) fn discard(self) {
        drop(Object::take(self.client));
    }

    /// Does something with the connection within a time, and no longer than its server is the one that takes
    /// writes.
    pub(super) async fn within<T>(
        &self,
        time: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Interrupted> {
        tokio::select! {
            done = timeout(time, work) => match done {
                Ok(done) => done.map_err(Interrupted::Failed),
                Err(_) => Err(Interrupted::Broken(Error::Slow(time))),
            },
            () = self.hosts.replaced(Object::metrics(&self.client).created) => {
                Err(Interrupted::Broken(Error::Away(REPLACED.into())))
            }
        }
    }
}

/// Reason why something with a connection has no result.
pub(super) enum Interrupted {
    /// The work failed.
    Failed(Error),
    /// The work was not waited for: the connection is in the middle of it, and is to be discarded.
    Broken(Error),
}

impl Interrupted {
    /// Ends the use of the connection, and gives the error.
    pub(super) fn end(self, session: DatabaseSession) -> Error {
        match self {
            Self::Failed(error) => error,
            Self::Broken(error) => {
                session.discard();
                error
            }
        }
    }
}

/// A column of a row; an error where it has another type.
pub(super) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    index: usize,
) -> Result<T, Error> {
    row.try_get(index).map_err(Error::Sql)
}
