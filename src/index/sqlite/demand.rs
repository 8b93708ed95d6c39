//! What is kept of pre-building over a restart: how often each attribute of a package set was asked for, day by day, and how long
//! was pre-built.

use std::collections::BTreeMap;
use std::time::Duration;

use narinfo::StorePath;
use rusqlite::{OptionalExtension, params};

use super::rows::{corrupt, millis, signed, unsigned};
use super::{Error, Index};

/// An attribute of a package set, for a system, whatever it is at the moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeName {
    /// The set.
    pub set: String,
    /// Its path within the set, with dots.
    pub attribute: String,
    /// The system.
    pub system: String,
}

/// How often an attribute was asked for on one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemandRow {
    /// What was asked for.
    pub name: AttributeName,
    /// The number of the day.
    pub day: u64,
    /// How often.
    pub asked: u32,
}

impl Index {
    /// The names under which sets have these derivations now; one of each, and none of what no set has.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn names_of(&self, drvs: Vec<StorePath>) -> Result<BTreeMap<StorePath, AttributeName>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT s.name, a.attribute, a.system FROM catalogue_attribute a \
                     JOIN catalogue_set s ON s.id = a.set_id WHERE a.drv = ?1 LIMIT 1",
                )?;
                let mut found = BTreeMap::new();
                for drv in drvs {
                    let name = statement.query_row([drv.to_string()], |row| {
                        Ok(AttributeName { set: row.get(0)?, attribute: row.get(1)?, system: row.get(2)? })
                    });
                    if let Some(name) = name.optional()? {
                        found.insert(drv, name);
                    }
                }
                Ok(found)
            })
            .await
    }

    /// What each of these is now, in the same order; `None` for what cannot be evaluated, is denied or is no more.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn derivations_named(
        &self,
        names: Vec<AttributeName>,
    ) -> Result<Vec<Option<StorePath>>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT drv FROM catalogue_attribute \
                     WHERE set_id = (SELECT id FROM catalogue_set WHERE name = ?1) \
                     AND attribute = ?2 AND system = ?3 AND drv IS NOT NULL AND NOT denied",
                )?;
                let mut found = Vec::new();
                for AttributeName { set, attribute, system } in &names {
                    let drv = statement.query_row([set, attribute, system], |row| row.get::<_, String>(0));
                    let drv = drv.optional()?;
                    found.push(
                        drv.map(|drv| StorePath::parse(&drv).map_err(|e| corrupt(&drv, e))).transpose()?,
                    );
                }
                Ok(found)
            })
            .await
    }

    /// What was asked for, in the order of the days.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn demand(&self) -> Result<Vec<DemandRow>, Error> {
        self.readers
            .run(|connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT set_name, attribute, system, day, asked FROM demand ORDER BY day",
                )?;
                let rows = statement.query_map([], |row| {
                    let name =
                        AttributeName { set: row.get(0)?, attribute: row.get(1)?, system: row.get(2)? };
                    Ok(DemandRow { name, day: unsigned(row.get(3)?), asked: row.get(4)? })
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// Records how often things were asked for, in place of what was recorded of the same days, and forgets the days before
    /// `first_day`.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn record_demand(&self, rows: Vec<DemandRow>, first_day: u64) -> Result<(), Error> {
        self.writer
            .run(move |transaction| {
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
            .await
    }

    /// The number of the latest day on which something was pre-built, and how long on that day, to the millisecond.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn prebuilt(&self) -> Result<(u64, Duration), Error> {
        self.readers
            .run(|connection| {
                let latest = connection.query_row("SELECT day, millis FROM prebuilt", [], |row| {
                    Ok((unsigned(row.get(0)?), Duration::from_millis(unsigned(row.get(1)?))))
                });
                Ok(latest.optional()?.unwrap_or_default())
            })
            .await
    }

    /// Records how long was pre-built on the latest day.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn record_prebuilt(&self, day: u64, spent: Duration) -> Result<(), Error> {
        self.writer
            .run(move |transaction| {
                transaction.execute("DELETE FROM prebuilt", [])?;
                transaction.execute(
                    "INSERT INTO prebuilt (day, millis) VALUES (?1, ?2)",
                    params![signed(day), millis(spent)],
                )?;
                Ok(())
            })
            .await
    }
}
