//! Tests of what only PostgreSQL can do to servers that share it; what they promise each other is in
//! `conformance/cluster.rs`.

use super::tests::{open, url};
use super::{Postgres, connector};
use crate::index::Error;
use crate::index::backend::Cluster;
use crate::index::conformance::cluster::{NOBODY, cluster, drv, lead, lead_at_last, node};
use crate::index::samples::{at, nar, path, row};
use crate::model::{EvictionBounds, NarRow, QueueOutcome};
use crate::support::PostgresServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_taken_over_from_evicts_nothing() {
    let schema = PostgresServer::shared().schema();
    let (one, two) = tokio::join!(open(&schema), open(&schema));
    assert!(one.for_leader().is_none(), "nobody leads");
    one.set_term(lead(&one, "one").await);
    let leader = one.for_leader().expect("it leads");
    assert!(leader.publish(vec![row(1, &[])]).await.expect("it leads"));
    lead_at_last(&two, "two").await;
    let everything = EvictionBounds { target_bytes: 0, used_since: at(1 << 40), pushed_since: at(1 << 40) };
    let refused = [
        leader.evict(at(1 << 40), everything).await.map(drop),
        leader.forget_unused_nars(vec![nar(1)]).await,
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::Superseded)), "{refused:?}");
    }
    assert!(two.find(path(1).hash()).await.expect("read").is_some(), "it was evicted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nar_that_another_server_has_just_stored_is_no_unused_one_to_the_leader() {
    let schema = PostgresServer::shared().schema();
    let (one, two) = tokio::join!(open(&schema), open(&schema));
    let leader = one.fenced(&lead(&one, "one").await.expect("nobody leads"));
    let stored = NarRow { nar_hash: nar(1), file_hash: nar(9), file_size: 1 };
    two.record_packed(stored.into()).await.expect("recorded");
    assert_eq!(leader.unused_nars(None).await.expect("read"), []);
    assert_eq!(one.unused_nars(None).await.expect("read"), [stored], "where nobody else can be about to");
    let schema = schema.rsplit("%3D").next().expect("its name");
    PostgresServer::shared()
        .sql(&format!("SET search_path TO {schema}; UPDATE nar SET packed_at = packed_at - 4000"));
    assert_eq!(leader.unused_nars(None).await.expect("read"), [stored]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hangs_within_a_write_is_taken_over_from_all_the_same() {
    let schema = PostgresServer::shared().schema();
    let (one, two) = tokio::join!(open(&schema), open(&schema));
    let term = lead(&one, "one").await.expect("nobody leads");
    // As far as its writes go, and no further.
    let client = connector(&url(&schema), None).expect("an address").client().await.expect("connected");
    client.batch_execute(super::transaction::BEGIN).await.expect("begun");
    let lock = format!(
        "SELECT 1 FROM leadership WHERE epoch = {} FOR SHARE; INSERT INTO node VALUES ('x', now())",
        term.epoch
    );
    client.batch_execute(&lock).await.expect("locked");
    lead_at_last(&two, "two").await;
    assert!(client.batch_execute("COMMIT").await.is_err(), "the server has ended it");
    let left = PostgresServer::shared().sql(&format!(
        "SELECT count(*) FROM {}.node WHERE id = 'x'",
        schema.rsplit("%3D").next().expect("its name")
    ));
    assert_eq!(left, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_not_renewed_on_a_server_that_a_replica_has_taken_over_from() {
    let server = PostgresServer::shared();
    let schema = server.schema();
    let either = server.url_of_either(server, schema.rsplit("%3D").next().expect("its name"));
    let index = Postgres::open(&url(&either), None).await.expect("opened");
    let term = index.take_over(node("one")).await.expect("asked").expect("nobody leads");
    assert!(index.renew(term.clone()).await.expect("it leads"));
    // As a connection to the replica shows. This server still takes writes.
    index.database.connector().hosts().note_timeline("FFFFFFFF");
    let renewed = index.renew(term).await;
    assert!(matches!(renewed, Err(Error::Unavailable(_))), "{renewed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_dropped_once_no_server_that_is_alive_holds_it() {
    let server = PostgresServer::shared();
    let schema = server.schema();
    let index = open(&schema).await;
    let cluster = cluster(&index);
    for (name, number) in [("one", 1), ("two", 2)] {
        cluster.ask(node(name), vec![(drv(number), None)], None).await.expect("asked");
    }
    let drop_all = async || cluster.end_unheld(vec![1, 2], QueueOutcome::Dropped).await.expect("asked");
    assert_eq!(drop_all().await, NOBODY);
    let name = schema.rsplit("%3D").next().expect("its name");
    server.sql(&format!("UPDATE {name}.node SET seen_at = now() - interval '2 minutes'"));
    assert_eq!(drop_all().await, [1, 2], "whoever held them is gone");
}
