//! Copy of an index into another database: table by table in the order of keys, so that one that was
//! interrupted goes on behind the last row, and compared row by row at the end. Nobody may use either
//! meanwhile.

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Error;
use super::backend::Upkeep;
use super::location::{IndexLocation, PostgresUrl};
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::tables::{Cell, CellRow, IndexTable, TABLES, TableStore};

/// Rows that are copied at once.
const BATCH: u32 = 2_000;

/// Reasons for which an index is not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the two cannot be read or written.
    #[error("cannot copy the index; run the command again, and it goes on where it was")]
    Index(#[from] Error),
    /// The target is in use.
    #[error("the target has an index already; give one that is empty")]
    NotEmpty,
    /// The copy is another one than the original.
    #[error("the table {0} differs from that of the source after the copy; empty the target, and copy again")]
    Differs(&'static str),
}

/// Progress of a copy: a table, the rows of it that are copied or compared, and their number in the source.
#[derive(Clone, Copy, Debug)]
pub struct CopyProgress {
    /// Table.
    pub table: &'static str,
    /// Rows that are done.
    pub done: u64,
    /// Rows of the source.
    pub all: u64,
    /// True while rows are compared.
    pub is_compared: bool,
}

/// Copies all tables, compares them, and makes the copy an index. Gives the number of rows. `source_name` is
/// known again when the copy goes on.
///
/// # Errors
/// A database that cannot be used, a target that is another index, or rows that differ in the end.
async fn copy(
    source: &dyn TableStore,
    source_name: String,
    target: &dyn TableStore,
    told: &mut (dyn FnMut(CopyProgress) + Send),
) -> Result<u64, CopyError> {
    if !target.begin_copy(source_name).await? {
        return Err(CopyError::NotEmpty);
    }
    let mut rows = 0;
    for table in TABLES {
        rows += copy_table(source, target, table, told).await?;
    }
    for table in TABLES {
        let all = source.count(table).await?;
        let mut compare = |done| told(CopyProgress { table: table.name, done, all, is_compared: true });
        let digests = (digest(source, table, &mut compare).await?, digest(target, table, &mut |_| {}).await?);
        if digests.0 != digests.1 {
            return Err(CopyError::Differs(table.name));
        }
    }
    target.finish_copy(source.request_number().await?).await?;
    Ok(rows)
}

async fn copy_table(
    source: &dyn TableStore,
    target: &dyn TableStore,
    table: &'static IndexTable,
    told: &mut (dyn FnMut(CopyProgress) + Send),
) -> Result<u64, CopyError> {
    let all = source.count(table).await?;
    let (mut done, mut after) = (target.count(table).await?, target.last_key(table).await?);
    loop {
        let rows = source.rows(table, after, BATCH).await?;
        let Some(last) = rows.last() else { return Ok(done) };
        after = Some(last[..table.key].to_vec());
        done += rows.len() as u64;
        target.insert(table, rows).await?;
        told(CopyProgress { table: table.name, done, all, is_compared: false });
    }
}

/// SHA-256 of all rows of a table, in the order of keys.
async fn digest(
    store: &dyn TableStore,
    table: &'static IndexTable,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<[u8; 32], Error> {
    let (mut hash, mut after, mut done) = (Sha256::new(), None, 0);
    loop {
        let rows: Vec<CellRow> = store.rows(table, after, BATCH).await?;
        let Some(last) = rows.last() else { return Ok(hash.finalize().into()) };
        after = Some(last[..table.key].to_vec());
        done += rows.len() as u64;
        rows.iter().flatten().for_each(|cell| add(&mut hash, cell));
        told(done);
    }
}

/// Adds a value with its type and length, so that no two rows are alike that are not the same.
fn add(hash: &mut Sha256, cell: &Cell) {
    let number;
    let (kind, bytes): (u8, &[u8]) = match cell {
        Cell::Null => (0, &[]),
        Cell::Integer(value) => {
            number = value.to_be_bytes();
            (1, &number)
        }
        Cell::Boolean(false) => (2, &[0]),
        Cell::Boolean(true) => (2, &[1]),
        Cell::Text(text) => (3, text.as_bytes()),
        Cell::Bytes(bytes) => (4, bytes),
    };
    hash.update([kind]);
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

/// Database that an index is copied from or to.
#[derive(Clone, Debug)]
pub enum CopyPlace {
    /// A file of SQLite.
    Sqlite(PathBuf),
    /// A database in PostgreSQL, and the file with its password.
    Postgres(PostgresUrl, Option<PathBuf>),
}

impl CopyPlace {
    /// Reads `sqlite:FILE`, or the URL of a PostgreSQL.
    #[must_use]
    pub fn parse(text: &str, password_file: Option<PathBuf>) -> Option<Self> {
        match text.strip_prefix("sqlite:") {
            Some(file) if !file.is_empty() => Some(Self::Sqlite(file.into())),
            _ => match IndexLocation::parse(text)? {
                IndexLocation::Postgres(url) => Some(Self::Postgres(url, password_file)),
                IndexLocation::Sqlite => None,
            },
        }
    }

    /// Copies the index here to another place. What is interrupted goes on with the next call.
    ///
    /// # Errors
    /// A database that cannot be used, a target that has an index, or a copy that differs in the end.
    pub async fn copy_to(
        &self,
        target: &Self,
        told: &mut (dyn FnMut(CopyProgress) + Send),
    ) -> Result<u64, CopyError> {
        let name = self.to_string();
        let source: Box<dyn TableStore + Send> = match self {
            Self::Sqlite(file) => Box::new(Sqlite::open(file)?),
            Self::Postgres(url, password) => Box::new(Postgres::open(url, password.as_deref()).await?),
        };
        match target {
            Self::Postgres(url, password) => {
                let target = Postgres::open_for_copy(url, password.as_deref()).await?;
                copy(&*source, name, &target, told).await
            }
            Self::Sqlite(file) => {
                if file.exists() {
                    return Err(CopyError::NotEmpty);
                }
                // Until it is whole nobody takes it for an index.
                let draft = with_ending(file, ".copying");
                let target = Sqlite::open(&draft)?;
                let rows = copy(&*source, name, &target, told).await?;
                target.close().await?;
                drop(target);
                for ending in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(with_ending(&draft, ending));
                }
                std::fs::rename(&draft, file).map_err(|error| Error::Unavailable(Box::new(error)))?;
                Ok(rows)
            }
        }
    }
}

/// Without passwords.
impl fmt::Display for CopyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => write!(f, "sqlite:{}", file.display()),
            Self::Postgres(url, _) => url.fmt(f),
        }
    }
}

