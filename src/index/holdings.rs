//! All that is served with what it takes and who needs it, and the loss of a part of it.
//! What is lost is chosen and goes within one transaction, so that nothing comes to need it meanwhile.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use narinfo::{NarHash, StorePath, StorePathHash};
use rusqlite::{Connection, OptionalExtension, Transaction};

use super::rows::{corrupt, from_unix, nar_row, signed, to_unix, unsigned};
use super::{Error, Index, NarRow, paths_of};

/// How long it is remembered of which path a NAR was: as long as clients remember narinfos.
const FORMER_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// All that is served.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// Every served path.
    pub paths: Vec<Holding>,
    /// Packed NARs that no served path has.
    pub unused: Vec<NarRow>,
}

/// A served path.
#[derive(Clone, Debug)]
pub struct Holding {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of its plain NAR; several paths may have the same one.
    pub nar: NarHash,
    /// Bytes of the file in the NAR store; `None` where there is none.
    pub file_bytes: Option<u64>,
    /// Whether an upstream has the contents: then it can be served without a file here.
    pub upstream: bool,
    /// When it was used last.
    pub used_at: SystemTime,
    /// Whether it is pinned itself.
    pub pinned: bool,
    /// The places of what it refers to in [`Holdings::paths`]; itself is not among them.
    pub references: Vec<usize>,
}

/// What is to be lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Paths that are not served any more.
    pub paths: Vec<StorePath>,
    /// NARs that are not packed any more.
    pub nars: Vec<NarHash>,
}

impl Index {
    /// All that is served, as it is now.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn holdings(&self) -> Result<Holdings, Error> {
        self.write_uses().await?;
        self.readers.run(holdings).await
    }

    /// Has `choose` choose what is to be lost of all that is served, and loses it. The files of the NARs are there still:
    /// they are no longer anybody's.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged; nothing is lost then.
    pub async fn lose<T: Send + 'static>(
        &self,
        choose: impl FnOnce(&Holdings) -> (Loss, T) + Send + 'static,
    ) -> Result<(Loss, T), Error> {
        let uses = self.uses.clone();
        self.change(move |transaction| {
            uses.write(transaction)?;
            let (loss, beside) = choose(&holdings(transaction)?);
            let changed = delete(transaction, &loss)?;
            Ok((changed, (loss, beside)))
        })
        .await
    }

    /// The hash of a path that had this NAR when it was last served, for as long as that is remembered.
    ///
    /// # Errors
    /// When SQLite fails or the row is damaged.
    pub async fn former_path(&self, nar: NarHash) -> Result<Option<StorePathHash>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement =
                    connection.prepare_cached("SELECT hash FROM former_nar WHERE nar_hash = ?1")?;
                let hash: Option<String> =
                    statement.query_row([nar.as_bytes()], |row| row.get(0)).optional()?;
                hash.map(|hash| hash.parse().map_err(|e| corrupt(&hash, e))).transpose()
            })
            .await
    }
}

/// Gives the paths whose narinfos are changed by it.
fn delete(transaction: &Transaction<'_>, loss: &Loss) -> Result<Vec<StorePathHash>, Error> {
    let mut changed: Vec<StorePathHash> = loss.paths.iter().map(StorePath::hash).collect();
    let mut path = transaction.prepare_cached("DELETE FROM path WHERE hash = ?1")?;
    for lost in &loss.paths {
        path.execute([lost.hash().as_str()])?;
    }
    let mut nar = transaction.prepare_cached("DELETE FROM nar WHERE nar_hash = ?1")?;
    for lost in &loss.nars {
        changed.extend(paths_of(transaction, *lost)?);
        nar.execute([lost.as_bytes()])?;
    }
    transaction.execute("DELETE FROM upstream_nar WHERE nar_hash NOT IN (SELECT nar_hash FROM path)", [])?;
    let forgotten = to_unix(SystemTime::now()).saturating_sub(signed(FORMER_FOR.as_secs()));
    transaction.execute("DELETE FROM former_nar WHERE gone_at < ?1", [forgotten])?;
    Ok(changed)
}

