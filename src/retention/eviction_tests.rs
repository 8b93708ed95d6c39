//! Eviction in a real index: the order, the closures, and what is held.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use narinfo::{Compression, NarHash, PathInfo, StorePath};

use super::{Bounds, Eviction, Gone};
use crate::index::Index;
use crate::model::{NarRow, PathRow, UpstreamNar};

/// Later than all uses, and earlier than now.
const NEVER: u64 = 1_000_000;
/// Bytes of each file.
const BYTES: u64 = 100;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn nar(number: usize) -> NarHash {
    NarHash::from_bytes([u8::try_from(number).expect("few"); 32])
}

fn path(number: usize) -> StorePath {
    StorePath::parse(&format!("{number:032}-p")).expect("a path")
}

fn row(number: usize, references: &[usize]) -> PathRow {
    let info = PathInfo {
        path: path(number),
        nar_hash: nar(number),
        nar_size: 1,
        references: references.iter().map(|number| path(*number)).collect(),
        deriver: None,
        ca: None,
        signatures: Vec::new(),
    };
    PathRow { info, built: true }
}

/// A path: when it was used, and what it refers to, all of it before it.
type Path = (u64, Vec<usize>);

/// Served paths, each with a NAR of its own.
struct Served {
    index: Index,
    paths: Vec<Path>,
    _folder: tempfile::TempDir,
}

impl Served {
    /// All of them are packed, save those that are `unpacked`; an upstream has those that are `upstream`.
    async fn new(paths: Vec<Path>, unpacked: &[usize], upstream: &[usize]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::open(&folder.path().join("index")).expect("opened");
        let rows = paths.iter().enumerate().map(|(number, (_, references))| row(number, references));
        assert!(index.publish(rows.collect()).await.expect("published"));
        for number in upstream {
            let nar = UpstreamNar {
                nar_hash: nar(*number),
                upstream: "https://cache.example.org".to_owned(),
                url: "nar/x.nar.xz".to_owned(),
                compression: Compression::Xz,
                file_hash: None,
                file_size: None,
                redirect: false,
            };
            let rows = vec![(row(*number, &paths[*number].1), nar)];
            assert!(index.publish_from_upstream(rows).await.expect("published"));
        }
        let served = Self { index, paths, _folder: folder };
        for number in (0..served.paths.len()).filter(|number| !unpacked.contains(number)) {
            served.pack(number).await;
        }
        for (number, (used_at, _)) in served.paths.iter().enumerate() {
            served.index.access_log().note(nar(number));
            served.index.record_uses(at(*used_at)).await.expect("written");
        }
        served
    }

    /// All are packed.
    async fn packed(paths: &[(u64, &[usize])]) -> Self {
        let paths = paths.iter().map(|(used_at, references)| (*used_at, references.to_vec()));
        Self::new(paths.collect(), &[], &[]).await
    }

    async fn pack(&self, number: usize) {
        let packed = NarRow { nar_hash: nar(number), file_hash: nar(number), file_size: BYTES };
        self.index.record_packed(packed.into()).await.expect("recorded");
    }

    async fn pin(&self, number: usize) {
        self.index.pin(format!("pin {number}"), vec![path(number).hash()]).await.expect("pinned");
    }

    async fn gone(&self, bounds: Bounds, dry_run: bool) -> Vec<Gone> {
        let mut eviction = Eviction::new(self.index.clone(), bounds, dry_run);
        let mut all = Vec::new();
        while let Some(gone) = eviction.next().await.expect("evicted") {
            all.extend(gone);
        }
        all
    }

    /// The numbers of the NARs that go, in order; what was used since then stays. A dry run tells the same,
    /// and takes nothing.
    async fn evict(&self, max_bytes: u64, used_since: u64) -> Vec<usize> {
        let used_since = at(used_since) - super::RECORDED_WITHIN;
        let bounds = Bounds { max_bytes: Some(max_bytes), used_since, pushed_since: used_since };
        let before = self.served().await;
        let told = self.gone(bounds, true).await;
        assert_eq!(self.served().await, before, "a dry run took something");
        let gone = self.gone(bounds, false).await;
        assert_eq!(told, gone);
        assert!(self.index.verify_totals().await.expect("read"));
        gone.iter().map(|gone| gone.nar.as_bytes()[0].into()).collect()
    }

    /// The numbers of those that are served.
    async fn served(&self) -> BTreeSet<usize> {
        let hashes = (0..self.paths.len()).map(|number| path(number).hash()).collect();
        let served = self.index.served(hashes).await.expect("read");
        (0..self.paths.len()).filter(|number| served.contains_key(&path(*number).hash())).collect()
    }

    /// These and all that they refer to.
    fn closure(&self, mut tops: Vec<usize>) -> BTreeSet<usize> {
        let mut closure = BTreeSet::new();
        while let Some(number) = tops.pop() {
            if closure.insert(number) {
                tops.extend(&self.paths[number].1);
            }
        }
        closure
    }
}

#[tokio::test]
async fn what_was_used_longest_ago_goes_first_and_no_more_than_must() {
    for (limit, gone) in [(400, vec![]), (399, vec![1]), (301, vec![1, 3]), (220, vec![1, 3])] {
        // 301: within the limit with one gone, but not within what is left of it once something has to go.
        let served = Served::packed(&[(3, &[]), (1, &[]), (4, &[]), (2, &[])]).await;
        assert_eq!(served.evict(limit, NEVER).await, gone, "limit {limit}");
        assert_eq!(served.index.nar_bytes().await.expect("read"), 400 - 100 * gone.len() as u64);
    }
}

