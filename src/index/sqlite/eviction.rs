//! Eviction of served paths in their eviction order. A transaction handles a few candidates, so that other
//! writes get through, and no path can be published that refers to one being evicted.

use std::time::{Duration, SystemTime};

use narinfo::{NarHash, StorePath, StorePathHash};
use rusqlite::{OptionalExtension, Transaction, params};

use super::access::{PlaceRows, record_uses};
use super::rows::{corrupt, from_micros, signed, to_unix, unsigned};
use super::stored::{nars_behind, stored_bytes};
use super::{Error, Sqlite, paths_of};
use crate::index::AccessLog;
use crate::index::backend::{BackendFuture, Changes, RetentionStore};
use crate::index::eviction_order::{EvictionPlaces, Touch};
use crate::model::{Candidate, Cursor, Decision, Evicted, EvictionBounds, NarRow};

/// Time for which the last path of a NAR is remembered: as long as clients remember narinfos.
const FORMER_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Candidates that one transaction considers.
const PART: i64 = 256;

impl RetentionStore for Sqlite {
    fn record_uses(&self, now: SystemTime, log: &AccessLog) -> BackendFuture<'_, ()> {
        let log = log.clone();
        Box::pin(async move {
            let (mut touch, mut all) = (Touch::at(now), false);
            while !all {
                let log = log.clone();
                let record = move |transaction: &Transaction<'_>| {
                    let all = record_uses(&log, transaction, &mut touch)?;
                    Ok((touch, all))
                };
                (touch, all) = self.write(record).await?;
            }
            Ok(())
        })
    }

    fn evict(&self, now: SystemTime, bounds: EvictionBounds, log: &AccessLog) -> BackendFuture<'_, Evicted> {
        let log = log.clone();
        self.change(move |transaction| {
            if !record_uses(&log, transaction, &mut Touch::at(now))? {
                return Ok((Changes::default(), Evicted::Reordered));
            }
            let evicted = first(transaction, now, None, &bounds)?;
            let removed = match &evicted {
                Evicted::Paths(paths) => delete(transaction, paths)?,
                Evicted::Reordered => Vec::new(),
            };
            Ok((Changes::removed(removed), evicted))
        })
    }

    fn preview_eviction(
        &self,
        now: SystemTime,
        after: Option<Cursor>,
        bounds: EvictionBounds,
        log: &AccessLog,
    ) -> BackendFuture<'_, Evicted> {
        let log = log.clone();
        self.write(move |transaction| {
            if !record_uses(&log, transaction, &mut Touch::at(now))? {
                return Ok(Evicted::Reordered);
            }
            first(transaction, now, after, &bounds)
        })
    }

    fn nar_bytes(&self) -> BackendFuture<'_, u64> {
        self.read(stored_bytes)
    }

    fn unused_nars(&self, after: Option<NarHash>) -> BackendFuture<'_, Vec<NarRow>> {
        let unused = "NOT EXISTS (SELECT 1 FROM path WHERE nar_hash = n.nar_hash)";
        self.read(move |connection| nars_behind(connection, after, unused))
    }

    fn forget_unused_nars(&self, nars: Vec<NarHash>) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            let mut delete = transaction.prepare_cached(
                "DELETE FROM nar WHERE nar_hash = ?1 AND NOT EXISTS (SELECT 1 FROM path WHERE nar_hash = ?1)",
            )?;
            for nar in &nars {
                delete.execute([nar.as_bytes()])?;
            }
            Ok(())
        })
    }

    fn former_path(&self, nar: NarHash) -> BackendFuture<'_, Option<StorePathHash>> {
        self.read(move |connection| {
            let mut statement =
                connection.prepare_cached("SELECT hash FROM former_nar WHERE nar_hash = ?1")?;
            let hash: Option<String> = statement.query_row([nar.as_bytes()], |row| row.get(0)).optional()?;
            hash.map(|hash| hash.parse().map_err(|e| corrupt(&hash, e))).transpose()
        })
    }
}

/// Decides over the candidates behind `after`; retained ones move back in the order.
fn first(
    transaction: &Transaction<'_>,
    now: SystemTime,
    after: Option<Cursor>,
    bounds: &EvictionBounds,
) -> Result<Evicted, Error> {
    let mut next = candidates(transaction, after, bounds.pushed_since)?;
    match bounds.decide(&next, stored_bytes(transaction)?) {
        Decision::Evict(count) => {
            next.truncate(count);
            Ok(Evicted::Paths(next))
        }
        Decision::Retain(count) => {
            let (mut places, mut touch) = (PlaceRows::new(transaction), Touch::at(now));
            for Candidate { needed_at, cursor, .. } in next.into_iter().take(count) {
                let hash = cursor.hash.as_str().to_owned();
                let done = match needed_at {
                    Some(_) => touch.path(&mut places, hash)?,
                    None => Touch::since(came_at(cursor.needed_at_us)).path(&mut places, hash)?,
                };
                if !done || places.is_spent() {
                    break;
                }
            }
            Ok(Evicted::Reordered)
        }
    }
}

