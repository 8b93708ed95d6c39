//! Trait of pushes: uploads, and the derivations among them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use narinfo::StorePath;
use narinfo::derivation::InputHash;

use super::BackendFuture;
use crate::model::{NewNar, PathRow, PushedDerivation, UploadOutcome};

/// Uploads, and pushed derivations for as long as their own paths are served.
pub trait Pushes {
    /// Publishes an upload whose file is durable: its path, its NAR with its programs and, for a derivation,
    /// what it makes, all or nothing. A hash that is served already keeps its row; where that has the same
    /// name and contents, the NAR and the derivation are recorded all the same.
    fn publish_upload(
        &self,
        path: PathRow,
        nar: NewNar,
        derivation: Option<PushedDerivation>,
    ) -> BackendFuture<'_, UploadOutcome>;

    /// Outputs, by name, of those of `drvs` that were pushed, as far as their paths are known before they are
    /// built.
    fn pushed_outputs(
        &self,
        drvs: Vec<StorePath>,
    ) -> BackendFuture<'_, BTreeMap<StorePath, BTreeMap<String, StorePath>>>;

    /// The pushed derivations of this name, which ends in .drv, the latest used first.
    fn pushed_named(&self, name: String) -> BackendFuture<'_, Vec<StorePath>>;

    /// Identities as inputs of those of `drvs` that were pushed.
    fn pushed_input_hashes(&self, drvs: Vec<StorePath>) -> BackendFuture<'_, BTreeMap<StorePath, InputHash>>;

    /// Notes a use of those of `drvs` that were pushed.
    fn note_pushed_uses(&self, drvs: Vec<StorePath>, now: SystemTime) -> BackendFuture<'_, ()>;
}