#[tokio::test]
async fn what_a_path_needs_goes_after_it_however_long_ago_it_was_used_itself() {
    // 2 needs 1, which needs 0; neither was requested since.
    let served = Served::packed(&[(1, &[]), (2, &[0]), (9, &[1]), (5, &[])]).await;
    for (limit, gone) in [(330, vec![3]), (220, vec![2]), (110, vec![1]), (0, vec![0])] {
        assert_eq!(served.evict(limit, NEVER).await, gone, "limit {limit}");
    }
}

#[tokio::test]
async fn pins_and_what_is_in_use_stay_with_their_closures() {
    let served = Served::packed(&[(1, &[]), (2, &[0]), (3, &[]), (9, &[2]), (4, &[])]).await;
    served.pin(1).await;
    assert_eq!(served.evict(0, 9).await, [4]);
    served.index.unpin("pin 1".to_owned(), None).await.expect("unpinned");
    assert_eq!(served.evict(0, NEVER).await, [3, 2], "what was pinned counts as used until then");
}

#[tokio::test]
async fn what_came_since_holds_what_it_refers_to_though_nobody_used_that_lately() {
    let served = Served::packed(&[(1, &[]), (2, &[0]), (3, &[]), (4, &[])]).await;
    assert!(served.index.publish(vec![row(7, &[1])]).await.expect("published"));
    served.pack(7).await;
    assert_eq!(served.evict(0, NEVER).await, [2, 3]);
}

#[tokio::test]
async fn what_nobody_but_the_nix_store_has_yet_stays_and_what_an_upstream_has_goes() {
    let paths = vec![(1, vec![]), (2, vec![0]), (3, vec![]), (4, vec![])];
    let served = Served::new(paths, &[1, 2], &[2, 3]).await;
    // There is too much as long as 0 is here, which 1 needs.
    assert_eq!(served.evict(50, NEVER).await, [3]);
    assert_eq!(served.served().await, [0, 1].into());
    assert!(served.index.upstreams_with(nar(3)).await.expect("read").is_empty());
}

#[tokio::test]
async fn equal_contents_count_once_and_go_with_the_last_path_that_has_them() {
    let served = Served::packed(&[(1, &[]), (9, &[]), (5, &[])]).await;
    let twin = PathInfo { nar_hash: nar(1), ..row(3, &[]).info };
    let twin = PathRow { info: twin, built: true };
    assert!(served.index.publish(vec![twin]).await.expect("published"));
    assert_eq!(served.evict(299, NEVER).await, [0]);
    assert_eq!(served.evict(150, NEVER).await, [2]);
    assert_eq!(served.evict(0, u64::from(u32::MAX) * 2).await, [1]);
    assert_eq!(served.index.find(path(3).hash()).await.expect("read"), None);
}

#[tokio::test]
async fn a_nar_that_no_path_has_goes_first_and_without_need() {
    let served = Served::packed(&[(1, &[])]).await;
    for number in [7, 8] {
        served.pack(number).await;
    }
    assert_eq!(served.evict(1000, NEVER).await, [7, 8]);
    assert_eq!(served.served().await, [0].into());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_goes_what_stays_has_all_that_it_refers_to(
        shape in proptest::collection::vec((1..12_u64, proptest::collection::vec(0..100_usize, 0..3), 0..8_u8), 1..14),
        limit in 0..1400_u64,
        used_since in 1..14_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let numbers = |kind: u8| -> Vec<usize> {
                (0..shape.len()).filter(|number| shape[*number].2 == kind).collect()
            };
            let below = |number: usize, refers: &[usize]| {
                let refers = refers.iter().filter_map(|other| other.checked_rem(number)).collect::<BTreeSet<_>>();
                refers.into_iter().collect::<Vec<_>>()
            };
            let paths: Vec<Path> = shape.iter().enumerate()
                .map(|(number, (used_at, refers, _))| (*used_at, below(number, refers))).collect();
            let served = Served::new(paths, &numbers(1), &[numbers(2), numbers(3)].concat()).await;
            for number in numbers(4) {
                served.pin(number).await;
            }
            let lately = (0..shape.len()).filter(|number| shape[*number].0 >= used_since);
            let held = served.closure(lately.chain(numbers(1)).chain(numbers(4)).collect());
            served.evict(limit, used_since).await;
            let stays = served.served().await;
            assert!(stays.is_superset(&held), "{held:?} were to stay, and {stays:?} did");
            assert_eq!(served.closure(stays.iter().copied().collect()), stays);
            for number in stays.iter().filter(|number| shape[**number].2 != 1) {
                let packed = served.index.packed(nar(*number)).await.expect("read");
                assert!(packed.is_some(), "{number} has no file");
            }
            let held_bytes = BYTES * held.iter().filter(|number| shape[**number].2 != 1).count() as u64;
            let bytes = served.index.nar_bytes().await.expect("read");
            assert!(bytes <= limit.max(held_bytes), "{bytes} bytes, limit {limit}, held {held_bytes}");
        });
    }
}
