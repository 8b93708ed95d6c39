//! All packed NARs together: how much they are, which is kept in a row of its own with the number of served paths, and the list of
//! them, part by part.

use narinfo::NarHash;
use rusqlite::{Connection, params};

use super::rows::{nar_row, unsigned};
use super::{Error, Index, NarRow};

/// NARs that are listed at once.
const NARS_AT_ONCE: i64 = 256;
/// What the row of the sums must have.
const COUNTED: &str = "SELECT count(*), coalesce(sum(file_size), 0), (SELECT count(*) FROM path) FROM nar";

impl Index {
    /// Bytes of all files in the NAR store.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn nar_bytes(&self) -> Result<u64, Error> {
        self.readers.run(stored_bytes).await
    }

    /// Packed NARs, a few of those behind `after`, in the order of their hashes; none when there are no more.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn nars(&self, after: Option<NarHash>) -> Result<Vec<NarRow>, Error> {
        self.readers.run(move |connection| nars_behind(connection, after, "TRUE")).await
    }

    /// The same of those that no served path has.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn unused_nars(&self, after: Option<NarHash>) -> Result<Vec<NarRow>, Error> {
        let unused = "NOT EXISTS (SELECT 1 FROM path WHERE nar_hash = n.nar_hash)";
        self.readers.run(move |connection| nars_behind(connection, after, unused)).await
    }

    /// Those of `nars` that are not packed.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn not_packed(&self, nars: Vec<NarHash>) -> Result<Vec<NarHash>, Error> {
        self.readers
            .run(move |connection| {
                let mut packed = connection.prepare_cached("SELECT 1 FROM nar WHERE nar_hash = ?1")?;
                let mut found = Vec::new();
                for nar in nars {
                    if !packed.exists([nar.as_bytes()])? {
                        found.push(nar);
                    }
                }
                Ok(found)
            })
            .await
    }

    /// Whether the sums are those of the packed NARs and the served paths; reads all of them.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn is_counted_well(&self) -> Result<bool, Error> {
        let sql = format!("SELECT (SELECT nars, bytes, paths FROM stored) IS ({COUNTED})");
        self.readers.run(move |connection| Ok(connection.query_row(&sql, [], |row| row.get(0))?)).await
    }

    /// Counts both anew.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn count_anew(&self) -> Result<(), Error> {
        let sql = format!("DELETE FROM stored; INSERT INTO stored {COUNTED}");
        self.writer.run(move |transaction| Ok(transaction.execute_batch(&sql)?)).await
    }
}

/// The first NARs behind `after` of which `condition` is true.
fn nars_behind(
    connection: &Connection,
    after: Option<NarHash>,
    condition: &str,
) -> Result<Vec<NarRow>, Error> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT nar_hash, file_hash, file_size FROM nar n WHERE nar_hash > ?1 AND {condition} ORDER BY nar_hash LIMIT ?2"
    ))?;
    let after = after.map_or_else(Vec::new, |nar| nar.as_bytes().to_vec());
    let mut rows = statement.query(params![after, NARS_AT_ONCE])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(nar_row(row, 0)?);
    }
    Ok(found)
}

pub(super) fn stored_bytes(connection: &Connection) -> Result<u64, Error> {
    let mut statement = connection.prepare_cached("SELECT bytes FROM stored")?;
    Ok(unsigned(statement.query_row([], |row| row.get(0))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::samples::{nar, row};

    #[tokio::test]
    async fn what_is_packed_is_counted_at_each_write_and_anew_where_that_went_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("index");
        let index = Index::open(&file).expect("opened");
        let pack = |digit, file_size| {
            index.record_packed(NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size })
        };
        for (digit, bytes, sum) in [(1, 10, 10), (2, 5, 15), (1, 7, 12)] {
            pack(digit, bytes).await.expect("recorded");
            assert_eq!(index.nar_bytes().await.expect("read"), sum, "after {bytes} bytes of {digit}");
        }
        index.forget_packed(nar(2)).await.expect("forgotten");
        let counts = index.counts().await.expect("read");
        assert_eq!((counts.nars, counts.nar_bytes), (1, 7));
        assert!(index.is_counted_well().await.expect("read"));

        let paths = async || index.counts().await.expect("read").paths;
        index.publish(vec![row(1, &[]), row(2, &[]), row(1, &[])]).await.expect("published");
        assert_eq!(paths().await, 2);
        index.forget_paths(nar(1)).await.expect("forgotten");
        assert_eq!(paths().await, 1);

        let other = rusqlite::Connection::open(&file).expect("opened");
        for spoilt in ["bytes = 8", "paths = 8"] {
            other.execute(&format!("UPDATE stored SET {spoilt}"), []).expect("spoilt");
            assert!(!index.is_counted_well().await.expect("read"), "{spoilt}");
            index.count_anew().await.expect("counted");
            assert!(index.is_counted_well().await.expect("read"), "{spoilt}");
        }
        assert_eq!((index.nar_bytes().await.expect("read"), paths().await), (7, 1));
    }

    #[tokio::test]
    async fn every_packed_nar_is_listed_once_a_few_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::open(&folder.path().join("index")).expect("opened");
        let nar = |number: u16| {
            let mut bytes = [0; 32];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            NarHash::from_bytes(bytes)
        };
        for number in (0..600).rev() {
            let packed = NarRow { nar_hash: nar(number), file_hash: nar(0), file_size: 1 };
            index.record_packed(packed).await.expect("recorded");
        }
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let part = index.nars(after).await.expect("read");
            let Some(last) = part.last() else { break };
            assert!(part.len() < 600);
            after = Some(last.nar_hash);
            listed.extend(part.iter().map(|row| row.nar_hash));
        }
        assert_eq!(listed, (0..600).map(nar).collect::<Vec<_>>());
        let asked = vec![nar(700), nar(599), nar(601)];
        assert_eq!(index.not_packed(asked).await.expect("read"), [nar(700), nar(601)]);
    }
}
