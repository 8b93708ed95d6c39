//! Rows as a ledger gives them back, into an index that is not served from yet. The latest record of a path
//! counts.

use narinfo::{StorePath, StorePathHash};
use rusqlite::{Connection, params};

use super::paths::insert_paths;
use super::pushed::insert as insert_pushed;
use super::rows::{signed, to_unix};
use super::{Error, Sqlite, upstream};
use crate::index::Recorded;
use crate::index::backend::{BackendFuture, Changes, Recovered, RecoveryStore};
use crate::model::PushedDerivation;

impl RecoveryStore for Sqlite {
    fn restore_pushed(&self, pushed: Vec<PushedDerivation>) -> BackendFuture<'_, u64> {
        self.change(move |transaction| {
            let mut restored = 0;
            for derivation in &pushed {
                let drv = &derivation.drv;
                let mut served =
                    transaction.prepare_cached("SELECT 1 FROM path WHERE hash = ?1 AND name = ?2")?;
                if served.exists([drv.hash().as_str(), drv.name()])? {
                    insert_pushed(transaction, derivation)?;
                    restored += 1;
                }
            }
            Ok((Changes { everything: true, ..Changes::default() }, restored))
        })
    }

    fn recover(&self, batch: Vec<Recovered>) -> BackendFuture<'_, ()> {
        self.change(move |transaction| {
                let mut added: Vec<StorePathHash> = Vec::new();
                for recovered in &batch {
                    let hash = match recovered {
                        Recovered::Served(recorded) => recorded.path.info.path.hash(),
                        Recovered::Gone(hash) => *hash,
                    };
                    transaction.prepare_cached("DELETE FROM path WHERE hash = ?1")?.execute([hash.as_str()])?;
                    let Recovered::Served(recorded) = recovered else { continue };
                    let Recorded { path, packed, upstreams } = &**recorded;
                    insert_paths(transaction, [path])?;
                    added.push(hash);
                    if let Some(nar) = packed {
                        let now = to_unix(std::time::SystemTime::now());
                        transaction
                            .prepare_cached(
                                "INSERT INTO nar (nar_hash, file_hash, file_size, packed_at) VALUES (?1, ?2, ?3, ?4) \
                                 ON CONFLICT (nar_hash) DO UPDATE SET file_hash = excluded.file_hash, \
                                 file_size = excluded.file_size",
                            )?
                            .execute(params![
                                nar.nar_hash.as_bytes(),
                                nar.file_hash.as_bytes(),
                                signed(nar.file_size),
                                now
                            ])?;
                    }
                    for nar in upstreams {
                        upstream::insert(transaction, nar)?;
                    }
                }
                Ok((Changes { added, everything: true, ..Changes::default() }, ()))
            })
    }

    fn forget_incomplete(&self) -> BackendFuture<'_, u64> {
        Box::pin(async {
            let mut forgotten = 0;
            loop {
                let incomplete = self.read(incomplete).await?;
                if incomplete.is_empty() {
                    return Ok(forgotten);
                }
                forgotten += incomplete.len() as u64;
                self.change(move |transaction| {
                    let mut delete = transaction.prepare("DELETE FROM path WHERE hash = ?1")?;
                    for hash in &incomplete {
                        delete.execute([hash])?;
                    }
                    Ok((Changes { everything: true, ..Changes::default() }, ()))
                })
                .await?;
            }
        })
    }
}

/// Hashes of paths that refer to something that is not served.
fn incomplete(connection: &Connection) -> Result<Vec<String>, Error> {
    let mut statement = connection.prepare("SELECT hash, refs FROM path")?;
    let mut served = connection.prepare("SELECT 1 FROM path WHERE hash = ?1 AND name = ?2")?;
    let (mut rows, mut found) = (statement.query([])?, Vec::new());
    while let Some(row) = rows.next()? {
        let (hash, refs): (String, String) = (row.get(0)?, row.get(1)?);
        for reference in refs.split_ascii_whitespace().filter_map(|base| StorePath::parse(base).ok()) {
            if !served.exists([reference.hash().as_str(), reference.name()])? {
                found.push(hash);
                break;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use narinfo::PathInfo;

    use super::*;
    use crate::index::backend::{Nars, Paths};
    use crate::index::samples::{nar, path, row, row_of, upstream_nar};
    use crate::index::{LedgerReader, Record, has_ledger};
    use crate::model::NarRow;

    fn packed(digit: u8) -> NarRow {
        NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size: 1 }
    }

    /// Records of paths in a ledger, in their order.
    fn records(dir: &Path) -> Vec<Recorded> {
        let path = |record| match record {
            Record::Path(recorded) => Some(*recorded),
            Record::Realisation(_) | Record::Pushed(_) => None,
        };
        LedgerReader::new(dir).filter_map(|record| path(record.expect("read"))).collect()
    }

    #[tokio::test]
    async fn what_can_be_served_is_in_the_ledger_however_it_came_to_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path();
        let index = Sqlite::open(&dir.join("index")).expect("opened");
        let dir = &dir.join("ledger");
        let index = index.with_ledger(dir).await.expect("a ledger");
        assert!(!has_ledger(dir));
        // Not packed yet: Nix has it still.
        index.publish(vec![row(1, &[])]).await.expect("published");
        assert!(records(dir).is_empty());
        index.record_packed(packed(1).into()).await.expect("recorded");
        let expected = Recorded { path: row(1, &[]), packed: Some(packed(1)), upstreams: Vec::new() };
        assert_eq!(records(dir), [expected]);
        // Another path with contents that are packed already, and one that an upstream has.
        let twin = row_of(PathInfo { path: path(2), ..row(1, &[]).info });
        index.publish(vec![twin.clone()]).await.expect("published");
        index.publish_from_upstream(vec![(row(3, &[1]), upstream_nar(3))]).await.expect("published");
        let all = records(dir);
        assert_eq!(all[1].path, twin);
        assert_eq!(all[2], Recorded { path: row(3, &[1]), packed: None, upstreams: vec![upstream_nar(3)] });
        assert_eq!(all.len(), 3);

        // Written out, it says no less, and what comes later is added.
        index.compact_ledger().await.expect("written out");
        index.record_packed(packed(3).into()).await.expect("recorded");
        let mut again = records(dir);
        assert_eq!(again.pop().expect("the last").packed, Some(packed(3)));
        again.sort_by_key(|recorded| recorded.path.info.path.to_string());
        assert_eq!(again, all);
        drop(index);
        assert!(has_ledger(dir));

        // A corrupt line is passed over, and so is one that was cut off by the end of a run.
        let base = dir.join("base");
        let mut bytes = std::fs::read(&base).expect("read");
        bytes[100] ^= 1;
        bytes.truncate(bytes.len() - 10);
        std::fs::write(&base, bytes).expect("written");
        let mut reader = LedgerReader::new(dir);
        assert_eq!((reader.by_ref().count(), reader.corrupt()), (2, 2));
    }
}
