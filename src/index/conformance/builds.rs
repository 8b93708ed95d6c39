//! Promises of every backend about failures, the queue, and the demand.

use std::collections::BTreeSet;
use std::time::Duration;

use narinfo::StorePath;

use crate::index::Index;
use crate::index::samples::{at, drv};
use crate::model::{AttributeName, DemandRow, DurationRow, Failure, FailureClass, RequestRow};

/// Failures that are listed at most.
const LISTED_MAX: u64 = 1_000;
/// Durations that are kept of each kind of work.
const DURATIONS_KEPT: u64 = 5;

/// A permanent failure of a derivation that is its own cause.
fn failure(name: &str, failed_at: u64, expires_at: u64) -> Failure {
    Failure {
        drv: drv(name),
        class: FailureClass::Permanent,
        cause: drv(name),
        reason: format!("why {name} failed"),
        failed_at: at(failed_at),
        expires_at: at(expires_at),
    }
}

async fn remember(index: &Index, failures: impl IntoIterator<Item = Failure>) {
    for failure in failures {
        index.remember_failure(failure).await.expect("remembered");
    }
}

async fn known(index: &Index, name: &str, now: u64) -> Option<Failure> {
    index.failure(drv(name), at(now)).await.expect("read")
}

/// Names of all failures that are listed.
async fn listed(index: &Index, now: u64) -> Vec<String> {
    let failures = index.failures(at(now)).await.expect("read");
    failures.into_iter().map(|failure| failure.drv.name().trim_end_matches(".drv").to_owned()).collect()
}

fn names<'a>(drvs: impl IntoIterator<Item = &'a str>) -> BTreeSet<StorePath> {
    drvs.into_iter().map(drv).collect()
}

pub(super) async fn a_failure_is_known_until_it_expires_or_another_takes_its_place(index: Index) {
    remember(&index, [failure("a", 10, 20)]).await;
    assert_eq!(known(&index, "a", 19).await, Some(failure("a", 10, 20)));
    assert_eq!(known(&index, "a", 20).await, None);
    assert_eq!(known(&index, "b", 19).await, None);
    let later = Failure { class: FailureClass::Refused, cause: drv("c"), ..failure("a", 15, 30) };
    remember(&index, [later.clone(), failure("b", 15, 25)]).await;
    assert_eq!(known(&index, "a", 25).await, Some(later));
    assert_eq!(index.counts().await.expect("read").failures, 2);
    // One that has expired goes with the next write.
    remember(&index, [failure("d", 25, 40)]).await;
    assert_eq!(index.counts().await.expect("read").failures, 2);
}

pub(super) async fn the_latest_thousand_failures_are_listed_the_latest_first(index: Index) {
    remember(&index, [failure("old", 1, 5_000), failure("over", 2, 9)]).await;
    assert_eq!(listed(&index, 9).await, ["old"]);
    remember(&index, (1..=LISTED_MAX).map(|number| failure(&number.to_string(), 10 + number, 5_000))).await;
    let expected: Vec<_> = (1..=LISTED_MAX).rev().map(|number| number.to_string()).collect();
    assert_eq!(listed(&index, 2_000).await, expected);
}

pub(super) async fn a_failure_is_forgotten_with_its_cause_and_all_that_it_caused(index: Index) {
    let of = |name: &str, cause: &str| Failure { cause: drv(cause), ..failure(name, 1, 100) };
    let all = [of("a", "x"), of("b", "x"), of("x", "x"), of("c", "a"), of("d", "d")];
    remember(&index, all).await;
    assert_eq!(index.forget_failure(drv("nothing")).await.expect("asked"), []);
    let forgotten = index.forget_failure(drv("a")).await.expect("forgotten");
    assert_eq!((forgotten.len(), BTreeSet::from_iter(forgotten)), (4, names(["a", "b", "c", "x"])));
    assert_eq!(listed(&index, 9).await, ["d"]);
}

pub(super) async fn a_failure_ends_sooner_where_that_is_asked_for_and_never_later(index: Index) {
    remember(&index, [failure("a", 1, 100), failure("b", 1, 100)]).await;
    index.end_failure_by(drv("a"), at(200)).await.expect("asked");
    assert_eq!(known(&index, "a", 50).await, Some(failure("a", 1, 100)));
    index.end_failure_by(drv("a"), at(40)).await.expect("written");
    assert_eq!(known(&index, "a", 39).await, Some(failure("a", 1, 40)));
    assert_eq!(known(&index, "b", 99).await, Some(failure("b", 1, 100)));
}

