//! The order of publication: a narinfo after those of all its references. Knows neither index nor bucket.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use narinfo::{PathInfo, StorePath, StorePathHash};

use super::queue::PathQueue;

/// Narinfos that the bucket has, and the paths that are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Order {
    published: HashSet<StorePathHash>,
    /// Narinfos that are being put or deleted, or were when the bucket failed: it may have them or not.
    uncertain: HashSet<StorePathHash>,
    /// Paths whose narinfos went with their NARs, before those of what refers to them.
    gone_first: HashSet<StorePathHash>,
    /// True where these are all that the bucket has.
    is_complete: bool,
    queue: PathQueue,
    /// Narinfos of paths that the index does not have, which were there when the bucket was listed.
    leftovers: HashSet<StorePathHash>,
    /// Paths that wait, by a reference that is not published; and that reference, by the path.
    waiting: HashMap<StorePathHash, BTreeSet<StorePathHash>>,
    waits_for: HashMap<StorePathHash, StorePathHash>,
    /// References that a path has begun to wait for, and whose NARs may have to be fetched.
    wanted: VecDeque<StorePathHash>,
    /// Paths whose NARs are not in the bucket yet, though the index has them.
    postponed: BTreeSet<StorePathHash>,
}

/// A reference of a path that keeps it from being published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MissingReference {
    /// None: all of them are published.
    None,
    /// This one, which may be in the bucket or not.
    Uncertain(StorePathHash),
    /// This one, which is not there.
    Absent(StorePathHash),
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

    /// True unless neither the narinfo nor, but for an accident, one that refers to it can be in the bucket.
    pub(super) fn may_be_named(&self, hash: StorePathHash) -> bool {
        self.may_have(hash) || self.has_gone_first(hash)
    }

    pub(super) fn has_gone_first(&self, hash: StorePathHash) -> bool {
        self.gone_first.contains(&hash)
    }

    /// Leaves a narinfo to those who have put it there.
    pub(super) fn forget(&mut self, hash: StorePathHash) {
        self.published.remove(&hash);
    }

    /// Goes by the bucket no longer for a narinfo that it has, perhaps as another one than it should be.
    pub(super) fn doubt(&mut self, hash: StorePathHash) {
        self.published.remove(&hash);
        self.uncertain.insert(hash);
        self.push(hash);
    }

    /// Takes over what was withdrawn, or was to be, while the bucket was listed for this order.
    pub(super) fn take_over(&mut self, mut meanwhile: Self) {
        let withdrawn = meanwhile.queue.take(usize::MAX);
        withdrawn.into_iter().chain(meanwhile.uncertain).for_each(|hash| self.doubt(hash));
    }

    /// Has a narinfo withdrawn whose path the index does not have: before all else, in the order of calls.
    pub(super) fn push_leftover(&mut self, hash: StorePathHash) {
        self.leftovers.insert(hash);
        self.push(hash);
    }

    /// True once it is known what the bucket has, and nothing in it is left of an earlier time.
    pub(super) fn is_clear(&self) -> bool {
        self.is_complete && self.leftovers.is_empty()
    }

    /// Has a path looked at, once.
    pub(super) fn push(&mut self, hash: StorePathHash) {
        self.queue.push(hash);
    }

    /// Has a path looked at that has changed, after those that changed before it.
    pub(super) fn push_changed(&mut self, hash: StorePathHash) {
        self.queue.move_last(hash);
    }

    /// Has paths that were taken looked at before all others.
    pub(super) fn put_back(&mut self, hashes: &[StorePathHash]) {
        self.queue.put_back(hashes);
    }

    /// Takes the next paths to look at.
    pub(super) fn take(&mut self, max: usize) -> Vec<StorePathHash> {
        let taken = self.queue.take(max);
        taken.iter().for_each(|hash| self.wait_no_longer(*hash));
        taken
    }

    /// A reference that keeps a path from being published; an absent reference before an uncertain one.
    pub(super) fn missing_reference(&self, path: &PathInfo) -> MissingReference {
        let others = path.references.iter().filter(|reference| **reference != path.path);
        let mut missing = MissingReference::None;
        for hash in others.map(StorePath::hash).filter(|hash| !self.has(*hash)) {
            if !self.may_have(hash) {
                return MissingReference::Absent(hash);
            }
            if missing == MissingReference::None {
                missing = MissingReference::Uncertain(hash);
            }
        }
        missing
    }

    /// Has a path wait for one that it refers to.
    pub(super) fn wait(&mut self, hash: StorePathHash, reference: StorePathHash) {
        self.wait_no_longer(hash);
        let waiting = self.waiting.entry(reference).or_insert_with(|| {
            self.wanted.push_back(reference);
            BTreeSet::new()
        });
        waiting.insert(hash);
        self.waits_for.insert(hash, reference);
    }

    fn wait_no_longer(&mut self, hash: StorePathHash) {
        let Some(reference) = self.waits_for.remove(&hash) else { return };
        if let Some(waiting) = self.waiting.get_mut(&reference) {
            waiting.remove(&hash);
            if waiting.is_empty() {
                self.waiting.remove(&reference);
            }
        }
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
        self.gone_first.remove(&hash);
        self.published.insert(hash);
        for waiting in self.waiting.remove(&hash).into_iter().flatten() {
            self.waits_for.remove(&waiting);
            self.push(waiting);
        }
    }

    /// Notes that a narinfo is not in the bucket any more, and has its path looked at: it may be published
    /// again.
    pub(super) fn note_withdrawn(&mut self, hash: StorePathHash) {
        self.published.remove(&hash);
        self.leftovers.remove(&hash);
        self.note_absent(hash);
        self.push(hash);
    }

    /// Notes that a narinfo goes with its NAR: those that refer to it are withdrawn once it is looked at.
    pub(super) fn note_gone_first(&mut self, hash: StorePathHash) {
        self.gone_first.insert(hash);
        self.push(hash);
    }

    /// Notes that nothing in the bucket refers to a narinfo any more, and has it looked at where it went
    /// before.
    pub(super) fn note_unnamed(&mut self, hash: StorePathHash) {
        if self.gone_first.remove(&hash) {
            self.push(hash);
        }
    }

    /// Number of paths that are not published, or not as they are now.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len() + self.postponed.len() + self.waits_for.len()
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
            assert_eq!(order.missing_reference(&path), MissingReference::Absent(hash(reference)));
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
        assert_eq!((order.missing_reference(&path), order.waiting()), (MissingReference::None, 0));
        // One that is perhaps there is waited for, unless another one is not there at all.
        order.note_attempt(hash(1));
        assert_eq!(order.missing_reference(&path), MissingReference::Uncertain(hash(1)));
        order.note_withdrawn(hash(3));
        assert_eq!(order.missing_reference(&path), MissingReference::Absent(hash(3)));
        order.note_withdrawn(hash(1));
        assert_eq!(
            (order.missing_reference(&path), order.take(9)),
            (MissingReference::Absent(hash(1)), vec![hash(3), hash(1)])
        );
    }

    #[test]
    fn a_path_that_is_looked_at_again_waits_for_one_reference_at_most() {
        let mut order = Order::of([].into());
        order.wait(hash(4), hash(1));
        order.wait(hash(4), hash(2));
        assert_eq!(order.waiting(), 1);
        order.push(hash(4));
        assert_eq!((order.take(9), order.waiting()), (vec![hash(4)], 0));
        // Nobody waits for them any more: they are not fetched again.
        [1, 2].into_iter().for_each(|digit| order.want_again(hash(digit)));
        assert_eq!([0; 3].map(|_| order.take_wanted()), [Some(hash(1)), Some(hash(2)), None]);
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
