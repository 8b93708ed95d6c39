//! Uses of served paths, and their eviction in the order that follows from them. A transaction handles a few
//! candidates, so that other writes get through, and no path can be published that refers to one being
//! evicted.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use narinfo::{NarHash, StorePathHash};
use tokio_postgres::Row;

use super::nar::nars_behind;
use super::rows::{hash_texts, nar_bytes, nar_hash, path_hash};
use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::index::backend::{BackendFuture, Changes, RetentionStore};
use crate::index::columns::{from_micros, signed, store_path, to_unix, unsigned};
use crate::index::eviction_order::{EvictionPlaces, Touch, below};
use crate::index::{self, AccessLog};
use crate::model::{Candidate, Cursor, Decision, Evicted, EvictionBounds, NarRow};

/// Time for which the last path of a NAR is remembered: as long as clients remember narinfos.
const FORMER_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Candidates, or uses, that one transaction considers.
const PART: usize = 256;
/// Condition of NARs that no path has.
const UNUSED: &str = "NOT EXISTS (SELECT 1 FROM path WHERE path.nar_hash = n.nar_hash)";
/// The same for the leader of several servers: another one has stored a NAR before it publishes a path that
/// has it, which takes as long as it takes to store the rest of its closure.
const UNUSED_FOR_LONG: &str = "NOT EXISTS (SELECT 1 FROM path WHERE path.nar_hash = n.nar_hash) \
    AND packed_at < extract(epoch FROM clock_timestamp()) - 3600";
/// The first paths behind a place, in order.
const CANDIDATES: &str = "SELECT t.needed_at, t.hash, p.name, p.nar_hash, \
    CASE WHEN EXISTS (SELECT 1 FROM path o JOIN eviction_order u ON u.hash = o.hash \
        WHERE o.nar_hash = p.nar_hash AND (u.needed_at, u.hash) > (t.needed_at, t.hash)) \
        THEN NULL ELSE n.file_size END, \
    EXISTS (SELECT 1 FROM pin WHERE pin.hash = p.hash) \
        OR EXISTS (SELECT 1 FROM pushed_derivation d WHERE d.hash = p.hash AND d.used_at >= $4) \
        OR EXISTS (SELECT 1 FROM to_pack WHERE to_pack.nar_hash = p.nar_hash) \
    FROM eviction_order t JOIN path p ON p.hash = t.hash LEFT JOIN nar n ON n.nar_hash = p.nar_hash \
    WHERE (t.needed_at, t.hash) > ($1, $2) ORDER BY t.needed_at, t.hash LIMIT $3";

/// A step of an eviction.
#[derive(Clone)]
struct Step {
    /// Uses that are recorded first.
    noted: Vec<NarHash>,
    now: SystemTime,
    after: Option<Cursor>,
    bounds: EvictionBounds,
    /// True where nothing is evicted.
    is_preview: bool,
}

impl Postgres {
    /// Records uses, each part in a transaction. Those that cannot be recorded stay noted.
    async fn record_noted(
        &self,
        now: SystemTime,
        noted: Vec<NarHash>,
        log: &AccessLog,
    ) -> Result<(), index::Error> {
        let mut left = noted;
        while !left.is_empty() {
            let part = left.split_off(left.len().saturating_sub(PART));
            let recorded = self.write(Domain::Paths, (part.clone(), now), |session, (part, now)| {
                Box::pin(async move {
                    touch_nars(session, part, *now).await?;
                    Ok(quiet(()))
                })
            });
            if let Err(error) = recorded.await {
                log.put_back(left.into_iter().chain(part));
                return Err(error);
            }
        }
        Ok(())
    }

    async fn step(&self, mut step: Step, log: &AccessLog) -> Result<Evicted, index::Error> {
        step.noted = log.take();
        if step.noted.len() > PART {
            self.record_noted(step.now, step.noted, log).await?;
            return Ok(Evicted::Reordered);
        }
        let noted = step.noted.clone();
        let outcome = self.write(Domain::Paths, step, |session, step| Box::pin(take_step(session, step)));
        let outcome = outcome.await;
        if outcome.is_err() {
            log.put_back(noted);
        }
        outcome
    }
}

