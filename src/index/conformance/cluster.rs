//! Promises of an index that several servers share: one of them leads, what it writes is fenced, and all add
//! to one queue.

use std::time::Duration;

use narinfo::StorePath;
use tokio::time::{Instant, sleep, timeout};

use crate::index::backend::Cluster;
use crate::index::samples::{at, path, row};
use crate::index::{Error, Index};
use crate::model::{EndingRow, Failure, FailureClass, NodeId, QueueOutcome, Term};

/// No request.
pub(in crate::index) const NOBODY: [u64; 0] = [];
/// Time within which another server leads.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(5);

pub(in crate::index) fn node(name: &str) -> NodeId {
    NodeId(name.to_owned())
}

pub(in crate::index) fn drv(number: u64) -> StorePath {
    StorePath::parse(&format!("{number:032}-p.drv")).expect("a path")
}

pub(in crate::index) fn cluster(index: &Index) -> &dyn Cluster {
    index.cluster().expect("servers can share it")
}

pub(in crate::index) async fn lead(index: &Index, name: &str) -> Option<Term> {
    cluster(index).take_over(node(name)).await.expect("asked")
}

/// Waits until a node leads.
pub(in crate::index) async fn lead_at_last(index: &Index, name: &str) -> Term {
    let taken = async {
        loop {
            match lead(index, name).await {
                Some(term) => return term,
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    timeout(TAKEN_OVER_WITHIN, taken).await.expect("the lease of the other one ends")
}

fn served(request: u64, drv: StorePath) -> EndingRow {
    EndingRow { request, drv, outcome: QueueOutcome::Served }
}

fn failure(number: u64) -> Failure {
    Failure {
        drv: drv(number),
        class: FailureClass::Permanent,
        cause: drv(number),
        reason: "why".to_owned(),
        failed_at: at(1),
        expires_at: at(1 << 40),
    }
}

async fn one_leads_for_as_long_as_it_renews_its_lease_and_can_give_it_up(one: Index, two: Index) {
    let term = lead(&one, "one").await.expect("nobody leads");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert!(cluster(&one).renew(term.clone()).await.expect("renewed"));
        assert_eq!(lead(&two, "two").await, None, "after {:?}", begun.elapsed());
        sleep(Duration::from_millis(200)).await;
    }
    let second = lead_at_last(&two, "two").await;
    assert!(second.epoch > term.epoch);
    assert!(!cluster(&one).renew(term.clone()).await.expect("asked"), "its term has ended");
    cluster(&one).release(term).await.expect("nothing to give up");
    assert_eq!(lead(&one, "one").await, None);
    cluster(&two).release(second).await.expect("given up");
    let third = lead(&one, "one").await.expect("nobody leads");
    // One that was started again takes its own lease at once.
    assert_eq!(lead(&one, "one").await.map(|term| term.epoch), Some(third.epoch + 1));
}

async fn of_many_that_take_over_at_once_one_leads(one: Index, two: Index) {
    let names: Vec<String> = (0..8).map(|number| format!("node-{number}")).collect();
    for round in 0..5 {
        let index = if round % 2 == 0 { &one } else { &two };
        let mut tries = tokio::task::JoinSet::new();
        for name in names.clone() {
            let index = index.clone();
            tries.spawn(async move { lead(&index, &name).await });
        }
        let mut terms: Vec<Term> = tries.join_all().await.into_iter().flatten().collect();
        let term = terms.pop().expect("one leads");
        assert_eq!(terms, [], "beside {term:?}");
        cluster(index).release(term).await.expect("given up");
    }
}

async fn a_leader_that_was_taken_over_from_records_nothing(one: Index, two: Index) {
    let term = lead(&one, "one").await.expect("nobody leads");
    let leader = one.fenced(&term);
    let asked = (1..=2).map(|number| (drv(number), None)).collect();
    let ids = cluster(&two).ask(node("two"), asked, None).await.expect("asked");
    assert!(leader.publish(vec![row(1, &[])]).await.expect("it leads"));
    lead_at_last(&two, "two").await;
    let refused = [
        leader.publish(vec![row(2, &[])]).await.map(drop),
        leader.remember_failure(failure(1)).await,
        leader.record_queue(Vec::new(), vec![ids[0]], Vec::new()).await,
        cluster(&leader).end_requests(vec![served(ids[0], drv(1))]).await,
        cluster(&leader).end_unheld(ids.clone(), QueueOutcome::Dropped).await.map(drop),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::Superseded)), "{refused:?}");
    }
    assert!(two.find(path(2).hash()).await.expect("read").is_none());
    assert!(two.failure(drv(1), at(2)).await.expect("read").is_none());
    let news = cluster(&two).queue_news(0, 0).await.expect("read");
    assert_eq!((news.requests.len(), news.endings.len()), (2, 0));
    // What any server may do, it may, too.
    assert!(one.publish(vec![row(3, &[])]).await.expect("published"));
}

