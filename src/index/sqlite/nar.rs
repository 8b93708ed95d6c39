//! Packed NARs, those that are yet to be packed, and the paths that have them.

use std::time::SystemTime;

use narinfo::{NarHash, StorePath};
use rusqlite::{Row, Transaction, params};

use super::program::insert_programs;
use super::rows::{PATH_COLUMN_COUNT, PATH_COLUMNS, nar_row, path_row, signed, to_unix};
use super::stored::nars_behind;
use super::{Error, Sqlite, paths_of};
use crate::index::backend::{BackendFuture, Changes, Nars};
use crate::model::{NarRow, NewNar, PathRow};

impl Nars for Sqlite {
    fn path_with_nar(&self, nar: NarHash) -> BackendFuture<'_, Option<PathRow>> {
        self.read(move |connection| {
            let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.nar_hash = ?1 LIMIT 1");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([nar.as_bytes()])?;
            rows.next()?.map(path_row).transpose()
        })
    }

    fn nar(&self, nar: NarHash) -> BackendFuture<'_, Option<(PathRow, Option<NarRow>)>> {
        self.read(move |connection| {
            let sql = format!(
                "SELECT {PATH_COLUMNS}, n.nar_hash, n.file_hash, n.file_size \
                     FROM path p LEFT JOIN nar n ON n.nar_hash = p.nar_hash WHERE p.nar_hash = ?1 LIMIT 1"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([nar.as_bytes()])?;
            rows.next()?.map(|row| Ok((path_row(row)?, joined_nar_row(row)?))).transpose()
        })
    }

    fn paths_with_nar(&self, nar: NarHash) -> BackendFuture<'_, Vec<StorePath>> {
        self.read(move |connection| {
            let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.nar_hash = ?1");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([nar.as_bytes()])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(path_row(row)?.info.path);
            }
            Ok(found)
        })
    }

    fn packed(&self, nar: NarHash) -> BackendFuture<'_, Option<NarRow>> {
        self.read(move |connection| {
            let mut statement = connection
                .prepare_cached("SELECT nar_hash, file_hash, file_size FROM nar WHERE nar_hash = ?1")?;
            let mut rows = statement.query([nar.as_bytes()])?;
            rows.next()?.map(|row| nar_row(row, 0)).transpose()
        })
    }

    fn unpacked(&self) -> BackendFuture<'_, Vec<PathRow>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&unpacked())?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(path_row(row)?);
            }
            Ok(found)
        })
    }

    fn nars(&self, after: Option<NarHash>) -> BackendFuture<'_, Vec<NarRow>> {
        self.read(move |connection| nars_behind(connection, after, "TRUE"))
    }

    fn not_packed(&self, nars: Vec<NarHash>) -> BackendFuture<'_, Vec<NarHash>> {
        self.read(move |connection| {
            let mut packed = connection.prepare_cached("SELECT 1 FROM nar WHERE nar_hash = ?1")?;
            let mut found = Vec::new();
            for nar in nars {
                if !packed.exists([nar.as_bytes()])? {
                    found.push(nar);
                }
            }
            Ok(found)
        })
    }

    fn record_packed(&self, nar: NewNar) -> BackendFuture<'_, ()> {
        self.change(move |transaction| {
            insert_new(transaction, &nar)?;
            Ok((Changes::changed(paths_of(transaction, nar.row.nar_hash)?), ()))
        })
    }

    fn forget_packed(&self, nar: NarHash) -> BackendFuture<'_, ()> {
        self.change(move |transaction| {
            transaction.execute("DELETE FROM nar WHERE nar_hash = ?1", [nar.as_bytes()])?;
            Ok((Changes::changed(paths_of(transaction, nar)?), ()))
        })
    }
}

/// Records a packed NAR in place of an earlier file, with its programs.
pub(super) fn insert_new(transaction: &Transaction<'_>, nar: &NewNar) -> Result<(), Error> {
    upsert_nar(transaction, &nar.row)?;
    insert_programs(transaction, nar.row.nar_hash, &nar.programs)
}

