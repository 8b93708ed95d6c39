//! Promises of every backend about served paths, their signatures, and the totals.

use std::collections::BTreeSet;

use narinfo::{PathInfo, Signature, StorePath, StorePathHash};

use crate::index::Index;
use crate::index::samples::{bump, configure, hash, nar, output, path, row, row_of, upstream_nar};
use crate::model::{Counts, Hit, NarRow, PathRow, UpstreamNar};

/// Paths of which every backend needs several batches.
const MANY: u16 = 600;

fn signature(key: &str) -> Signature {
    format!("{key}:{}==", "A".repeat(86)).parse().expect("a signature")
}

/// Digits of the paths that are served.
async fn served(index: &Index) -> Vec<u8> {
    let hashes = (0..10).map(|digit| path(digit).hash()).collect();
    let found = index.served(hashes).await.expect("read");
    (0..10).filter(|digit| found.get(&path(*digit).hash()) == Some(&path(*digit))).collect()
}

async fn found(index: &Index, digit: u8) -> Option<Hit> {
    index.find(path(digit).hash()).await.expect("read")
}

pub(super) async fn a_closure_is_published_whole_or_not_at_all(index: Index) {
    assert!(!index.publish(vec![row(3, &[]), row(2, &[1])]).await.expect("asked"));
    assert_eq!(served(&index).await, [0; 0]);
    assert_eq!(found(&index, 3).await, None);
    assert!(index.publish(vec![row(2, &[1, 2]), row(1, &[])]).await.expect("published"));
    assert_eq!(served(&index).await, [1, 2]);
    let expected = Hit { row: row(2, &[1, 2]), packed: None, redirect: None };
    assert_eq!(found(&index, 2).await, Some(expected));
    assert!(index.publish(vec![row(3, &[2])]).await.expect("published"), "what it refers to is served");
    // A client asks for a hash, and refuses what comes under another name.
    let other_name = StorePath::parse(&path(1).to_string().replace("-p", "-q")).expect("a path");
    let row = row_of(PathInfo { references: [other_name].into(), ..row(4, &[]).info });
    assert!(!index.publish(vec![row]).await.expect("asked"));
    assert_eq!(served(&index).await, [1, 2, 3]);
}

pub(super) async fn a_hash_that_is_served_keeps_its_first_row(index: Index) {
    assert!(index.publish(vec![row(1, &[])]).await.expect("published"));
    let again = row_of(PathInfo { nar_hash: nar(7), nar_size: 9, ..row(1, &[]).info });
    assert!(index.publish(vec![again.clone(), row(2, &[1])]).await.expect("published"));
    let elsewhere = UpstreamNar { nar_hash: nar(7), ..upstream_nar(1) };
    assert!(index.publish_from_upstream(vec![(again, elsewhere)]).await.expect("published"));
    assert_eq!(found(&index, 1).await.expect("served").row, row(1, &[]));
    assert_eq!(served(&index).await, [1, 2]);
}

pub(super) async fn a_closure_of_an_upstream_comes_with_the_addresses_there(index: Index) {
    let alone = vec![(row(2, &[1]), upstream_nar(2))];
    assert!(!index.publish_from_upstream(alone).await.expect("asked"));
    assert_eq!(index.upstreams_with(nar(2)).await.expect("read"), []);
    let redirecting = UpstreamNar { redirect: true, file_size: Some(7), ..upstream_nar(2) };
    let whole = vec![(row(2, &[1]), redirecting.clone()), (row(1, &[]), upstream_nar(1))];
    assert!(index.publish_from_upstream(whole).await.expect("published"));
    assert_eq!(index.upstreams_with(nar(1)).await.expect("read"), [upstream_nar(1)]);
    assert_eq!(index.upstreams_with(nar(2)).await.expect("read"), std::slice::from_ref(&redirecting));
    assert_eq!(found(&index, 1).await.expect("served").redirect, None);
    assert_eq!(found(&index, 2).await.expect("served").redirect, Some(redirecting));
    // What is packed is served from here.
    let packed = NarRow { nar_hash: nar(2), file_hash: nar(9), file_size: 1 };
    index.record_packed(packed.into()).await.expect("recorded");
    let expected = Hit { row: row(2, &[1]), packed: Some(packed), redirect: None };
    assert_eq!(found(&index, 2).await, Some(expected));
}

pub(super) async fn every_path_with_a_nar_is_forgotten_with_it_and_no_other(index: Index) {
    let twin = row_of(PathInfo { path: path(2), ..row(1, &[]).info });
    assert!(index.publish(vec![row(1, &[]), twin, row(3, &[])]).await.expect("published"));
    index.forget_paths(nar(1)).await.expect("forgotten");
    assert_eq!(served(&index).await, [3]);
    let former = index.former_path(nar(1)).await.expect("read").expect("remembered");
    assert!([path(1).hash(), path(2).hash()].contains(&former));
    assert_eq!(index.former_path(nar(3)).await.expect("read"), None);
}

