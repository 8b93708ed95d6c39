//! What is served, in the order in which it goes once there is too much, and the loss of what stands first. A few paths are
//! looked at in each transaction: others write meanwhile, and nothing comes to need what is being lost.

use std::time::{Duration, SystemTime};

use narinfo::{NarHash, StorePath, StorePathHash};
use rusqlite::{OptionalExtension, Transaction, params};

use super::rows::{corrupt, signed, to_unix, unsigned};
use super::stored::stored_bytes;
use super::uses::{Looks, Need};
use super::{Error, Index, paths_of};

/// How long it is remembered of which path a NAR was: as long as clients remember narinfos.
const FORMER_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Rows that one transaction looks at for what goes.
const PART: i64 = 256;

/// A served path in the order in which paths go.
#[derive(Clone, Debug)]
pub struct Holding {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of its plain NAR; several paths may have the same one.
    pub nar: NarHash,
    /// Bytes of the file that goes with it; `None` where there is none, or one that goes later has the same contents.
    pub file_bytes: Option<u64>,
    /// When it, or what refers to it, was used last; `None` while what it refers to may stand before it.
    pub needed_at: Option<SystemTime>,
    /// Whether it is pinned itself, or has contents that only the Nix store has yet.
    pub held: bool,
    place: Place,
}

/// A place in that order.
#[derive(Clone, Debug)]
pub struct Place {
    needed_at: i64,
    hash: String,
}

/// What becomes of the paths that stand first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first so many go; none is the end of it.
    Lose(usize),
    /// The first so many stay, with all that they refer to: as if they were used now, or when they came where that was not known.
    Keep(usize),
}

/// What one transaction came to.
#[derive(Clone, Debug)]
pub enum Lost {
    /// These went, or would; none when nothing more does.
    Paths(Vec<Holding>),
    /// There is something to be looked at again before anything goes.
    Nothing,
}

impl Holding {
    /// Where it stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place.clone()
    }
}

impl Index {
    /// Has `choose` choose what is to be lost of the paths that stand first, told how many bytes all files have, and loses it. The
    /// files of the NARs are there still: they are no longer anybody's.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged; nothing is lost then.
    pub async fn lose(
        &self,
        now: SystemTime,
        choose: impl FnOnce(&[Holding], u64) -> Choice + Send + 'static,
    ) -> Result<Lost, Error> {
        let uses = self.uses.clone();
        self.change(move |transaction| {
            if !uses.write(transaction, &mut Need::at(now))? {
                return Ok((Vec::new(), Lost::Nothing));
            }
            let lost = first(transaction, now, None, choose)?;
            let changed = match &lost {
                Lost::Paths(paths) => delete(transaction, paths)?,
                Lost::Nothing => Vec::new(),
            };
            Ok((changed, lost))
        })
        .await
    }

