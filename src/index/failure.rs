//! Builds that failed, and requests that were refused, for as long as that is remembered.

use std::time::SystemTime;

use narinfo::StorePath;
use rusqlite::params;

use super::rows::{class_number, failure_row, to_unix};
use super::{Error, Failure, FailureClass, Index};

impl Index {
    /// The remembered failure of a derivation, unless its memory has ended by `now`.
    ///
    /// # Errors
    /// When SQLite fails or the row is damaged.
    pub async fn failure(&self, drv: StorePath, now: SystemTime) -> Result<Option<Failure>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT drv, class, cause, reason, failed_at, expires_at FROM failure \
                     WHERE drv = ?1 AND expires_at > ?2",
                )?;
                let mut rows = statement.query(params![drv.to_string(), to_unix(now)])?;
                rows.next()?.map(failure_row).transpose()
            })
            .await
    }

    /// Remembers a failure in place of an older one, and drops those whose memory has ended.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn remember_failure(&self, failure: Failure) -> Result<(), Error> {
        self.writer
            .run(move |transaction| {
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
            .await
    }

    /// Forgets a failure: the derivation has been built after all.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn forget_failure(&self, drv: StorePath) -> Result<(), Error> {
        self.writer
            .run(move |transaction| {
                transaction.execute("DELETE FROM failure WHERE drv = ?1", [drv.to_string()])?;
                Ok(())
            })
            .await
    }

    /// Forgets every refusal: what this server can build may be another matter now.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn forget_refusals(&self) -> Result<(), Error> {
        self.writer
            .run(|transaction| {
                let refused = class_number(FailureClass::Refused);
                transaction.execute("DELETE FROM failure WHERE class = ?1", [refused])?;
                Ok(())
            })
            .await
    }
}
