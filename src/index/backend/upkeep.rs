//! Traits of a backend's health, and of its recovery from a ledger.

use std::pin::Pin;

use narinfo::StorePathHash;

use super::BackendFuture;
use crate::index::Recorded;
use crate::model::PushedDerivation;

/// Reason why the index is not ready. The text is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The check after the start is under way.
    #[error("the index is being checked after the start")]
    Unchecked,
    /// The database, or a row, is corrupt.
    #[error(
        "the index is damaged ({0}): stop the server and run `ondine recover`, which makes it anew from what is recorded beside the NARs"
    )]
    Damaged(String),
    /// Reads fail.
    #[error("the index cannot be read ({0})")]
    Unreadable(String),
    /// Writes fail.
    #[error(
        "the index cannot be written ({0}): what is cached is served, nothing new is; `ondine gc --max-bytes` makes room on a full disk"
    )]
    NotWritable(String),
}

/// A record of the ledger, compared with the files.
#[derive(Clone, Debug)]
pub enum Recovered {
    /// The path can be served.
    Served(Box<Recorded>),
    /// Its contents are lost.
    Gone(StorePathHash),
}

/// Health and upkeep.
pub trait Upkeep {
    /// Runs the upkeep that the backend needs beside its use, for as long as the server runs.
    fn maintain(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Checks that the index is ready; after a failed write, a test write is made.
    fn check(&self) -> Pin<Box<dyn Future<Output = Result<(), Unfit>> + Send + '_>>;

    /// Checks everything for corruption, at the lowest priority.
    fn verify(&self) -> BackendFuture<'_, ()>;

    /// Compares the totals with the packed NARs and the served paths; reads all of them.
    fn verify_totals(&self) -> BackendFuture<'_, bool>;

    /// Recomputes the totals.
    fn recompute_totals(&self) -> BackendFuture<'_, ()>;

    /// Resolves once the system has refused a write since the last call, as on a full disk.
    fn write_refused(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Ends the use of the index, so that the next start is fast. What was acknowledged is durable without
    /// it, too.
    fn close(&self) -> BackendFuture<'_, ()>;
}

/// Recovery of an index that is not served from yet.
pub trait RecoveryStore {
    /// Takes over pushed derivations whose own paths are served, as if each had been used now. Gives their
    /// number.
    fn restore_pushed(&self, pushed: Vec<PushedDerivation>) -> BackendFuture<'_, u64>;

    /// Takes over records in their order: the latest one of a path counts. References may be missing until
    /// [`RecoveryStore::forget_incomplete`] is done.
    fn recover(&self, batch: Vec<Recovered>) -> BackendFuture<'_, ()>;

    /// Stops serving paths that refer to something that is not served. Gives their number.
    fn forget_incomplete(&self) -> BackendFuture<'_, u64>;
}