/// The first paths behind `after`, in order.
fn candidates(
    transaction: &Transaction<'_>,
    after: Option<Cursor>,
    pushed_since: SystemTime,
) -> Result<Vec<Candidate>, Error> {
    let mut statement = transaction.prepare_cached(
        "SELECT t.needed_at, t.hash, p.name, p.nar_hash, \
         CASE WHEN EXISTS (SELECT 1 FROM path o CROSS JOIN eviction_order u ON u.hash = o.hash \
             WHERE o.nar_hash = p.nar_hash AND (u.needed_at, u.hash) > (t.needed_at, t.hash)) \
             THEN NULL ELSE n.file_size END, \
         EXISTS (SELECT 1 FROM pin WHERE pin.hash = p.hash) \
             OR EXISTS (SELECT 1 FROM pushed_derivation d WHERE d.hash = p.hash AND d.used_at >= ?4) \
             OR EXISTS (SELECT 1 FROM to_pack WHERE to_pack.nar_hash = p.nar_hash) \
         FROM eviction_order t CROSS JOIN path p ON p.hash = t.hash LEFT JOIN nar n ON n.nar_hash = p.nar_hash \
         WHERE (t.needed_at, t.hash) > (?1, ?2) ORDER BY t.needed_at, t.hash LIMIT ?3",
    )?;
    let (needed_at_us, hash) =
        after.as_ref().map_or((i64::MIN, ""), |cursor| (cursor.needed_at_us, cursor.hash.as_str()));
    let mut rows = statement.query(params![needed_at_us, hash, PART, to_unix(pushed_since)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (needed_at_us, hash, name): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let base = format!("{hash}-{name}");
        let path = StorePath::parse(&base).map_err(|e| corrupt(&base, e))?;
        found.push(Candidate {
            nar: NarHash::from_bytes(row.get(3)?),
            file_bytes: row.get::<_, Option<i64>>(4)?.map(unsigned),
            needed_at: (needed_at_us > 0).then(|| from_micros(needed_at_us)),
            held: row.get(5)?,
            cursor: Cursor { needed_at_us, hash: path.hash() },
            path,
        });
    }
    Ok(found)
}

/// Deletes paths, and gives their hashes.
fn delete(transaction: &Transaction<'_>, evicted: &[Candidate]) -> Result<Vec<StorePathHash>, Error> {
    let mut path = transaction.prepare_cached("DELETE FROM path WHERE hash = ?1")?;
    let mut nar = transaction.prepare_cached("DELETE FROM nar WHERE nar_hash = ?1")?;
    let mut changed = Vec::with_capacity(evicted.len());
    for candidate in evicted {
        path.execute([candidate.path.hash().as_str()])?;
        changed.push(candidate.path.hash());
        if candidate.file_bytes.is_some() {
            debug_assert_eq!(paths_of(transaction, candidate.nar)?, [], "somebody has the NAR still");
            nar.execute([candidate.nar.as_bytes()])?;
        }
    }
    let forgotten = to_unix(SystemTime::now()).saturating_sub(signed(FORMER_FOR.as_secs()));
    transaction.execute(
        "DELETE FROM former_nar WHERE nar_hash IN (SELECT nar_hash FROM former_nar WHERE gone_at < ?1 LIMIT ?2)",
        [forgotten, PART],
    )?;
    Ok(changed)
}

/// Time at which a path was published, from its provisional place in the order.
fn came_at(needed_at_us: i64) -> SystemTime {
    from_micros(needed_at_us.saturating_neg().max(1))
}

#[cfg(test)]
mod tests {
    use narinfo::PathInfo;

    use super::*;
    use crate::index::Index;
    use crate::index::samples::{at, nar, order, row, row_of};

    #[tokio::test]
    async fn a_use_is_written_in_as_many_transactions_as_its_closure_takes() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::open(&folder.path().join("index")).expect("opened");
        let (width, layers) = (60_u32, 4);
        let path = |number: u32| StorePath::parse(&format!("{number:032}-p")).expect("a path");
        let rows = (0..width * layers).map(|number| {
            let above = (number / width).checked_sub(1);
            let references = above.into_iter().flat_map(|layer| layer * width..(layer + 1) * width).map(path);
            let info = row(1, &[]).info;
            row_of(PathInfo { path: path(number), references: references.collect(), ..info })
        });
        assert!(index.publish(rows.collect()).await.expect("published"));
        let packed = NarRow { nar_hash: nar(1), file_hash: nar(9), file_size: 1 };
        index.record_packed(packed.into()).await.expect("recorded");
        // Each layer refers to all of the one below: more to look at than one transaction may.
        assert!(u64::from(width * width * (layers - 1)) > 8_000);
        index.access_log().note(nar(1));
        index.record_uses(at(9)).await.expect("written");
        let order = order(&index).await;
        assert_eq!(order.len(), (width * layers) as usize);
        assert!(order.iter().all(|candidate| candidate.needed_at > Some(at(8))));
        let layer =
            |candidate: &Candidate| candidate.path.hash().as_str().parse::<u32>().expect("one") / width;
        assert!(order.is_sorted_by_key(|candidate| std::cmp::Reverse(layer(candidate))), "{order:?}");
    }
}
