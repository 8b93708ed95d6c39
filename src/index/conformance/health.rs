//! Promises of every backend about its health, its recovery, and the changes that it tells.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use narinfo::PathInfo;

use crate::index::backend::{Changes, Follower};
use crate::index::samples::{bump, configure, hash, nar, output, path, row, row_of, upstream_nar};
use crate::index::{Index, Recorded, Recovered};
use crate::model::NarRow;

/// Time within which a sound index is found to be sound.
const SOON: Duration = Duration::from_secs(60);

fn packed(digit: u8) -> NarRow {
    NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size: 1 }
}

pub(super) async fn a_sound_index_is_found_to_be_sound_and_closes(index: Index) {
    let maintained = index.clone();
    let upkeep = tokio::spawn(async move { maintained.maintain().await });
    assert!(index.publish(vec![row(1, &[])]).await.expect("published"));
    let sound = async {
        while index.check().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, sound).await.expect("it is sound");
    index.verify().await.expect("nothing is damaged");
    assert!(!upkeep.is_finished(), "the upkeep goes on as long as the server");
    let refused = tokio::time::timeout(Duration::from_millis(50), index.write_refused()).await;
    assert!(refused.is_err(), "no write was refused");
    index.close().await.expect("closed");
    upkeep.abort();
}

pub(super) async fn the_latest_record_counts_and_closures_are_whole(index: Index) {
    let served = |path, packed| Recovered::Served(Box::new(Recorded { path, packed, upstreams: Vec::new() }));
    let other = row_of(PathInfo { nar_hash: nar(7), ..row(1, &[]).info });
    let elsewhere = Recorded { path: row(6, &[]), packed: None, upstreams: vec![upstream_nar(6)] };
    let batch = vec![
        served(other, Some(packed(7))),
        served(row(3, &[2]), Some(packed(3))),
        served(row(4, &[1]), Some(packed(4))),
        served(row(1, &[]), Some(packed(1))),
        served(row(2, &[]), Some(packed(2))),
        Recovered::Gone(path(2).hash()),
        served(row(5, &[3]), Some(packed(5))),
        Recovered::Served(Box::new(elsewhere)),
    ];
    index.recover(batch).await.expect("taken over");
    assert_eq!(index.forget_incomplete().await.expect("forgotten"), 2);
    let hit = index.find(path(1).hash()).await.expect("read").expect("served");
    assert_eq!((hit.row, hit.packed), (row(1, &[]), Some(packed(1))));
    assert_eq!(index.upstreams_with(nar(6)).await.expect("read"), [upstream_nar(6)]);
    let all = (1..=6).map(|digit| path(digit).hash()).collect();
    let served = index.served(all).await.expect("read");
    assert_eq!(served.into_values().collect::<Vec<_>>(), [path(1), path(4), path(6)]);
    assert!(index.verify_totals().await.expect("read"));
    assert_eq!(index.forget_incomplete().await.expect("asked"), 0);
}

/// A follower that notes everything.
#[derive(Default)]
struct Noted(Mutex<Vec<(u64, Changes)>>);

impl Noted {
    fn take(&self) -> Vec<(u64, Changes)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Follower for Noted {
    fn apply(&self, sequence: u64, changes: &Changes) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((sequence, changes.clone()));
    }

    fn interrupted(&self) {}

    fn resumed(&self) {}

    fn restarted(&self, _: u64) {}
}

pub(super) async fn each_write_that_changes_an_answer_is_told_once_in_its_order(index: Index) {
    let noted = Arc::new(Noted::default());
    index.follow(Arc::clone(&noted) as _);
    let hashes = |digits: &[u8]| digits.iter().map(|digit| path(*digit).hash()).collect();
    let twin = row_of(PathInfo { path: path(2), ..row(1, &[]).info });
    assert!(index.publish(vec![row(1, &[]), twin, row(3, &[])]).await.expect("published"));
    let [(first, changes)] = &noted.take()[..] else { panic!("one write, one change") };
    assert_eq!(changes, &Changes::added(hashes(&[1, 2, 3])));
    let mut sequence = *first;
    let mut told = |expected: Changes| {
        let [(next, changes)] = &mut noted.take()[..] else { panic!("not one change: {expected:?}") };
        sequence += 1;
        changes.changed.sort_unstable();
        changes.removed.sort_unstable();
        assert_eq!((*next, &*changes), (sequence, &expected));
    };
    index.record_packed(packed(1).into()).await.expect("recorded");
    told(Changes::changed(hashes(&[1, 2])));
    // What changes no answer is not told.
    assert!(!index.publish(vec![row(5, &[9])]).await.expect("asked"));
    index.record_prebuilt(1, Duration::ZERO).await.expect("recorded");
    index.pin("one".into(), hashes(&[1])).await.expect("pinned");
    configure(&index).await;
    assert_eq!(noted.take(), []);
    index.forget_packed(nar(1)).await.expect("forgotten");
    told(Changes::changed(hashes(&[1, 2])));
    index.forget_paths(nar(1)).await.expect("forgotten");
    told(Changes::removed(hashes(&[1, 2])));
    index.start_generation().await.expect("started");
    index.add_outputs(vec![output('a', "a", false)]).await.expect("added");
    told(Changes::added(vec![hash('a')]));
    // Another follower is told from then on.
    let other = Arc::new(Noted::default());
    index.follow(Arc::clone(&other) as _);
    bump(&index, "one", vec![output('b', "b", false)]).await;
    assert_eq!(noted.take(), []);
    assert!(!other.take().is_empty());
}
