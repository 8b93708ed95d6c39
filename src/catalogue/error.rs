//! Why a package set cannot be brought up to date.

use std::io;

use super::graph::GraphError;
use super::jobs::JobsError;
use super::walk::WalkError;
use crate::index;
use crate::nix::DaemonError;
use crate::roots;

/// Attributes of one set at most.
pub(super) const ATTRIBUTES_MAX: u64 = 2_000_000;

/// Why there is no new generation. The text, with its sources, is for who runs the server.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// It cannot be evaluated.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// It cannot be evaluated with nix-eval-jobs; a walk may do better.
    #[error(transparent)]
    Jobs(JobsError),
    /// The source is not there.
    #[error("the source cannot be read")]
    Source(#[source] io::Error),
    /// It has nothing.
    #[error("no attribute gives a derivation")]
    Empty,
    /// It has nothing but errors.
    #[error("none of its {count} attributes can be evaluated; the first, {attribute}: {error}")]
    NothingEvaluates {
        /// How many there are.
        count: u64,
        /// One of them.
        attribute: String,
        /// Its error.
        error: String,
    },
    /// It has too much.
    #[error("it has more than {ATTRIBUTES_MAX} attributes")]
    TooMany,
    /// The closure cannot be read.
    #[error("the derivations cannot be read")]
    Graph(#[from] GraphError),
    /// The daemon does not do its part.
    #[error("the Nix daemon failed")]
    Daemon(#[from] DaemonError),
    /// The derivations cannot be held.
    #[error("the derivations cannot be held in the Nix store")]
    Roots(#[from] roots::Error),
    /// The index does not do its part.
    #[error("the index failed")]
    Index(#[from] index::Error),
}

impl From<JobsError> for RefreshError {
    fn from(error: JobsError) -> Self {
        match error {
            JobsError::Whole(error) => Self::Walk(error),
            error => Self::Jobs(error),
        }
    }
}

impl RefreshError {
    /// Whether it may be that Nix has collected a derivation before it was held.
    pub(super) fn may_be_collected(&self) -> bool {
        matches!(self, Self::Daemon(DaemonError::Nix(_)) | Self::Graph(GraphError::Unreadable { .. }))
    }
}
