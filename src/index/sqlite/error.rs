//! Errors of the index in SQLite. Whoever uses the index sees only the three kinds that every backend has,
//! each with one of these as its opaque source.

use std::path::{Path, PathBuf};

use crate::index;
use crate::index::columns::DamagedRow;
use crate::index::condition::ConditionError;

/// Reason why SQLite could not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The file cannot be opened or is no database.
    #[error("cannot open the index {}; if it is damaged, run `ondine recover`, which makes it anew from what is recorded beside the NARs, or move it away and restart: it is rebuilt as paths are asked for", file.display())]
    Open {
        /// The database file.
        file: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The file was written by a newer version.
    #[error("the index {} has schema {found}, this version knows {known}", file.display())]
    Newer {
        /// The database file.
        file: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that this version knows.
        known: i64,
    },
    /// A row does not parse.
    #[error("the index row of {row} is damaged")]
    Corrupt {
        /// The row's key.
        row: String,
        /// The fault.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A page of the file is not what it must be.
    #[error("{0}")]
    Pages(String),
    /// The ledger beside the NARs could not be written.
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
    pub(super) fn open(file: &Path, source: rusqlite::Error) -> Self {
        Self::Open { file: file.to_owned(), source }
    }
}

impl From<DamagedRow> for Error {
    fn from(DamagedRow { row, source }: DamagedRow) -> Self {
        Self::Corrupt { row, source }
    }
}

impl From<Error> for index::Error {
    fn from(error: Error) -> Self {
        let damaged = error.is_damage();
        match error {
            Error::Newer { file, found, known } => {
                Self::Newer { index: file.display().to_string(), found, known }
            }
            Error::Corrupt { row, source } => Self::Corrupt { row: format!("the row of {row}"), source },
            // A file that cannot be opened may be no index at all: that error says what to do.
            error @ Error::Open { .. } => Self::Unavailable(Box::new(error)),
            error if damaged => {
                Self::Corrupt { row: "a page of its file".to_owned(), source: Box::new(error) }
            }
            error => Self::Unavailable(Box::new(error)),
        }
    }
}
