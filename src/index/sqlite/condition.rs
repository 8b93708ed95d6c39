//! Condition of the index, as its reads and writes show it, and a check of all pages after each start.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::stored::COUNTED;
use super::{Error, Sqlite};
use crate::causes::with_causes;
use crate::index::backend::{BackendFuture, Unfit, Upkeep};
use crate::index::condition::{ConditionError, IndexCondition};
use crate::room::Room;

/// Priority of the check of all pages, in steps of nice(2): below everything else.
const NICE: i32 = 19;
/// Interval of that check.
const CHECK_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Interval at which the index is checkpointed if no write waits.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// Time after the start for which the index is not ready until that check is done. A million paths take some
/// seconds.
const FIRST_CHECK_WAIT_MAX: Duration = Duration::from_secs(5);
/// Free bytes of its file system below which the index counts as not writable: a small write may still
/// succeed where the next larger one fails.
const WRITABLE_BYTES_MIN: u64 = 1024 * 1024;

/// The state; clones share it.
#[derive(Clone)]
pub(super) struct Condition(Arc<Shared>);

struct Shared {
    file: PathBuf,
    noted: IndexCondition,
    pages_checked: AtomicBool,
    opened_at: Instant,
}

impl Deref for Condition {
    type Target = IndexCondition;

    fn deref(&self) -> &IndexCondition {
        &self.0.noted
    }
}

impl Condition {
    pub(super) fn new(file: &Path) -> Self {
        Self(Arc::new(Shared {
            file: file.to_owned(),
            noted: IndexCondition::default(),
            pages_checked: AtomicBool::new(false),
            opened_at: Instant::now(),
        }))
    }

    /// Free bytes of its file system, where those are fewer than [`WRITABLE_BYTES_MIN`].
    fn short_of_room(&self) -> Option<u64> {
        let room = Room::of(self.0.file.parent()?).ok()?;
        (room.free_bytes < WRITABLE_BYTES_MIN).then_some(room.free_bytes)
    }

    /// Checks all pages. Blocking.
    fn check_pages(&self) -> Result<(), Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.0.file, flags)
            .map_err(|source| Error::open(&self.0.file, source))?;
        let found: Result<String, Error> =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(Error::Sql);
        match found {
            Ok(found) if found == "ok" => Ok(()),
            Ok(found) => Err(Error::Pages(found)),
            Err(error) if error.is_damage() => Err(Error::Pages(with_causes(&error))),
            Err(error) => Err(error),
        }
    }
}

impl Sqlite {
    /// Checks all pages after the start and once a day.
    async fn check_pages_daily(&self) {
        loop {
            let outcome = self.check_pages().await;
            self.condition.0.pages_checked.store(true, Ordering::Relaxed);
            if let Err(error) = outcome
                && !error.is_damage()
            {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "check of the index failed; the next one is in a day. Run `ondine fsck` for one now"
                );
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    /// Checks all pages on a thread of the lowest priority.
    async fn check_pages(&self) -> Result<(), Error> {
        let condition = self.condition.clone();
        let (done, looked) = tokio::sync::oneshot::channel();
        let begun = std::thread::Builder::new().name("index-checker".into()).spawn(move || {
            // If the system refuses, the check slows other work down a little more.
            let _ = rustix::process::nice(NICE);
            let outcome = condition.check_pages();
            condition.note_read(&outcome);
            let _ = done.send(outcome);
        });
        match begun {
            Ok(_) => looked.await.unwrap_or(Err(Error::ReaderGone)),
            Err(error) => Err(Error::Thread(error)),
        }
    }
}

impl Upkeep for Sqlite {
    fn maintain(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            tokio::join!(
                self.check_pages_daily(),
                self.writer.checkpoint_in_pauses(CHECKPOINT_EVERY),
                self.compact_ledger_when_due()
            );
        })
    }

    fn check(&self) -> Pin<Box<dyn Future<Output = Result<(), Unfit>> + Send + '_>> {
        Box::pin(async {
            let Shared { noted, pages_checked, opened_at, .. } = &*self.condition.0;
            if let Some(reason) = noted.damage() {
                return Err(Unfit::Damaged(reason));
            }
            if !pages_checked.load(Ordering::Relaxed) && opened_at.elapsed() < FIRST_CHECK_WAIT_MAX {
                return Err(Unfit::Unchecked);
            }
            let read = |connection: &Connection| Ok(connection.execute_batch("SELECT 1 FROM path LIMIT 1")?);
            self.readers.run(read).await.map_err(|error| Unfit::Unreadable(error.to_string()))?;
            if let Some(bytes) = self.condition.short_of_room() {
                return Err(Unfit::NotWritable(format!("the disk is full: {bytes} bytes are left")));
            }
            if noted.refused().is_some() && noted.is_time_to_probe() {
                // The same values: no trigger and no reader sees it.
                let write = self.writer.run(|transaction| {
                    transaction.execute("UPDATE stored SET nars = nars", [])?;
                    Ok(())
                });
                // Noted where it was done.
                let _ = write.await;
            }
            noted.refused().map_or(Ok(()), |reason| Err(Unfit::NotWritable(reason)))
        })
    }

    fn verify(&self) -> BackendFuture<'_, ()> {
        Box::pin(async { Ok(self.check_pages().await?) })
    }

    fn verify_totals(&self) -> BackendFuture<'_, bool> {
        let sql = format!("SELECT (SELECT nars, bytes, paths FROM stored) IS ({COUNTED})");
        self.read(move |connection| Ok(connection.query_row(&sql, [], |row| row.get(0))?))
    }

    fn recompute_totals(&self) -> BackendFuture<'_, ()> {
        let sql = format!("DELETE FROM stored; INSERT INTO stored {COUNTED}");
        self.write(move |transaction| Ok(transaction.execute_batch(&sql)?))
    }

    fn write_refused(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.condition.write_refused())
    }

    fn close(&self) -> BackendFuture<'_, ()> {
        Box::pin(async { Ok(self.writer.truncate_log().await?) })
    }
}

impl ConditionError for Error {
    const DAMAGE: &'static str = "the index is damaged: stop the server and run `ondine recover`";

    /// True for corruption: the file is not what SQLite or this program has written.
    fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Pages(_))
            || matches!(code(self), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
    }

    fn is_refused_by_the_system(&self) -> bool {
        matches!(self, Self::Ledger(_))
            || matches!(
                code(self),
                Some(
                    ErrorCode::DiskFull
                        | ErrorCode::SystemIoFailure
                        | ErrorCode::ReadOnly
                        | ErrorCode::CannotOpen
                        | ErrorCode::PermissionDenied
                )
            )
    }
}

fn code(error: &Error) -> Option<ErrorCode> {
    match error {
        Error::Sql(source) | Error::Open { source, .. } => source.sqlite_error_code(),
        _ => None,
    }
}
