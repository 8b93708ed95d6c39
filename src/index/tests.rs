//! Tests of what the index says without SQLite: never what was true before a write that has been
//! acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use narinfo::{Compression, NarHash, PathInfo, StoreDir, StorePath, StorePathHash};

use super::{Index, Sqlite};
use crate::model::{NarRow, OutputRow, PathRow, UpstreamNar};

/// NARs that are written about; each is that of two paths.
const NARS: u8 = 4;
/// Writes.
const STEPS: u64 = 100;
/// Readers that race with them.
const READERS: usize = 4;

fn path(number: u8) -> StorePath {
    StorePath::parse(&format!("{number:032}-x")).expect("a store path")
}

fn nar(number: u8) -> NarHash {
    NarHash::from_bytes([number % NARS; 32])
}

fn row(number: u8) -> PathRow {
    let info = PathInfo {
        path: path(number),
        nar_hash: nar(number),
        nar_size: 1,
        references: [].into(),
        deriver: None,
        ca: None,
        signatures: Vec::new(),
    };
    PathRow { info, built: true }
}

fn packed(number: u8, file_size: u64) -> NarRow {
    NarRow { nar_hash: nar(number), file_hash: nar(number), file_size }
}

fn sqlite(folder: &tempfile::TempDir) -> Sqlite {
    Sqlite::open(&folder.path().join("index")).expect("opened")
}

fn open(folder: &tempfile::TempDir) -> Index {
    Index::new(sqlite(folder), 64 * 1024)
}

/// The narinfo that a client gets of a path: from memory where that has it.
async fn told(index: &Index, hash: StorePathHash) -> Option<String> {
    let ready = match index.lookup_cached(hash) {
        Some(ready) => Some(ready),
        None => index.lookup(hash).await.expect("read").map(|found| {
            let narinfo = found.hit.narinfo().render(&StoreDir::default()).into();
            index.cache(found, narinfo)
        }),
    };
    ready.map(|ready| String::from_utf8(ready.narinfo.to_vec()).expect("text"))
}

fn file_size(narinfo: &str) -> Option<u64> {
    let size = narinfo.lines().find_map(|line| line.strip_prefix("FileSize: "))?;
    Some(size.parse().expect("a number"))
}

/// Step by step each NAR is packed, of a size that tells the step, or forgotten to be, in turns. A reader
/// that asks after a step was acknowledged is told of that one or of a later one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_told_what_was_true_before_an_acknowledged_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = open(&folder);
    index.publish((0..2 * NARS).map(row).collect()).await.expect("published");
    let [begun, done]: [Arc<[AtomicU64; NARS as usize]>; 2] = Default::default();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let (index, begun, done, stop) = (index.clone(), begun.clone(), done.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut asked, mut from_memory) = (reader as u8, 0_u64);
                while !stop.load(Ordering::SeqCst) {
                    asked = (asked + 1) % (2 * NARS);
                    let at = usize::from(asked % NARS);
                    let least = done[at].load(Ordering::SeqCst);
                    from_memory += u64::from(index.lookup_cached(path(asked).hash()).is_some());
                    let said = told(&index, path(asked).hash()).await.expect("it is served");
                    let most = begun[at].load(Ordering::SeqCst);
                    // Odd steps pack, even ones forget.
                    let possible = match file_size(&said) {
                        Some(step) => (least..=most).contains(&step),
                        None => (least..=most).any(|step| step % 2 == 0),
                    };
                    assert!(possible, "between the steps {least} and {most}: {said}");
                }
                from_memory
            })
        })
        .collect();
    for step in 1..=STEPS {
        for number in 0..NARS {
            let at = usize::from(number);
            begun[at].store(step, Ordering::SeqCst);
            let written = match step % 2 {
                1 => index.record_packed(packed(number, step).into()).await,
                _ => index.forget_packed(nar(number)).await,
            };
            written.expect("written");
            done[at].store(step, Ordering::SeqCst);
        }
    }
    stop.store(true, Ordering::SeqCst);
    let mut from_memory = 0;
    for reader in readers {
        from_memory += reader.await.expect("the reader is content");
    }
    assert!(from_memory > 0, "nothing was ever told from memory: this shows nothing");
}

#[tokio::test]
async fn without_room_nothing_is_remembered() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = Index::new(sqlite(&folder), 0);
    index.publish(vec![row(1)]).await.expect("published");
    assert!(told(&index, path(1).hash()).await.is_some());
    assert!(index.lookup_cached(path(1).hash()).is_none());
}

pub(in crate::index) async fn every_write_that_changes_a_narinfo_is_told_of_at_once(index: Index) {
    let hash = path(1).hash();
    let elsewhere = UpstreamNar {
        nar_hash: nar(1),
        upstream: "http://up".into(),
        url: "nar/x.nar.xz".into(),
        compression: Compression::Xz,
        file_hash: None,
        file_size: Some(7),
        redirect: true,
    };
    let others = [("http://up".to_owned(), false)];
    assert_eq!(told(&index, hash).await, None);
    index.publish(vec![row(1)]).await.expect("published");
    assert!(told(&index, hash).await.expect("served").contains("Compression: zstd"));
    assert!(index.lookup_cached(hash).expect("remembered").to_come);
    index.publish_from_upstream(vec![(row(1), elsewhere.clone())]).await.expect("published");
    assert!(told(&index, hash).await.expect("served").contains("Compression: xz"));
    index.forget_upstream_nar(nar(1), elsewhere.upstream.clone()).await.expect("forgotten");
    assert!(told(&index, hash).await.expect("served").contains("Compression: zstd"));
    index.publish_from_upstream(vec![(row(1), elsewhere)]).await.expect("published");
    assert!(told(&index, hash).await.expect("served").contains("Compression: xz"));
    index.sync_upstreams(others.into()).await.expect("kept");
    assert!(told(&index, hash).await.expect("served").contains("Compression: zstd"), "no redirect any more");
    index.record_packed(packed(1, 9).into()).await.expect("recorded");
    assert_eq!(file_size(&told(&index, hash).await.expect("served")), Some(9));
    assert!(!index.lookup_cached(hash).expect("remembered").to_come);
    index.forget_paths(nar(1)).await.expect("forgotten");
    assert_eq!(told(&index, hash).await, None);
}

/// A hash that the index learns of is not denied from the moment that the write is acknowledged, while
/// everything is read again and again beside it.
pub(in crate::index) async fn what_is_written_is_never_denied(index: Index) {
    index.publish(vec![row(0)]).await.expect("published");
    assert!(!index.definitely_absent(path(200).hash()), "nobody knows yet");
    let keeping = index.clone();
    let keeping = tokio::spawn(async move {
        loop {
            keeping.fill_filter().await.expect("read");
        }
    });
    while !index.definitely_absent(path(200).hash()) {
        tokio::task::yield_now().await;
    }
    let set = "set".to_owned();
    index.sync_sets(vec![set]).await.expect("kept");
    index.start_generation().await.expect("started");
    for number in 1..100 {
        assert!(index.definitely_absent(path(number).hash()));
        if number % 2 == 0 {
            index.publish(vec![row(number)]).await.expect("published");
        } else {
            let drv = StorePath::parse(&format!("{number:032}-x.drv")).expect("a store path");
            let output = OutputRow { hash: path(number).hash(), drv, denied: false };
            index.add_outputs(vec![output]).await.expect("added");
        }
        for known in 0..=number {
            assert!(!index.definitely_absent(path(known).hash()), "{known} of {number}");
        }
    }
    keeping.abort();
}
