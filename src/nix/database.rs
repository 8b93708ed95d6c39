//! Nix's own database, read while the daemon writes it: which path has a hash, and which derivations give it.
//! Never writes, and never opens it as immutable: that would miss what is in the write-ahead log.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use narinfo::{StoreDir, StorePath, StorePathHash};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::environment::Environment;
use super::version::CounterFile;

/// Time limit for a lock that Nix holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Derivations of one output at most that are told of.
const DERIVERS_MAX: i64 = 1_000;

/// Characters of the hash at the start of a path's name.
const HASH_CHARS: usize = 32;

/// By range, because that uses the index where `LIKE` would read the whole table. `.` is what follows `-`.
pub(super) const DERIVERS: &str =
    "SELECT o.path, d.path, o.id FROM DerivationOutputs o JOIN ValidPaths d ON d.id = o.drv
    WHERE o.path >= ?1 || '-' AND o.path < ?1 || '.' ORDER BY o.path, d.id LIMIT ?2";
const NAR_HASH: &str = "SELECT hash FROM ValidPaths WHERE path = ?1";
const SIGNATURES: &str = "SELECT hash, sigs FROM ValidPaths WHERE path = ?1 AND sigs <> ''";
/// Paths after a row of ValidPaths, whose numbers are never reused. The outputs of a derivation come with its
/// row; the later outputs of a content-addressed one are valid then, too.
const PATHS_SINCE: &str = "SELECT path FROM ValidPaths WHERE id > ?1 UNION ALL \
    SELECT path FROM DerivationOutputs WHERE drv > ?1";
/// The last row, and how many of both there are after one.
const COUNT_SINCE: &str = "SELECT coalesce((SELECT max(id) FROM ValidPaths), 0), \
    (SELECT count(*) FROM ValidPaths WHERE id > ?1) + (SELECT count(*) FROM DerivationOutputs WHERE drv > ?1)";
const VALID_ID: &str = "SELECT id FROM ValidPaths WHERE path = ?1";
/// By the index of references.
const REFERRERS: &str = "SELECT v.path FROM Refs r JOIN ValidPaths v ON v.id = r.referrer \
    WHERE r.reference = ?1 AND r.referrer <> ?1 ORDER BY v.id DESC LIMIT ?2";
const OUTPUTS: &str = "SELECT id, path FROM DerivationOutputs WHERE drv = ?1 ORDER BY id";
pub(super) const VALID_PATH: &str =
    "SELECT path FROM ValidPaths WHERE path >= ?1 || '-' AND path < ?1 || '.' LIMIT 1";

