//! Tests of what PostgreSQL has and SQLite has not: several servers over one database, and a database that
//! goes away.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use crate::causes::with_causes;
use crate::index::samples::{at, nar, path, row};
use crate::index::{Error, Index, IndexLocation, PostgresUrl};
use crate::model::{NarRow, NewToken};
use crate::support::PostgresServer;
use crate::support::process::Signal;

/// Time within which other servers know of a write.
const SOON: Duration = Duration::from_secs(10);
/// Time within which a write fails whose commit a server took that hangs since.
const HANGING_WRITE_FOR: Duration = Duration::from_secs(40);
/// Room for narinfos in memory.
const NARINFO_BYTES: u64 = 64 * 1024;

pub(super) fn url(text: &str) -> PostgresUrl {
    let Some(IndexLocation::Postgres(url)) = IndexLocation::parse(text) else { panic!("no URL: {text}") };
    url
}

pub(super) async fn open(text: &str) -> Index {
    Index::open_postgres(&url(text), None, NARINFO_BYTES).await.expect("opened")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen within {SOON:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Reads the path of this digit, and caches its narinfo.
async fn cache(index: &Index, digit: u8) {
    let found = index.lookup(path(digit).hash()).await.expect("read").expect("served");
    let _ = index.cache(found, Bytes::from_static(b"a narinfo"));
    assert!(index.lookup_cached(path(digit).hash()).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_writes_the_others_know() {
    let schema = PostgresServer::shared().schema();
    let (one, two) = tokio::join!(open(&schema), open(&schema));
    two.fill_filter().await.expect("read");
    assert!(two.definitely_absent(path(1).hash()));
    assert!(one.publish(vec![row(1, &[])]).await.expect("published"));
    assert!(!one.definitely_absent(path(1).hash()), "the writer knows at once");
    until("the other one knows", || !two.definitely_absent(path(1).hash())).await;
    assert!(two.definitely_absent(path(2).hash()), "it has read no more than what changed");
    cache(&two, 1).await;
    one.record_packed(NarRow { nar_hash: nar(1), file_hash: nar(9), file_size: 1 }.into())
        .await
        .expect("recorded");
    until("the narinfo is another one", || two.lookup_cached(path(1).hash()).is_none()).await;
    cache(&two, 1).await;
    one.forget_paths(nar(1)).await.expect("forgotten");
    until("it is not served any more", || two.lookup_cached(path(1).hash()).is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_two_servers_at_once_are_told_in_one_order() {
    let schema = PostgresServer::shared().schema();
    let (one, two) = tokio::join!(open(&schema), open(&schema));
    for index in [&one, &two] {
        index.fill_filter().await.expect("read");
    }
    let publish = async |index: &Index, digits: std::ops::Range<u8>| {
        for digit in digits {
            assert!(index.publish(vec![row(digit, &[])]).await.expect("published"));
            assert!(!index.definitely_absent(path(digit).hash()), "{digit}");
        }
    };
    tokio::join!(publish(&one, 0..5), publish(&two, 5..10));
    for index in [&one, &two] {
        until("all are known", || (0..10).all(|digit| !index.definitely_absent(path(digit).hash()))).await;
        assert_eq!(index.counts().await.expect("read").paths, 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_hangs_hits_go_on_and_nothing_is_denied() {
    let server = PostgresServer::start();
    let schema = server.schema();
    let index = open(&schema).await;
    assert!(index.publish(vec![row(1, &[])]).await.expect("published"));
    index.fill_filter().await.expect("read");
    cache(&index, 1).await;
    assert!(index.definitely_absent(path(2).hash()));
    server.signal(Signal::Stop);
    until("nothing is denied", || !index.definitely_absent(path(2).hash())).await;
    assert!(index.lookup_cached(path(1).hash()).is_some());
    server.signal(Signal::Cont);
    // What it knows is true still: nothing was missed.
    until("it is sure again", || index.definitely_absent(path(2).hash())).await;
    assert!(index.lookup_cached(path(1).hash()).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_within_a_commit_and_afterwards_holds_a_write_up_within_a_bound() {
    let server = PostgresServer::start();
    let index = open(&server.schema()).await;
    // Connections that are left for whoever asks for the fate of the commit.
    tokio::join!(index.find(path(1).hash()), index.find(path(2).hash()), index.find(path(3).hash()))
        .0
        .expect("read");
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    server.sql("SELECT pg_reload_conf()");
    let writer = index.clone();
    let written = tokio::spawn(async move { writer.publish(vec![row(1, &[])]).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("the commit waits for the replica", || server.sql(waits) == "1").await;
    server.signal(Signal::Stop);
    let outcome = timeout(HANGING_WRITE_FOR, written).await.expect("within a bound").expect("no panic");
    server.signal(Signal::Cont);
    assert!(outcome.is_err(), "nobody has told that it was done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_is_read_and_where_it_is_not_on_record_everything_is() {
    let server = PostgresServer::start();
    let schema = server.schema();
    let index = open(&schema).await;
    index.fill_filter().await.expect("read");
    let name = "test0";
    // As another server does, in one transaction with what cuts the connections.
    let publish = |sequence: u8, kept: bool| {
        let hash = path(sequence).hash();
        let record =
            format!("INSERT INTO change VALUES ({sequence}, now(), '{{{hash}}}', '{{}}', '{{}}', false);");
        server.sql(&format!(
            "SET search_path TO {name}; BEGIN; UPDATE change_position SET latest = {sequence}; {} \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'; COMMIT",
            if kept { record.as_str() } else { "" }
        ));
    };
    publish(1, true);
    until("what was missed is read", || {
        !index.definitely_absent(path(1).hash()) && index.definitely_absent(path(5).hash())
    })
    .await;
    publish(2, false);
    until("nothing is relied on", || !index.definitely_absent(path(5).hash())).await;
    sleep(Duration::from_millis(500)).await;
    index.fill_filter().await.expect("read");
    assert!(index.definitely_absent(path(5).hash()), "everything was read again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_happens_once_however_often_the_server_is_killed_meanwhile() {
    let mut server = PostgresServer::start();
    let schema = server.schema();
    let index = open(&schema).await;
    let writing = index.clone();
    let writes = tokio::spawn(async move {
        let mut ids = BTreeSet::new();
        for number in 0..400 {
            let token = NewToken {
                name: format!("token-{number}"),
                digest: [7; 32],
                rights: Vec::new(),
                patterns: Vec::new(),
                created_at: at(1),
                expires_at: None,
                queued_max: None,
            };
            // A second try of the same write would find its name taken.
            ids.extend(writing.add_token(token).await.expect("written").map(|id| (id, number)));
        }
        ids
    });
    let server = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(300));
            server.kill();
            server.restart();
        }
        server
    });
    let server = server.await.expect("restarted");
    let ids = timeout(Duration::from_secs(60), writes).await.expect("in time").expect("all are written");
    let tokens = index.tokens().await.expect("read");
    assert_eq!((ids.len(), tokens.len()), (400, 400));
    drop(server);
}

#[tokio::test]
async fn a_database_that_is_away_is_told_without_the_password() {
    let text = "postgres://someone:secret@127.0.0.1:1/nothing";
    let begun = Instant::now();
    let refused = Index::check_postgres(&url(text), None).await.expect_err("nobody is there");
    assert!(refused.is_transient() && begun.elapsed() < SOON);
    let told = with_causes(&refused);
    assert!(told.contains("PostgreSQL does not answer") && !told.contains("secret"), "{told}");
    let wrong = Index::check_postgres(&url("mysql://u:secret@h/d"), None).await.expect_err("no URL of ours");
    let told = format!("{} {:?}", with_causes(&wrong), wrong.source());
    assert!(told.contains("postgres://user@host") && !told.contains("secret"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_of_a_newer_version_is_left_alone() {
    let server = PostgresServer::shared();
    let schema = server.schema();
    drop(open(&schema).await);
    Index::check_postgres(&url(&schema), None).await.expect("it is of this version");
    let name = schema.rsplit("%3D").next().expect("its name");
    server.sql(&format!("INSERT INTO {name}.refinery_schema_history VALUES (999, 'later', '', '0')"));
    let refused = Index::check_postgres(&url(&schema), None).await.expect_err("it is newer");
    assert!(matches!(refused, Error::Newer { found: 999, .. }), "{refused:?}");
    assert!(Index::open_postgres(&url(&schema), None, 0).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_over_the_network_is_encrypted_verified_and_opened_by_the_password_of_the_file() {
    let (server, access) = PostgresServer::start_on_network("a pass:word");
    let (port, authority) = (access.port, access.authority.display().to_string().replace('/', "%2F"));
    let at = |host: &str, mode: &str| {
        url(&format!("postgres://postgres@{host}:{port}/postgres?sslmode={mode}&sslrootcert={authority}"))
    };
    for mode in ["require", "verify-full"] {
        let index = Index::open_postgres(&at("localhost", mode), Some(&access.password), NARINFO_BYTES).await;
        let index = index.unwrap_or_else(|error| panic!("{mode}: {}", with_causes(&error)));
        assert!(index.publish(vec![row(1, &[])]).await.is_ok());
        let plain = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
            WHERE a.application_name = 'ondine' AND NOT s.ssl";
        assert_eq!(server.sql(plain), "0");
    }
    let check = async |url: &PostgresUrl, password: Option<&std::path::Path>| {
        let refused = Index::check_postgres(url, password).await.expect_err("refused");
        let told = with_causes(&refused);
        assert!(!told.contains("pass:word"), "{told}");
        told
    };
    let wrong = access.password.with_file_name("wrong");
    std::fs::write(&wrong, "wrong").expect("written");
    let told = check(&at("localhost", "require"), Some(&wrong)).await;
    assert!(told.contains("check the user, the password"), "{told}");
    // The certificate is of another name, of an authority that nobody has named, or there is to be none.
    check(&at("127.0.0.1", "require"), Some(&access.password)).await;
    let unnamed = url(&format!("postgres://postgres@localhost:{port}/postgres?sslmode=require"));
    check(&unnamed, Some(&access.password)).await;
    let told = check(&at("localhost", "disable"), Some(&access.password)).await;
    assert!(told.contains("PostgreSQL refuses the connection"), "{told}");
}
