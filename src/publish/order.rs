//! The order of publication: a narinfo after those of all its references. Knows neither index nor bucket.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use narinfo::{PathInfo, StorePath, StorePathHash};

/// Narinfos that the bucket has, and the paths that are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Order {
    published: HashSet<StorePathHash>,
    /// Narinfos that are being put or deleted, or were when the bucket failed: it may have them or not.
    uncertain: HashSet<StorePathHash>,
    /// True where these are all that the bucket has.
    is_complete: bool,
    queue: VecDeque<StorePathHash>,
    queued: HashSet<StorePathHash>,
    /// Paths that wait, by a reference that is not published.
    waiting: HashMap<StorePathHash, BTreeSet<StorePathHash>>,
    /// References that a path has begun to wait for, and whose NARs may have to be fetched.
    wanted: VecDeque<StorePathHash>,
    /// Paths whose NARs are not in the bucket yet, though the index has them.
    postponed: BTreeSet<StorePathHash>,
}

impl Order {
    /// The order in a bucket that has these narinfos.
    pub(super) fn of(published: HashSet<StorePathHash>) -> Self {
        Self { published, is_complete: true, ..Self::default() }
    }

    pub(super) fn has(&self, hash: StorePathHash) -> bool {
        self.published.contains(&hash)
    }

    /// True unless the bucket is known not to have the narinfo.
    pub(super) fn may_have(&self, hash: StorePathHash) -> bool {
        !self.is_complete || self.has(hash) || self.uncertain.contains(&hash)
    }

    /// Leaves a narinfo to those who have put it there.
    pub(super) fn forget(&mut self, hash: StorePathHash) {
        self.published.remove(&hash);
    }

    /// Has a path looked at, once.
    pub(super) fn push(&mut self, hash: StorePathHash) {
        if self.queued.insert(hash) {
            self.queue.push_back(hash);
        }
    }

    /// Takes the next paths to look at.
    pub(super) fn take(&mut self, max: usize) -> Vec<StorePathHash> {
        let taken: Vec<_> = self.queue.drain(..max.min(self.queue.len())).collect();
        for hash in &taken {
            self.queued.remove(hash);
        }
        taken
    }

    /// A reference of a path that is not published.
    pub(super) fn lacking(&self, path: &PathInfo) -> Option<StorePathHash> {
        let others = path.references.iter().filter(|reference| **reference != path.path);
        others.map(StorePath::hash).find(|hash| !self.has(*hash))
    }

    /// Has a path wait for one that it refers to.
    pub(super) fn wait(&mut self, hash: StorePathHash, reference: StorePathHash) {
        let waiting = self.waiting.entry(reference).or_insert_with(|| {
            self.wanted.push_back(reference);
            BTreeSet::new()
        });
        waiting.insert(hash);
    }

    /// Takes the next reference that paths wait for.
    pub(super) fn take_wanted(&mut self) -> Option<StorePathHash> {
        self.wanted.pop_front()
    }

    /// Has a reference taken again, where a path still waits for it.
    pub(super) fn want_again(&mut self, reference: StorePathHash) {
        if self.waiting.contains_key(&reference) {
            self.wanted.push_back(reference);
        }
    }

    /// Sets a path aside until [`Order::resume`].
    pub(super) fn postpone(&mut self, hash: StorePathHash) {
        self.postponed.insert(hash);
    }

    /// Has those that were set aside looked at again.
    pub(super) fn resume(&mut self) {
        let postponed = std::mem::take(&mut self.postponed);
        postponed.into_iter().for_each(|hash| self.push(hash));
    }

    /// Notes that a narinfo is about to be put or deleted: nothing relies on it until that has ended.
    pub(super) fn note_attempt(&mut self, hash: StorePathHash) {
        self.published.remove(&hash);
        self.uncertain.insert(hash);
    }

    /// Notes that a narinfo was not put after all, and is not there.
    pub(super) fn note_absent(&mut self, hash: StorePathHash) {
        self.uncertain.remove(&hash);
    }

    /// Notes that a narinfo is in the bucket, and has those that waited for it looked at.
    pub(super) fn note_published(&mut self, hash: StorePathHash) {
        self.uncertain.remove(&hash);
        self.published.insert(hash);
        self.waiting.remove(&hash).into_iter().flatten().for_each(|waiting| self.push(waiting));
    }

    /// Notes that a narinfo is not in the bucket any more, and has its path looked at: it may be published
    /// again.
    pub(super) fn note_withdrawn(&mut self, hash: StorePathHash) {
        self.published.remove(&hash);
        self.note_absent(hash);
        self.push(hash);
    }

    /// Number of paths that are not published, or not as they are now.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len() + self.postponed.len() + self.waiting.values().map(BTreeSet::len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{hash, info};
    use super::*;

    #[test]
    fn a_path_waits_for_each_of_its_references_in_turn_and_never_for_itself() {
        let mut order = Order::of([hash(1)].into());
        let path = info(4, &[1, 2, 3, 4]);
        for reference in [2, 3] {
            assert_eq!(order.lacking(&path), Some(hash(reference)));
            order.wait(hash(4), hash(reference));
            order.wait(hash(5), hash(reference));
            assert_eq!((order.take(9), order.waiting()), (Vec::new(), 2));
            assert_eq!([order.take_wanted(), order.take_wanted()], [Some(hash(reference)), None]);
            order.want_again(hash(reference));
            assert_eq!(order.take_wanted(), Some(hash(reference)));
            order.note_published(hash(reference));
            order.want_again(hash(reference));
            assert_eq!((order.take(9), order.take_wanted()), (vec![hash(4), hash(5)], None));
        }
        assert_eq!((order.lacking(&path), order.waiting()), (None, 0));
        order.note_withdrawn(hash(1));
        assert_eq!((order.lacking(&path), order.take(9)), (Some(hash(1)), vec![hash(1)]));
    }

    #[test]
    fn a_path_is_queued_once_and_again_after_it_was_taken() {
        let mut order = Order::default();
        [1, 2, 1].into_iter().for_each(|digit| order.push(hash(digit)));
        assert_eq!((order.waiting(), order.take(1)), (2, vec![hash(1)]));
        order.push(hash(1));
        order.postpone(hash(3));
        assert_eq!(order.take(9), [hash(2), hash(1)]);
        assert_eq!(order.waiting(), 1);
        order.resume();
        assert_eq!((order.take(9), order.waiting()), (vec![hash(3)], 0));
    }

    #[test]
    fn a_bucket_that_was_not_listed_may_have_every_narinfo() {
        assert!(Order::default().may_have(hash(1)));
        let mut order = Order::of([hash(1), hash(2)].into());
        assert!(order.may_have(hash(1)) && !order.may_have(hash(3)));
        order.forget(hash(2));
        assert!(!order.may_have(hash(2)));
        // Whatever the bucket makes of it, nothing relies on it, and it is deleted before its NAR.
        for digit in [1, 3] {
            order.note_attempt(hash(digit));
            assert!(order.may_have(hash(digit)) && !order.has(hash(digit)));
        }
        order.note_absent(hash(1));
        order.note_published(hash(3));
        assert!(!order.may_have(hash(1)) && order.has(hash(3)));
    }
}
