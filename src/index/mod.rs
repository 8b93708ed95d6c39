//! The index: which store paths are served, which NARs are packed, which builds failed, and who waits.
//! The only place with SQL. It never asks Nix and never touches a NAR file.

mod at_hand;
mod catalogue;
#[cfg(test)]
mod catalogue_tests;
mod comparison;
mod condition;
mod connection;
mod demand;
mod failure;
mod generation;
mod holdings;
mod ledger;
mod memory;
#[cfg(test)]
mod memory_tests;
mod nar;
mod pin;
mod queue;
mod realisation;
mod record;
mod recovery;
mod rows;
#[cfg(test)]
mod samples;
mod signatures;
mod stored;
mod upstream;
mod uses;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use narinfo::{NarHash, StorePath, StorePathHash};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::filter::Filter;
use at_hand::paths_of;
pub use catalogue::{AttributeRow, Attributed, Generation, GenerationSize, Maker, OutputRow, Search, SetRow};
use condition::Condition;
pub use condition::Unfit;
use connection::{Readers, Writer};
pub use demand::{AttributeName, DemandRow};
pub use generation::{NewGeneration, Swapped};
pub use holdings::{Choice, Holding, Lost, Place};
pub use ledger::{has_ledger, read_ledger};
use memory::Memory;
pub use memory::Ready;
use nar::joined_nar_row;
pub use pin::PinRow;
pub use queue::{DurationRow, RequestRow};
pub use record::{Record, Recorded};
pub use recovery::Recovered;
pub use rows::{Comparison, Counts, Failure, FailureClass, Hit, NarRow, PathRow, UpstreamNar};
use rows::{PATH_COLUMNS, hash_text, join, path_row, signed, to_unix};
pub use uses::Uses;

/// How often it is looked whether nobody writes.
const LOOK_FOR_PAUSE_EVERY: Duration = Duration::from_secs(5);