    /// What [`Index::lose`] would lose of the paths behind `after`.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn would_lose(
        &self,
        now: SystemTime,
        after: Option<Place>,
        choose: impl FnOnce(&[Holding], u64) -> Choice + Send + 'static,
    ) -> Result<Lost, Error> {
        let uses = self.uses.clone();
        self.writer
            .run(move |transaction| {
                if !uses.write(transaction, &mut Need::at(now))? {
                    return Ok(Lost::Nothing);
                }
                first(transaction, now, after, choose)
            })
            .await
    }

    /// Takes back that these NARs are packed, save those that a served path has by now. Their files are there still.
    ///
    /// # Errors
    /// When SQLite fails; nothing is taken back then.
    pub async fn lose_unused(&self, nars: Vec<NarHash>) -> Result<(), Error> {
        self.writer
            .run(move |transaction| {
                let mut delete = transaction.prepare_cached(
                    "DELETE FROM nar WHERE nar_hash = ?1 AND NOT EXISTS (SELECT 1 FROM path WHERE nar_hash = ?1)",
                )?;
                for nar in &nars {
                    delete.execute([nar.as_bytes()])?;
                }
                Ok(())
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

/// The first paths that go, chosen by `choose`; those that are to stay stand where they belong by then.
fn first(
    transaction: &Transaction<'_>,
    now: SystemTime,
    after: Option<Place>,
    choose: impl FnOnce(&[Holding], u64) -> Choice,
) -> Result<Lost, Error> {
    let mut next = holdings(transaction, after)?;
    match choose(&next, stored_bytes(transaction)?) {
        Choice::Lose(count) => {
            next.truncate(count);
            Ok(Lost::Paths(next))
        }
        Choice::Keep(count) => {
            let (mut looks, mut need) = (Looks::default(), Need::at(now));
            for holding in next.into_iter().take(count) {
                let Place { needed_at, hash } = holding.place;
                let done = match holding.needed_at {
                    Some(_) => need.of_path(transaction, hash, &mut looks)?,
                    None => Need::since(came_at(needed_at)).of_path(transaction, hash, &mut looks)?,
                };
                if !done || !looks.left() {
                    break;
                }
            }
            Ok(Lost::Nothing)
        }
    }
}

/// The first paths behind `after`, in order.
fn holdings(transaction: &Transaction<'_>, after: Option<Place>) -> Result<Vec<Holding>, Error> {
    let mut statement = transaction.prepare_cached(
        "SELECT t.needed_at, t.hash, p.name, p.nar_hash, \
         CASE WHEN EXISTS (SELECT 1 FROM path o CROSS JOIN turn u ON u.hash = o.hash WHERE o.nar_hash = p.nar_hash \
             AND (u.needed_at, u.hash) > (t.needed_at, t.hash)) THEN NULL ELSE n.file_size END, \
         EXISTS (SELECT 1 FROM pin WHERE pin.hash = p.hash) \
             OR EXISTS (SELECT 1 FROM to_pack WHERE to_pack.nar_hash = p.nar_hash) \
         FROM turn t CROSS JOIN path p ON p.hash = t.hash LEFT JOIN nar n ON n.nar_hash = p.nar_hash \
         WHERE (t.needed_at, t.hash) > (?1, ?2) ORDER BY t.needed_at, t.hash LIMIT ?3",
    )?;
    let after = after.unwrap_or(Place { needed_at: i64::MIN, hash: String::new() });
    let mut rows = statement.query(params![after.needed_at, after.hash, PART])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (needed_at, hash, name): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let base = format!("{hash}-{name}");
        found.push(Holding {
            path: StorePath::parse(&base).map_err(|e| corrupt(&base, e))?,
            nar: NarHash::from_bytes(row.get(3)?),
            file_bytes: row.get::<_, Option<i64>>(4)?.map(unsigned),
            needed_at: (needed_at > 0).then(|| after_epoch(needed_at)),
            held: row.get(5)?,
            place: Place { needed_at, hash },
        });
    }
    Ok(found)
}

/// Gives the paths whose narinfos are changed by it.
fn delete(transaction: &Transaction<'_>, lost: &[Holding]) -> Result<Vec<StorePathHash>, Error> {
    let mut path = transaction.prepare_cached("DELETE FROM path WHERE hash = ?1")?;
    let mut nar = transaction.prepare_cached("DELETE FROM nar WHERE nar_hash = ?1")?;
    let mut changed = Vec::with_capacity(lost.len());
    for holding in lost {
        path.execute([&holding.place.hash])?;
        changed.push(holding.path.hash());
        if holding.file_bytes.is_some() {
            debug_assert_eq!(paths_of(transaction, holding.nar)?, [], "somebody has the NAR still");
            nar.execute([holding.nar.as_bytes()])?;
        }
    }
    let forgotten = to_unix(SystemTime::now()).saturating_sub(signed(FORMER_FOR.as_secs()));
    transaction.execute(
        "DELETE FROM former_nar WHERE nar_hash IN (SELECT nar_hash FROM former_nar WHERE gone_at < ?1 LIMIT ?2)",
        [forgotten, PART],
    )?;
    Ok(changed)
}

/// Until a path is in order, its place tells when it came.
fn came_at(needed_at: i64) -> SystemTime {
    after_epoch(needed_at.saturating_neg().max(1))
}

fn after_epoch(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(unsigned(micros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::NarRow;
    use narinfo::PathInfo;

    use crate::index::samples::{nar, path, row, row_of};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

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

    async fn first(index: &Index) -> Vec<Holding> {
        let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
        let choose = move |first: &[Holding], _| {
            sender.send(first.to_vec()).expect("somebody listens");
            Choice::Lose(0)
        };
        index.would_lose(at(9), None, choose).await.expect("asked");
        told.recv().await.expect("told")
    }

    #[tokio::test]
    async fn a_use_counts_for_all_that_is_referred_to_as_soon_as_something_is_to_be_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = index(&folder).await;
        assert!(first(&index).await.iter().all(|holding| holding.needed_at.is_none()));
        let epoch = index.uses().epoch();
        index.uses().note(nar(2));
        assert_eq!(index.uses().epoch(), epoch);
        let order = first(&index).await;
        assert_ne!(index.uses().epoch(), epoch);
        assert_eq!(order.iter().map(|holding| &holding.path).collect::<Vec<_>>(), [&path(2), &path(1)]);
        assert_eq!(order[1].needed_at, Some(at(9)));
        assert!(order[0].needed_at < order[1].needed_at);
        // The use of what stands below changes nothing above it.
        index.uses().note(nar(1));
        index.write_uses(at(20)).await.expect("written");
        let later = first(&index).await;
        assert_eq!((later[0].needed_at, later[1].needed_at), (order[0].needed_at, Some(at(20))));
    }

    #[tokio::test]
    async fn what_is_lost_is_not_served_any_more_and_remembered_for_those_who_ask_for_its_nar() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = index(&folder).await;
        index.uses().note(nar(2));
        index.write_uses(at(1)).await.expect("written");
        let lost = index.lose(at(9), |_, stored| Choice::Lose(usize::from(stored == 3))).await.expect("lost");
        let Lost::Paths(lost) = lost else { panic!("nothing went") };
        assert_eq!(lost.iter().map(|holding| &holding.path).collect::<Vec<_>>(), [&path(2)]);
        assert_eq!(index.find(path(2).hash()).await.expect("read"), None);
        assert_eq!(index.former_path(nar(2)).await.expect("read"), Some(path(2).hash()));
        assert_eq!(index.nar_bytes().await.expect("read"), 1);
        assert!(!index.publish(vec![row(3, &[2])]).await.expect("asked"), "it refers to what is not served");
        assert!(index.publish(vec![row(3, &[1])]).await.expect("asked"));
    }

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
        // Each layer refers to all of the one below: more to look at than one transaction may.
        assert!(u64::from(width * width * (layers - 1)) > 8_000);
        index.uses().note(nar(1));
        index.write_uses(at(9)).await.expect("written");
        let order = first(&index).await;
        assert_eq!(order.len(), (width * layers) as usize);
        assert!(order.iter().all(|holding| holding.needed_at > Some(at(8))));
        let layer = |holding: &Holding| holding.path.hash().as_str().parse::<u32>().expect("one") / width;
        assert!(order.is_sorted_by_key(|holding| std::cmp::Reverse(layer(holding))), "{order:?}");
    }
}
