//! Totals of packed NARs and served paths, which are kept in a row of their own, and the list of packed NARs,
//! batch by batch.

use narinfo::NarHash;
use rusqlite::{Connection, params};

use super::Error;
use super::rows::{nar_row, unsigned};
use crate::model::NarRow;

/// NARs that are listed at once.
const NARS_AT_ONCE: i64 = 256;
/// The totals as they are counted.
pub(super) const COUNTED: &str =
    "SELECT count(*), coalesce(sum(file_size), 0), (SELECT count(*) FROM path) FROM nar";

/// The first NARs behind `after` for which `condition` holds.
pub(super) fn nars_behind(
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
    use crate::index::Index;
    use crate::index::samples::{nar, row};

    #[tokio::test]
    async fn what_is_packed_is_counted_at_each_write_and_anew_where_that_went_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("index");
        let index = Index::open(&file).expect("opened");
        let pack = |digit, file_size| {
            index.record_packed(NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size }.into())
        };
        for (digit, bytes, sum) in [(1, 10, 10), (2, 5, 15), (1, 7, 12)] {
            pack(digit, bytes).await.expect("recorded");
            assert_eq!(index.nar_bytes().await.expect("read"), sum, "after {bytes} bytes of {digit}");
        }
        index.forget_packed(nar(2)).await.expect("forgotten");
        let counts = index.counts().await.expect("read");
        assert_eq!((counts.nars, counts.nar_bytes), (1, 7));
        assert!(index.verify_totals().await.expect("read"));

        let paths = async || index.counts().await.expect("read").paths;
        index.publish(vec![row(1, &[]), row(2, &[]), row(1, &[])]).await.expect("published");
        assert_eq!(paths().await, 2);
        index.forget_paths(nar(1)).await.expect("forgotten");
        assert_eq!(paths().await, 1);

        let other = rusqlite::Connection::open(&file).expect("opened");
        for spoilt in ["bytes = 8", "paths = 8"] {
            other.execute(&format!("UPDATE stored SET {spoilt}"), []).expect("spoilt");
            assert!(!index.verify_totals().await.expect("read"), "{spoilt}");
            index.recompute_totals().await.expect("counted");
            assert!(index.verify_totals().await.expect("read"), "{spoilt}");
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
            index.record_packed(packed.into()).await.expect("recorded");
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
