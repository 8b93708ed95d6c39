//! The lease of the leader, and the fence of its writes: see [`Cluster`].

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use narinfo::StorePath;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::session::{DatabaseSession, column};
use super::{Error, Postgres};
use crate::index::backend::{Backend, BackendFuture, Cluster};
use crate::index::columns::{signed, unsigned};
use crate::model::{EndingRow, NodeId, QueueNews, QueueOutcome, Term};

/// Time that a request about the lease may take. Another one follows soon.
const ANSWER_FOR: Duration = Duration::from_secs(2);
/// Life of a lease that is not renewed. It begins anew when the database was restarted: the leader could not
/// renew it meanwhile.
const LEASE: &str = "interval '3 seconds'";

impl Postgres {
    /// Takes over where nobody leads. A server that hangs is not waited for: once it goes on, another one may
    /// have replaced it.
    async fn try_take_over(&self, node: &NodeId) -> Result<Option<u64>, Error> {
        let session = self.database.session().await?;
        let taken = session.within(ANSWER_FOR, take_over_on(&session, node)).await;
        taken.map_err(|interrupted| interrupted.end(session))
    }

    /// Changes the lease of a term. False where that has ended.
    /// On a connection of its own: it does not wait for those that are busy.
    async fn set_lease(&self, term: &Term, expires_at: &str) -> Result<bool, Error> {
        let asked = async {
            let mut kept = self.lease_session.lock().await;
            let connector = self.database.connector();
            // A server that was replaced may answer for long: a lease there keeps nobody from leading.
            let is_good = |(since, client): &(Instant, Client)| {
                !client.is_closed() && !connector.hosts().is_replaced(*since)
            };
            let (since, client) = match kept.take().filter(is_good) {
                Some(kept) => kept,
                None => (Instant::now(), connector.client().await?),
            };
            let sql = format!(
                "UPDATE lease SET expires_at = {expires_at} \
                 WHERE EXISTS (SELECT 1 FROM leadership WHERE epoch = $1 AND holder = $2)"
            );
            let rows = client.execute(&sql, &[&signed(term.epoch), &term.holder.0]).await?;
            *kept = Some((since, client));
            Ok(rows > 0)
        };
        timeout(ANSWER_FOR, asked).await.unwrap_or(Err(Error::Slow(ANSWER_FOR)))
    }
}

/// Takes over on this connection. Gives the epoch, or nothing where another server leads.
async fn take_over_on(session: &DatabaseSession, node: &NodeId) -> Result<Option<u64>, Error> {
    let sql = format!(
        "SELECT t.epoch, t.holder = $1 OR greatest(l.expires_at, pg_postmaster_start_time() + {LEASE}) \
         < clock_timestamp() OR t.epoch = 0 OR l.expires_at = '-infinity' FROM leadership t, lease l"
    );
    let row = session.one(&sql, &[&node.0]).await?;
    let (epoch, is_free) = (column::<i64>(&row, 0)?, column::<bool>(&row, 1)?);
    if !is_free {
        return Ok(None);
    }
    // Of several that take over at once, the first one raises the epoch that the others have seen. Waits
    // for the fenced writes that are under way.
    let sql = format!(
        "WITH taken AS (UPDATE leadership SET epoch = epoch + 1, holder = $1 WHERE epoch = $2 RETURNING epoch), \
         kept AS (UPDATE lease SET expires_at = clock_timestamp() + {LEASE} WHERE EXISTS (SELECT 1 FROM taken)) \
         SELECT epoch FROM taken"
    );
    let taken = session.row(&sql, &[&node.0, &epoch]).await?;
    taken.map(|row| column(&row, 0).map(unsigned)).transpose()
}

impl Cluster for Postgres {
    fn take_over(&self, node: NodeId) -> BackendFuture<'_, Option<Term>> {
        Box::pin(async move {
            let epoch = self.try_take_over(&node).await?;
            Ok(epoch.map(|epoch| Term { epoch, holder: node }))
        })
    }

    fn renew(&self, term: Term) -> BackendFuture<'_, bool> {
        let until = format!("clock_timestamp() + {LEASE}");
        Box::pin(async move { Ok(self.set_lease(&term, &until).await?) })
    }

    fn release(&self, term: Term) -> BackendFuture<'_, ()> {
        Box::pin(async move { Ok(self.set_lease(&term, "'-infinity'").await.map(drop)?) })
    }

    fn fenced(&self, term: Term) -> Arc<dyn Backend> {
        Arc::new(Self { fence: Some(term), ..self.clone() })
    }

    fn ask(
        &self,
        node: NodeId,
        asked: Vec<(StorePath, Option<IpAddr>)>,
        builder: Option<String>,
    ) -> BackendFuture<'_, Vec<u64>> {
        self.add_requests(node, asked, builder)
    }

    fn hold(&self, node: NodeId, requests: Vec<u64>) -> BackendFuture<'_, Vec<u64>> {
        self.hold_requests(node, requests)
    }

    fn queue_news(&self, after_request: u64, after_ending: u64) -> BackendFuture<'_, QueueNews> {
        self.read_queue_news(after_request, after_ending)
    }

    fn end_requests(&self, endings: Vec<EndingRow>) -> BackendFuture<'_, ()> {
        self.record_endings(endings)
    }

    fn end_unheld(&self, requests: Vec<u64>, outcome: QueueOutcome) -> BackendFuture<'_, Vec<u64>> {
        self.record_ends_of_unheld(requests, outcome)
    }

    fn queue_changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.database.feed().queue_changed())
    }
}
