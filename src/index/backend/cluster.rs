//! Trait of an index that several servers share: the leader among them, the queue that all of them add to,
//! and the endings that all of them are told.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(any(test, feature = "postgres"))]
use std::time::Duration;

use narinfo::StorePath;

use super::{Backend, BackendFuture};
use crate::model::{EndingRow, NodeId, QueueNews, QueueOutcome, Term};

/// Interval at which a server is asked for news even if it has told of none: one that hangs is noticed.
#[cfg(any(test, feature = "postgres"))]
pub(in crate::index) const ASK_EVERY: Duration = Duration::from_secs(2);
/// Time after which a write that found nobody is not tried again: longer than a server takes to restart.
#[cfg(any(test, feature = "postgres"))]
pub(in crate::index) const WRITE_AGAIN_FOR: Duration = Duration::from_secs(10);

/// An index that other servers may use at the same time. Of those that schedule, one is the leader, for a
/// term.
///
/// **The lease.** The leader renews a row with an expiry by the database's clock. Whoever finds it expired
/// takes over, which begins another term. This holds for a leader that was killed, that hangs (SIGSTOP), and
/// that is cut off alike. An advisory lock would not do: it goes with its connection, the kernel of a process
/// that hangs keeps that open for ever, and neither keep-alives nor `tcp_user_timeout` notice;
/// `idle_session_timeout` would, but came with PostgreSQL 14, and ends a leader at each restart of the
/// database. After such a restart the lease counts from there, so the leader stays.
///
/// **The fence.** No clock decides what is recorded. Every write of a [`Cluster::fenced`] backend holds a
/// shared lock on the row of the term while it commits, and is refused where the term is another one; taking
/// over waits for these locks. A transaction whose server hangs is ended by the database
/// (`idle_in_transaction_session_timeout`), so that it blocks nobody for longer than the lease lasts.
pub trait Cluster: Send + Sync {
    /// Begins a term of this node, unless another one leads. Its own earlier term ends by that.
    fn take_over(&self, node: NodeId) -> BackendFuture<'_, Option<Term>>;

    /// Renews the lease of a term. False where that has ended.
    fn renew(&self, term: Term) -> BackendFuture<'_, bool>;

    /// Gives the lease up, so that another node can take over at once.
    fn release(&self, term: Term) -> BackendFuture<'_, ()>;

    /// The same index, whose writes are refused with [`Superseded`](crate::index::Error::Superseded) once the
    /// term has ended.
    fn fenced(&self, term: Term) -> Arc<dyn Backend>;

    /// Adds requests in their order, for one builder alone where it is named, and gives each its number. One
    /// that waits for the same derivation already is joined. None of them is dropped while the node is alive
    /// and holds it.
    fn ask(
        &self,
        node: NodeId,
        asked: Vec<(StorePath, Option<IpAddr>)>,
        builder: Option<String>,
    ) -> BackendFuture<'_, Vec<u64>>;

    /// Notes that the node is alive, and that these are the requests that its clients wait for. Gives those
    /// that are not in the queue.
    fn hold(&self, node: NodeId, requests: Vec<u64>) -> BackendFuture<'_, Vec<u64>>;

    /// Requests behind the one with this number, and endings behind this one, in their orders.
    fn queue_news(&self, after_request: u64, after_ending: u64) -> BackendFuture<'_, QueueNews>;

    /// Records that requests have ended: they leave the queue, and every server is told.
    fn end_requests(&self, endings: Vec<EndingRow>) -> BackendFuture<'_, ()>;

    /// Ends those of the requests that no node holds which is alive. Gives them.
    fn end_unheld(&self, requests: Vec<u64>, outcome: QueueOutcome) -> BackendFuture<'_, Vec<u64>>;

    /// Resolves once the queue may have changed since this resolved last, a few seconds later at most. For
    /// one caller.
    fn queue_changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}