/// Why the index could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or is no database.
    #[error("cannot open the index {}; if it is damaged, run `ondine recover`, which makes it anew from what is recorded beside the NARs, or move it away and restart: it is rebuilt as paths are asked for", file.display())]
    Open {
        /// The database file.
        file: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file was written by a newer version.
    #[error("the index {} has schema {found}, this version knows {known}: run the newer version again", file.display())]
    Newer {
        /// The database file.
        file: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema this program knows.
        known: i64,
    },
    /// A row does not parse.
    #[error("the index row of {row} is damaged")]
    Corrupt {
        /// The row's key.
        row: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A page of the file is not what it must be.
    #[error("the index is damaged: stop the server and run `ondine recover` ({0})")]
    Pages(String),
    /// What is recorded beside the NARs could not be written.
    #[error("cannot write down beside the NARs what is served")]
    Ledger(#[source] std::io::Error),
    /// SQLite refused.
    #[error("the index refused the request")]
    Sql(#[from] rusqlite::Error),
    /// The writer thread could not be started.
    #[error("cannot start the index writer")]
    Thread(#[source] std::io::Error),
    /// The writer thread is gone.
    #[error("the index writer has stopped")]
    WriterGone,
    /// A reading task was cancelled.
    #[error("the index reader has stopped")]
    ReaderGone,
}

impl Error {
    fn open(file: &Path, source: rusqlite::Error) -> Self {
        Self::Open { file: file.to_owned(), source }
    }
}

/// A handle to the index; clones share it.
#[derive(Clone)]
pub struct Index {
    writer: Writer,
    readers: Arc<Readers>,
    uses: Uses,
    /// Narinfos that need not be read.
    memory: Arc<Memory>,
    /// Hashes that there may be rows of.
    known: Arc<Filter>,
    condition: Condition,
}

impl Index {
    /// Looks whether a file could be opened, without changing anything.
    ///
    /// # Errors
    /// When it is no index, or one of a newer version.
    pub fn check_file(file: &Path) -> Result<(), Error> {
        connection::check(file)
    }

    /// Opens the database file, making it when it is not there. Remembers nothing: see [`Index::remembering`].
    ///
    /// # Errors
    /// When the file cannot be opened, is no database, or is of a newer version.
    pub fn open(file: &Path) -> Result<Self, Error> {
        let condition = Condition::new(file);
        Ok(Self {
            writer: Writer::open(file, condition.clone())?,
            readers: Readers::new(file, condition.clone()),
            condition,
            uses: Uses::default(),
            memory: Arc::new(Memory::new(0)),
            known: Arc::default(),
        })
    }

    /// The path with this hash, if it is served.
    ///
    /// # Errors
    /// When SQLite fails or the row is damaged.
    pub async fn find(&self, hash: StorePathHash) -> Result<Option<Hit>, Error> {
        self.readers
            .run(move |connection| {
                let sql = format!(
                    "SELECT {PATH_COLUMNS}, n.nar_hash, n.file_hash, n.file_size \
                     FROM path p LEFT JOIN nar n ON n.nar_hash = p.nar_hash WHERE p.hash = ?1"
                );
                let mut statement = connection.prepare_cached(&sql)?;
                let mut rows = statement.query([hash.as_str()])?;
                let Some(row) = rows.next()? else { return Ok(None) };
                let found = path_row(row)?;
                let packed = joined_nar_row(row)?;
                let redirect = match packed {
                    Some(_) => None,
                    None => upstream::redirect(connection, found.nar_hash)?,
                };
                Ok(Some(Hit { row: found, packed, redirect }))
            })
            .await
    }

    /// Those of `hashes` that are served, each with the path that has it.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn served(
        &self,
        hashes: Vec<StorePathHash>,
    ) -> Result<BTreeMap<StorePathHash, StorePath>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached("SELECT name FROM path WHERE hash = ?1")?;
                let mut found = BTreeMap::new();
                for hash in hashes {
                    let name: Option<String> =
                        statement.query_row([hash.as_str()], |row| row.get(0)).optional()?;
                    if let Some(name) = name {
                        let base = format!("{hash}-{name}");
                        let path = StorePath::parse(&base).map_err(|error| rows::corrupt(&base, error))?;
                        found.insert(hash, path);
                    }
                }
                Ok(found)
            })
            .await
    }

    /// Publishes a closure: all rows or none. A hash that is served already keeps its first row, since clients may hold a
    /// narinfo for it. Whether it is published: it is not when it refers to what is not served, or not any more.
    ///
    /// # Errors
    /// When SQLite fails; nothing is published then.
    pub async fn publish(&self, rows: Vec<PathRow>) -> Result<bool, Error> {
        let known = Arc::clone(&self.known);
        self.writer
            .run(move |transaction| {
                let served = serves_references(transaction, rows.iter())?;
                if served {
                    insert_paths(transaction, &known, &rows)?;
                }
                Ok(served)
            })
            .await
    }

    /// Stops serving every path with this NAR: neither the NAR store nor the Nix store has it any more.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn forget_paths(&self, nar: NarHash) -> Result<(), Error> {
        self.change(move |transaction| {
            let changed = paths_of(transaction, nar)?;
            transaction.execute("DELETE FROM path WHERE nar_hash = ?1", [nar.as_bytes()])?;
            Ok((changed, ()))
        })
        .await
    }

    /// Keeps its log short where nobody writes, for as long as the server runs.
    pub async fn keep_log_short(&self) {
        self.writer.write_back_in_pauses(LOOK_FOR_PAUSE_EVERY).await;
    }

    /// To be called last, so that the next start finds everything in its place. What is acknowledged is durable without it, too.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn close(&self) -> Result<(), Error> {
        self.writer.empty_log().await
    }

    /// How much is in the index.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn counts(&self) -> Result<Counts, Error> {
        self.readers
            .run(|connection| {
                let one = |sql: &str| -> Result<u64, Error> {
                    let value: Option<i64> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
                    Ok(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0))
                };
                Ok(Counts {
                    paths: one("SELECT paths FROM stored")?,
                    nars: one("SELECT nars FROM stored")?,
                    nar_bytes: one("SELECT bytes FROM stored")?,
                    failures: one("SELECT count(*) FROM failure")?,
                    reproduced: one("SELECT count(*) FROM comparison WHERE same = 1")?,
                    not_reproduced: one("SELECT count(*) FROM comparison WHERE same = 0")?,
                })
            })
            .await
    }
}

/// Whether all that the rows refer to is served, or among them, each by its own name: a client asks for a hash, and refuses what
/// comes under another name.
fn serves_references<'a>(
    connection: &Connection,
    rows: impl Iterator<Item = &'a PathRow> + Clone,
) -> Result<bool, Error> {
    let own: HashSet<&StorePath> = rows.clone().map(|row| &row.path).collect();
    let mut served = connection.prepare_cached("SELECT 1 FROM path WHERE hash = ?1 AND name = ?2")?;
    let others: HashSet<&StorePath> =
        rows.flat_map(|row| &row.references).filter(|path| !own.contains(path)).collect();
    for path in others {
        if !served.exists([path.hash().as_str(), path.name()])? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// No narinfo is changed by this: a path that is served keeps its row.
fn insert_paths<'a>(
    transaction: &Transaction<'_>,
    known: &Filter,
    rows: impl IntoIterator<Item = &'a PathRow>,
) -> Result<(), Error> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO path (hash, name, nar_hash, nar_size, refs, deriver, ca, sigs, added_at, built) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (hash) DO NOTHING",
    )?;
    let now = to_unix(SystemTime::now());
    for row in rows {
        known.add([row.path.hash()]);
        insert.execute(params![
            hash_text(&row.path.hash()),
            row.path.name(),
            row.nar_hash.as_bytes(),
            signed(row.nar_size),
            join(&row.references, " "),
            row.deriver.as_ref().map(ToString::to_string),
            row.ca.as_ref().map(ToString::to_string),
            join(&row.signatures, "\n"),
            now,
            row.built,
        ])?;
    }
    Ok(())
}