fn with_ending(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use crate::index::samples::{bump, configure, hash, nar, output, path, row, upstream_nar};
    use crate::model::{DurationRow, NarRow, NewToken, RequestRow};
    use crate::support::PostgresServer;

    /// Fills an index with rows of every kind that the copy has.
    async fn fill(index: &Index) {
        let packed = NarRow { nar_hash: nar(1), file_hash: nar(9), file_size: 7 };
        assert!(index.publish(vec![row(2, &[1, 2]), row(1, &[])]).await.expect("published"));
        let upstream = vec![(row(3, &[1]), upstream_nar(3))];
        assert!(index.publish_from_upstream(upstream).await.expect("published"));
        index.record_packed(packed.into()).await.expect("recorded");
        index.pin("held".into(), vec![path(2).hash()]).await.expect("pinned");
        configure(index).await;
        bump(index, "one", vec![output('a', "a", false), output('b', "b", true)]).await;
        let request = RequestRow {
            id: 41,
            drv: path(1),
            started: true,
            asked_at: crate::index::samples::at(5),
            asked_by: None,
            due_owner: Some(3),
            charged: std::time::Duration::ZERO,
            earned: std::time::Duration::from_millis(9),
            builder: Some("far".into()),
        };
        let took = std::time::Duration::from_secs(3);
        let durations = vec![DurationRow { work: "w".into(), took, built: true }];
        index.record_queue(vec![request], vec![], durations).await.expect("recorded");
        let token = NewToken {
            name: "ci".into(),
            digest: [7; 32],
            rights: vec!["push".into()],
            patterns: Vec::new(),
            created_at: crate::index::samples::at(1),
            expires_at: None,
            queued_max: Some(4),
        };
        index.add_token(token).await.expect("added");
    }

    /// Answers of an index about all that [`fill`] has written.
    async fn said(index: &Index) -> String {
        let hits = [1, 2, 3].map(|digit| index.find(path(digit).hash()));
        let [one, two, three] = hits;
        format!(
            "{:?}",
            (
                (one.await.expect("read"), two.await.expect("read"), three.await.expect("read")),
                index.counts().await.expect("read"),
                index.unpacked().await.expect("read"),
                index.referrers(path(1).hash(), 9).await.expect("read"),
                index.makers(hash('a')).await.expect("read"),
                index.set("one".into()).await.expect("read"),
                (index.requests().await.expect("read"), index.durations().await.expect("read")),
                (index.tokens().await.expect("read"), index.pins().await.expect("read")),
            )
        )
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_index_is_the_same_in_another_database_and_back_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        let index = Index::open(&first).expect("opened");
        fill(&index).await;
        let expected = said(&index).await;
        drop(index);
        let url = PostgresServer::shared().schema();
        let database = CopyPlace::parse(&url, None).expect("a place");
        let (source, target) = (CopyPlace::Sqlite(first), CopyPlace::Sqlite(second.clone()));
        let mut tables = std::collections::BTreeSet::new();
        let mut told = |progress: CopyProgress| {
            tables.insert(progress.table);
        };
        let rows = source.copy_to(&database, &mut told).await;
        assert!(rows.expect("copied") > 15 && tables.len() > 10, "{tables:?}");
        let again = source.copy_to(&database, &mut |_| {}).await;
        assert!(matches!(again, Err(CopyError::NotEmpty)), "{again:?}");
        let CopyPlace::Postgres(url, _) = &database else { panic!("no URL") };
        let index = Index::open_postgres(url, None, 0).await.expect("opened");
        assert_eq!(said(&index).await, expected);
        assert!(index.verify_totals().await.expect("read"));
        // Numbers go on, and triggers do.
        let swapped = bump(&index, "two", vec![output('c', "c", false)]).await;
        assert_eq!(swapped.generation, 2);
        index.forget_paths(nar(3)).await.expect("forgotten");
        assert_eq!(index.counts().await.expect("read").paths, 2);
        let expected = said(&index).await;
        database.copy_to(&target, &mut |_| {}).await.expect("copied");
        let index = Index::open(&second).expect("opened");
        assert_eq!(said(&index).await, expected);
        index.forget_paths(nar(2)).await.expect("forgotten");
        assert!(index.verify_totals().await.expect("read"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_copy_that_was_interrupted_goes_on_and_nobody_takes_it_for_an_index_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("index");
        let index = Index::open(&file).expect("opened");
        fill(&index).await;
        drop(index);
        let url = PostgresServer::shared().schema();
        let database = CopyPlace::parse(&url, None).expect("a place");
        let CopyPlace::Postgres(url, _) = &database else { panic!("no URL") };
        let (source, name) = (Sqlite::open(&file).expect("opened"), format!("sqlite:{}", file.display()));
        let target = Postgres::open_for_copy(url, None).await.expect("opened");
        assert!(target.begin_copy(name).await.expect("begun"));
        let two = source.rows(&TABLES[0], None, 2).await.expect("read");
        target.insert(&TABLES[0], two).await.expect("written");
        drop((source, target));
        let refused = Index::open_postgres(url, None, 0).await.err().expect("it is not whole");
        assert!(crate::causes::with_causes(&refused).contains("ondine migrate"), "{refused}");
        CopyPlace::Sqlite(file).copy_to(&database, &mut |_| {}).await.expect("copied");
        let index = Index::open_postgres(url, None, 0).await.expect("opened");
        assert_eq!(index.counts().await.expect("read").paths, 3);
    }
}