pub(super) async fn a_shorter_lifetime_holds_for_what_is_remembered_of_its_class(index: Index) {
    let transient = |name| Failure { class: FailureClass::Transient, ..failure(name, 100, 1_000) };
    // The first one was tried by a clock ahead of this one.
    let all = [
        failure("ahead", 500, 9_000),
        failure("over", 50, 125),
        failure("long", 100, 1_000),
        failure("short", 100, 130),
        transient("other"),
    ];
    remember(&index, all).await;
    index.shorten_failures(FailureClass::Permanent, Duration::from_secs(50), at(125)).await.expect("written");
    assert_eq!(index.counts().await.expect("read").failures, 4);
    for (name, failed_at, expires_at) in [("long", 100, 150), ("short", 100, 130), ("ahead", 500, 175)] {
        let expected = failure(name, failed_at, expires_at);
        assert_eq!(known(&index, name, 126).await, Some(expected), "{name}");
    }
    assert_eq!(known(&index, "other", 999).await, Some(transient("other")));
}

pub(super) async fn refusals_are_forgotten_and_failures_are_not(index: Index) {
    let refused = Failure { class: FailureClass::Refused, ..failure("refused", 1, 100) };
    let transient = Failure { class: FailureClass::Transient, ..failure("transient", 2, 100) };
    remember(&index, [refused, failure("permanent", 3, 100), transient]).await;
    index.forget_refusals().await.expect("forgotten");
    assert_eq!(listed(&index, 9).await, ["permanent", "transient"]);
}

fn request(id: u64) -> RequestRow {
    RequestRow {
        id,
        drv: drv(&format!("r{id}")),
        started: false,
        asked_at: at(id),
        asked_by: Some([10, 0, 0, 1].into()),
        due_owner: None,
        charged: Duration::ZERO,
        earned: Duration::from_millis(1_500),
        builder: id.is_multiple_of(2).then(|| "far".to_owned()),
    }
}

pub(super) async fn the_queue_is_what_was_recorded_last_and_no_number_comes_twice(index: Index) {
    assert_eq!(index.requests().await.expect("read"), (vec![], 0));
    let record = async |requests, gone| {
        index.record_queue(requests, gone, Vec::new()).await.expect("recorded");
        index.requests().await.expect("read")
    };
    assert_eq!(record(vec![request(2), request(1)], vec![]).await, (vec![request(1), request(2)], 2));
    let changed = RequestRow { started: true, due_owner: Some(1), asked_by: None, ..request(2) };
    assert_eq!(record(vec![changed.clone()], vec![1]).await, (vec![changed], 2));
    assert_eq!(record(vec![request(7)], vec![2]).await, (vec![request(7)], 7));
    assert_eq!(record(vec![], vec![7]).await, (vec![], 7), "number 7 was given away");
}

pub(super) async fn the_latest_durations_of_each_kind_of_work_are_kept_in_their_order(index: Index) {
    let duration = |work: &str, seconds: u64| DurationRow {
        work: work.into(),
        took: Duration::from_secs(seconds),
        built: seconds.is_multiple_of(2),
    };
    let many = (0..=DURATIONS_KEPT).map(|seconds| duration("a", seconds));
    index.record_queue(vec![], vec![], many.collect()).await.expect("recorded");
    index.record_queue(vec![], vec![], vec![duration("b", 1), duration("a", 9)]).await.expect("recorded");
    let mut expected: Vec<_> = (2..=DURATIONS_KEPT).map(|seconds| duration("a", seconds)).collect();
    expected.extend([duration("b", 1), duration("a", 9)]);
    assert_eq!(index.durations().await.expect("read"), expected);
}

pub(super) async fn demand_is_that_of_each_day_since_the_first_that_counts(index: Index) {
    let row = |attribute: &str, day, asked| DemandRow {
        name: AttributeName { set: "s".into(), attribute: attribute.into(), system: "a-linux".into() },
        day,
        asked,
    };
    index.record_demand(vec![row("a", 3, 1), row("a", 1, 2), row("b", 2, 3)], 0).await.expect("recorded");
    let all = index.demand().await.expect("read");
    assert_eq!(all, [row("a", 1, 2), row("b", 2, 3), row("a", 3, 1)]);
    index.record_demand(vec![row("a", 3, 5), row("b", 4, 1)], 2).await.expect("recorded");
    let all = index.demand().await.expect("read");
    assert_eq!(all, [row("b", 2, 3), row("a", 3, 5), row("b", 4, 1)]);
}

pub(super) async fn the_time_spent_ahead_is_that_of_the_latest_day(index: Index) {
    assert_eq!(index.prebuilt().await.expect("read"), (0, Duration::ZERO));
    for latest in [(7, Duration::from_millis(1_500)), (7, Duration::from_secs(3)), (8, Duration::ZERO)] {
        index.record_prebuilt(latest.0, latest.1).await.expect("recorded");
        assert_eq!(index.prebuilt().await.expect("read"), latest);
    }
}
