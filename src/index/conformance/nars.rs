//! Promises of every backend about packed NARs, those that are yet to be packed, and those of upstreams.

use std::collections::BTreeSet;
use std::time::Duration;

use narinfo::{NarHash, PathInfo, StorePath};

use crate::index::Index;
use crate::index::samples::{nar, path, row, row_of, upstream_nar};
use crate::model::{Comparison, NarRow, PathRow, UpstreamNar};

/// Longer than the times of a backend are exact to: what came first is older.
const LATER: Duration = Duration::from_millis(1100);

/// Hash of a NAR that nobody has.
fn no_nar() -> NarHash {
    nar(200)
}

fn packed(digit: u8, file_size: u64) -> NarRow {
    NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size }
}

fn paths(rows: Vec<PathRow>) -> Vec<StorePath> {
    rows.into_iter().map(|row| row.info.path).collect()
}

async fn unpacked(index: &Index) -> Vec<StorePath> {
    paths(index.unpacked().await.expect("read"))
}

pub(super) async fn a_nar_is_found_with_its_paths_and_its_file(index: Index) {
    let twin = row_of(PathInfo { path: path(2), ..row(1, &[]).info });
    assert!(index.publish(vec![row(1, &[]), twin, row(3, &[])]).await.expect("published"));
    let both = BTreeSet::from([path(1), path(2)]);
    let one = index.path_with_nar(nar(1)).await.expect("read").expect("served");
    assert!(both.contains(&one.info.path));
    let all = index.paths_with_nar(nar(1)).await.expect("read");
    assert_eq!((all.len(), BTreeSet::from_iter(all)), (2, both.clone()));
    let (row, file) = index.nar(nar(1)).await.expect("read").expect("served");
    assert!(both.contains(&row.info.path) && file.is_none());
    assert_eq!(index.packed(nar(1)).await.expect("read"), None);
    for file in [packed(1, 5), packed(1, 6)] {
        index.record_packed(file.into()).await.expect("recorded");
        assert_eq!(index.packed(nar(1)).await.expect("read"), Some(file));
        assert_eq!(index.nar(nar(1)).await.expect("read").expect("served").1, Some(file));
    }
    let not_packed = index.not_packed(vec![nar(1), nar(3), no_nar()]).await.expect("read");
    assert_eq!(not_packed, [nar(3), no_nar()]);
    assert_eq!(index.path_with_nar(no_nar()).await.expect("read"), None);
    assert_eq!(index.nar(no_nar()).await.expect("read"), None);
    assert_eq!(index.paths_with_nar(no_nar()).await.expect("read"), []);
    // Its paths stay served when the file is gone.
    index.forget_packed(nar(1)).await.expect("forgotten");
    assert_eq!(index.packed(nar(1)).await.expect("read"), None);
    assert!(index.find(path(1).hash()).await.expect("read").expect("served").packed.is_none());
}

pub(super) async fn what_only_the_nix_store_has_is_to_be_packed_the_oldest_first(index: Index) {
    assert!(index.publish(vec![row(2, &[])]).await.expect("published"));
    tokio::time::sleep(LATER).await;
    assert!(index.publish(vec![row(1, &[])]).await.expect("published"));
    assert!(index.publish_from_upstream(vec![(row(3, &[]), upstream_nar(3))]).await.expect("published"));
    assert_eq!(unpacked(&index).await, [path(2), path(1)]);
    index.record_packed(packed(2, 1).into()).await.expect("recorded");
    assert_eq!(unpacked(&index).await, [path(1)]);
    index.forget_packed(nar(2)).await.expect("forgotten");
    assert_eq!(unpacked(&index).await, [path(2), path(1)]);
    index.forget_upstream_nar(nar(3), "https://other.example.org".into()).await.expect("asked");
    assert_eq!(unpacked(&index).await.len(), 2, "another upstream has it still");
    index.forget_upstream_nar(nar(3), upstream_nar(3).upstream).await.expect("forgotten");
    assert_eq!(index.upstreams_with(nar(3)).await.expect("read"), []);
    assert_eq!(BTreeSet::from_iter(unpacked(&index).await), [path(1), path(2), path(3)].into());
}

