//! Connections that read SQLite beside the writer. Must never run SQL on an async thread.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::Error;
use super::condition::Condition;
use super::writer::BUSY_TIMEOUT;

/// Reading connections. Each has a cache of its own; when all are in use, a read waits without a thread.
const READERS_MAX: usize = 4;

/// Reading connections, opened as they are needed.
pub(super) struct Readers {
    file: PathBuf,
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
    condition: Condition,
}

impl Readers {
    pub(super) fn new(file: &Path, condition: Condition) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new(READERS_MAX));
        Arc::new(Self { file: file.to_owned(), idle: Mutex::new(Vec::new()), turns, condition })
    }

    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Error::ReaderGone)?;
        let readers = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let connection = readers.take()?;
            let result = work(&connection);
            readers.condition.note_read(&result);
            readers.give_back(connection);
            // With the work, also where nobody waits for it any more.
            drop(turn);
            result
        })
        .await
        .map_err(|_| Error::ReaderGone)?
    }

    /// Opens a connection for the first who reads, which takes a thread as long as all else of a start.
    pub(super) fn open_ahead(self: &Arc<Self>) {
        let readers = Arc::clone(self);
        let open = move || {
            // Whoever reads tries again, and hears why not.
            if let Ok(connection) = readers.open()
                && connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).is_ok()
            {
                readers.give_back(connection);
            }
        };
        let _ = std::thread::Builder::new().name("index-opener".into()).spawn(open);
    }

    fn take(&self) -> Result<Connection, Error> {
        if let Some(connection) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(connection);
        }
        self.open()
    }

    fn open(&self) -> Result<Connection, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.file, flags)
            .map_err(|source| Error::open(&self.file, source))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Else SQLite compiles a statement again for each text that is looked up, which takes six times as
        // long as to run it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        Ok(connection)
    }

    fn give_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}
