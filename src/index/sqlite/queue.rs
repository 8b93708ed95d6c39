//! The queue as it is kept over a restart: the requests in their order, and how long builds took.

use std::time::Duration;

use narinfo::StorePath;
use rusqlite::{OptionalExtension, params};

use super::Sqlite;
use super::rows::{corrupt, from_unix, millis, signed, to_unix, unsigned};
use crate::index::backend::{BackendFuture, QueueLog};
use crate::model::{DurationRow, RequestRow};

/// Durations that are kept of each kind of work.
const DURATIONS_KEPT: u32 = 5;

impl QueueLog for Sqlite {
    fn requests(&self) -> BackendFuture<'_, (Vec<RequestRow>, u64)> {
        self.read(|connection| {
                let mut statement = connection.prepare(
                    "SELECT id, drv, started, asked_at, asked_by, due_owner, charged, earned, builder FROM request ORDER BY id",
                )?;
                let mut rows = statement.query([])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    let (drv, asked_by): (String, Option<String>) = (row.get(1)?, row.get(4)?);
                    found.push(RequestRow {
                        id: unsigned(row.get(0)?),
                        drv: StorePath::parse(&drv).map_err(|e| corrupt(&drv, e))?,
                        started: row.get(2)?,
                        asked_at: from_unix(row.get(3)?),
                        asked_by: asked_by
                            .map(|address| address.parse().map_err(|e| corrupt(&drv, e)))
                            .transpose()?,
                        due_owner: row.get::<_, Option<i64>>(5)?.map(unsigned),
                        charged: Duration::from_millis(unsigned(row.get(6)?)),
                        earned: Duration::from_millis(unsigned(row.get(7)?)),
                        builder: row.get(8)?,
                    });
                }
                let last: Option<i64> = connection
                    .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'request'", [], |row| row.get(0))
                    .optional()?;
                Ok((found, unsigned(last.unwrap_or(0))))
            })
    }

    fn record_queue(
        &self,
        requests: Vec<RequestRow>,
        gone: Vec<u64>,
        durations: Vec<DurationRow>,
    ) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
                let mut insert = transaction.prepare_cached(
                    "INSERT OR REPLACE INTO request (id, drv, started, asked_at, asked_by, due_owner, charged, earned, builder) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                )?;
                for request in &requests {
                    insert.execute(params![
                        signed(request.id),
                        request.drv.to_string(),
                        request.started,
                        to_unix(request.asked_at),
                        request.asked_by.map(|address| address.to_string()),
                        request.due_owner.map(signed),
                        millis(request.charged),
                        millis(request.earned),
                        request.builder,
                    ])?;
                }
                let mut delete = transaction.prepare_cached("DELETE FROM request WHERE id = ?1")?;
                for id in &gone {
                    delete.execute([signed(*id)])?;
                }
                let mut insert = transaction
                    .prepare_cached("INSERT INTO duration (work, millis, built) VALUES (?1, ?2, ?3)")?;
                let mut prune = transaction.prepare_cached(
                    "DELETE FROM duration WHERE work = ?1 AND id NOT IN \
                     (SELECT id FROM duration WHERE work = ?1 ORDER BY id DESC LIMIT ?2)",
                )?;
                for DurationRow { work, took, built } in &durations {
                    insert.execute(params![work, millis(*took), built])?;
                    prune.execute(params![work, DURATIONS_KEPT])?;
                }
                Ok(())
            })
    }

    fn durations(&self) -> BackendFuture<'_, Vec<DurationRow>> {
        self.read(|connection| {
            let mut statement = connection.prepare("SELECT work, millis, built FROM duration ORDER BY id")?;
            let rows = statement.query_map([], |row| {
                let took = Duration::from_millis(unsigned(row.get(1)?));
                Ok(DurationRow { work: row.get(0)?, took, built: row.get(2)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}
