//! Promises of every backend about uploads and pushed derivations.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use narinfo::StorePath;
use narinfo::derivation::InputHash;

use crate::index::Index;
use crate::index::samples::{nar, path, row};
use crate::model::{Evicted, EvictionBounds, Maker, NarRow, PushedDerivation, UploadOutcome};

fn packed(digit: u8) -> NarRow {
    NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size: u64::from(digit) }
}

pub(super) async fn an_upload_is_published_whole_once_and_never_over_another_path(index: Index) {
    let upload = |row, digit| index.publish_upload(row, packed(digit).into(), None);
    assert_eq!(upload(row(2, &[1, 2]), 2).await.expect("asked"), UploadOutcome::Lacks(path(1)));
    assert_eq!(index.packed(nar(2)).await.expect("read"), None, "nothing is left of it");
    assert_eq!(upload(row(1, &[]), 1).await.expect("written"), UploadOutcome::Published);
    assert_eq!(upload(row(2, &[1, 2]), 2).await.expect("written"), UploadOutcome::Published);
    let hit = index.find(path(2).hash()).await.expect("read").expect("served");
    assert_eq!(hit.packed, Some(packed(2)));
    assert!(index.unpacked().await.expect("read").is_empty());
    let again = upload(row(2, &[1, 2]), 2).await.expect("asked");
    assert_eq!(again, UploadOutcome::Served(Box::new(row(2, &[1, 2]))));
    let mut other = row(2, &[]);
    other.info.nar_hash = nar(3);
    let refused = upload(other, 3).await.expect("asked");
    assert_eq!(refused, UploadOutcome::Served(Box::new(row(2, &[1, 2]))));
    assert_eq!(index.packed(nar(3)).await.expect("read"), None, "nothing is left of it");
    assert!(index.verify_totals().await.expect("read"));
}

pub(super) async fn a_pushed_derivation_is_found_by_its_outputs_and_its_name_until_it_is_evicted(
    index: Index,
) {
    let drv = StorePath::parse("1123456789abcdfghijklmnpqrsvwxyz-p.drv").expect("a path");
    let mut row = row(1, &[]);
    row.info.path = drv.clone();
    let derivation = PushedDerivation {
        drv: drv.clone(),
        outputs: BTreeMap::from([("out".to_owned(), path(5))]),
        input_hash: InputHash::Fixed([4; 32]),
    };
    index.fill_filter().await.expect("read");
    assert!(index.definitely_absent(path(5).hash()));
    index.publish_upload(row, packed(1).into(), Some(derivation.clone())).await.expect("written");
    assert!(!index.definitely_absent(path(5).hash()));
    let maker = Maker { drv: drv.clone(), denied_by: None };
    assert_eq!(index.makers(path(5).hash()).await.expect("read"), [maker]);
    let outputs = index.pushed_outputs(vec![drv.clone(), path(5)]).await.expect("read");
    assert_eq!(outputs, BTreeMap::from([(drv.clone(), derivation.outputs.clone())]));
    assert_eq!(index.pushed_named("p.drv".to_owned()).await.expect("read"), std::slice::from_ref(&drv));
    let known = index.pushed_input_hashes(vec![drv.clone(), path(5)]).await.expect("read");
    assert_eq!(known, BTreeMap::from([(drv.clone(), derivation.input_hash)]));
    let begun = SystemTime::now();
    let after = |seconds| begun + Duration::from_secs(seconds);
    let evict = async |now, pushed_since| loop {
        // No other use counts, and what is held moves to a time at which it does.
        let bounds = EvictionBounds {
            target_bytes: 0,
            used_since: after(now - 10),
            pushed_since: after(pushed_since),
        };
        if let Evicted::Paths(evicted) = index.evict(after(now), bounds).await.expect("evicted") {
            return evicted.len();
        }
    };
    // Whoever has it built uses it, and so does whoever asks for its own path.
    index.note_pushed_uses(vec![path(5), drv.clone()], after(100)).await.expect("written");
    assert_eq!(evict(200, 90).await, 0);
    index.access_log().note(nar(1));
    index.record_uses(after(300)).await.expect("written");
    assert_eq!(evict(400, 290).await, 0);
    assert!(index.find(drv.hash()).await.expect("read").is_some());
    assert_eq!(index.makers(path(5).hash()).await.expect("read").len(), 1, "as long as it is served");
    assert_eq!(evict(500, 310).await, 1);
    assert!(index.makers(path(5).hash()).await.expect("read").is_empty());
    assert!(index.find(drv.hash()).await.expect("read").is_none());
}
