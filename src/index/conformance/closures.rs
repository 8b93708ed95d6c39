//! Promises of every backend about references between served paths, and the history of the server's use.

use crate::index::Index;
use crate::index::samples::{nar, path, row};
use crate::model::{BuildingUse, HourRow};

pub(super) async fn references_are_known_both_ways_as_long_as_the_paths_are_served(index: Index) {
    let rows = vec![row(3, &[2, 3]), row(4, &[2, 1]), row(2, &[1]), row(1, &[])];
    assert!(index.publish(rows).await.expect("published"));
    let referrers = async |digit, max| index.referrers(path(digit).hash(), max).await.expect("read");
    assert_eq!(referrers(2, 9).await, [path(3), path(4)]);
    assert_eq!(referrers(2, 1).await, [path(3)]);
    assert_eq!(referrers(1, 9).await, [path(2), path(4)]);
    assert_eq!(referrers(3, 9).await, [], "it refers to itself alone");
    let closure = async |digit, max| -> Vec<_> {
        let rows = index.closure(path(digit).hash(), max).await.expect("read");
        rows.into_iter().map(|row| row.info.path).collect()
    };
    assert_eq!(closure(3, 9).await, [path(3), path(2), path(1)]);
    assert_eq!(closure(4, 2).await, [path(4), path(1)]);
    assert_eq!(closure(7, 9).await, []);
    index.forget_paths(nar(4)).await.expect("forgotten");
    assert_eq!(referrers(1, 9).await, [path(2)]);
}

pub(super) async fn an_hour_has_the_latest_totals_and_all_its_events(index: Index) {
    let building = |factor| BuildingUse::of(std::array::from_fn(|at| (at as u64 + 1) * factor));
    let hour =
        |hour, paths, hits| HourRow { hour, paths, hits, building: building(hits), ..HourRow::default() };
    for row in [hour(1, 1, 1), hour(5, 10, 3), hour(6, 11, 1), hour(5, 12, 4)] {
        index.record_hour(row, 2).await.expect("recorded");
    }
    assert_eq!(index.hours(0).await.expect("read"), [hour(5, 12, 7), hour(6, 11, 1)]);
    assert_eq!(index.hours(6).await.expect("read"), [hour(6, 11, 1)]);
}
