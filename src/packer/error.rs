//! Reasons why a NAR is neither served nor received.

use crate::index;
use crate::nar_store::PackError;
use crate::publish;

/// Reasons why a NAR cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index failed.
    #[error("the index cannot be read")]
    Index(#[from] index::Error),
    /// The NAR store failed.
    #[error("the NAR store cannot be read or written")]
    Store(#[source] std::io::Error),
    /// The NAR could neither be packed nor fetched.
    #[error("the NAR can neither be packed nor fetched: {0}")]
    NotToBeHad(std::io::Error),
}

impl From<publish::Error> for Error {
    fn from(error: publish::Error) -> Self {
        match error {
            publish::Error::Index(error) => Self::Index(error),
            publish::Error::Bucket(error) => Self::Store(error),
        }
    }
}

/// Reasons why a NAR was not received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The sender is to blame, or the storage is full; nothing is kept.
    #[error("the NAR was not stored")]
    Pack(#[from] PackError),
    /// The storage failed.
    #[error("the NAR store cannot be read or written")]
    Store(#[source] std::io::Error),
}
