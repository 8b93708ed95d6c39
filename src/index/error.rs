//! Errors of the index, whatever database it is in.

use std::error::Error as StdError;

/// Reason why the index could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Unavailable: the index cannot be opened, read or written now.
    #[error(transparent)]
    Unavailable(Box<dyn StdError + Send + Sync>),
    /// A row or a page is not as it was written.
    #[error("the index is damaged at {row}: stop the server and run `ondine recover`")]
    Corrupt {
        /// The row's key, or the part of the database.
        row: String,
        /// The fault.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A write of a leader that another server has taken over from. Nothing has changed.
    #[error("another server has taken over the scheduling of builds; nothing was recorded")]
    Superseded,
    /// The index was written by a newer version.
    #[error("the index {index} has schema {found}, this version knows {known}: run the newer version again")]
    Newer {
        /// The database.
        index: String,
        /// Its schema.
        found: i64,
        /// The newest schema that this version knows.
        known: i64,
    },
}

impl Error {
    /// True for trouble that may pass, such as a full disk; damage and a newer schema stay.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