pub(super) async fn packed_nars_come_in_order_and_those_of_no_path_apart(index: Index) {
    assert!(index.publish(vec![row(2, &[]), row(4, &[])]).await.expect("published"));
    for digit in [4, 1, 3, 2] {
        index.record_packed(packed(digit, digit.into()).into()).await.expect("recorded");
    }
    let all: Vec<_> = (1..=4).map(|digit| packed(digit, digit.into())).collect();
    assert_eq!(index.nars(None).await.expect("read"), all);
    assert_eq!(index.nars(Some(nar(2))).await.expect("read"), all[2..]);
    assert_eq!(index.nars(Some(nar(4))).await.expect("read"), []);
    assert_eq!(index.unused_nars(None).await.expect("read"), [all[0], all[2]]);
    assert_eq!(index.unused_nars(Some(nar(1))).await.expect("read"), [all[2]]);
    // A path that came since keeps its NAR.
    assert!(index.publish(vec![row(3, &[])]).await.expect("published"));
    index.forget_unused_nars(vec![nar(1), nar(3)]).await.expect("forgotten");
    assert_eq!(index.nars(None).await.expect("read"), all[1..]);
}

/// Addresses of a NAR by two upstreams.
fn at(digit: u8, upstream: &str) -> UpstreamNar {
    UpstreamNar { upstream: upstream.into(), ..upstream_nar(digit) }
}

pub(super) async fn upstreams_that_are_configured_no_more_take_along_what_only_they_had(index: Index) {
    let configured = |all: &[(&str, bool)]| all.iter().map(|(url, to)| ((*url).to_owned(), *to)).collect();
    index.sync_upstreams(configured(&[("a", false), ("b", false)])).await.expect("written");
    let rows = vec![
        (row(1, &[]), at(1, "a")),
        (row(2, &[]), at(2, "a")),
        (row(3, &[]), at(3, "a")),
        (row(3, &[]), at(3, "b")),
    ];
    assert!(index.publish_from_upstream(rows).await.expect("published"));
    assert!(index.publish(vec![row(4, &[])]).await.expect("published"));
    index.record_packed(packed(2, 1).into()).await.expect("recorded");
    index.sync_upstreams(configured(&[("b", true)])).await.expect("written");
    let all = (1..=4).map(|digit| path(digit).hash()).collect();
    let served: Vec<StorePath> = index.served(all).await.expect("read").into_values().collect();
    assert_eq!(served, [path(2), path(3), path(4)]);
    let expected = UpstreamNar { redirect: true, ..at(3, "b") };
    assert_eq!(index.upstreams_with(nar(3)).await.expect("read"), [expected]);
    assert_eq!(index.upstreams_with(nar(2)).await.expect("read"), []);
}

pub(super) async fn own_builds_are_compared_in_turn_until_an_upstream_has_them(index: Index) {
    let fetched = PathRow { built: false, ..row(5, &[]) };
    let rows = (1..=3).map(|digit| row(digit, &[])).chain([fetched]);
    assert!(index.publish(rows.collect()).await.expect("published"));
    let next = async |max| paths(index.uncompared(max).await.expect("read"));
    assert_eq!(BTreeSet::from_iter(next(9).await), [path(1), path(2), path(3)].into());
    for digit in [2, 1] {
        index.record_comparison(path(digit).hash(), None).await.expect("recorded");
        tokio::time::sleep(LATER).await;
    }
    assert_eq!(next(9).await, [path(3), path(2), path(1)], "those looked for longest ago first");
    assert_eq!(next(2).await, [path(3), path(2)]);
    assert_eq!(index.comparison(path(2).hash()).await.expect("read"), None);
    let compared = |digit, same| Comparison { upstream: "u".into(), nar_hash: nar(digit), same };
    for (digit, same) in [(2, true), (3, false)] {
        let comparison = compared(digit, same);
        index.record_comparison(path(digit).hash(), Some(comparison.clone())).await.expect("recorded");
        assert_eq!(index.comparison(path(digit).hash()).await.expect("read"), Some(comparison));
    }
    assert_eq!(next(9).await, [path(1)]);
    let counts = index.counts().await.expect("read");
    assert_eq!((counts.reproduced, counts.not_reproduced), (1, 1));
}
