//! Promises of every backend about uses and eviction.

use crate::index::Index;
use crate::index::samples::{at, down_to, nar, order, path, row};
use crate::model::{Evicted, NarRow};

/// Serves 1, and 2, which refers to 1 and to itself; both are packed.
async fn serve(index: &Index) {
    assert!(index.publish(vec![row(2, &[1, 2]), row(1, &[])]).await.expect("published"));
    for digit in [1, 2] {
        let packed = NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size: u64::from(digit) };
        index.record_packed(packed).await.expect("recorded");
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
