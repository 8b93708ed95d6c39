//! Limits of a NAR store that is too full: all paths stand in one order, in which a path comes before what it
//! refers to, and are evicted from the front until there is room. Plain code; evicts nothing itself.

use std::time::SystemTime;

use crate::room::Room;

/// The part of a file system that stays free by default, and bytes at most.
const USUAL_FREE_PART: u64 = 20;
const USUAL_FREE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// The part of the inodes that stays free, and how many at most.
const FREE_INODES_PART: u64 = 50;
const FREE_INODES_MAX: u64 = 10_000;

/// Room that stays free on the file system of the NARs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinFree {
    /// A twentieth of it, or 4 GiB where that is less.
    #[default]
    Usual,
    /// So many bytes; 0 is none.
    Bytes(u64),
}

impl MinFree {
    /// In bytes.
    #[must_use]
    pub fn bytes(self, room: &Room) -> u64 {
        match self {
            Self::Usual => (room.total_bytes / USUAL_FREE_PART).min(USUAL_FREE_BYTES_MAX),
            Self::Bytes(bytes) => bytes,
        }
    }

    /// Bytes that may stay of `stored` ones for the sake of room; `None` where there is enough.
    #[must_use]
    pub fn limit(self, stored: u64, room: &Room) -> Option<u64> {
        let wanted = self.bytes(room);
        if wanted == 0 {
            return None;
        }
        let short_of_inodes =
            room.inodes.is_some_and(|(total, free)| free < (total / FREE_INODES_PART).min(FREE_INODES_MAX));
        let by_bytes = (room.free_bytes < wanted).then(|| stored.saturating_sub(wanted - room.free_bytes));
        // The bytes that are freed with an inode are unknown: the limit is computed again after a part.
        let by_inodes = short_of_inodes.then(|| stored - stored / FREED_PART);
        [by_bytes, by_inodes].into_iter().flatten().min()
    }
}

/// Bounds of an eviction.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of files above which something goes; `None` is no limit.
    pub max_bytes: Option<u64>,
    /// Paths that were used since then are retained, whatever the limit.
    pub used_since: SystemTime,
    /// Pushed derivations that were used since then are retained, too.
    pub pushed_since: SystemTime,
}

/// Once something has to go, a twentieth of the limit is freed: else there would be something to do for each
/// NAR that comes.
const FREED_PART: u64 = 20;

impl Bounds {
    /// To how many bytes it is brought down when it has so many; `None` where those may stay.
    #[must_use]
    pub fn room(&self, bytes: u64) -> Option<u64> {
        let max_bytes = self.max_bytes.filter(|max_bytes| bytes > *max_bytes)?;
        Some(max_bytes - max_bytes / FREED_PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_stay_is_less_by_what_is_lacking_of_the_room_that_is_wanted() {
        const GIB: u64 = 1024 * 1024 * 1024;
        let room = |total_bytes, free_bytes| Room::new(total_bytes, free_bytes, None);
        for (min_free, room, limit) in [
            (MinFree::Usual, room(20 * GIB, GIB), None),
            (MinFree::Usual, room(20 * GIB, GIB - 7), Some(93)),
            (MinFree::Usual, room(1000 * GIB, 4 * GIB), None),
            (MinFree::Usual, room(1000 * GIB, 3 * GIB), Some(0)),
            (MinFree::Bytes(10), room(20 * GIB, 10), None),
            (MinFree::Bytes(10), room(20 * GIB, 9), Some(99)),
            (MinFree::Bytes(0), room(20 * GIB, 0), None),
            (MinFree::Usual, Room::new(20 * GIB, GIB, Some((1000, 20))), None),
            (MinFree::Usual, Room::new(20 * GIB, GIB, Some((1000, 19))), Some(95)),
        ] {
            assert_eq!(min_free.limit(100, &room), limit, "{min_free:?} of {room:?}");
        }
    }
}
