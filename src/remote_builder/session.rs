//! State of one connection, and the ways in which a request is not done.

use std::collections::HashMap;

use narinfo::{NarInfo, StorePathHash};

use crate::nix::{ClientConnection, DaemonError};
use crate::remote::{self, PushError, Remote};

/// Reason that a request was not done.
#[derive(Debug)]
pub(super) enum NotDone {
    /// A refusal or a failure; the client may ask for something else.
    Refused(String),
    /// The connection cannot be used any more.
    Lost(DaemonError),
    /// The client has gone away, or half of what it was promised has not come.
    Cut(String),
}

impl From<DaemonError> for NotDone {
    fn from(error: DaemonError) -> Self {
        Self::Lost(error)
    }
}

impl From<remote::Error> for NotDone {
    fn from(error: remote::Error) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<PushError> for NotDone {
    fn from(error: PushError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// Narinfos that the server has given to a connection.
#[derive(Debug, Default)]
pub(super) struct PathCache(pub(super) HashMap<StorePathHash, NarInfo>);

/// A client and its server.
pub(super) struct BuilderSession {
    pub(super) remote: Remote,
    pub(super) client: ClientConnection,
    pub(super) paths: PathCache,
    /// Numbers of activities that were used.
    pub(super) activities: u64,
}
