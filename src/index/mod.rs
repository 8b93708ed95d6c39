//! The index: which store paths are served, which NARs are packed, which builds failed, and who waits.
//! The only place with SQL. It never asks Nix and never touches a NAR file.

mod hot;
mod record;
#[cfg(test)]
mod samples;
mod sqlite;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::filter::Filter;
use hot::Memory;
pub use hot::Ready;
pub use record::{Record, Recorded};
pub use sqlite::catalogue::{
    AttributeRow, Attributed, Generation, GenerationSize, Maker, OutputRow, Search, SetRow,
};
use sqlite::condition::Condition;
pub use sqlite::condition::Unfit;
use sqlite::connection::{self, Readers, Writer};
pub use sqlite::demand::{AttributeName, DemandRow};
pub use sqlite::generation::{NewGeneration, Swapped};
pub use sqlite::holdings::{Choice, Holding, Lost, Place};
pub use sqlite::ledger::{has_ledger, read_ledger};
pub use sqlite::pin::PinRow;
pub use sqlite::queue::{DurationRow, RequestRow};
pub use sqlite::recovery::Recovered;
pub use sqlite::rows::{Comparison, Counts, Failure, FailureClass, Hit, NarRow, PathRow, UpstreamNar};
pub use sqlite::uses::Uses;

/// How often it is looked whether nobody writes.
const LOOK_FOR_PAUSE_EVERY: Duration = Duration::from_secs(5);

/// Why the index could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or is no database.
    #[error("cannot open the index {}; if it is damaged, run `ondine recover`, which makes it anew from what is recorded beside the NARs, or move it away and restart: it is rebuilt as paths are asked for", file.display())]
    Open {
        /// The database file.
        file: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file was written by a newer version.
    #[error("the index {} has schema {found}, this version knows {known}: run the newer version again", file.display())]
    Newer {
        /// The database file.
        file: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema this program knows.
        known: i64,
    },
    /// A row does not parse.
    #[error("the index row of {row} is damaged")]
    Corrupt {
        /// The row's key.
        row: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A page of the file is not what it must be.
    #[error("the index is damaged: stop the server and run `ondine recover` ({0})")]
    Pages(String),
    /// What is recorded beside the NARs could not be written.
    #[error("cannot write down beside the NARs what is served")]
    Ledger(#[source] std::io::Error),
    /// SQLite refused.
    #[error("the index refused the request")]
    Sql(#[from] rusqlite::Error),
    /// The writer thread could not be started.
    #[error("cannot start the index writer")]
    Thread(#[source] std::io::Error),
    /// The writer thread is gone.
    #[error("the index writer has stopped")]
    WriterGone,
    /// A reading task was cancelled.
    #[error("the index reader has stopped")]
    ReaderGone,
}

impl Error {
    fn open(file: &Path, source: rusqlite::Error) -> Self {
        Self::Open { file: file.to_owned(), source }
    }
}

/// A handle to the index; clones share it.
#[derive(Clone)]
pub struct Index {
    writer: Writer,
    readers: Arc<Readers>,
    uses: Uses,
    /// Narinfos that need not be read.
    memory: Arc<Memory>,
    /// Hashes that there may be rows of.
    known: Arc<Filter>,
    condition: Condition,
}

impl Index {
    /// Looks whether a file could be opened, without changing anything.
    ///
    /// # Errors
    /// When it is no index, or one of a newer version.
    pub fn check_file(file: &Path) -> Result<(), Error> {
        connection::check(file)
    }

    /// Opens the database file, making it when it is not there. Remembers nothing: see [`Index::remembering`].
    ///
    /// # Errors
    /// When the file cannot be opened, is no database, or is of a newer version.
    pub fn open(file: &Path) -> Result<Self, Error> {
        let condition = Condition::new(file);
        Ok(Self {
            writer: Writer::open(file, condition.clone())?,
            readers: Readers::new(file, condition.clone()),
            condition,
            uses: Uses::default(),
            memory: Arc::new(Memory::new(0)),
            known: Arc::default(),
        })
    }

    /// Keeps its log short where nobody writes, for as long as the server runs.
    pub async fn keep_log_short(&self) {
        self.writer.write_back_in_pauses(LOOK_FOR_PAUSE_EVERY).await;
    }

    /// To be called last, so that the next start finds everything in its place. What is acknowledged is durable without it, too.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn close(&self) -> Result<(), Error> {
        self.writer.empty_log().await
    }
}