pub(super) async fn all_paths_come_in_batches_in_the_order_of_their_hashes(index: Index) {
    let path = |number: u16| StorePath::parse(&format!("{number:032}-x")).expect("a path");
    // Later ones first: the order is not that in which they came.
    let rows = (0..MANY).rev().map(|number| row_of(PathInfo { path: path(number), ..row(1, &[]).info }));
    assert!(index.publish(rows.collect()).await.expect("published"));
    let (mut all, mut after) = (Vec::<StorePathHash>::new(), None);
    loop {
        let batch: Vec<PathRow> = index.paths_after(after).await.expect("read");
        let Some(last) = batch.last() else { break };
        assert!(batch.len() < usize::from(MANY), "it is no batch");
        after = Some(last.info.path.hash());
        all.extend(batch.iter().map(|row| row.info.path.hash()));
    }
    assert_eq!(all, (0..MANY).map(|number| path(number).hash()).collect::<Vec<_>>());
}

pub(super) async fn signatures_are_replaced_or_added_where_they_belong(index: Index) {
    let [a, b] = ["a", "b"].map(signature);
    assert!(index.publish(vec![row(1, &[]), row(2, &[])]).await.expect("published"));
    let of = async |digit| found(&index, digit).await.expect("served").row.info.signatures;
    let replaced = vec![(path(1).hash(), vec![a.clone()]), (path(9).hash(), vec![a.clone()])];
    index.set_signatures(replaced).await.expect("written");
    assert_eq!((of(1).await, of(2).await), (vec![a.clone()], vec![]));
    assert_eq!(served(&index).await, [1, 2]);
    let new = |digit, nar| (path(digit).hash(), nar, vec![a.clone(), b.clone()]);
    let added = vec![new(1, nar(1)), new(2, nar(9)), new(8, nar(8))];
    assert_eq!(index.add_signatures(added.clone()).await.expect("written"), 1);
    assert_eq!((of(1).await, of(2).await), (vec![a.clone(), b.clone()], vec![]));
    assert_eq!(index.add_signatures(added).await.expect("written"), 0, "it has them");
    index.set_signatures(vec![(path(1).hash(), vec![b.clone()])]).await.expect("written");
    assert_eq!(of(1).await, [b]);
}

pub(super) async fn the_totals_follow_what_comes_and_goes(index: Index) {
    assert_eq!(index.counts().await.expect("read"), Counts::default());
    assert!(index.publish(vec![row(1, &[]), row(2, &[])]).await.expect("published"));
    let packed = |digit, file_size| NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size };
    for nar in [packed(1, 10), packed(2, 5), packed(1, 20)] {
        index.record_packed(nar.into()).await.expect("recorded");
    }
    let counts = index.counts().await.expect("read");
    assert_eq!(counts, Counts { paths: 2, nars: 2, nar_bytes: 25, ..Counts::default() });
    assert_eq!(index.nar_bytes().await.expect("read"), 25);
    index.forget_packed(nar(2)).await.expect("forgotten");
    index.forget_paths(nar(2)).await.expect("forgotten");
    let counts = index.counts().await.expect("read");
    assert_eq!(counts, Counts { paths: 1, nars: 1, nar_bytes: 20, ..Counts::default() });
    assert!(index.verify_totals().await.expect("read"));
    index.recompute_totals().await.expect("computed");
    assert_eq!(index.counts().await.expect("read"), counts);
}

pub(super) async fn all_hashes_are_sent_that_may_be_answered(index: Index) {
    assert_eq!(sent(&index).await, BTreeSet::new());
    assert!(index.publish(vec![row(1, &[]), row(2, &[])]).await.expect("published"));
    configure(&index).await;
    bump(&index, "one", vec![output('a', "a", false)]).await;
    index.start_generation().await.expect("started");
    index.add_outputs(vec![output('b', "b", true)]).await.expect("added");
    let expected: BTreeSet<_> = [path(1).hash(), path(2).hash(), hash('a'), hash('b')].into();
    assert_eq!(sent(&index).await, expected);
    assert!((3..=4).contains(&index.hash_count().await.expect("read")));
    index.forget_paths(nar(2)).await.expect("forgotten");
    assert!(!sent(&index).await.contains(&path(2).hash()));
}

async fn sent(index: &Index) -> BTreeSet<StorePathHash> {
    let (sender, mut batches) = tokio::sync::mpsc::channel(1);
    let receiving = async {
        let mut all = BTreeSet::new();
        while let Some(batch) = batches.recv().await {
            all.extend(batch);
        }
        all
    };
    let (sent, all) = tokio::join!(index.hashes(sender), receiving);
    sent.expect("sent");
    all
}
