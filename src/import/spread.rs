//! Spread of a copy over several connections: each takes a batch of paths, the next one when that is added. A
//! path is copied once all that it refers to is added, or comes before it in the same batch. What most bytes
//! wait for goes first, so that no connection ends long after the others. Knows no connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use narinfo::{PathInfo, StorePath};
use tokio::sync::Notify;

use super::store::StoreError;

/// Bytes of a batch at least, unless nothing else can be copied: each costs a round trip.
const BATCH_BYTES_MIN: u64 = 4 << 20;
/// Batches at least that are made of what is left.
const BATCHES_LEFT: u64 = 16;

/// A copy of several paths.
pub(super) struct Spread {
    copying: Mutex<Copying>,
    /// Notified when more can be taken, or nothing is left.
    changed: Notify,
}

/// Paths that a connection has taken, to be copied in this order. Dropped before they are
/// [added](Self::added), another connection takes them.
pub(super) struct CopyBatch<'s> {
    spread: &'s Spread,
    /// Ranks of the paths.
    taken: Vec<usize>,
    /// Places of the paths in the list that the spread was made of.
    places: Vec<usize>,
}

/// State of a copy. Each path has a rank, which is below that of all that refer to it.
struct Copying {
    paths: Vec<CopiedPath>,
    /// Ranks of the paths that nobody has taken.
    waiting: BTreeSet<usize>,
    waiting_bytes: u64,
    /// Paths that are not added.
    left: usize,
    batches: u64,
    failed: Option<StoreError>,
}

struct CopiedPath {
    place: usize,
    bytes: u64,
    /// Ranks of those that it refers to.
    references: Vec<usize>,
    progress: CopyStep,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CopyStep {
    Waiting,
    /// In the batch of this number.
    Taken(u64),
    Added,
}

impl Spread {
    /// A copy of paths that are listed after all that they refer to.
    pub(super) fn new<'i>(infos: impl IntoIterator<Item = &'i PathInfo>) -> Self {
        Self {
            copying: Mutex::new(Copying::new(&infos.into_iter().collect::<Vec<_>>())),
            changed: Notify::new(),
        }
    }

    /// The next paths to copy. Waits while those that are left refer to others that are under way. `None`
    /// once all are added, or the copy has [failed](Self::fail).
    pub(super) async fn take(&self) -> Option<CopyBatch<'_>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut copying = self.lock();
                if copying.left == 0 || copying.failed.is_some() {
                    return None;
                }
                let taken = copying.take();
                if !taken.is_empty() {
                    let places = taken.iter().map(|rank| copying.paths[*rank].place).collect();
                    return Some(CopyBatch { spread: self, taken, places });
                }
            }
            changed.await;
        }
    }

    /// Ends the copy with the first error.
    pub(super) fn fail(&self, error: StoreError) {
        self.lock().failed.get_or_insert(error);
        self.changed.notify_waiters();
    }

    /// The error that has ended the copy.
    pub(super) fn take_failure(&self) -> Option<StoreError> {
        self.lock().failed.take()
    }

    fn lock(&self) -> MutexGuard<'_, Copying> {
        self.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CopyBatch<'_> {
    /// The paths of this batch among those that the spread was made of.
    pub(super) fn of<'l, T>(&self, all: &'l [T]) -> Vec<&'l T> {
        self.places.iter().map(|place| &all[*place]).collect()
    }

    /// All of its paths are valid.
    pub(super) fn added(mut self) {
        let taken = std::mem::take(&mut self.taken);
        let mut copying = self.spread.lock();
        copying.left -= taken.len();
        for rank in taken {
            copying.paths[rank].progress = CopyStep::Added;
        }
    }
}

impl Drop for CopyBatch<'_> {
    fn drop(&mut self) {
        self.spread.lock().give_back(&self.taken);
        self.spread.changed.notify_waiters();
    }
}

impl Copying {
    fn new(infos: &[&PathInfo]) -> Self {
        let place_of: BTreeMap<&StorePath, usize> =
            infos.iter().enumerate().map(|(place, info)| (&info.path, place)).collect();
        let references_of = |place: usize| {
            let places = infos[place].references.iter().filter_map(|path| place_of.get(path).copied());
            places.filter(move |reference| *reference != place)
        };
        // Bytes of the longest chain from each path to one that nothing refers to.
        let mut chains: Vec<u64> = infos.iter().map(|info| info.nar_size.max(1)).collect();
        for place in (0..infos.len()).rev() {
            for reference in references_of(place) {
                let with_it = infos[reference].nar_size.max(1).saturating_add(chains[place]);
                chains[reference] = chains[reference].max(with_it);
            }
        }
        // The sort is stable: where chains are too long to be told apart, the order of the list holds.
        let mut order: Vec<usize> = (0..infos.len()).collect();
        order.sort_by_key(|place| std::cmp::Reverse(chains[*place]));
        let mut rank_of = vec![0; order.len()];
        for (rank, place) in order.iter().enumerate() {
            rank_of[*place] = rank;
        }
        let path = |place: usize| CopiedPath {
            place,
            bytes: infos[place].nar_size,
            references: references_of(place).map(|reference| rank_of[reference]).collect(),
            progress: CopyStep::Waiting,
        };
        Self {
            paths: order.into_iter().map(path).collect(),
            waiting: (0..infos.len()).collect(),
            waiting_bytes: infos.iter().map(|info| info.nar_size).sum(),
            left: infos.len(),
            batches: 0,
            failed: None,
        }
    }