impl RetentionStore for Postgres {
    fn record_uses(&self, now: SystemTime, log: &AccessLog) -> BackendFuture<'_, ()> {
        let log = log.clone();
        Box::pin(async move { self.record_noted(now, log.take(), &log).await })
    }

    fn evict(&self, now: SystemTime, bounds: EvictionBounds, log: &AccessLog) -> BackendFuture<'_, Evicted> {
        let log = log.clone();
        let step = Step { noted: Vec::new(), now, after: None, bounds, is_preview: false };
        Box::pin(async move { self.step(step, &log).await })
    }

    fn preview_eviction(
        &self,
        now: SystemTime,
        after: Option<Cursor>,
        bounds: EvictionBounds,
        log: &AccessLog,
    ) -> BackendFuture<'_, Evicted> {
        let log = log.clone();
        let step = Step { noted: Vec::new(), now, after, bounds, is_preview: true };
        Box::pin(async move { self.step(step, &log).await })
    }

    fn nar_bytes(&self) -> BackendFuture<'_, u64> {
        self.read((), |session, ()| Box::pin(stored_bytes(session)))
    }

    fn unused_nars(&self, after: Option<NarHash>) -> BackendFuture<'_, Vec<NarRow>> {
        let of_several = self.fence.is_some();
        self.read((after, of_several), |session, (after, of_several)| {
            let unused = if *of_several { UNUSED_FOR_LONG } else { UNUSED };
            Box::pin(nars_behind(session, *after, unused))
        })
    }

    fn forget_unused_nars(&self, nars: Vec<NarHash>) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, nars, |session, nars| {
            Box::pin(async move {
                let sql = "DELETE FROM nar WHERE nar_hash = ANY($1) \
                    AND NOT EXISTS (SELECT 1 FROM path WHERE path.nar_hash = nar.nar_hash)";
                session.execute(sql, &[&nar_bytes(nars)]).await?;
                Ok(quiet(()))
            })
        })
    }

    fn former_path(&self, nar: NarHash) -> BackendFuture<'_, Option<StorePathHash>> {
        self.read(nar, |session, nar| {
            Box::pin(async move {
                let sql = "SELECT hash FROM former_nar WHERE nar_hash = $1";
                let row = session.row(sql, &[&nar.as_bytes().as_slice()]).await?;
                row.map(|row| path_hash(&row, 0)).transpose()
            })
        })
    }
}

async fn stored_bytes(session: &DatabaseSession) -> Result<u64, Error> {
    Ok(unsigned(column(&session.one("SELECT bytes FROM stored", &[]).await?, 0)?))
}

/// Touches every path with one of these NARs.
async fn touch_nars(session: &DatabaseSession, noted: &[NarHash], now: SystemTime) -> Result<(), Error> {
    if noted.is_empty() {
        return Ok(());
    }
    let rows = session.rows("SELECT hash FROM path WHERE nar_hash = ANY($1)", &[&nar_bytes(noted)]).await?;
    let hashes = rows.iter().map(|row| column(row, 0)).collect::<Result<Vec<String>, _>>()?;
    let mut touch = Touch::at(now);
    // Who asks for a pushed derivation relies on it, as who builds it does.
    let sql = "UPDATE pushed_derivation SET used_at = $2 WHERE hash = ANY($1) AND used_at < $2";
    session.execute(sql, &[&hashes, &touch.seconds()]).await?;
    let mut places = LoadedPlaces::load(session, hashes.clone(), touch.from()).await?;
    for hash in hashes {
        let Ok(_) = touch.path(&mut places, hash);
    }
    places.save(session).await
}

async fn take_step(session: &DatabaseSession, step: &Step) -> Result<(Changes, Evicted), Error> {
    let Step { noted, now, after, bounds, is_preview } = step;
    touch_nars(session, noted, *now).await?;
    let mut next = candidates(session, *after, bounds.pushed_since).await?;
    match bounds.decide(&next, stored_bytes(session).await?) {
        Decision::Evict(count) => {
            next.truncate(count);
            let removed = if *is_preview { Vec::new() } else { delete(session, &next).await? };
            Ok((Changes::removed(removed), Evicted::Paths(next)))
        }
        Decision::Retain(count) => {
            next.truncate(count);
            retain(session, &next, *now).await?;
            Ok(quiet(Evicted::Reordered))
        }
    }
}

/// Moves candidates back with everything that they refer to: as if they were used now, or when they came.
async fn retain(session: &DatabaseSession, retained: &[Candidate], now: SystemTime) -> Result<(), Error> {
    let mut used = Touch::at(now);
    let since = |candidate: &Candidate| match candidate.needed_at {
        Some(_) => None,
        None => Some(Touch::since(from_micros(candidate.cursor.needed_at_us.saturating_neg().max(1)))),
    };
    let from = retained.iter().map(|candidate| since(candidate).unwrap_or(used).from()).max();
    let hashes = retained.iter().map(|candidate| candidate.cursor.hash.as_str().to_owned());
    let mut places = LoadedPlaces::load(session, hashes.collect(), from.unwrap_or_default()).await?;
    for candidate in retained {
        let hash = candidate.cursor.hash.as_str().to_owned();
        let Ok(_) = match since(candidate) {
            Some(mut came) => came.path(&mut places, hash),
            None => used.path(&mut places, hash),
        };
    }
    places.save(session).await
}

