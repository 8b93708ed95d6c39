//! Promises of every backend about uses, eviction and pins.

use narinfo::{PathInfo, StorePath};

use crate::index::Index;
use crate::index::samples::{at, down_to, nar, order, path, row, row_of};
use crate::model::{Candidate, Evicted, EvictionBounds, NarRow, PinRow};

/// Serves 1, and 2, which refers to 1 and to itself; both are packed.
async fn serve(index: &Index) {
    assert!(index.publish(vec![row(2, &[1, 2]), row(1, &[])]).await.expect("published"));
    for digit in [1, 2] {
        let packed = NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size: u64::from(digit) };
        index.record_packed(packed.into()).await.expect("recorded");
    }
}

pub(super) async fn a_use_counts_for_all_that_is_referred_to_as_soon_as_something_is_to_be_evicted(
    index: Index,
) {
    serve(&index).await;
    let epoch = index.access_log().epoch();
    index.access_log().note(nar(2));
    assert_eq!(index.access_log().epoch(), epoch);
    let before = order(&index).await;
    assert_ne!(index.access_log().epoch(), epoch);
    assert_eq!(before.iter().map(|candidate| &candidate.path).collect::<Vec<_>>(), [&path(2), &path(1)]);
    assert_eq!(before[1].needed_at, Some(at(9)));
    assert!(before[0].needed_at < before[1].needed_at);
    // The use of what stands below changes nothing above it.
    index.access_log().note(nar(1));
    index.record_uses(at(20)).await.expect("written");
    let later = order(&index).await;
    assert_eq!((later[0].needed_at, later[1].needed_at), (before[0].needed_at, Some(at(20))));
}

pub(super) async fn what_is_evicted_is_not_served_any_more_and_remembered_for_those_who_ask_for_its_nar(
    index: Index,
) {
    serve(&index).await;
    index.access_log().note(nar(2));
    index.record_uses(at(1)).await.expect("written");
    let Evicted::Paths(evicted) = index.evict(at(9), down_to(2)).await.expect("evicted") else {
        panic!("the order is not known yet")
    };
    assert_eq!(evicted.iter().map(|candidate| &candidate.path).collect::<Vec<_>>(), [&path(2)]);
    assert_eq!(index.find(path(2).hash()).await.expect("read"), None);
    assert_eq!(index.former_path(nar(2)).await.expect("read"), Some(path(2).hash()));
    assert_eq!(index.nar_bytes().await.expect("read"), 1);
    assert!(!index.publish(vec![row(3, &[2])]).await.expect("asked"), "it refers to what is not served");
    assert!(index.publish(vec![row(3, &[1])]).await.expect("asked"));
}

/// Paths that an eviction of everything would take, or takes, once the order is known.
async fn evict_all(index: &Index) -> Vec<StorePath> {
    // Uses are over by then, and what is held moves to a time at which they are not.
    let bounds = EvictionBounds { target_bytes: 0, used_since: at(100), pushed_since: at(100) };
    loop {
        if let Evicted::Paths(evicted) = index.evict(at(200), bounds).await.expect("evicted") {
            return evicted.into_iter().map(|candidate| candidate.path).collect();
        }
    }
}

pub(super) async fn what_is_pinned_or_not_packed_yet_is_retained_with_all_that_it_refers_to(index: Index) {
    serve(&index).await;
    assert!(index.publish(vec![row(3, &[]), row(4, &[3]), row(5, &[])]).await.expect("published"));
    for digit in [3, 5] {
        let packed = NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size: 1 };
        index.record_packed(packed.into()).await.expect("recorded");
    }
    for digit in 1..=5 {
        index.access_log().note(nar(digit));
    }
    index.record_uses(at(1)).await.expect("written");
    index.pin("held".into(), vec![path(2).hash()]).await.expect("pinned");
    assert_eq!(evict_all(&index).await, [path(5)]);
    let all = (1..=5).map(|digit| path(digit).hash()).collect();
    assert_eq!(index.served(all).await.expect("read").len(), 4);
}

