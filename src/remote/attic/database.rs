//! The SQLite database of an attic server, read-only: its caches, their store paths, and the chunks of each
//! NAR. The tables are those of attic's migrations from January 2023 (chunks) to June 2026; columns that came
//! or went since are not read. Must never show a signing key.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use narinfo::SecretKey;
use rusqlite::{Connection, OpenFlags, Row, params};

/// Time limit for a lock that attic holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// State of a NAR or chunk that is complete.
const VALID: &str = "V";

const CACHES: &str = "SELECT id, name, store_dir, keypair FROM cache WHERE deleted_at IS NULL ORDER BY name";
const OBJECTS: &str = "SELECT o.store_path, o.\"references\", o.deriver, o.sigs, o.ca, \
    n.id, n.state, n.nar_hash, n.nar_size, n.num_chunks \
    FROM object o JOIN nar n ON n.id = o.nar_id WHERE o.cache_id = ?1 ORDER BY o.store_path";
const CHUNKS: &str = "SELECT c.state, c.chunk_hash, c.chunk_size, c.compression, c.remote_file \
    FROM chunkref r LEFT JOIN chunk c ON c.id = r.chunk_id WHERE r.nar_id = ?1 ORDER BY r.seq";

/// The reason that a database could not be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read {}, which should be the SQLite database of an attic server that has chunks; this user needs \
     read access to it and to its -wal and -shm files",
    file.display()
)]
pub struct AtticDatabaseError {
    /// The file.
    file: PathBuf,
    /// SQLite's error.
    source: rusqlite::Error,
}

/// The database, open.
#[derive(Debug)]
pub(super) struct AtticDatabase {
    file: PathBuf,
    connection: Mutex<Connection>,
}

/// A cache of the server.
#[derive(Debug)]
pub(super) struct AtticCache {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) store_dir: String,
    /// The key that its narinfos are signed with as they are served; `None` where it cannot be read.
    pub(super) key: Option<SecretKey>,
}

/// A store path of a cache, as the database has it.
#[derive(Debug)]
pub(super) struct AtticObject {
    /// The path with its store directory.
    pub(super) path: String,
    /// Base names, as a JSON list.
    pub(super) references: String,
    pub(super) deriver: Option<String>,
    /// Signatures that came with the path, as a JSON list. The cache's own is not among them.
    pub(super) signatures: String,
    pub(super) ca: Option<String>,
    pub(super) nar: AtticNar,
}

/// A NAR, which paths of several caches may share.
#[derive(Clone, Debug)]
pub(super) struct AtticNar {
    pub(super) id: i64,
    /// True if all of it was uploaded.
    pub(super) is_complete: bool,
    /// `sha256:` and hexadecimal digits.
    pub(super) hash: String,
    pub(super) bytes: i64,
    pub(super) chunks: i64,
}

/// A chunk: a part of NARs, compressed by itself.
#[derive(Debug)]
pub(super) struct AtticChunk {
    /// True if all of it was uploaded.
    pub(super) is_complete: bool,
    /// `sha256:` and hexadecimal digits, of the plain chunk.
    pub(super) hash: String,
    /// Bytes of the plain chunk.
    pub(super) bytes: i64,
    pub(super) compression: String,
    /// Place of its file, as JSON.
    pub(super) file: String,
}

impl AtticDatabase {
    /// Opens a database that is there.
    pub(super) fn open(file: &Path) -> Result<Self, AtticDatabaseError> {
        let failed = |source| AtticDatabaseError { file: file.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        Ok(Self { file: file.to_owned(), connection: Mutex::new(connection) })
    }

    /// The caches that were not deleted, by name.
    pub(super) fn caches(&self) -> Result<Vec<AtticCache>, AtticDatabaseError> {
        self.rows(CACHES, None, |row| {
            Ok(AtticCache {
                id: row.get(0)?,
                name: row.get(1)?,
                store_dir: row.get(2)?,
                key: row.get_ref(3)?.as_str().ok().and_then(|key| key.parse().ok()),
            })
        })
    }

    /// The paths of a cache.
    pub(super) fn objects(&self, cache: i64) -> Result<Vec<AtticObject>, AtticDatabaseError> {
        self.rows(OBJECTS, Some(cache), |row| {
            Ok(AtticObject {
                path: row.get(0)?,
                references: row.get(1)?,
                deriver: row.get(2)?,
                signatures: row.get(3)?,
                ca: row.get(4)?,
                nar: AtticNar {
                    id: row.get(5)?,
                    is_complete: row.get::<_, String>(6)? == VALID,
                    hash: row.get(7)?,
                    bytes: row.get(8)?,
                    chunks: row.get(9)?,
                },
            })
        })
    }

    /// The chunks of a NAR in their order; `None` for one that the database has lost.
    pub(super) fn chunks(&self, nar: i64) -> Result<Vec<Option<AtticChunk>>, AtticDatabaseError> {
        self.rows(CHUNKS, Some(nar), |row| {
            let Some(state) = row.get::<_, Option<String>>(0)? else { return Ok(None) };
            Ok(Some(AtticChunk {
                is_complete: state == VALID,
                hash: row.get(1)?,
                bytes: row.get(2)?,
                compression: row.get(3)?,
                file: row.get(4)?,
            }))
        })
    }

    /// All rows of a query with at most one parameter.
    fn rows<T>(
        &self,
        query: &str,
        parameter: Option<i64>,
        of: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, AtticDatabaseError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || -> rusqlite::Result<Vec<T>> {
            let mut statement = connection.prepare_cached(query)?;
            match parameter {
                Some(parameter) => statement.query_map(params![parameter], of)?.collect(),
                None => statement.query_map(params![], of)?.collect(),
            }
        };
        read().map_err(|source| AtticDatabaseError { file: self.file.clone(), source })
    }
}
