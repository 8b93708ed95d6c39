//! Derivations that clients have pushed, and what became of an upload.

use std::collections::BTreeMap;

use narinfo::{DrvOutput, StorePath, derivation::InputHash};

use super::PathRow;

/// A derivation that was pushed: its own path is served, and its outputs are built on demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushedDerivation {
    /// The derivation.
    pub drv: StorePath,
    /// Outputs by name whose paths are known before they are built.
    pub outputs: BTreeMap<String, StorePath>,
    /// Identity of the derivation as an input of others.
    pub input_hash: InputHash,
}

/// Outcome of publishing an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadOutcome {
    /// The path is served from now on.
    Published,
    /// A path with this hash was served before; its row stays.
    Served(Box<PathRow>),
    /// The upload refers to this path, which is not served; nothing was published.
    Lacks(StorePath),
}

/// Outcome of publishing realisations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RealisationOutcome {
    /// All are served from now on, or were before.
    Published,
    /// One names this path, which is not served; none was published.
    Lacks(StorePath),
    /// An output is served as another path; none was published.
    Conflict {
        /// The output.
        id: DrvOutput,
        /// The path that it is.
        known: StorePath,
    },
}