/// Records a packed NAR in place of an earlier file.
pub(super) fn upsert_nar(transaction: &Transaction<'_>, nar: &NarRow) -> Result<(), Error> {
    // Not OR REPLACE: no trigger would hear of the row that goes.
    let mut upsert = transaction.prepare_cached(
        "INSERT INTO nar (nar_hash, file_hash, file_size, packed_at) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (nar_hash) DO UPDATE SET file_hash = excluded.file_hash, \
         file_size = excluded.file_size, packed_at = excluded.packed_at",
    )?;
    let now = to_unix(SystemTime::now());
    upsert.execute(params![nar.nar_hash.as_bytes(), nar.file_hash.as_bytes(), signed(nar.file_size), now])?;
    Ok(())
}

/// Query of the paths that are to be packed. Begins with those NARs, which are few as a rule: SQLite would
/// rather begin with all paths.
fn unpacked() -> String {
    format!(
        "SELECT {PATH_COLUMNS} FROM to_pack t CROSS JOIN path p ON p.nar_hash = t.nar_hash \
         ORDER BY p.added_at, p.hash"
    )
}

/// The packed file that stands behind the columns of a path, if there is one.
pub(super) fn joined_nar_row(row: &Row<'_>) -> Result<Option<NarRow>, Error> {
    let packed = row.get::<_, Option<[u8; 32]>>(PATH_COLUMN_COUNT)?;
    packed.map(|_| nar_row(row, PATH_COLUMN_COUNT)).transpose()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use std::time::{Duration, SystemTime};

    use crate::index::Index;
    use crate::index::samples::{nar, row, upstream_nar};
    use crate::index::sqlite::plans::scans;
    use crate::model::{Evicted, EvictionBounds, NarRow};

    /// Paths that only the Nix store has, looked for row by row.
    fn sought(file: &std::path::Path) -> BTreeSet<String> {
        let connection = rusqlite::Connection::open(file).expect("opened");
        let sql = "SELECT hash || '-' || name FROM path WHERE nar_hash NOT IN (SELECT nar_hash FROM nar) \
                   AND nar_hash NOT IN (SELECT nar_hash FROM upstream_nar)";
        let mut statement = connection.prepare(sql).expect("prepared");
        let rows = statement.query_map([], |row| row.get(0)).expect("read");
        rows.collect::<Result<_, _>>().expect("read")
    }

    #[test]
    fn what_is_to_be_packed_is_found_without_a_look_at_every_path() {
        assert_eq!(scans("", &super::unpacked(), []), ["SCAN t"]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

        #[test]
        fn what_is_packed_and_what_is_yet_to_be_is_known_whatever_was_written(
            writes in proptest::collection::vec((0..7_u8, 0..4_u8), 1..40)
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("index");
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let index = Index::open(&file).expect("opened");
                for (write, digit) in writes {
                    match write {
                        0 => drop(index.publish(vec![row(digit, &[])]).await.expect("published")),
                        1 => {
                            let rows = vec![(row(digit, &[]), upstream_nar(digit))];
                            index.publish_from_upstream(rows).await.expect("published");
                        }
                        2 => {
                            let packed = NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size: 1 };
                            index.record_packed(packed.into()).await.expect("recorded");
                        }
                        3 => index.forget_packed(nar(digit)).await.expect("forgotten"),
                        4 => index.forget_paths(nar(digit)).await.expect("forgotten"),
                        5 => {
                            let upstream = upstream_nar(digit).upstream;
                            index.forget_upstream_nar(nar(digit), upstream).await.expect("forgotten");
                        }
                        _ => {
                            // What is held moves behind that, everything else stands before it.
                            let used_since = SystemTime::now() + Duration::from_secs(60);
                            let bounds = EvictionBounds {
                                target_bytes: digit.into(),
                                used_since,
                                pushed_since: used_since,
                            };
                            let evict = || index.evict(used_since + Duration::from_secs(60), bounds);
                            while matches!(evict().await.expect("evicted"), Evicted::Reordered) {}
                        }
                    }
                    let known = index.unpacked().await.expect("read");
                    let known: BTreeSet<String> = known.iter().map(|row| row.info.path.to_string()).collect();
                    assert_eq!(known, sought(&file), "after {write} of {digit}");
                    assert!(index.verify_totals().await.expect("read"), "after {write} of {digit}");
                }
            });
        }
    }
}
