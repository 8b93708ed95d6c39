//! Places of served paths in eviction order, as uses move them. A path never stands before, or beside, what
//! refers to it: whoever evicts from the front breaks no closure.

use std::time::{Duration, SystemTime};

use super::columns::{micros, to_micros};

/// A use within this time of the recorded one is not recorded.
const SLACK: Duration = Duration::from_millis(250);

/// Places of paths, read and written one by one.
pub(super) trait EvictionPlaces {
    type Error;

    /// The place of the path with this hash: Unix microseconds. `None` where it is not served.
    fn place(&mut self, hash: &str) -> Result<Option<i64>, Self::Error>;

    /// Hashes of what a path refers to, itself excepted.
    fn references(&mut self, hash: &str) -> Result<Vec<String>, Self::Error>;

    fn set_place(&mut self, hash: &str, at: i64) -> Result<(), Self::Error>;

    /// True once enough was read for one transaction.
    fn is_spent(&self) -> bool;
}

/// A use of paths, each with its closure. Continued in the next transaction where one would be too long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touch {
    /// Unix microseconds of the need. What a path refers to stands a microsecond after it, at least.
    at: i64,
    /// A path that stands here or after stays where it is. With each path that is written this goes back by
    /// one, so that nothing is written twice: where that path refers to what stood just here, it stands one
    /// before.
    from: i64,
}

/// A path whose references are being looked at.
struct Visit {
    hash: String,
    /// References that were not looked at yet.
    below: Vec<String>,
    /// The place that it is to have, by the references that were looked at.
    at: i64,
}

impl Touch {
    pub(super) fn at(time: SystemTime) -> Self {
        let at = to_micros(time);
        Self { at, from: at.saturating_sub(micros(SLACK)) }
    }

    /// A use at the time at which a path was published, or a moment later: after its referrers of that time.
    pub(super) fn since(came_at: SystemTime) -> Self {
        Self::at(came_at + SLACK)
    }

    /// Unix microseconds of the use, to the second for what is recorded in seconds.
    pub(super) fn seconds(&self) -> i64 {
        self.at / micros(Duration::from_secs(1))
    }

    /// Place at and behind which paths stay where they are.
    #[cfg(feature = "postgres")]
    pub(super) fn from(&self) -> i64 {
        self.from
    }

    /// Touches the path with this hash. False when the transaction has read enough; the next one goes on.
    pub(super) fn path<P: EvictionPlaces>(&mut self, places: &mut P, hash: String) -> Result<bool, P::Error> {
        // As long as the longest chain of references.
        let mut stack: Vec<Visit> = self.visit(places, hash)?.err().into_iter().collect();
        while let Some(path) = stack.last_mut() {
            if let Some(below) = path.below.pop() {
                match self.visit(places, below)? {
                    Ok(stands) => path.at = path.at.min(stands.saturating_sub(1)),
                    Err(visit) => stack.push(visit),
                }
                continue;
            }
            places.set_place(&path.hash, path.at)?;
            let stands = path.at;
            self.from -= 1;
            stack.pop();
            match stack.last_mut() {
                Some(above) => above.at = above.at.min(stands.saturating_sub(1)),
                None => return Ok(true),
            }
            // Only here: each transaction writes something.
            if places.is_spent() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The place of a path that may stay there, or the visit that moves it. Paths that are not served are
    /// ignored.
    fn visit<P: EvictionPlaces>(&self, places: &mut P, hash: String) -> Result<Result<i64, Visit>, P::Error> {
        let stands = places.place(&hash)?.unwrap_or(i64::MAX);
        if stands >= self.from {
            return Ok(Ok(stands));
        }
        let below = places.references(&hash)?;
        Ok(Err(Visit { hash, below, at: self.at }))
    }
}

/// Hashes in a column of references, without that of the path itself.
pub(super) fn below(refs: &str, hash: &str) -> Vec<String> {
    let below = refs.split_ascii_whitespace().filter_map(|base| base.get(..32));
    below.filter(|below| *below != hash).map(str::to_owned).collect()
}
