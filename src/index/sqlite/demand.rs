//! Pre-building as it is kept over a restart: how often each attribute of a package set was asked for, day by
//! day, and how long was pre-built.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::Sqlite;
use super::rows::{millis, signed, unsigned};
use crate::index::backend::{BackendFuture, DemandStore};
use crate::model::{AttributeName, DemandRow};

impl DemandStore for Sqlite {
    fn demand(&self) -> BackendFuture<'_, Vec<DemandRow>> {
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT set_name, attribute, system, day, asked FROM demand ORDER BY day")?;
            let rows = statement.query_map([], |row| {
                let name = AttributeName { set: row.get(0)?, attribute: row.get(1)?, system: row.get(2)? };
                Ok(DemandRow { name, day: unsigned(row.get(3)?), asked: row.get(4)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    fn record_demand(&self, rows: Vec<DemandRow>, first_day: u64) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            transaction.execute("DELETE FROM demand WHERE day < ?1", [signed(first_day)])?;
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO demand (day, set_name, attribute, system, asked) \
                     VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for DemandRow { name, day, asked } in &rows {
                let AttributeName { set, attribute, system } = name;
                insert.execute(params![signed(*day), set, attribute, system, asked])?;
            }
            Ok(())
        })
    }

    fn prebuilt(&self) -> BackendFuture<'_, (u64, Duration)> {
        self.read(|connection| {
            let latest = connection.query_row("SELECT day, millis FROM prebuilt", [], |row| {
                Ok((unsigned(row.get(0)?), Duration::from_millis(unsigned(row.get(1)?))))
            });
            Ok(latest.optional()?.unwrap_or_default())
        })
    }

    fn record_prebuilt(&self, day: u64, spent: Duration) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            transaction.execute("DELETE FROM prebuilt", [])?;
            transaction.execute(
                "INSERT INTO prebuilt (day, millis) VALUES (?1, ?2)",
                params![signed(day), millis(spent)],
            )?;
            Ok(())
        })
    }
}
