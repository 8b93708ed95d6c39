//! Which NARs are packed, which are yet to be, and of which paths they are.

use std::time::SystemTime;

use narinfo::{NarHash, StorePath};
use rusqlite::{Connection, Row, params};

use super::rows::{PATH_COLUMN_COUNT, PATH_COLUMNS, nar_row, path_row, signed, to_unix};
use super::{Error, Index, NarRow, PathRow, paths_of};

impl Index {
    /// A served path with this NAR; several paths may have the same one, any of them will do.
    ///
    /// # Errors
    /// When SQLite fails or the row is damaged.
    pub async fn path_with_nar(&self, nar: NarHash) -> Result<Option<PathRow>, Error> {
        self.readers
            .run(move |connection| {
                let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.nar_hash = ?1 LIMIT 1");
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query([nar.as_bytes()])?;
                rows.next()?.map(path_row).transpose()
            })
            .await
    }

    /// A served path with this NAR and its packed file, if there is one, as `then` has them: it runs on the thread that looked
    /// them up, and may wait for files.
    ///
    /// # Errors
    /// When SQLite fails or the row is damaged.
    pub async fn nar<T: Send + 'static>(
        &self,
        nar: NarHash,
        then: impl FnOnce(Option<(PathRow, Option<NarRow>)>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let find = move |connection: &Connection| {
            let sql = format!(
                "SELECT {PATH_COLUMNS}, n.nar_hash, n.file_hash, n.file_size \
                 FROM path p LEFT JOIN nar n ON n.nar_hash = p.nar_hash WHERE p.nar_hash = ?1 LIMIT 1"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([nar.as_bytes()])?;
            rows.next()?.map(|row| Ok((path_row(row)?, joined_nar_row(row)?))).transpose()
        };
        self.readers.run_then(find, then).await
    }

    /// Every served path with this NAR.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn paths_with_nar(&self, nar: NarHash) -> Result<Vec<StorePath>, Error> {
        self.readers
            .run(move |connection| {
                let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.nar_hash = ?1");
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query([nar.as_bytes()])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push(path_row(row)?.info.path);
                }
                Ok(found)
            })
            .await
    }

    /// The packed file of this NAR, if there is one.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn packed(&self, nar: NarHash) -> Result<Option<NarRow>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection
                    .prepare_cached("SELECT nar_hash, file_hash, file_size FROM nar WHERE nar_hash = ?1")?;
                let mut rows = statement.query([nar.as_bytes()])?;
                rows.next()?.map(|row| nar_row(row, 0)).transpose()
            })
            .await
    }

    /// Every served path whose NAR only the Nix store has yet, oldest first.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn unpacked(&self) -> Result<Vec<PathRow>, Error> {
        self.readers
            .run(|connection| {
                let mut statement = connection.prepare_cached(&unpacked())?;
                let mut rows = statement.query([])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push(path_row(row)?);
                }
                Ok(found)
            })
            .await
    }

    /// Records a packed NAR. The file must be durable before this is called.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn record_packed(&self, nar: NarRow) -> Result<(), Error> {
        self.change(move |transaction| {
            transaction.execute(
                // Not OR REPLACE: no trigger would hear of the row that goes.
                "INSERT INTO nar (nar_hash, file_hash, file_size, packed_at) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (nar_hash) DO UPDATE SET file_hash = excluded.file_hash, \
                 file_size = excluded.file_size, packed_at = excluded.packed_at",
                params![
                    nar.nar_hash.as_bytes(),
                    nar.file_hash.as_bytes(),
                    signed(nar.file_size),
                    to_unix(SystemTime::now())
                ],
            )?;
            Ok((paths_of(transaction, nar.nar_hash)?, ()))
        })
        .await
    }

    /// Takes back that a NAR is packed: its file is gone. Its paths stay served from the Nix store.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn forget_packed(&self, nar: NarHash) -> Result<(), Error> {
        self.change(move |transaction| {
            transaction.execute("DELETE FROM nar WHERE nar_hash = ?1", [nar.as_bytes()])?;
            Ok((paths_of(transaction, nar)?, ()))
        })
        .await
    }
}

/// Begins with what is to be packed, which is little as a rule: SQLite would rather begin with all paths.
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

    use std::time::SystemTime;

    use crate::index::samples::{nar, row, upstream_nar};
    use crate::index::{Choice, Index, NarRow};

    /// What only the Nix store has, looked for row by row.
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
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("index");
        drop(Index::open(&file).expect("opened"));
        let connection = rusqlite::Connection::open(&file).expect("opened");
        let sql = format!("EXPLAIN QUERY PLAN {}", super::unpacked());
        let mut statement = connection.prepare(&sql).expect("prepared");
        let steps = statement.query_map([], |row| row.get::<_, String>("detail")).expect("read");
        let scans: Vec<_> = steps.map(Result::unwrap).filter(|step| step.starts_with("SCAN")).collect();
        assert_eq!(scans, ["SCAN t"]);
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
                            index.record_packed(packed).await.expect("recorded");
                        }
                        3 => index.forget_packed(nar(digit)).await.expect("forgotten"),
                        4 => index.forget_paths(nar(digit)).await.expect("forgotten"),
                        5 => {
                            let upstream = upstream_nar(digit).upstream;
                            index.forget_upstream_nar(nar(digit), upstream).await.expect("forgotten");
                        }
                        _ => {
                            let choose = move |_: &[_], _| Choice::Lose(digit.into());
                            index.lose(SystemTime::now(), choose).await.expect("lost");
                        }
                    }
                    let known = index.unpacked().await.expect("read");
                    let known: BTreeSet<String> = known.iter().map(|row| row.info.path.to_string()).collect();
                    assert_eq!(known, sought(&file), "after {write} of {digit}");
                    assert!(index.is_counted_well().await.expect("read"), "after {write} of {digit}");
                }
            });
        }
    }
}