    /// Ranks of the next batch; none where nothing can be copied now.
    fn take(&mut self) -> Vec<usize> {
        let enough = (self.waiting_bytes / BATCHES_LEFT).max(BATCH_BYTES_MIN);
        self.batches += 1;
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for rank in &self.waiting {
            if bytes >= enough {
                break;
            }
            let is_ready = |reference: &usize| match self.paths[*reference].progress {
                CopyStep::Added => true,
                CopyStep::Taken(batch) => batch == self.batches,
                CopyStep::Waiting => false,
            };
            if self.paths[*rank].references.iter().all(is_ready) {
                self.paths[*rank].progress = CopyStep::Taken(self.batches);
                bytes += self.paths[*rank].bytes;
                taken.push(*rank);
            }
        }
        for rank in &taken {
            self.waiting.remove(rank);
        }
        self.waiting_bytes -= bytes;
        taken
    }

    fn give_back(&mut self, taken: &[usize]) {
        for rank in taken {
            self.paths[*rank].progress = CopyStep::Waiting;
            self.waiting_bytes += self.paths[*rank].bytes;
        }
        self.waiting.extend(taken);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use narinfo::NarHash;

    use super::*;

    const MEGABYTE: u64 = 1 << 20;

    fn path(number: usize) -> StorePath {
        StorePath::parse(&format!("{number:032}-p")).expect("a path")
    }

    /// Paths of so many megabytes, each with the numbers of those that it refers to.
    fn infos(paths: &[(u64, Vec<usize>)]) -> Vec<PathInfo> {
        let info = |(number, (megabytes, references)): (usize, &(u64, Vec<usize>))| PathInfo {
            path: path(number),
            nar_hash: NarHash::from_bytes([0; 32]),
            nar_size: megabytes * MEGABYTE,
            // To itself, too, as many do.
            references: references.iter().copied().chain([number]).map(path).collect(),
            deriver: None,
            ca: None,
            signatures: Vec::new(),
        };
        paths.iter().enumerate().map(info).collect()
    }

    /// The next batch, if one can be taken at once.
    async fn next(spread: &Spread) -> Option<CopyBatch<'_>> {
        tokio::time::timeout(Duration::ZERO, spread.take()).await.ok()?
    }

    #[tokio::test]
    async fn connections_share_what_is_large_and_take_what_is_small_together() {
        let large = infos(&[(10, vec![]), (20, vec![]), (30, vec![]), (1, vec![]), (1, vec![]), (1, vec![])]);
        let spread = Spread::new(&large);
        let mut batches = Vec::new();
        while let Some(batch) = next(&spread).await {
            batches.push(batch);
        }
        let places: Vec<&[usize]> = batches.iter().map(|batch| &batch.places[..]).collect();
        assert_eq!(places, [&[2][..], &[1], &[0], &[3, 4, 5]]);
    }

    #[tokio::test]
    async fn what_most_bytes_wait_for_goes_first_and_what_refers_to_it_once_it_is_added() {
        // 2 refers to 0, and 3 to both; 1 is larger than each of them, and smaller than all.
        let paths = infos(&[(5, vec![]), (12, vec![]), (5, vec![0]), (5, vec![0, 2])]);
        let spread = Spread::new(&paths);
        let base = spread.take().await.expect("the first");
        assert_eq!(base.places, [0]);
        let other = spread.take().await.expect("the one that refers to nothing");
        assert_eq!(other.places, [1]);
        assert!(next(&spread).await.is_none(), "all else refers to what is under way");
        let waiting = async {
            let next = spread.take().await.expect("it can be copied now");
            assert_eq!(next.places, [2]);
            next.added();
        };
        tokio::join!(waiting, async { base.added() });
        let last = spread.take().await.expect("the last");
        assert_eq!(last.places, [3]);
        last.added();
        other.added();
        assert!(spread.take().await.is_none() && spread.take_failure().is_none());
    }

    #[tokio::test]
    async fn what_a_connection_gives_back_is_taken_by_another_and_a_failure_ends_the_copy() {
        let paths = infos(&[(9, vec![]), (9, vec![0])]);
        let spread = Spread::new(&paths);
        let lost = spread.take().await.expect("the first");
        let waiting = async { spread.take().await.expect("the first again").places.clone() };
        let (places, ()) = tokio::join!(waiting, async { drop(lost) });
        assert_eq!(places, [0]);
        let taken = spread.take().await.expect("the first once more");
        let waiting = async { spread.take().await.is_none() };
        let (ended, ()) = tokio::join!(waiting, async { spread.fail(StoreError::TooLarge) });
        assert!(ended && matches!(spread.take_failure(), Some(StoreError::TooLarge)));
        drop(taken);
    }

    #[tokio::test]
    async fn every_path_is_copied_once_after_all_that_it_refers_to_whatever_breaks() {
        for seed in 0..50_u64 {
            let mut state = seed;
            let mut below = |bound: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as usize % bound
            };
            let count = 1 + below(60);
            let paths: Vec<(u64, Vec<usize>)> = (0..count)
                .map(|number| {
                    let references = (0..below(4).min(number)).map(|_| below(number)).collect();
                    (below(12) as u64, references)
                })
                .collect();
            let listed = infos(&paths);
            let spread = Spread::new(&listed);
            let (mut under_way, mut added) = (Vec::new(), BTreeSet::new());
            loop {
                while under_way.len() < 4
                    && let Some(batch) = next(&spread).await
                {
                    let mut there: BTreeSet<usize> = added.clone();
                    for place in &batch.places {
                        assert!(paths[*place].1.iter().all(|other| there.contains(other)), "seed {seed}");
                        assert!(there.insert(*place), "seed {seed}: it is copied twice");
                    }
                    under_way.push(batch);
                }
                if under_way.is_empty() {
                    break;
                }
                let batch = under_way.swap_remove(below(under_way.len()));
                if below(4) > 0 {
                    added.extend(batch.places.clone());
                    batch.added();
                }
            }
            assert_eq!(added.len(), count, "seed {seed}");
        }
    }
}
