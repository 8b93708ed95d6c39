//! Nix's own database, read while the daemon writes it: which path has a hash, and which derivations give it.
//! Never writes, and never opens it as immutable: that would miss what is in the write-ahead log.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use narinfo::{StoreDir, StorePath, StorePathHash};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, params};

use super::environment::Environment;

/// How long to wait for a lock that Nix holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Derivations of one output at most that are told of.
const DERIVERS_MAX: i64 = 1_000;

/// By range, because that uses the index where `LIKE` would read the whole table. `.` is what follows `-`.
const DERIVERS: &str =
    "SELECT o.path, d.path, o.id FROM DerivationOutputs o JOIN ValidPaths d ON d.id = o.drv
    WHERE o.path >= ?1 || '-' AND o.path < ?1 || '.' ORDER BY o.path, d.id LIMIT ?2";
const VALID_PATH: &str = "SELECT path FROM ValidPaths WHERE path >= ?1 || '-' AND path < ?1 || '.' LIMIT 1";

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
        /// What the system said.
        source: io::Error,
    },
    /// It is there and cannot be opened.
    #[error("cannot open Nix's database {}; this user needs read access to it and to its -wal and -shm files", file.display())]
    Open {
        /// Where it is.
        file: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// It cannot be read.
    #[error("cannot read Nix's database {}; if it stays so, `nix-store --verify` may help", file.display())]
    Read {
        /// Where it is.
        file: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// It has a path that is none.
    #[error("Nix's database has a malformed path {text:?}: {reason}")]
    Malformed {
        /// The path.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

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
    open: Mutex<Option<Open>>,
}

/// An open database, and which file that was.
#[derive(Debug)]
struct Open {
    connection: Connection,
    device: u64,
    inode: u64,
}

impl Database {
    /// Opens the database of `environment`.
    ///
    /// # Errors
    /// When it is not there or cannot be read. It can also be unreadable only because nobody has it open: see
    /// [`Database::lazy`].
    pub fn open(environment: &Environment) -> Result<Self, DatabaseError> {
        let database = Self::lazy(environment);
        let open = Open::new(&database.file)?;
        *database.lock() = Some(open);
        Ok(database)
    }

    /// The database of `environment`, opened when it is first read. Nix removes the files of the write-ahead log when
    /// nobody uses the store, and we may not make them: then reading fails until a connection to the daemon is open.
    #[must_use]
    pub fn lazy(environment: &Environment) -> Self {
        let file = environment.database();
        Self { file, store_dir: environment.store_dir.clone(), open: Mutex::new(None) }
    }

    /// The outputs with this hash that some derivation in the store gives: normally one path, which several derivations
    /// may give. Up to a thousand, those of the oldest derivations first.
    ///
    /// # Errors
    /// When the database cannot be read.
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
    /// When the database cannot be read.
    pub fn valid_path(&self, hash: StorePathHash) -> Result<Option<StorePath>, DatabaseError> {
        let path = self.read(|connection| {
            let mut statement = connection.prepare_cached(VALID_PATH)?;
            let mut rows = statement.query(params![self.start(hash)])?;
            rows.next()?.map(|row| row.get::<_, String>(0)).transpose()
        })?;
        path.map(|path| self.parse(path)).transpose()
    }

    /// Reads from the file that is there now: a store that was made anew has another one.
    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, DatabaseError> {
        let mut guard = self.lock();
        let metadata = std::fs::metadata(&self.file);
        let metadata = metadata.map_err(|source| DatabaseError::Missing { file: self.file.clone(), source });
        let (device, inode) = metadata.map(|metadata| (metadata.dev(), metadata.ino()))?;
        let open = match guard.take() {
            Some(open) if (open.device, open.inode) == (device, inode) => open,
            _ => Open::new(&self.file)?,
        };
        let outcome = query(&open.connection);
        // After an error the next call opens it anew, so that no bad state outlives its cause.
        if outcome.is_ok() {
            *guard = Some(open);
        }
        outcome.map_err(|source| DatabaseError::Read { file: self.file.clone(), source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
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

impl Open {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of Nix's schema that is read here, as Nix 2.8 to 2.34 make it.
    const SCHEMA: &str = "
        CREATE TABLE ValidPaths (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, path TEXT UNIQUE NOT NULL);
        CREATE TABLE DerivationOutputs (drv INTEGER NOT NULL, id TEXT NOT NULL, path TEXT NOT NULL,
            PRIMARY KEY (drv, id), FOREIGN KEY (drv) REFERENCES ValidPaths(id) ON DELETE CASCADE);
        CREATE INDEX IndexDerivationOutputs ON DerivationOutputs(path);";

    fn environment(state_dir: &Path) -> Environment {
        let socket = state_dir.join("socket");
        Environment { store_dir: StoreDir::default(), state_dir: state_dir.to_owned(), socket }
    }

    fn made(state_dir: &Path, rows: &str) -> Environment {
        let environment = environment(state_dir);
        std::fs::create_dir_all(state_dir.join("db")).expect("a folder");
        let connection = Connection::open(environment.database()).expect("made");
        connection.execute_batch(&format!("{SCHEMA}{rows}")).expect("filled");
        environment
    }

    fn path(letter: char, name: &str) -> StorePath {
        StorePath::parse(&format!("{}-{name}", letter.to_string().repeat(32))).expect("a store path")
    }

    #[test]
    fn look_ups_search_an_index_and_never_scan() {
        let folder = tempfile::tempdir().expect("a folder");
        let environment = made(folder.path(), "");
        let connection = Connection::open(environment.database()).expect("opened");
        for (query, values) in [(DERIVERS, 2), (VALID_PATH, 1)] {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).expect("prepared");
            let values = rusqlite::params_from_iter(std::iter::repeat_n("1", values));
            let rows = statement.query_map(values, |row| row.get::<_, String>(3)).expect("a plan");
            let plan: Vec<String> = rows.collect::<Result<_, _>>().expect("a plan");
            assert!(plan[0].starts_with("SEARCH") && plan[0].contains("(path>? AND path<?)"), "{plan:?}");
            assert!(!plan.iter().any(|step| step.starts_with("SCAN")), "{plan:?}");
        }
    }

    #[test]
    fn a_hash_finds_its_paths_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let [drv, other, out] = [path('d', "x.drv"), path('f', "x.drv"), path('b', "x")];
        let full = |path: &StorePath| path.in_dir(&StoreDir::default());
        let (drv_path, other_path, out_path) = (full(&drv), full(&other), full(&out));
        let environment = made(
            folder.path(),
            &format!(
                "INSERT INTO ValidPaths VALUES (1, '{drv_path}'), (2, '{other_path}');
                INSERT INTO DerivationOutputs VALUES (1, 'out', '{out_path}'), (2, 'dev', '{out_path}'),
                    (1, 'doc', '{}'), (1, 'man', '{}');",
                full(&path('a', "x")),
                full(&path('c', "x")),
            ),
        );
        let database = Database::open(&environment).expect("opened");
        let known = |drv: &StorePath, output: &str| KnownOutput {
            path: out.clone(),
            drv: drv.clone(),
            output: output.into(),
        };
        let makers = database.derivers_of(out.hash()).expect("read");
        assert_eq!(makers, [known(&drv, "out"), known(&other, "dev")], "the oldest first");
        assert_eq!(database.valid_path(out.hash()).expect("read"), None);
        assert_eq!(database.valid_path(drv.hash()).expect("read"), Some(drv));
    }

    #[test]
    fn what_is_wrong_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let environment = environment(folder.path());
        let error = Database::open(&environment).expect_err("not there").to_string();
        assert!(error.contains("db.sqlite") && error.contains("NIX_STATE_DIR"), "{error}");
        std::fs::create_dir(folder.path().join("db")).expect("a folder");
        std::fs::write(environment.database(), "no database, whatever its name says").expect("written");
        let error = Database::open(&environment).expect_err("garbage").to_string();
        assert!(error.contains("db.sqlite") && error.contains("read access"), "{error}");
    }
}
