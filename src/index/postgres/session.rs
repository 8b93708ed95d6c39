//! Connections to PostgreSQL, and one request or transaction on each at a time.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Error;
use super::address::DatabaseAddress;

/// Connections of one server; a request beyond waits for one.
const CONNECTIONS_MAX: usize = 16;
/// Time for which a request waits for a connection that is free, or for a new one.
const CONNECT_FOR: Duration = Duration::from_secs(5);

/// Values of a statement.
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Connections to one database; clones share them.
#[derive(Clone)]
pub(super) struct Sessions(Pool);

/// A connection that nobody else uses meanwhile.
pub(super) struct DatabaseSession(Object);

/// Connects on the runtime of the server: its threads for HTTP have runtimes of their own, which do other
/// work.
#[derive(Clone)]
pub(super) struct Connector {
    address: DatabaseAddress,
    tls: MakeRustlsConnect,
    runtime: Handle,
}

impl Connector {
    /// A connector that connects on this runtime.
    pub(super) fn new(address: DatabaseAddress, tls: MakeRustlsConnect) -> Self {
        Self { address, tls, runtime: Handle::current() }
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// A connection of its own, driven until it is dropped.
    pub(super) async fn client(&self) -> Result<Client, tokio_postgres::Error> {
        Ok(self.start().await?.0)
    }

    pub(super) fn config(&self) -> &tokio_postgres::Config {
        self.address.config()
    }

    pub(super) fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }

    async fn start(&self) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let connector = self.clone();
        let started = self.runtime.spawn(async move {
            let (client, connection) = connector.address.config().connect(connector.tls).await?;
            let driven = tokio::spawn(async move {
                // Whoever uses it gets the error, too.
                let _ = connection.await;
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
        let manager = Manager::from_connect(connector.config().clone(), connector.clone(), config);
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS_MAX)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_FOR))
            .create_timeout(Some(CONNECT_FOR))
            .build();
        Ok(Self(pool.map_err(|error| Error::Away(Box::new(error)))?))
    }

    pub(super) async fn get(&self) -> Result<DatabaseSession, Error> {
        Ok(DatabaseSession(self.0.get().await?))
    }

    pub(super) fn close(&self) {
        self.0.close();
    }
}

impl DatabaseSession {
    pub(super) async fn rows(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        let statement = self.0.prepare_cached(sql).await?;
        Ok(self.0.query(&statement, params).await?)
    }

    /// The first row.
    pub(super) async fn row(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>, Error> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    /// The row of a statement that always gives one.
    pub(super) async fn one(&self, sql: &str, params: Params<'_>) -> Result<Row, Error> {
        let statement = self.0.prepare_cached(sql).await?;
        Ok(self.0.query_one(&statement, params).await?)
    }

    /// Number of rows that were written.
    pub(super) async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        let statement = self.0.prepare_cached(sql).await?;
        Ok(self.0.execute(&statement, params).await?)
    }

    pub(super) async fn batch(&self, sql: &str) -> Result<(), Error> {
        Ok(self.0.batch_execute(sql).await?)
    }

    /// Closes the connection, on which an answer may be under way.
    pub(super) fn discard(self) {
        drop(Object::take(self.0));
    }
}

/// A column of a row; an error where it has another type.
pub(super) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    index: usize,
) -> Result<T, Error> {
    row.try_get(index).map_err(Error::Sql)
}
