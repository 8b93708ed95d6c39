//! When served paths were needed last: uses are noted in memory, and written down now and then, each with all that the path refers
//! to. A path never stands before, or beside, what refers to it: whoever takes paths away from the front breaks no closure.
//! What was noted and not written down yet is lost with the process; whoever reads uses in a transaction writes them first.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use narinfo::NarHash;
use rusqlite::{OptionalExtension, Transaction, params};

use super::{Error, Index, Ready};

/// Paths that one transaction looks at, about: others wait for it to write.
const LOOKS_MAX: u32 = 8_000;
/// What was needed so shortly before is not written down again.
const SLACK: Duration = Duration::from_millis(250);

/// What was used since uses were last written down; clones share it. Bounded by what is served: each NAR stands in it once.
#[derive(Clone, Debug, Default)]
pub struct Uses(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    noted: Mutex<HashSet<NarHash>>,
    epoch: AtomicU32,
}

impl Uses {
    /// A client was told of the paths with this NAR, or gets it.
    pub fn note(&self, nar: NarHash) {
        self.noted().insert(nar);
    }

    /// Rises whenever what was noted is written down: who has noted a NAR in this epoch need not note it again.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.0.epoch.load(Ordering::Acquire)
    }

    /// Writes down what was noted, as much of it as one transaction is to do. Whether that was all. What was not written, or
    /// could not be, is noted still.
    pub(in crate::index) fn write(
        &self,
        transaction: &Transaction<'_>,
        need: &mut Need,
    ) -> Result<bool, Error> {
        let mut noted: Vec<NarHash> = {
            let mut noted = self.noted();
            self.0.epoch.fetch_add(1, Ordering::AcqRel);
            noted.drain().collect()
        };
        match write_first(transaction, &noted, need) {
            Ok(written) => {
                let left = noted.split_off(written);
                let all = left.is_empty();
                self.noted().extend(left);
                Ok(all)
            }
            Err(error) => {
                self.noted().extend(noted);
                Err(error)
            }
        }
    }

    fn noted(&self) -> MutexGuard<'_, HashSet<NarHash>> {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of them are written.
fn write_first(transaction: &Transaction<'_>, noted: &[NarHash], need: &mut Need) -> Result<usize, Error> {
    let mut looks = Looks::default();
    for (written, nar) in noted.iter().enumerate() {
        if !looks.left() || !need.of_nar(transaction, *nar, &mut looks)? {
            return Ok(written);
        }
    }
    Ok(noted.len())
}

/// How much one transaction has looked at.
#[derive(Debug, Default)]
pub(in crate::index) struct Looks(u32);

impl Looks {
    pub(in crate::index) fn left(&self) -> bool {
        self.0 < LOOKS_MAX
    }
}

/// Paths are needed, and with each all that it refers to. Goes on in the next transaction where one would be too long.
#[derive(Debug)]
pub(in crate::index) struct Need {
    /// When, in Unix microseconds. What a path refers to stands a microsecond after it, at least.
    at: i64,
    /// What stands here or after stays where it is. With each path that is written this goes back by one, so that nothing is
    /// written twice: where that path refers to what stood just here, it stands one before.
    from: i64,
}

/// A path on the way down.
struct Visit {
    hash: String,
    /// What it refers to and was not looked at.
    below: Vec<String>,
    /// Where it is to stand, by what was looked at.
    at: i64,
}

impl Need {
    pub(in crate::index) fn at(time: SystemTime) -> Self {
        let at = to_micros(time);
        Self { at, from: at.saturating_sub(micros(SLACK)) }
    }

    /// From when it came on, or a moment later: not before what is served by then and refers to it.
    pub(in crate::index) fn since(came_at: SystemTime) -> Self {
        Self::at(came_at + SLACK)
    }

