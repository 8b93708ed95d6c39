//! Wall between the index and the database below it: small traits of plain data, and the changes that a
//! backend tells. No type of a database, no closure of a caller and no HTTP passes it. One suite, in
//! `conformance`, runs against every backend.

mod builds;
mod catalogue;
mod changes;
mod closures;
mod cluster;
mod paths;
mod programs;
mod pushed;
mod retention;
mod tokens;
mod upkeep;

use std::pin::Pin;
use std::sync::Arc;

use narinfo::StorePathHash;
use tokio::sync::mpsc;

use super::Error;
pub use builds::{DemandStore, FailureStore, QueueLog};
pub use catalogue::{Generations, PackageSets};
pub use changes::{Changes, Follower};
pub use closures::{Closures, History};
pub use cluster::Cluster;
#[cfg(any(test, feature = "postgres"))]
pub(in crate::index) use cluster::{ASK_EVERY, WRITE_AGAIN_FOR};
pub use paths::{Comparisons, Nars, Paths, RealisationStore, UpstreamNars};
pub use programs::Programs;
pub use pushed::Pushes;
pub use retention::{Pins, RetentionStore};
pub use tokens::Tokens;
pub use upkeep::{Recovered, RecoveryStore, Unfit, Upkeep};

/// An answer under way. Boxed, which costs little beside a database; whatever is asked for most is answered
/// by the hot layer, and never comes here.
pub type BackendFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// A database that holds the index. Each write is one transaction: it is durable, and the follower knows of
/// it, once it is acknowledged; where it fails, nothing has changed.
pub trait Backend:
    Paths
    + Closures
    + History
    + RealisationStore
    + Nars
    + Programs
    + UpstreamNars
    + Comparisons
    + RetentionStore
    + Pins
    + FailureStore
    + Pushes
    + QueueLog
    + DemandStore
    + PackageSets
    + Generations
    + Tokens
    + Upkeep
    + RecoveryStore
    + Send
    + Sync
{
    /// Replaces the follower, which receives every later change.
    fn follow(&self, follower: Arc<dyn Follower>);

    /// Number of hashes that [`Backend::hashes`] sends, roughly.
    ///
    /// # Errors
    /// The backend fails.
    fn hash_count(&self) -> BackendFuture<'_, u64>;

    /// Sends every hash that is served, that a package set or a pushed derivation can build, or that a
    /// generation under way will:
    /// those of writes that were acknowledged before the call, and perhaps later ones. Ends early when nobody
    /// receives them.
    ///
    /// # Errors
    /// The backend fails; then some were not sent.
    fn hashes(&self, batches: mpsc::Sender<Vec<StorePathHash>>) -> BackendFuture<'_, ()>;

    /// The part that several servers share; `None` where this process alone can use the index, and is its own
    /// leader.
    fn cluster(&self) -> Option<&dyn Cluster> {
        None
    }
}