fn holdings(connection: &Connection) -> Result<Holdings, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT p.hash, p.name, p.nar_hash, n.file_size, \
         EXISTS (SELECT 1 FROM upstream_nar u WHERE u.nar_hash = p.nar_hash), p.used_at, \
         EXISTS (SELECT 1 FROM pin WHERE pin.hash = p.hash), p.refs \
         FROM path p LEFT JOIN nar n ON n.nar_hash = p.nar_hash",
    )?;
    let (mut rows, mut paths) = (statement.query([])?, Vec::new());
    let (mut hashes, mut refs) = (Vec::<String>::new(), Vec::<String>::new());
    while let Some(row) = rows.next()? {
        let (hash, name): (String, String) = (row.get(0)?, row.get(1)?);
        let base = format!("{hash}-{name}");
        paths.push(Holding {
            path: StorePath::parse(&base).map_err(|e| corrupt(&base, e))?,
            nar: NarHash::from_bytes(row.get(2)?),
            file_bytes: row.get::<_, Option<i64>>(3)?.map(unsigned),
            upstream: row.get(4)?,
            used_at: from_unix(row.get(5)?),
            pinned: row.get(6)?,
            references: Vec::new(),
        });
        hashes.push(hash);
        refs.push(row.get(7)?);
    }
    // By their text: there may be millions, and each was parsed when it was published.
    let places: HashMap<&str, usize> = hashes.iter().zip(0..).map(|(hash, place)| (&**hash, place)).collect();
    for (place, refs) in refs.iter().enumerate() {
        let others = refs.split_ascii_whitespace().filter_map(|base| places.get(base.get(..32)?).copied());
        paths[place].references = others.filter(|other| *other != place).collect();
    }
    let unused =
        "SELECT nar_hash, file_hash, file_size FROM nar WHERE nar_hash NOT IN (SELECT nar_hash FROM path)";
    Ok(Holdings { paths, unused: nar_rows(connection, unused)? })
}

fn nar_rows(connection: &Connection, sql: &str) -> Result<Vec<NarRow>, Error> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(nar_row(row, 0)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::samples::{nar, path, row};

    /// An index that serves 1, and 2, which refers to 1 and to itself; both are packed.
    async fn index(folder: &tempfile::TempDir) -> Index {
        let index = Index::open(&folder.path().join("index")).expect("opened");
        assert!(index.publish(vec![row(2, &[1, 2]), row(1, &[])]).await.expect("published"));
        for digit in [1, 2] {
            let packed = NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size: u64::from(digit) };
            index.record_packed(packed).await.expect("recorded");
        }
        index
    }

    #[tokio::test]
    async fn what_is_chosen_is_lost_and_what_is_served_is_told_with_its_references() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = index(&folder).await;
        index.pin("two".to_owned(), vec![path(2).hash()]).await.expect("pinned");
        let choose = |held: &Holdings| {
            let at =
                |digit| held.paths.iter().position(|holding| holding.path == path(digit)).expect("there");
            let (below, top) = (at(1), at(2));
            assert_eq!((&held.paths[below].references, &held.paths[top].references), (&vec![], &vec![below]));
            assert_eq!((held.paths[below].pinned, held.paths[top].pinned), (false, true));
            assert_eq!((held.paths[top].file_bytes, held.paths[top].upstream), (Some(2), false));
            (Loss { paths: vec![path(2)], nars: vec![nar(2), nar(1)] }, ())
        };
        index.lose(choose).await.expect("lost");
        assert_eq!(index.find(path(2).hash()).await.expect("read"), None);
        assert_eq!(index.former_path(nar(2)).await.expect("read"), Some(path(2).hash()));
        let left = index.find(path(1).hash()).await.expect("read").expect("served");
        assert_eq!(left.packed, None);
        assert_eq!(index.nar_bytes().await.expect("read"), 0);
    }

    #[tokio::test]
    async fn nothing_is_published_that_refers_to_what_is_not_served_any_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = index(&folder).await;
        index.lose(|_| (Loss { paths: vec![path(2)], nars: vec![] }, ())).await.expect("lost");
        assert!(!index.publish(vec![row(3, &[2])]).await.expect("asked"));
        assert_eq!(index.find(path(3).hash()).await.expect("read"), None);
        assert!(index.publish(vec![row(3, &[1])]).await.expect("asked"));
    }

    #[tokio::test]
    async fn uses_are_noted_once_an_epoch_and_count_as_soon_as_something_is_to_be_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = index(&folder).await;
        let file = rusqlite::Connection::open(folder.path().join("index")).expect("opened");
        file.execute("UPDATE path SET used_at = 7", []).expect("long ago");
        let uses = index.uses().clone();
        let epoch = uses.epoch();
        uses.note(nar(1));
        assert_eq!(uses.epoch(), epoch);
        let used = |held: &Holdings| {
            let used = held.paths.iter().filter(|holding| holding.used_at > from_unix(7));
            (Loss::default(), used.map(|holding| holding.path.clone()).collect::<Vec<_>>())
        };
        assert_eq!(index.lose(used).await.expect("asked").1, [path(1)]);
        assert_ne!(uses.epoch(), epoch);
    }
}
