//! Recording of uses: when served paths were needed last, each with everything that it refers to.

use narinfo::NarHash;
use rusqlite::{OptionalExtension, Transaction, params};

use super::Error;
use crate::index::AccessLog;
use crate::index::eviction_order::{EvictionPlaces, Touch, below};

/// Rows that one transaction reads, roughly: other writes wait for its end.
const BUDGET_ROWS: u32 = 8_000;

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
    let mut places = PlaceRows::new(transaction);
    for (recorded, nar) in noted.iter().enumerate() {
        if places.is_spent() || !touch_nar(&mut places, *nar, touch)? {
            return Ok(recorded);
        }
    }
    Ok(noted.len())
}

/// Touches every path with this NAR. False when the transaction has read enough.
fn touch_nar(places: &mut PlaceRows<'_>, nar: NarHash, touch: &mut Touch) -> Result<bool, Error> {
    let transaction = places.transaction;
    let mut statement = transaction.prepare_cached("SELECT hash FROM path WHERE nar_hash = ?1")?;
    let hashes = statement.query_map([nar.as_bytes()], |row| row.get(0))?;
    for hash in hashes.collect::<Result<Vec<String>, _>>()? {
        // Who asks for a pushed derivation relies on it, as who builds it does.
        let sql = "UPDATE pushed_derivation SET used_at = ?2 WHERE hash = ?1 AND used_at < ?2";
        transaction.prepare_cached(sql)?.execute(params![hash, touch.seconds()])?;
        if !touch.path(places, hash)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Places in their table, and the number of rows that were read.
pub(super) struct PlaceRows<'a> {
    transaction: &'a Transaction<'a>,
    read: u32,
}

impl<'a> PlaceRows<'a> {
    pub(super) fn new(transaction: &'a Transaction<'a>) -> Self {
        Self { transaction, read: 0 }
    }
}

impl EvictionPlaces for PlaceRows<'_> {
    type Error = Error;

    fn place(&mut self, hash: &str) -> Result<Option<i64>, Error> {
        self.read += 1;
        let sql = "SELECT needed_at FROM eviction_order WHERE hash = ?1";
        let mut statement = self.transaction.prepare_cached(sql)?;
        Ok(statement.query_row([hash], |row| row.get(0)).optional()?)
    }

    fn references(&mut self, hash: &str) -> Result<Vec<String>, Error> {
        let mut statement = self.transaction.prepare_cached("SELECT refs FROM path WHERE hash = ?1")?;
        let refs: String = statement.query_row([hash], |row| row.get(0))?;
        Ok(below(&refs, hash))
    }

    fn set_place(&mut self, hash: &str, at: i64) -> Result<(), Error> {
        let sql = "UPDATE eviction_order SET needed_at = ?2 WHERE hash = ?1";
        self.transaction.prepare_cached(sql)?.execute(params![hash, at])?;
        Ok(())
    }

    fn is_spent(&self) -> bool {
        self.read >= BUDGET_ROWS
    }
}
