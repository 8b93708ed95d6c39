//! Pins: what is held with its closure, however long nobody uses it, and whether or not it is served yet.

use std::time::SystemTime;

use narinfo::{StorePath, StorePathHash};
use rusqlite::params;

use super::rows::{corrupt, from_unix, to_unix, unsigned};
use super::{Error, Index};

/// A pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRow {
    /// The hash of the path that it holds.
    pub hash: StorePathHash,
    /// What was named when it was pinned: an attribute, or the path itself.
    pub name: String,
    /// When that was.
    pub pinned_at: SystemTime,
    /// The path, once it is served.
    pub path: Option<StorePath>,
}

impl Index {
    /// Pins the paths with these hashes under a name.
    ///
    /// # Errors
    /// When SQLite fails; nothing is pinned then.
    pub async fn pin(&self, name: String, hashes: Vec<StorePathHash>) -> Result<(), Error> {
        self.writer
            .run(move |transaction| {
                let mut insert = transaction.prepare_cached(
                    "INSERT INTO pin (hash, name, pinned_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                )?;
                let now = to_unix(SystemTime::now());
                for hash in &hashes {
                    insert.execute(params![hash.as_str(), name, now])?;
                }
                Ok(())
            })
            .await
    }

    /// Takes back every pin of this path, and what was pinned under this name. How many pins that were.
    ///
    /// # Errors
    /// When SQLite fails; all stay then.
    pub async fn unpin(&self, name: String, hash: Option<StorePathHash>) -> Result<usize, Error> {
        self.writer
            .run(move |transaction| {
                let hash = hash.as_ref().map(StorePathHash::as_str);
                Ok(transaction
                    .execute("DELETE FROM pin WHERE name = ?1 OR hash = ?2", params![name, hash])?)
            })
            .await
    }

    /// All pins, by name.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn pins(&self) -> Result<Vec<PinRow>, Error> {
        self.readers
            .run(|connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT pin.hash, pin.name, pin.pinned_at, p.hash || '-' || p.name \
                     FROM pin LEFT JOIN path p ON p.hash = pin.hash ORDER BY pin.name, pin.hash",
                )?;
                let mut rows = statement.query([])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    let (hash, path): (String, Option<String>) = (row.get(0)?, row.get(3)?);
                    found.push(PinRow {
                        hash: hash.parse().map_err(|e| corrupt(&hash, e))?,
                        name: row.get(1)?,
                        pinned_at: from_unix(row.get(2)?),
                        path: path
                            .map(|path| StorePath::parse(&path).map_err(|e| corrupt(&path, e)))
                            .transpose()?,
                    });
                }
                Ok(found)
            })
            .await
    }

    /// How many pins there are.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn pin_count(&self) -> Result<u64, Error> {
        self.readers
            .run(|connection| {
                Ok(unsigned(connection.query_row("SELECT count(*) FROM pin", [], |row| row.get(0))?))
            })
            .await
    }
}
