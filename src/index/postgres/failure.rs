//! Builds that failed, and requests that were refused, for as long as that is remembered.

use std::time::{Duration, SystemTime};

use narinfo::StorePath;

use super::Postgres;
use super::rows::{base_name, failure_row, text};
use super::transaction::{Domain, quiet};
use crate::index::backend::{BackendFuture, FailureStore};
use crate::index::columns::{class_number, signed, to_unix};
use crate::model::{Failure, FailureClass};

/// Failures that are listed at most.
const LISTED_MAX: i64 = 1_000;
/// Longer than anyone remembers, and short enough to be added to a date.
const LIFETIME_SECONDS_MAX: i64 = 1 << 40;
const EXPIRE: &str = "DELETE FROM failure WHERE expires_at <= $1";

impl FailureStore for Postgres {
    fn failure(&self, drv: StorePath, now: SystemTime) -> BackendFuture<'_, Option<Failure>> {
        self.read((drv.to_string(), to_unix(now)), |session, (drv, now)| {
            Box::pin(async move {
                let sql = "SELECT drv, class, cause, reason, failed_at, expires_at FROM failure \
                    WHERE drv = $1 AND expires_at > $2";
                session.row(sql, &[drv, now]).await?.as_ref().map(failure_row).transpose()
            })
        })
    }

    fn remember_failure(&self, failure: Failure) -> BackendFuture<'_, ()> {
        self.write(Domain::Rest, failure, |session, failure| {
            Box::pin(async move {
                session.execute(EXPIRE, &[&to_unix(failure.failed_at)]).await?;
                let sql = "INSERT INTO failure (drv, class, cause, reason, failed_at, expires_at) \
                    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (drv) DO UPDATE SET class = excluded.class, \
                    cause = excluded.cause, reason = excluded.reason, failed_at = excluded.failed_at, \
                    expires_at = excluded.expires_at";
                let (drv, cause) = (failure.drv.to_string(), failure.cause.to_string());
                let (class, reason) = (class_number(failure.class), text(&failure.reason));
                let (failed_at, expires_at) = (to_unix(failure.failed_at), to_unix(failure.expires_at));
                session.execute(sql, &[&drv, &class, &cause, &reason, &failed_at, &expires_at]).await?;
                Ok(quiet(()))
            })
        })
    }

    fn failures(&self, now: SystemTime) -> BackendFuture<'_, Vec<Failure>> {
        self.read(to_unix(now), |session, now| {
            Box::pin(async move {
                let sql = "SELECT drv, class, cause, reason, failed_at, expires_at FROM failure \
                    WHERE expires_at > $1 ORDER BY failed_at DESC, drv LIMIT $2";
                session.rows(sql, &[now, &LISTED_MAX]).await?.iter().map(failure_row).collect()
            })
        })
    }

    fn forget_failure(&self, drv: StorePath) -> BackendFuture<'_, Vec<StorePath>> {
        self.write(Domain::Rest, drv.to_string(), |session, drv| {
            Box::pin(async move {
                let sql = "WITH named AS (SELECT $1::text COLLATE \"C\" AS drv UNION SELECT cause FROM failure WHERE drv = $1) \
                    DELETE FROM failure WHERE drv IN (SELECT drv FROM named) OR cause IN (SELECT drv FROM named) \
                    RETURNING drv";
                let rows = session.rows(sql, &[drv]).await?;
                let forgotten = rows.iter().map(|row| base_name(row, 0)).collect::<Result<_, _>>()?;
                Ok(quiet(forgotten))
            })
        })
    }

    fn end_failure_by(&self, drv: StorePath, end: SystemTime) -> BackendFuture<'_, ()> {
        self.write(Domain::Rest, (drv.to_string(), to_unix(end)), |session, (drv, end)| {
            Box::pin(async move {
                let sql = "UPDATE failure SET expires_at = $2 WHERE drv = $1 AND expires_at > $2";
                session.execute(sql, &[drv, end]).await?;
                Ok(quiet(()))
            })
        })
    }

    fn shorten_failures(
        &self,
        class: FailureClass,
        lifetime: Duration,
        now: SystemTime,
    ) -> BackendFuture<'_, ()> {
        let lifetime = signed(lifetime.as_secs()).min(LIFETIME_SECONDS_MAX);
        let data = (class_number(class), lifetime, to_unix(now));
        self.write(Domain::Rest, data, |session, (class, lifetime, now)| {
            Box::pin(async move {
                let sql = "UPDATE failure SET expires_at = least(expires_at, failed_at + $2, $3 + $2) WHERE class = $1";
                session.execute(sql, &[class, lifetime, now]).await?;
                session.execute(EXPIRE, &[now]).await?;
                Ok(quiet(()))
            })
        })
    }

    fn forget_refusals(&self) -> BackendFuture<'_, ()> {
        self.write(Domain::Rest, class_number(FailureClass::Refused), |session, refused| {
            Box::pin(async move {
                session.execute("DELETE FROM failure WHERE class = $1", &[refused]).await?;
                Ok(quiet(()))
            })
        })
    }
}
