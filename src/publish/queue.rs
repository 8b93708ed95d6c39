//! The paths that are to be looked at, each once. What changes last is looked at last: of paths that were
//! evicted together, those that refer to others stay before these.

use std::collections::{BTreeMap, HashMap};

use narinfo::StorePathHash;

/// Paths in their order.
#[derive(Debug, Default)]
pub(super) struct PathQueue {
    paths: BTreeMap<i64, StorePathHash>,
    places: HashMap<StorePathHash, i64>,
}

impl PathQueue {
    /// Adds a path at the end, unless it has a place.
    pub(super) fn push(&mut self, hash: StorePathHash) {
        if !self.places.contains_key(&hash) {
            let last = self.paths.last_key_value().map_or(0, |(place, _)| *place);
            self.insert(hash, last + 1);
        }
    }

    /// Moves a path to the end.
    pub(super) fn move_last(&mut self, hash: StorePathHash) {
        self.remove(hash);
        self.push(hash);
    }

    /// Puts paths that were taken before all others again, in their order.
    pub(super) fn put_back(&mut self, hashes: &[StorePathHash]) {
        for &hash in hashes.iter().rev() {
            self.remove(hash);
            let first = self.paths.first_key_value().map_or(0, |(place, _)| *place);
            self.insert(hash, first - 1);
        }
    }

    /// Takes the first paths.
    pub(super) fn take(&mut self, max: usize) -> Vec<StorePathHash> {
        let first = std::iter::from_fn(|| self.paths.pop_first()).take(max);
        let taken: Vec<_> = first.map(|(_, hash)| hash).collect();
        for hash in &taken {
            self.places.remove(hash);
        }
        taken
    }

    pub(super) fn len(&self) -> usize {
        self.paths.len()
    }

    fn insert(&mut self, hash: StorePathHash, place: i64) {
        self.paths.insert(place, hash);
        self.places.insert(hash, place);
    }

    fn remove(&mut self, hash: StorePathHash) {
        if let Some(place) = self.places.remove(&hash) {
            self.paths.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::hash;
    use super::*;

    #[test]
    fn a_path_has_one_place_which_is_the_last_where_it_changes_and_the_first_where_it_is_put_back() {
        let mut queue = PathQueue::default();
        let digits = |digits: &[u8]| digits.iter().map(|digit| hash(*digit)).collect::<Vec<_>>();
        digits(&[1, 2, 3, 1]).into_iter().for_each(|hash| queue.push(hash));
        assert_eq!(queue.len(), 3);
        queue.move_last(hash(1));
        queue.move_last(hash(4));
        let taken = queue.take(2);
        assert_eq!(taken, digits(&[2, 3]));
        queue.put_back(&taken);
        queue.put_back(&[hash(4)]);
        assert_eq!((queue.take(9), queue.len()), (digits(&[4, 2, 3, 1]), 0));
    }
}
