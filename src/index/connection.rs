//! The connections to SQLite: one writer thread that owns the only writing connection, and readers beside it.
//! Must never run SQL on an async thread.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction};
use tokio::sync::{mpsc, oneshot};

use super::Error;

/// How long a reader waits for a lock that only a checkpoint or a migration holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes that may wait for the writer thread; more make their askers wait.
const WRITES_QUEUED_MAX: usize = 256;
/// Idle reading connections kept.
const READERS_IDLE_MAX: usize = 8;
/// The schema's version, in `user_version`.
const SCHEMA_VERSION: i64 = 2;
/// What brings each older version to the next one, from version 1 on.
const MIGRATIONS: [&str; 1] = [include_str!("from_1.sql")];

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The way to the writer thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Writer(mpsc::Sender<Job>);

impl Writer {
    /// Opens (or makes) the database and starts the thread that writes to it.
    pub(super) fn open(file: &Path) -> Result<Self, Error> {
        let mut connection = Connection::open(file).map_err(|source| Error::open(file, source))?;
        prepare(&mut connection, file)?;
        let (sender, mut jobs) = mpsc::channel::<Job>(WRITES_QUEUED_MAX);
        std::thread::Builder::new()
            .name("index-writer".into())
            .spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job(&mut connection);
                }
            })
            .map_err(Error::Thread)?;
        Ok(Self(sender))
    }

    /// Runs `work` in one transaction; it is durable when this returns `Ok`.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let result = connection.transaction().map_err(Error::from).and_then(|transaction| {
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            });
            // The asker may have gone away; the transaction stands all the same.
            let _ = sender.send(result);
        });
        self.0.send(job).await.map_err(|_| Error::WriterGone)?;
        receiver.await.map_err(|_| Error::WriterGone)?
    }
}

/// Reading connections, opened as they are needed.
pub(super) struct Readers {
    file: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(file: &Path) -> Arc<Self> {
        Arc::new(Self { file: file.to_owned(), idle: Mutex::new(Vec::new()) })
    }

    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let readers = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let connection = readers.take()?;
            let result = work(&connection);
            readers.give_back(connection);
            result
        })
        .await
        .map_err(|_| Error::ReaderGone)?
    }

    fn take(&self) -> Result<Connection, Error> {
        if let Some(connection) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(connection);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.file, flags)
            .map_err(|source| Error::open(&self.file, source))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < READERS_IDLE_MAX {
            idle.push(connection);
        }
    }
}

/// Sets the connection up and brings the schema to [`SCHEMA_VERSION`].
fn prepare(connection: &mut Connection, file: &Path) -> Result<(), Error> {
    let open_error = |source| Error::open(file, source);
    connection.busy_timeout(BUSY_TIMEOUT).map_err(open_error)?;
    connection.pragma_update(None, "journal_mode", "wal").map_err(open_error)?;
    // FULL: what was acknowledged survives a power cut.
    connection.pragma_update(None, "synchronous", "full").map_err(open_error)?;
    let version: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(open_error)?;
    if version > SCHEMA_VERSION {
        return Err(Error::Newer { file: file.to_owned(), found: version, known: SCHEMA_VERSION });
    }
    let steps = match usize::try_from(version) {
        Ok(done @ 1..) => &MIGRATIONS[done - 1..],
        _ => &[include_str!("schema.sql")][..],
    };
    if version < SCHEMA_VERSION {
        let transaction = connection.transaction()?;
        for step in steps {
            transaction.execute_batch(step).map_err(open_error)?;
        }
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.commit()?;
    }
    Ok(())
}