async fn requests_of_all_servers_have_one_order_and_their_ends_are_told_to_all(one: Index, two: Index) {
    let ask = async |index: &Index, name: &str, numbers: &[u64]| {
        let asked = numbers.iter().map(|number| (drv(*number), Some([10, 0, 0, 1].into()))).collect();
        cluster(index).ask(node(name), asked, None).await.expect("asked")
    };
    assert_eq!(ask(&one, "one", &[5, 3, 5]).await, [1, 2, 1]);
    assert_eq!(ask(&two, "two", &[4, 3]).await, [3, 2], "one that waits is joined");
    let news = cluster(&two).queue_news(0, 0).await.expect("read");
    let order: Vec<_> = news.requests.iter().map(|request| (request.id, request.drv.clone())).collect();
    assert_eq!(order, [(1, drv(5)), (2, drv(3)), (3, drv(4))]);
    assert_eq!((news.latest_request, news.endings.len()), (3, 0));
    // Whoever waits for news gets it at once.
    let waiting = two.clone();
    let told = tokio::spawn(async move {
        cluster(&waiting).queue_changed().await;
        Instant::now()
    });
    let failed = EndingRow { request: 2, drv: drv(3), outcome: QueueOutcome::Failed(failure(3)) };
    let ended = vec![served(1, drv(5)), failed];
    cluster(&one).end_requests(ended.clone()).await.expect("recorded");
    assert!(told.await.expect("told").elapsed() < Duration::from_secs(1));
    let later = cluster(&two).queue_news(3, 0).await.expect("read");
    assert_eq!((later.requests.len(), &later.endings), (0, &ended));
    assert_eq!(cluster(&two).queue_news(3, later.latest_ending).await.expect("read").endings, []);
    assert_eq!(cluster(&two).hold(node("two"), vec![2, 3]).await.expect("told"), [2], "it has ended");
    assert_eq!(ask(&one, "one", &[3]).await, [4], "no number comes twice");
}

async fn a_request_is_dropped_once_no_server_holds_it(one: Index, two: Index) {
    for (index, name, number) in [(&one, "one", 1), (&two, "two", 1), (&two, "two", 2)] {
        cluster(index).ask(node(name), vec![(drv(number), None)], None).await.expect("asked");
    }
    let drop_all = async || cluster(&one).end_unheld(vec![1, 2], QueueOutcome::Dropped).await.expect("asked");
    assert_eq!(drop_all().await, NOBODY);
    cluster(&one).hold(node("one"), Vec::new()).await.expect("told");
    assert_eq!(drop_all().await, NOBODY, "the other one holds it");
    cluster(&two).hold(node("two"), vec![2]).await.expect("told");
    assert_eq!(drop_all().await, [1]);
    let endings = cluster(&two).queue_news(0, 0).await.expect("read").endings;
    assert_eq!(endings, [EndingRow { request: 1, drv: drv(1), outcome: QueueOutcome::Dropped }]);
}

/// The second time is that of a server that does not know if the first one was heard.
async fn a_request_ends_once_however_often_that_is_recorded(one: Index, two: Index) {
    let asked = vec![(drv(1), None), (drv(2), None)];
    assert_eq!(cluster(&one).ask(node("one"), asked, None).await.expect("asked"), [1, 2]);
    cluster(&one).end_requests(vec![served(1, drv(1))]).await.expect("recorded");
    let failed = EndingRow { request: 1, drv: drv(1), outcome: QueueOutcome::Failed(failure(1)) };
    cluster(&one).end_requests(vec![failed, served(2, drv(2))]).await.expect("recorded");
    let news = cluster(&two).queue_news(0, 0).await.expect("read");
    assert_eq!((news.requests.len(), news.endings), (0, vec![served(1, drv(1)), served(2, drv(2))]));
}

macro_rules! promises_of_many {
    ($($promise:ident,)*) => {
        #[cfg(feature = "postgres")]
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $promise() {
                    let schema = crate::support::PostgresServer::shared().schema();
                    let Some(crate::index::IndexLocation::Postgres(url)) = crate::index::IndexLocation::parse(&schema)
                    else {
                        panic!("no URL: {schema}")
                    };
                    let open = async || super::Index::open_postgres(&url, None, 0).await.expect("opened");
                    super::$promise(open().await, open().await).await;
                }
            )*
        }

        mod memory {
            use crate::index::shared::{Direct, SharedMemory};

            $(
                #[tokio::test(start_paused = true)]
                async fn $promise() {
                    let database = std::sync::Arc::default();
                    let link = std::sync::Arc::new(Direct);
                    let open = || SharedMemory::new(std::sync::Arc::clone(&database), link.clone());
                    super::$promise(super::Index::new(open(), 0), super::Index::new(open(), 0)).await;
                }
            )*
        }
    };
}

promises_of_many! {
    one_leads_for_as_long_as_it_renews_its_lease_and_can_give_it_up,
    of_many_that_take_over_at_once_one_leads,
    a_leader_that_was_taken_over_from_records_nothing,
    requests_of_all_servers_have_one_order_and_their_ends_are_told_to_all,
    a_request_is_dropped_once_no_server_holds_it,
    a_request_ends_once_however_often_that_is_recorded,
}
