//! Health and totals of the index in PostgreSQL, and its upkeep: changes that every server has read by now
//! are dropped.

use std::pin::Pin;
use std::time::Duration;

use super::rows::{PATH_COLUMNS, path_row};
use super::session::column;
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::causes::with_causes;
use crate::index::backend::{BackendFuture, Unfit, Upkeep};

/// Interval at which old changes are dropped.
const DROP_EVERY: Duration = Duration::from_secs(60);
/// Changes that are kept for servers that were away.
const CHANGES_KEPT: i64 = 10_000;
/// Endings that no server needs which was away for less than an hour.
const OLD_ENDINGS: &str = "DELETE FROM ending WHERE ended_at < now() - interval '1 hour'";
/// Servers that were not heard of for a day.
const GONE_NODES: &str = "DELETE FROM node WHERE seen_at < now() - interval '1 day'";
/// Recomputes the totals.
pub(super) const RECOMPUTE: &str = "UPDATE stored SET (nars, bytes, paths) = (SELECT count(*), \
    coalesce(sum(file_size), 0)::bigint, (SELECT count(*) FROM path) FROM nar)";
/// Paths that are checked at once.
const CHECKED_AT_ONCE: i64 = 1_000;

impl Postgres {
    async fn drop_old_changes(&self) -> Result<(), Error> {
        self.database
            .read((), |session, ()| {
                Box::pin(async move {
                    let sql = "DELETE FROM change WHERE made_at < now() - interval '10 minutes' \
                        OR sequence <= (SELECT latest FROM change_position) - $1";
                    session.execute(sql, &[&CHANGES_KEPT]).await?;
                    session.execute(OLD_ENDINGS, &[]).await?;
                    session.execute(GONE_NODES, &[]).await
                })
            })
            .await
            .map(drop)
    }
}

impl Upkeep for Postgres {
    fn maintain(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            loop {
                tokio::time::sleep(DROP_EVERY).await;
                if let Err(error) = self.drop_old_changes().await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        "cannot drop old changes from PostgreSQL; it is tried again in a minute"
                    );
                }
            }
        })
    }

    fn check(&self) -> Pin<Box<dyn Future<Output = Result<(), Unfit>> + Send + '_>> {
        Box::pin(async {
            let condition = self.database.condition();
            if let Some(reason) = condition.damage() {
                return Err(Unfit::Damaged(reason));
            }
            let read = self.database.read((), |session, ()| {
                Box::pin(async move { session.rows("SELECT 1 FROM path LIMIT 1", &[]).await.map(drop) })
            });
            read.await.map_err(|error| Unfit::Unreadable(with_causes(&error)))?;
            if condition.refused().is_some() && condition.is_time_to_probe() {
                // The same values: nobody sees it. Noted where it was done.
                let sql = "UPDATE stored SET nars = nars";
                let _ = self
                    .write(Domain::Paths, sql, |session, sql| {
                        Box::pin(async move { session.execute(sql, &[]).await.map(drop).map(quiet) })
                    })
                    .await;
            }
            condition.refused().map_or(Ok(()), |reason| Err(Unfit::NotWritable(reason)))
        })
    }

    fn verify(&self) -> BackendFuture<'_, ()> {
        Box::pin(async {
            let mut after = String::new();
            loop {
                let batch = self
                    .read(after, |session, after| {
                        Box::pin(async move {
                            let sql = format!(
                                "SELECT {PATH_COLUMNS} FROM path p WHERE p.hash > $1 ORDER BY p.hash LIMIT $2"
                            );
                            let rows = session.rows(&sql, &[after, &CHECKED_AT_ONCE]).await?;
                            for row in &rows {
                                path_row(row)?;
                            }
                            rows.last().map(|row| column::<String>(row, 0)).transpose()
                        })
                    })
                    .await?;
                match batch {
                    Some(last) => after = last,
                    None => return Ok(()),
                }
            }
        })
    }

    fn verify_totals(&self) -> BackendFuture<'_, bool> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let sql = "SELECT (nars, bytes, paths) = (SELECT count(*), coalesce(sum(file_size), 0)::bigint, \
                    (SELECT count(*) FROM path) FROM nar) FROM stored";
                column(&session.one(sql, &[]).await?, 0)
            })
        })
    }

    fn recompute_totals(&self) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, (), |session, ()| {
            Box::pin(async move { session.execute(RECOMPUTE, &[]).await.map(drop).map(quiet) })
        })
    }

    fn write_refused(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.database.condition().write_refused())
    }

    fn close(&self) -> BackendFuture<'_, ()> {
        self.listener.0.abort();
        self.database.close();
        Box::pin(std::future::ready(Ok(())))
    }
}
