//! Bloom filter of store path hashes: it may take a hash for one of its own that was never added, one in two
//! thousand or so, and never the other way round. Written because a miss that has to ask SQLite costs a
//! thread's turn, and most questions of most clients are misses; it proves that a hash is absent, and nothing
//! else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fastbloom::AtomicBloomFilter;
use narinfo::StorePathHash;
use tokio::sync::Notify;

/// Bits for each hash that there is room for: of the hashes that were never added, one in two thousand is
/// taken for one that was. With ten bits it would be one in a hundred, and those few would take a third of
/// the time that all others take.
const BITS_PER_HASH: usize = 16;
/// Hashes that there is room for, at least.
const ROOM_MIN: usize = 16 * 1024;

/// The filter. It is of use once it was filled, and is filled anew when it has got too small, which goes on
/// beside its use.
#[derive(Debug, Default)]
pub struct BloomFilter {
    fillings: RwLock<Fillings>,
    outgrown: Notify,
}

#[derive(Debug, Default)]
struct Fillings {
    /// The filling in use: every hash that was added; none before the first filling has ended.
    current: Option<Filling>,
    /// The filling that is being made, and then takes the place of the other.
    next: Option<Filling>,
}

#[derive(Debug)]
struct Filling {
    bits: AtomicBloomFilter,
    room: usize,
    used: AtomicUsize,
}

impl BloomFilter {
    /// True where the hash may have been added: always, as long as the filter was not filled.
    #[must_use]
    pub fn may_have(&self, hash: StorePathHash) -> bool {
        self.read().current.as_ref().is_none_or(|filling| filling.bits.contains(&hash))
    }

    /// True once it was filled.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.read().current.is_some()
    }

    /// Adds hashes, for good.
    pub fn add(&self, hashes: impl IntoIterator<Item = StorePathHash>) {
        let fillings = self.read();
        for hash in hashes {
            for filling in [&fillings.current, &fillings.next].into_iter().flatten() {
                filling.add(hash);
            }
        }
        if fillings.next.is_none() && fillings.current.as_ref().is_some_and(Filling::is_full) {
            self.outgrown.notify_one();
        }
    }

    /// Starts to refill it, for `count` hashes and some more. Hashes that are added from now on are in the
    /// new filling, too; all others must be added before [`BloomFilter::filled`].
    pub fn begin(&self, count: u64) {
        let count = usize::try_from(count).unwrap_or(usize::MAX / 16);
        self.write().next = Some(Filling::new((count + count / 4).max(ROOM_MIN)));
    }

    /// Uses the new filling, which has everything.
    pub fn filled(&self) {
        let mut fillings = self.write();
        if let Some(next) = fillings.next.take() {
            fillings.current = Some(next);
        }
    }

    /// Empties it: it is of no use until it was filled again.
    pub fn forget(&self) {
        *self.write() = Fillings::default();
    }

    /// Resolves when it has got too small, and needs a refill.
    pub async fn outgrown(&self) {
        self.outgrown.notified().await;
    }

    fn read(&self) -> RwLockReadGuard<'_, Fillings> {
        self.fillings.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Fillings> {
        self.fillings.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filling {
    fn new(room: usize) -> Self {
        let bits = AtomicBloomFilter::with_num_bits(room * BITS_PER_HASH).expected_items(room);
        Self { bits, room, used: AtomicUsize::new(0) }
    }

    fn add(&self, hash: StorePathHash) {
        if !self.bits.insert(&hash) {
            self.used.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_full(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: usize) -> StorePathHash {
        format!("{number:032}").parse().expect("digits are of Nix's alphabet")
    }

    #[test]
    fn nothing_is_settled_before_it_is_filled_and_nothing_that_was_added_is_lost() {
        let filter = BloomFilter::default();
        assert!(filter.may_have(hash(0)));
        filter.begin(2);
        filter.add([hash(1)]);
        assert!(filter.may_have(hash(0)), "not yet");
        filter.filled();
        assert!(filter.may_have(hash(1)) && !filter.may_have(hash(0)));
        filter.begin(2);
        filter.add([hash(2)]);
        assert!(filter.may_have(hash(1)) && filter.may_have(hash(2)), "the old filling stays in use");
        filter.filled();
        assert!(!filter.may_have(hash(1)), "it was not filled in anew");
        assert!(filter.may_have(hash(2)), "it came while the new one was filled");
        filter.forget();
        assert!(filter.may_have(hash(0)));
    }

    #[tokio::test]
    async fn it_says_when_it_is_too_small_and_few_are_taken_for_what_they_are_not() {
        let filter = BloomFilter::default();
        filter.begin(1);
        filter.filled();
        let room = filter.read().current.as_ref().map_or(0, |filling| filling.room);
        filter.add((0..room).map(hash));
        let wrong = (room..2 * room).filter(|number| filter.may_have(hash(*number))).count();
        assert!(wrong * 50 < room, "{wrong} of {room}");
        assert!((0..room).all(|number| filter.may_have(hash(number))));
        filter.add((room..2 * room).map(hash));
        filter.outgrown().await;
    }
}
