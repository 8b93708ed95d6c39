//! References between served paths, and the history of the server's use.

use std::collections::{HashSet, VecDeque};

use narinfo::{StorePath, StorePathHash};
use rusqlite::{params, params_from_iter};

use super::Sqlite;
use super::rows::{PATH_COLUMNS, path_row, signed, unsigned};
use crate::index::backend::{BackendFuture, Closures, History};
use crate::model::{BuildingUse, HourRow, PathRow};

/// Paths that refer to one. The table has the beginnings of hashes: by range, because that uses the index of
/// paths.
const REFERRERS: &str = "SELECT p.hash, p.name, p.nar_hash, p.nar_size, p.refs, p.deriver, p.ca, p.sigs, p.built \
     FROM reference r JOIN path p ON p.hash >= r.source AND p.hash < r.source || '~' \
     WHERE r.target = substr(?1, 1, 12) ORDER BY r.source LIMIT ?2";

/// Totals as they are now, and events in addition to those on record.
const RECORD_HOUR: &str = "INSERT INTO history (hour, paths, nars, nar_bytes, hits, misses, built, failed, builds, \
     build_millis, waits, wait_millis, joined, prebuilds, prebuild_millis, taken_over) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16) ON CONFLICT (hour) DO UPDATE SET \
     paths = excluded.paths, nars = excluded.nars, nar_bytes = excluded.nar_bytes, hits = hits + excluded.hits, \
     misses = misses + excluded.misses, built = built + excluded.built, failed = failed + excluded.failed, \
     builds = builds + excluded.builds, build_millis = build_millis + excluded.build_millis, \
     waits = waits + excluded.waits, wait_millis = wait_millis + excluded.wait_millis, \
     joined = joined + excluded.joined, prebuilds = prebuilds + excluded.prebuilds, \
     prebuild_millis = prebuild_millis + excluded.prebuild_millis, taken_over = taken_over + excluded.taken_over";

impl Closures for Sqlite {
    fn closure(&self, hash: StorePathHash, max: u32) -> BackendFuture<'_, Vec<PathRow>> {
        self.read(move |connection| {
            let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.hash = ?1");
            let mut statement = connection.prepare_cached(&sql)?;
            let (mut found, mut seen, mut next) = (Vec::new(), HashSet::from([hash]), VecDeque::from([hash]));
            while let Some(hash) = next.pop_front().filter(|_| found.len() < max as usize) {
                let mut rows = statement.query([hash.as_str()])?;
                let Some(row) = rows.next()? else { continue };
                let row = path_row(row)?;
                let references = row.info.references.iter().map(StorePath::hash);
                next.extend(references.filter(|reference| seen.insert(*reference)));
                found.push(row);
            }
            Ok(found)
        })
    }

    fn referrers(&self, hash: StorePathHash, max: u32) -> BackendFuture<'_, Vec<StorePath>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(REFERRERS)?;
            let mut rows = statement.query(params![hash.as_str(), max])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let PathRow { info, .. } = path_row(row)?;
                // Hashes with the same beginning are other paths.
                if info.references.iter().any(|path| path.hash() == hash) && info.path.hash() != hash {
                    found.push(info.path);
                }
            }
            Ok(found)
        })
    }
}

impl History for Sqlite {
    fn record_hour(&self, row: HourRow, first: u64) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            let HourRow { hour, paths, nars, nar_bytes, hits, misses, built, failed, building } = row;
            transaction.execute("DELETE FROM history WHERE hour < ?1", [signed(first)])?;
            let numbers = [hour, paths, nars, nar_bytes, hits, misses, built, failed].into_iter();
            let numbers = numbers.chain(building.numbers()).map(signed);
            transaction.execute(RECORD_HOUR, params_from_iter(numbers))?;
            Ok(())
        })
    }

    fn hours(&self, first: u64) -> BackendFuture<'_, Vec<HourRow>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT hour, paths, nars, nar_bytes, hits, misses, built, failed, builds, build_millis, waits, \
                 wait_millis, joined, prebuilds, prebuild_millis, taken_over FROM history \
                 WHERE hour >= ?1 ORDER BY hour",
            )?;
            let number = |row: &rusqlite::Row<'_>, column| row.get(column).map(unsigned);
            let rows = statement.query_map([signed(first)], |row| {
                let mut building = [0; 8];
                for (at, value) in building.iter_mut().enumerate() {
                    *value = number(row, 8 + at)?;
                }
                Ok(HourRow {
                    hour: number(row, 0)?,
                    paths: number(row, 1)?,
                    nars: number(row, 2)?,
                    nar_bytes: number(row, 3)?,
                    hits: number(row, 4)?,
                    misses: number(row, 5)?,
                    built: number(row, 6)?,
                    failed: number(row, 7)?,
                    building: BuildingUse::of(building),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::sqlite::plans::steps;

    #[test]
    fn the_paths_that_refer_to_one_are_found_without_reading_all() {
        let steps = steps("", REFERRERS, params!["0", 1]);
        assert_eq!(steps.len(), 2, "{steps:?}");
        assert!(steps.iter().all(|step| step.starts_with("SEARCH")), "{steps:?}");
    }
}
