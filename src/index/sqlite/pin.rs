//! Pins: paths that are retained with their closures, however long nobody uses them, and served or not.

use std::path::Path;
use std::time::SystemTime;

use narinfo::{StorePath, StorePathHash};
use rusqlite::{Connection, OpenFlags, params};

use super::Sqlite;
use super::rows::{corrupt, from_unix, to_unix, unsigned};
use crate::index::backend::{BackendFuture, Pins};
use crate::model::PinRow;

impl Pins for Sqlite {
    fn pin(&self, name: String, hashes: Vec<StorePathHash>) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO pin (hash, name, pinned_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            )?;
            let now = to_unix(SystemTime::now());
            for hash in &hashes {
                insert.execute(params![hash.as_str(), name, now])?;
            }
            Ok(())
        })
    }

    fn unpin(&self, name: String, hash: Option<StorePathHash>) -> BackendFuture<'_, usize> {
        self.write(move |transaction| {
            let hash = hash.as_ref().map(StorePathHash::as_str);
            Ok(transaction.execute("DELETE FROM pin WHERE name = ?1 OR hash = ?2", params![name, hash])?)
        })
    }

    fn pins(&self) -> BackendFuture<'_, Vec<PinRow>> {
        self.read(|connection| {
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
    }

    fn pin_count(&self) -> BackendFuture<'_, u64> {
        self.read(|connection| {
            Ok(unsigned(connection.query_row("SELECT count(*) FROM pin", [], |row| row.get(0))?))
        })
    }

    fn restore_pins(&self, pins: Vec<PinRow>) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            let mut insert = transaction.prepare(
                "INSERT INTO pin (hash, name, pinned_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            )?;
            for PinRow { hash, name, pinned_at, .. } in &pins {
                insert.execute(params![hash.as_str(), name, to_unix(*pinned_at)])?;
            }
            Ok(())
        })
    }
}

/// Pins of a damaged index, up to the first one that cannot be read. Blocking.
#[must_use]
pub fn salvage_pins(damaged: &Path) -> Vec<PinRow> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let read = || -> rusqlite::Result<Vec<_>> {
        let connection = Connection::open_with_flags(damaged, flags)?;
        let mut statement = connection.prepare("SELECT hash, name, pinned_at FROM pin")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(rows.map_while(Result::ok).collect())
    };
    let pin = |(hash, name, pinned_at): (String, String, i64)| {
        Some(PinRow { hash: hash.parse().ok()?, name, pinned_at: from_unix(pinned_at), path: None })
    };
    read().unwrap_or_default().into_iter().filter_map(pin).collect()
}
