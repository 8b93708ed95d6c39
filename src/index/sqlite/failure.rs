//! Builds that failed, and requests that were refused, for as long as that is remembered.

use std::time::{Duration, SystemTime};

use narinfo::StorePath;
use rusqlite::{OptionalExtension, params};

use super::Sqlite;
use super::rows::{class_number, corrupt, failure_row, signed, to_unix};
use crate::index::backend::{BackendFuture, FailureStore};
use crate::model::{Failure, FailureClass};

/// Failures that are listed at most.
const LISTED_MAX: u32 = 1_000;
/// Longer than anyone remembers, and short enough to be added to a date.
const LIFETIME_SECONDS_MAX: i64 = 1 << 40;

impl FailureStore for Sqlite {
    fn failure(&self, drv: StorePath, now: SystemTime) -> BackendFuture<'_, Option<Failure>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT drv, class, cause, reason, failed_at, expires_at FROM failure \
                     WHERE drv = ?1 AND expires_at > ?2",
            )?;
            let mut rows = statement.query(params![drv.to_string(), to_unix(now)])?;
            rows.next()?.map(failure_row).transpose()
        })
    }

    fn remember_failure(&self, failure: Failure) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            transaction
                .execute("DELETE FROM failure WHERE expires_at <= ?1", [to_unix(failure.failed_at)])?;
            transaction.execute(
                "INSERT OR REPLACE INTO failure (drv, class, cause, reason, failed_at, expires_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    failure.drv.to_string(),
                    class_number(failure.class),
                    failure.cause.to_string(),
                    failure.reason,
                    to_unix(failure.failed_at),
                    to_unix(failure.expires_at)
                ],
            )?;
            Ok(())
        })
    }

    fn failures(&self, now: SystemTime) -> BackendFuture<'_, Vec<Failure>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT drv, class, cause, reason, failed_at, expires_at FROM failure \
                     WHERE expires_at > ?1 ORDER BY failed_at DESC, drv LIMIT ?2",
            )?;
            let mut rows = statement.query(params![to_unix(now), LISTED_MAX])?;
            let mut failures = Vec::new();
            while let Some(row) = rows.next()? {
                failures.push(failure_row(row)?);
            }
            Ok(failures)
        })
    }

    fn forget_failure(&self, drv: StorePath) -> BackendFuture<'_, Vec<StorePath>> {
        self.write(move |transaction| {
            let drv = drv.to_string();
            let cause: Option<String> = transaction
                .query_row("SELECT cause FROM failure WHERE drv = ?1", [&drv], |row| row.get(0))
                .optional()?;
            let mut delete = transaction.prepare_cached(
                "DELETE FROM failure WHERE drv IN (?1, ?2) OR cause IN (?1, ?2) RETURNING drv",
            )?;
            let mut rows = delete.query(params![drv, cause])?;
            let mut forgotten = Vec::new();
            while let Some(row) = rows.next()? {
                let drv: String = row.get(0)?;
                forgotten.push(StorePath::parse(&drv).map_err(|e| corrupt(&drv, e))?);
            }
            Ok(forgotten)
        })
    }

    fn end_failure_by(&self, drv: StorePath, end: SystemTime) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            transaction.execute(
                "UPDATE failure SET expires_at = ?2 WHERE drv = ?1 AND expires_at > ?2",
                params![drv.to_string(), to_unix(end)],
            )?;
            Ok(())
        })
    }

    fn shorten_failures(
        &self,
        class: FailureClass,
        lifetime: Duration,
        now: SystemTime,
    ) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            transaction.execute(
                "UPDATE failure SET expires_at = min(expires_at, failed_at + ?2, ?3 + ?2) WHERE class = ?1",
                params![
                    class_number(class),
                    signed(lifetime.as_secs()).min(LIFETIME_SECONDS_MAX),
                    to_unix(now)
                ],
            )?;
            transaction.execute("DELETE FROM failure WHERE expires_at <= ?1", [to_unix(now)])?;
            Ok(())
        })
    }

    fn forget_refusals(&self) -> BackendFuture<'_, ()> {
        self.write(|transaction| {
            let refused = class_number(FailureClass::Refused);
            transaction.execute("DELETE FROM failure WHERE class = ?1", [refused])?;
            Ok(())
        })
    }
}
