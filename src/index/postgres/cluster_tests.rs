//! Tests of what only PostgreSQL can do to servers that share it; what they promise each other is in
//! `conformance/cluster.rs`.

use super::connector;
use super::tests::{open, url};
use crate::index::conformance::cluster::{NOBODY, cluster, drv, lead, lead_at_last, node};
use crate::model::QueueOutcome;
use crate::support::PostgresServer;

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