/// Why the database could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// There is none, or we may not see it.
    #[error(
        "cannot find Nix's database {}; check that Nix has been used on this machine and that NIX_STATE_DIR is right",
        file.display()
    )]
    Missing {
        /// Where it should be.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The database exists and cannot be opened.
    #[error("cannot open Nix's database {}; this user needs read access to it and to its -wal and -shm files", file.display())]
    Open {
        /// Where it is.
        file: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The database cannot be read.
    #[error("cannot read Nix's database {}; if it stays so, `nix-store --verify` may help", file.display())]
    Read {
        /// Where it is.
        file: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The database has a malformed path.
    #[error("Nix's database has a malformed path {text:?}: {reason}")]
    Malformed {
        /// The path.
        text: String,
        /// The defect.
        reason: String,
    },
}

/// Outputs of a derivation by name; the path is `None` where it is known only after the build.
pub type Outputs = BTreeMap<String, Option<StorePath>>;

/// An output that a derivation gives, built or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownOutput {
    /// The path of the output.
    pub path: StorePath,
    /// The derivation, which is in the store.
    pub drv: StorePath,
    /// The name of the output.
    pub output: String,
}

/// Nix's database, read-only. Every call blocks for up to some seconds; one call runs at a time.
#[derive(Debug)]
pub struct Database {
    file: PathBuf,
    store_dir: StoreDir,
    open: Mutex<Option<OpenDatabase>>,
}

/// An open database, and which file that was.
#[derive(Debug)]
struct OpenDatabase {
    connection: Connection,
    device: u64,
    inode: u64,
}

impl Database {
    /// Opens the database of `environment`.
    ///
    /// # Errors
    /// The database is not there or cannot be read. It can also be unreadable only because nobody has it
    /// open: see [`Database::lazy`].
    pub fn open(environment: &Environment) -> Result<Self, DatabaseError> {
        let database = Self::lazy(environment);
        let open = OpenDatabase::new(&database.file)?;
        *database.lock() = Some(open);
        Ok(database)
    }

    /// The database of `environment`, opened when it is first read. Nix removes the files of the write-ahead
    /// log when nobody uses the store, and we may not make them: then reading fails until a connection to the
    /// daemon is open.
    #[must_use]
    pub fn lazy(environment: &Environment) -> Self {
        let file = environment.database();
        Self { file, store_dir: environment.store_dir.clone(), open: Mutex::new(None) }
    }

    /// The outputs with this hash that some derivation in the store gives: normally one path, which several
    /// derivations may give. Up to a thousand, those of the oldest derivations first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn derivers_of(&self, hash: StorePathHash) -> Result<Vec<KnownOutput>, DatabaseError> {
        let rows = self.read(|connection| {
            let mut statement = connection.prepare_cached(DERIVERS)?;
            let rows = statement.query_map(params![self.start(hash), DERIVERS_MAX], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter()
            .map(|(path, drv, output)| {
                Ok(KnownOutput { path: self.parse(path)?, drv: self.parse(drv)?, output })
            })
            .collect()
    }

    /// The valid path with this hash.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn valid_path(&self, hash: StorePathHash) -> Result<Option<StorePath>, DatabaseError> {
        let path = self.read(|connection| {
            let mut statement = connection.prepare_cached(VALID_PATH)?;
            let mut rows = statement.query(params![self.start(hash)])?;
            rows.next()?.map(|row| row.get::<_, String>(0)).transpose()
        })?;
        path.map(|path| self.parse(path)).transpose()
    }

    /// The registered NAR hash of a path, where it is valid.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn nar_hash(&self, path: &StorePath) -> Result<Option<String>, DatabaseError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(NAR_HASH)?;
            statement.query_row([path.in_dir(&self.store_dir)], |row| row.get(0)).optional()
        })
    }

    /// The outputs of those of `drvs` that are valid, as far as their paths are known before they are built.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn outputs_of(&self, drvs: &[StorePath]) -> Result<BTreeMap<StorePath, Outputs>, DatabaseError> {
        let rows = self.read(|connection| {
            let mut valid = connection.prepare_cached(VALID_ID)?;
            let mut outputs = connection.prepare_cached(OUTPUTS)?;
            let mut found = Vec::new();
            for drv in drvs {
                let path = drv.in_dir(&self.store_dir);
                let id: Option<i64> = valid.query_row([path], |row| row.get(0)).optional()?;
                let Some(id) = id else { continue };
                let rows = outputs.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
                found.push((drv.clone(), rows.collect::<rusqlite::Result<Vec<(String, String)>>>()?));
            }
            Ok(found)
        })?;
        let parse = |(name, path): (String, String)| Ok((name, Some(self.parse(path)?)));
        rows.into_iter()
            .map(|(drv, rows)| Ok((drv, rows.into_iter().map(parse).collect::<Result<_, _>>()?)))
            .collect()
    }

    /// Valid paths that refer to this one, itself excepted; at most `max`, the latest ones.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn referrers(&self, path: &StorePath, max: u32) -> Result<Vec<StorePath>, DatabaseError> {
        let paths = self.read(|connection| {
            let mut valid = connection.prepare_cached(VALID_ID)?;
            let id: Option<i64> =
                valid.query_row([path.in_dir(&self.store_dir)], |row| row.get(0)).optional()?;
            let Some(id) = id else { return Ok(Vec::new()) };
            let mut referrers = connection.prepare_cached(REFERRERS)?;
            let rows = referrers.query_map(params![id, max], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        paths.into_iter().map(|path| self.parse(path)).collect()
    }

    /// Registered NAR hash and signatures of those of `paths` that are valid and signed.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn signatures(&self, paths: &[StorePath]) -> Result<Vec<(StorePath, String, String)>, DatabaseError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SIGNATURES)?;
            let mut found = Vec::new();
            for path in paths {
                let row = |row: &rusqlite::Row<'_>| Ok((path.clone(), row.get(0)?, row.get(1)?));
                found.extend(statement.query_row([path.in_dir(&self.store_dir)], row).optional()?);
            }
            Ok(found)
        })
    }

    /// Passes on the hash of every path that is valid, or is an output of a derivation in the store, and is
    /// newer than a row: 0 is before all, otherwise the value that this returned last. `begin` receives their
    /// number first.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn hashes_since(
        &self,
        row: i64,
        begin: impl FnOnce(u64),
        mut tell: impl FnMut(StorePathHash),
    ) -> Result<i64, DatabaseError> {
        let start = format!("{}/", self.store_dir);
        self.read(|connection| {
            // One transaction, so that both are of the same moment.
            let transaction = connection.unchecked_transaction()?;
            let count = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let (last, count): (i64, i64) = transaction.query_row(COUNT_SINCE, [row], count)?;
            begin(u64::try_from(count).unwrap_or(0));
            let mut statement = transaction.prepare(PATHS_SINCE)?;
            let mut rows = statement.query([row])?;
            while let Some(row) = rows.next()? {
                let path = row.get_ref(0)?.as_str().ok().and_then(|path| path.strip_prefix(&start));
                // What has no hash is never asked for.
                if let Some(Ok(hash)) = path.and_then(|name| name.get(..HASH_CHARS)).map(str::parse) {
                    tell(hash);
                }
            }
            // Of a large store it has read very much that it will not need again.
            connection.execute_batch("PRAGMA shrink_memory")?;
            Ok(last)
        })
    }

    /// Where its transactions are counted, as long as it is open here.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) fn counted_in(&self) -> Result<CounterFile, DatabaseError> {
        let mode = self.read(|connection| {
            connection.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0))
        })?;
        let mut log = self.file.as_os_str().to_owned();
        log.push("-shm");
        Ok(if mode == "wal" {
            CounterFile::Log(log.into())
        } else {
            CounterFile::Database(self.file.clone())
        })
    }

    /// Reads from the file that is there now: a store that was made anew has another one.
    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, DatabaseError> {
        let mut guard = self.lock();
        let metadata = std::fs::metadata(&self.file);
        let metadata = metadata.map_err(|source| DatabaseError::Missing { file: self.file.clone(), source });
        let (device, inode) = metadata.map(|metadata| (metadata.dev(), metadata.ino()))?;
        let open = match guard.take() {
            Some(open) if (open.device, open.inode) == (device, inode) => open,
            _ => OpenDatabase::new(&self.file)?,
        };
        let outcome = query(&open.connection);
        // After an error the next call opens it anew, so that no bad state outlives its cause.
        if outcome.is_ok() {
            *guard = Some(open);
        }
        outcome.map_err(|source| DatabaseError::Read { file: self.file.clone(), source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<OpenDatabase>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, hash: StorePathHash) -> String {
        format!("{}/{hash}", self.store_dir)
    }

    fn parse(&self, text: String) -> Result<StorePath, DatabaseError> {
        StorePath::parse_in(&self.store_dir, &text)
            .map_err(|error| DatabaseError::Malformed { text, reason: error.to_string() })
    }
}

impl OpenDatabase {
    fn new(file: &Path) -> Result<Self, DatabaseError> {
        let metadata = std::fs::metadata(file);
        let metadata = metadata.map_err(|source| DatabaseError::Missing { file: file.to_owned(), source })?;
        let open = || -> rusqlite::Result<Connection> {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(file, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // Else SQLite compiles a statement again for each text that is looked up.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
            // SQLite opens files late: this reads, and fails now rather than in the first look-up.
            connection.query_row(
                "SELECT count(*) FROM (SELECT 1 FROM ValidPaths LIMIT 1)",
                [],
                |_| Ok(()),
            )?;
            Ok(connection)
        };
        let connection = open().map_err(|source| DatabaseError::Open { file: file.to_owned(), source })?;
        Ok(Self { connection, device: metadata.dev(), inode: metadata.ino() })
    }
}