pub(super) async fn a_preview_evicts_nothing_and_goes_on_behind_a_place(index: Index) {
    serve(&index).await;
    index.access_log().note(nar(2));
    index.record_uses(at(1)).await.expect("written");
    let preview = async |after| match index.preview_eviction(at(9), after, down_to(0)).await.expect("asked") {
        Evicted::Paths(paths) => paths,
        Evicted::Reordered => panic!("the order is known"),
    };
    let all = preview(None).await;
    let names: Vec<_> = all.iter().map(|candidate| candidate.path.clone()).collect();
    assert_eq!(names, [path(2), path(1)]);
    assert_eq!(all.iter().map(|candidate| candidate.file_bytes).collect::<Vec<_>>(), [Some(2), Some(1)]);
    let rest: Vec<_> = preview(Some(all[0].cursor)).await.into_iter().map(|next| next.path).collect();
    assert_eq!(rest, [path(1)]);
    assert_eq!(preview(Some(all[1].cursor)).await.len(), 0);
    assert!(index.find(path(2).hash()).await.expect("read").is_some());
    assert_eq!(index.nar_bytes().await.expect("read"), 3);
}

pub(super) async fn a_file_goes_with_the_last_path_that_has_its_contents(index: Index) {
    let twin = row_of(PathInfo { path: path(2), references: [path(1)].into(), ..row(1, &[]).info });
    assert!(index.publish(vec![row(1, &[]), twin]).await.expect("published"));
    let packed = NarRow { nar_hash: nar(1), file_hash: nar(9), file_size: 5 };
    index.record_packed(packed.into()).await.expect("recorded");
    index.access_log().note(nar(1));
    let of = |candidates: Vec<Candidate>| {
        candidates.into_iter().map(|candidate| (candidate.path, candidate.file_bytes)).collect::<Vec<_>>()
    };
    assert_eq!(of(order(&index).await), [(path(2), None), (path(1), Some(5))]);
    let Evicted::Paths(evicted) = index.evict(at(9), down_to(0)).await.expect("evicted") else {
        panic!("the order is known")
    };
    assert_eq!(of(evicted).len(), 2);
    assert_eq!(index.packed(nar(1)).await.expect("read"), None);
    assert_eq!(index.nar_bytes().await.expect("read"), 0);
}

pub(super) async fn pins_are_by_name_and_path_and_of_what_is_served_or_not(index: Index) {
    serve(&index).await;
    let (one, two) = (path(1).hash(), path(9).hash());
    index.pin("b".into(), vec![one, two]).await.expect("pinned");
    index.pin("b".into(), vec![one]).await.expect("pinned");
    index.pin("a".into(), vec![one]).await.expect("pinned");
    assert_eq!(index.pin_count().await.expect("read"), 3);
    let pins = index.pins().await.expect("read");
    let told: Vec<_> = pins.iter().map(|pin| (pin.name.as_str(), pin.hash, pin.path.clone())).collect();
    assert_eq!(told, [("a", one, Some(path(1))), ("b", one, Some(path(1))), ("b", two, None)]);
    assert_eq!(index.unpin("a".into(), None).await.expect("removed"), 1);
    assert_eq!(index.unpin("a".into(), Some(two)).await.expect("removed"), 1);
    assert_eq!(index.unpin("b".into(), Some(one)).await.expect("removed"), 1);
    assert_eq!(index.pins().await.expect("read"), []);
    // As they were, and what is pinned since keeps its time.
    let pin = |name: &str, digit, seconds| PinRow {
        hash: path(digit).hash(),
        name: name.into(),
        pinned_at: at(seconds),
        path: (digit < 3).then(|| path(digit)),
    };
    index.restore_pins(vec![pin("c", 1, 5), pin("d", 8, 6)]).await.expect("restored");
    index.restore_pins(vec![pin("c", 1, 7)]).await.expect("restored");
    assert_eq!(index.pins().await.expect("read"), [pin("c", 1, 5), pin("d", 8, 6)]);
}