    /// Every path with this NAR is needed. False when there is more to look at than this transaction may.
    fn of_nar(
        &mut self,
        transaction: &Transaction<'_>,
        nar: NarHash,
        looks: &mut Looks,
    ) -> Result<bool, Error> {
        let mut statement = transaction.prepare_cached("SELECT hash FROM path WHERE nar_hash = ?1")?;
        let hashes = statement.query_map([nar.as_bytes()], |row| row.get(0))?;
        for hash in hashes.collect::<Result<Vec<String>, _>>()? {
            if !self.of_path(transaction, hash, looks)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The path with this hash is needed. False when there is more to look at than this transaction may; the next one goes on.
    pub(in crate::index) fn of_path(
        &mut self,
        transaction: &Transaction<'_>,
        hash: String,
        looks: &mut Looks,
    ) -> Result<bool, Error> {
        // As long as the longest chain of references.
        let mut way: Vec<Visit> = self.visit(transaction, hash, looks)?.err().into_iter().collect();
        while let Some(path) = way.last_mut() {
            if let Some(below) = path.below.pop() {
                match self.visit(transaction, below, looks)? {
                    Ok(stands) => path.at = path.at.min(stands.saturating_sub(1)),
                    Err(visit) => way.push(visit),
                }
                continue;
            }
            let sql = "UPDATE turn SET needed_at = ?2 WHERE hash = ?1";
            transaction.prepare_cached(sql)?.execute(params![path.hash, path.at])?;
            let stands = path.at;
            self.from -= 1;
            way.pop();
            match way.last_mut() {
                Some(above) => above.at = above.at.min(stands.saturating_sub(1)),
                None => return Ok(true),
            }
            // Only here: each transaction writes something.
            if !looks.left() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where a path stands, if it can stay there; else it is to be visited. What is not served does not matter.
    fn visit(
        &self,
        transaction: &Transaction<'_>,
        hash: String,
        looks: &mut Looks,
    ) -> Result<Result<i64, Visit>, Error> {
        looks.0 += 1;
        let mut statement = transaction.prepare_cached("SELECT needed_at FROM turn WHERE hash = ?1")?;
        let stands: Option<i64> = statement.query_row([&hash], |row| row.get(0)).optional()?;
        let stands = stands.unwrap_or(i64::MAX);
        if stands >= self.from {
            return Ok(Ok(stands));
        }
        let mut statement = transaction.prepare_cached("SELECT refs FROM path WHERE hash = ?1")?;
        let refs: String = statement.query_row([&hash], |row| row.get(0))?;
        let below = refs.split_ascii_whitespace().filter_map(|base| base.get(..32));
        let below = below.filter(|below| *below != hash).map(str::to_owned).collect();
        Ok(Err(Visit { hash, below, at: self.at }))
    }
}

/// Unix microseconds; a clock before 1970 counts as 1970.
pub(in crate::index) fn to_micros(time: SystemTime) -> i64 {
    micros(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// In which epoch the use of something was noted last.
#[derive(Debug)]
pub(in crate::index) struct Noted(AtomicU32);

impl Default for Noted {
    fn default() -> Self {
        // Epochs begin at 0.
        Self(AtomicU32::new(u32::MAX))
    }
}

impl Index {
    /// Where uses are noted.
    #[must_use]
    pub fn uses(&self) -> &Uses {
        &self.uses
    }

    /// A client was told of this path.
    pub fn note_use(&self, ready: &Ready) {
        let epoch = self.uses.epoch();
        if ready.noted.0.swap(epoch, Ordering::AcqRel) != epoch {
            self.uses.note(ready.nar_hash);
        }
    }

    /// Writes down what was noted, as of `now`, in as many transactions as it takes.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn write_uses(&self, now: SystemTime) -> Result<(), Error> {
        let (mut need, mut all) = (Need::at(now), false);
        while !all {
            let uses = self.uses.clone();
            let write = move |transaction: &Transaction<'_>| {
                let all = uses.write(transaction, &mut need)?;
                Ok((need, all))
            };
            (need, all) = self.writer.run(write).await?;
        }
        Ok(())
    }
}
