//! References between served paths, and the history of the server's use.

use std::collections::{BTreeMap, HashSet};

use narinfo::{StorePath, StorePathHash};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::rows::{PATH_COLUMNS, hash_texts, path_row};
use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::index::backend::{BackendFuture, Closures, History};
use crate::index::columns::{signed, unsigned};
use crate::model::{BuildingUse, HourRow, PathRow};

/// Totals as they are now, and events in addition to those on record.
const RECORD_HOUR: &str = "INSERT INTO history AS h (hour, paths, nars, nar_bytes, hits, misses, built, failed, builds, \
    build_millis, waits, wait_millis, joined, prebuilds, prebuild_millis, taken_over) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) ON CONFLICT (hour) DO UPDATE SET \
    paths = excluded.paths, nars = excluded.nars, nar_bytes = excluded.nar_bytes, hits = h.hits + excluded.hits, \
    misses = h.misses + excluded.misses, built = h.built + excluded.built, failed = h.failed + excluded.failed, \
    builds = h.builds + excluded.builds, build_millis = h.build_millis + excluded.build_millis, \
    waits = h.waits + excluded.waits, wait_millis = h.wait_millis + excluded.wait_millis, \
    joined = h.joined + excluded.joined, prebuilds = h.prebuilds + excluded.prebuilds, \
    prebuild_millis = h.prebuild_millis + excluded.prebuild_millis, taken_over = h.taken_over + excluded.taken_over";

impl Closures for Postgres {
    fn closure(&self, hash: StorePathHash, max: u32) -> BackendFuture<'_, Vec<PathRow>> {
        self.read((hash, max as usize), |session, (hash, max)| Box::pin(closure(session, *hash, *max)))
    }

    fn referrers(&self, hash: StorePathHash, max: u32) -> BackendFuture<'_, Vec<StorePath>> {
        self.read((hash, i64::from(max)), |session, (hash, max)| {
            Box::pin(async move {
                // The table has the beginnings of hashes: by range, because that uses the index of paths.
                let sql = format!(
                    "SELECT {PATH_COLUMNS} FROM reference r \
                     JOIN path p ON p.hash >= r.source AND p.hash < (r.source || '~') COLLATE \"C\" \
                     WHERE r.target = substr($1, 1, 12) ORDER BY r.source LIMIT $2"
                );
                let mut found = Vec::new();
                for row in session.rows(&sql, &[&hash.as_str(), max]).await? {
                    let PathRow { info, .. } = path_row(&row)?;
                    // Hashes with the same beginning are other paths.
                    if info.references.iter().any(|path| path.hash() == *hash) && info.path.hash() != *hash {
                        found.push(info.path);
                    }
                }
                Ok(found)
            })
        })
    }
}

/// Breadth first, one statement for all paths that are as far away.
async fn closure(session: &DatabaseSession, hash: StorePathHash, max: usize) -> Result<Vec<PathRow>, Error> {
    let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.hash = ANY($1)");
    let (mut found, mut seen, mut next) = (Vec::new(), HashSet::from([hash]), vec![hash]);
    while !next.is_empty() && found.len() < max {
        let rows = session.rows(&sql, &[&hash_texts(&next)]).await?;
        let mut level = BTreeMap::new();
        for row in &rows {
            let row = path_row(row)?;
            level.insert(row.info.path.hash(), row);
        }
        let asked = std::mem::take(&mut next);
        for row in asked.iter().filter_map(|hash| level.remove(hash)) {
            let references = row.info.references.iter().map(StorePath::hash);
            next.extend(references.filter(|reference| seen.insert(*reference)));
            found.push(row);
        }
    }
    found.truncate(max);
    Ok(found)
}

impl History for Postgres {
    fn record_hour(&self, row: HourRow, first: u64) -> BackendFuture<'_, ()> {
        self.write(Domain::Rest, (row, signed(first)), |session, (row, first)| {
            Box::pin(async move {
                let HourRow { hour, paths, nars, nar_bytes, hits, misses, built, failed, building } = *row;
                session.execute("DELETE FROM history WHERE hour < $1", &[first]).await?;
                let numbers = [hour, paths, nars, nar_bytes, hits, misses, built, failed].into_iter();
                let numbers: Vec<i64> = numbers.chain(building.numbers()).map(signed).collect();
                let numbers: Vec<&(dyn ToSql + Sync)> =
                    numbers.iter().map(|number| number as &(dyn ToSql + Sync)).collect();
                session.execute(RECORD_HOUR, &numbers).await?;
                Ok(quiet(()))
            })
        })
    }

    fn hours(&self, first: u64) -> BackendFuture<'_, Vec<HourRow>> {
        self.read(signed(first), |session, first| {
            Box::pin(async move {
                let sql = "SELECT hour, paths, nars, nar_bytes, hits, misses, built, failed, builds, build_millis, \
                    waits, wait_millis, joined, prebuilds, prebuild_millis, taken_over FROM history \
                    WHERE hour >= $1 ORDER BY hour";
                session.rows(sql, &[first]).await?.iter().map(hour).collect()
            })
        })
    }
}

fn hour(row: &Row) -> Result<HourRow, Error> {
    let number = |index| column(row, index).map(unsigned);
    let mut building = [0; 8];
    for (at, value) in building.iter_mut().enumerate() {
        *value = number(8 + at)?;
    }
    Ok(HourRow {
        hour: number(0)?,
        paths: number(1)?,
        nars: number(2)?,
        nar_bytes: number(3)?,
        hits: number(4)?,
        misses: number(5)?,
        built: number(6)?,
        failed: number(7)?,
        building: BuildingUse::of(building),
    })
}
