//! Why a package set cannot be brought up to date.

use std::io;

use narinfo::StorePath;

use super::evaluate::StartError;
use super::graph::GraphError;
use super::jobs::JobsError;
use super::trouble::{self, Class};
use super::walk::WalkError;
use crate::index;
use crate::nix::DaemonError;
use crate::roots;

/// Attributes of one set at most.
pub(super) const ATTRIBUTES_MAX: u64 = 2_000_000;

/// Why there is no new generation. The text, with its sources, is for who runs the server.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The set cannot be evaluated.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The set cannot be evaluated with nix-eval-jobs; a walk may succeed.
    #[error(transparent)]
    Jobs(JobsError),
    /// The source is not there.
    #[error("the source cannot be read")]
    Source(#[source] io::Error),
    /// The set is empty.
    #[error("no attribute gives a derivation")]
    Empty,
    /// The set has nothing but errors.
    #[error("none of its {count} attributes can be evaluated; the first, {attribute}: {error}")]
    NothingEvaluates {
        /// Number of the errors.
        count: u64,
        /// One of them.
        attribute: String,
        /// Its error.
        error: String,
    },
    /// The set exceeds a limit.
    #[error("it has more than {ATTRIBUTES_MAX} attributes")]
    TooMany,
    /// Derivations that were evaluated a moment ago are not there.
    #[error("{0}, which was evaluated a moment ago, is not in the Nix store any more")]
    Gone(StorePath),
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
    /// True if Nix may have collected a derivation before it was protected.
    pub(super) fn may_be_collected(&self) -> bool {
        matches!(self, Self::Daemon(DaemonError::Nix(_)) | Self::Gone(_))
    }

    /// True if the same may succeed later though the source does not change.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Walk(WalkError::Failed(error)) | Self::NothingEvaluates { error, .. } => {
                trouble::class(error) == Class::Transient
            }
            Self::Walk(WalkError::Start(error)) => matches!(error, StartError::System(_)),
            Self::Walk(WalkError::System(_)) | Self::Jobs(_) => true,
            Self::Source(_) | Self::Gone(_) | Self::Daemon(_) | Self::Roots(_) | Self::Index(_) => true,
            Self::Walk(_) | Self::Graph(_) | Self::Empty | Self::TooMany => false,
        }
    }
}
