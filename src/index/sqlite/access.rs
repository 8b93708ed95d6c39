//! Recording of uses: when served paths were needed last, each with everything that it refers to. A path
//! never stands before, or beside, what refers to it: whoever evicts from the front breaks no closure.

use std::time::{Duration, SystemTime};

use narinfo::NarHash;
use rusqlite::{OptionalExtension, Transaction, params};

use super::Error;
use crate::index::AccessLog;

/// Rows that one transaction reads, roughly: other writes wait for its end.
const BUDGET_ROWS: u32 = 8_000;
/// Microseconds of a second.
const MICROS: i64 = 1_000_000;
/// A use within this time of the recorded one is not recorded.
const SLACK: Duration = Duration::from_millis(250);

/// Records the uses that were noted, as many as one transaction may. True when those were all; the others,
/// and all of them where that fails, stay noted.
pub(super) fn record_uses(
    log: &AccessLog,
    transaction: &Transaction<'_>,
    touch: &mut Touch,
) -> Result<bool, Error> {
    let mut noted = log.take();
    match record_first(transaction, &noted, touch) {
        Ok(recorded) => {
            let left = noted.split_off(recorded);
            let all = left.is_empty();
            log.put_back(left);
            Ok(all)
        }
        Err(error) => {
            log.put_back(noted);
            Err(error)
        }
    }
}

/// Gives the number of uses that were recorded.
fn record_first(transaction: &Transaction<'_>, noted: &[NarHash], touch: &mut Touch) -> Result<usize, Error> {
    let mut budget = RowBudget::default();
    for (recorded, nar) in noted.iter().enumerate() {
        if !budget.is_left() || !touch.nar(transaction, *nar, &mut budget)? {
            return Ok(recorded);
        }
    }
    Ok(noted.len())
}

/// Rows that a transaction has read.
#[derive(Debug, Default)]
pub(in crate::index) struct RowBudget(u32);

impl RowBudget {
    pub(in crate::index) fn is_left(&self) -> bool {
        self.0 < BUDGET_ROWS
    }
}

/// A use of paths, each with its closure. Continued in the next transaction where one would be too long.
#[derive(Debug)]
pub(in crate::index) struct Touch {
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
    pub(in crate::index) fn at(time: SystemTime) -> Self {
        let at = to_micros(time);
        Self { at, from: at.saturating_sub(micros(SLACK)) }
    }

    /// A use at the time at which a path was published, or a moment later: after its referrers of that time.
    pub(in crate::index) fn since(came_at: SystemTime) -> Self {
        Self::at(came_at + SLACK)
    }

    /// Touches every path with this NAR. False when the transaction has used up its budget.
    fn nar(
        &mut self,
        transaction: &Transaction<'_>,
        nar: NarHash,
        budget: &mut RowBudget,
    ) -> Result<bool, Error> {
        let mut statement = transaction.prepare_cached("SELECT hash FROM path WHERE nar_hash = ?1")?;
        let hashes = statement.query_map([nar.as_bytes()], |row| row.get(0))?;
        let used_at = self.at / MICROS;
        for hash in hashes.collect::<Result<Vec<String>, _>>()? {
            // Who asks for a pushed derivation relies on it, as who builds it does.
            let sql = "UPDATE pushed_derivation SET used_at = ?2 WHERE hash = ?1 AND used_at < ?2";
            transaction.prepare_cached(sql)?.execute(params![hash, used_at])?;
            if !self.path(transaction, hash, budget)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Touches the path with this hash. False when the transaction has used up its budget; the next one goes
    /// on.
    pub(in crate::index) fn path(
        &mut self,
        transaction: &Transaction<'_>,
        hash: String,
        budget: &mut RowBudget,
    ) -> Result<bool, Error> {
        // As long as the longest chain of references.
        let mut stack: Vec<Visit> = self.visit(transaction, hash, budget)?.err().into_iter().collect();
        while let Some(path) = stack.last_mut() {
            if let Some(below) = path.below.pop() {
                match self.visit(transaction, below, budget)? {
                    Ok(stands) => path.at = path.at.min(stands.saturating_sub(1)),
                    Err(visit) => stack.push(visit),
                }
                continue;
            }
            let sql = "UPDATE eviction_order SET needed_at = ?2 WHERE hash = ?1";
            transaction.prepare_cached(sql)?.execute(params![path.hash, path.at])?;
            let stands = path.at;
            self.from -= 1;
            stack.pop();
            match stack.last_mut() {
                Some(above) => above.at = above.at.min(stands.saturating_sub(1)),
                None => return Ok(true),
            }
            // Only here: each transaction writes something.
            if !budget.is_left() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The place of a path that may stay there, or the visit that moves it. Paths that are not served are
    /// ignored.
    fn visit(
        &self,
        transaction: &Transaction<'_>,
        hash: String,
        budget: &mut RowBudget,
    ) -> Result<Result<i64, Visit>, Error> {
        budget.0 += 1;
        let mut statement =
            transaction.prepare_cached("SELECT needed_at FROM eviction_order WHERE hash = ?1")?;
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
