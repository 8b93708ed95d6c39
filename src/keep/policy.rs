//! What stays in the NAR store when it is too full: all stands in one order, in which a path comes before what it refers to, and
//! goes from the front until there is room. Plain code; loses nothing itself.

use std::time::SystemTime;

use crate::index::{Choice, Holding};

/// What may stay.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of files above which something goes; `None` is no limit.
    pub max_bytes: Option<u64>,
    /// What was used since then stays, whatever the limit.
    pub used_since: SystemTime,
}

/// Once something has to go, a twentieth of the limit is freed: else there would be something to do for each NAR that comes.
const FREED_PART: u64 = 20;

impl Bounds {
    /// To how many bytes it is brought down when it has so many; `None` where those may stay.
    #[must_use]
    pub fn room(&self, bytes: u64) -> Option<u64> {
        let max_bytes = self.max_bytes.filter(|max_bytes| bytes > *max_bytes)?;
        Some(max_bytes - max_bytes / FREED_PART)
    }

    /// What becomes of the paths that stand first, while there are so many bytes too many.
    #[must_use]
    pub fn choose(&self, first: &[Holding], excess: u64) -> Choice {
        let may_go = |holding: &Holding| holding.needed_at.is_some_and(|at| at < self.used_since);
        let to_keep = |holding: &&Holding| holding.needed_at.is_none() || (holding.held && may_go(holding));
        let kept = first.iter().take_while(to_keep).count();
        if kept > 0 {
            return Choice::Keep(kept);
        }
        let mut freed = 0;
        let goes = first.iter().take_while(|holding| {
            let goes = freed < excess && may_go(holding) && !holding.held;
            freed += holding.file_bytes.unwrap_or(0);
            goes
        });
        Choice::Lose(goes.count())
    }
}