async fn candidates(
    session: &DatabaseSession,
    after: Option<Cursor>,
    pushed_since: SystemTime,
) -> Result<Vec<Candidate>, Error> {
    let (needed_at_us, hash) =
        after.as_ref().map_or((i64::MIN, ""), |cursor| (cursor.needed_at_us, cursor.hash.as_str()));
    let part = signed(PART as u64);
    let rows = session.rows(CANDIDATES, &[&needed_at_us, &hash, &part, &to_unix(pushed_since)]).await?;
    rows.iter().map(candidate).collect()
}

fn candidate(row: &Row) -> Result<Candidate, Error> {
    let needed_at_us: i64 = column(row, 0)?;
    let path = store_path(&format!("{}-{}", column::<&str>(row, 1)?, column::<&str>(row, 2)?))?;
    Ok(Candidate {
        nar: nar_hash(row, 3)?,
        file_bytes: column::<Option<i64>>(row, 4)?.map(unsigned),
        needed_at: (needed_at_us > 0).then(|| from_micros(needed_at_us)),
        held: column(row, 5)?,
        cursor: Cursor { needed_at_us, hash: path.hash() },
        path,
    })
}

/// Deletes paths with their NARs, and gives their hashes.
async fn delete(session: &DatabaseSession, evicted: &[Candidate]) -> Result<Vec<StorePathHash>, Error> {
    let removed: Vec<StorePathHash> = evicted.iter().map(|candidate| candidate.path.hash()).collect();
    session.execute("DELETE FROM path WHERE hash = ANY($1)", &[&hash_texts(&removed)]).await?;
    let with_files = evicted.iter().filter(|candidate| candidate.file_bytes.is_some());
    let nars = nar_bytes(with_files.map(|candidate| &candidate.nar));
    session.execute("DELETE FROM nar WHERE nar_hash = ANY($1)", &[&nars]).await?;
    let forgotten = to_unix(SystemTime::now()).saturating_sub(signed(FORMER_FOR.as_secs()));
    let sql = "DELETE FROM former_nar WHERE nar_hash IN \
        (SELECT nar_hash FROM former_nar WHERE gone_at < $1 LIMIT $2)";
    session.execute(sql, &[&forgotten, &signed(PART as u64)]).await?;
    Ok(removed)
}

/// Places of paths and of all below them, loaded level by level, moved in memory, and written at once.
struct LoadedPlaces(HashMap<String, LoadedPlace>);

struct LoadedPlace {
    at: i64,
    below: Vec<String>,
    is_moved: bool,
}

impl LoadedPlaces {
    /// Loads paths, and what those refer to that stand before `from`.
    async fn load(session: &DatabaseSession, hashes: Vec<String>, from: i64) -> Result<Self, Error> {
        let sql = "SELECT o.hash, o.needed_at, p.refs FROM eviction_order o JOIN path p ON p.hash = o.hash \
            WHERE o.hash = ANY($1)";
        let (mut loaded, mut level) = (HashMap::new(), hashes);
        while !level.is_empty() {
            let mut next = Vec::new();
            for row in session.rows(sql, &[&level]).await? {
                let (hash, at): (String, i64) = (column(&row, 0)?, column(&row, 1)?);
                let below = if at < from { below(column(&row, 2)?, &hash) } else { Vec::new() };
                next.extend(below.iter().cloned());
                loaded.insert(hash, LoadedPlace { at, below, is_moved: false });
            }
            next.sort_unstable();
            next.dedup();
            next.retain(|hash| !loaded.contains_key(hash));
            level = next;
        }
        Ok(Self(loaded))
    }

    async fn save(self, session: &DatabaseSession) -> Result<(), Error> {
        let moved = self.0.into_iter().filter(|(_, place)| place.is_moved);
        let (hashes, places): (Vec<String>, Vec<i64>) = moved.map(|(hash, place)| (hash, place.at)).unzip();
        let sql = "UPDATE eviction_order SET needed_at = moved.at FROM unnest($1::text[], $2::bigint[]) AS moved (hash, at) \
            WHERE eviction_order.hash = moved.hash";
        session.execute(sql, &[&hashes, &places]).await.map(drop)
    }
}

impl EvictionPlaces for LoadedPlaces {
    type Error = Infallible;

    fn place(&mut self, hash: &str) -> Result<Option<i64>, Infallible> {
        Ok(self.0.get(hash).map(|place| place.at))
    }

    fn references(&mut self, hash: &str) -> Result<Vec<String>, Infallible> {
        Ok(self.0.get(hash).map(|place| place.below.clone()).unwrap_or_default())
    }

    fn set_place(&mut self, hash: &str, at: i64) -> Result<(), Infallible> {
        if let Some(place) = self.0.get_mut(hash) {
            (place.at, place.is_moved) = (at, true);
        }
        Ok(())
    }

    fn is_spent(&self) -> bool {
        false
    }
}
