//! The state that the index is in: sound, damaged, or not to be written at the moment. Learnt from whatever fails, and from a
//! look at all its pages after each start. Damage stays until the next start, since nothing here mends it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Error, Index};
use crate::causes::with_causes;
use crate::room::Room;
use crate::trouble::Trouble;

/// How far the look at all pages gives way to everything else, in steps of nice(2).
const NICE: i32 = 19;
/// How often.
const LOOK_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How long after the start a health check waits for that look; of a million paths it takes some seconds.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(5);
/// The time between two writes that only show whether the index can be written.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// With fewer bytes free on its file system, a small write may go well where the next larger one does not.
const WRITABLE_BYTES_MIN: u64 = 1024 * 1024;

/// Why the index is not to be relied on. The text is for whoever runs the server.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is looked through after the start.
    #[error("the index is being checked after the start")]
    Unchecked,
    /// SQLite, or a row, says so.
    #[error(
        "the index is damaged ({0}): stop the server and run `ondine recover`, which makes it anew from what is recorded beside the NARs"
    )]
    Damaged(String),
    /// It cannot be read.
    #[error("the index cannot be read ({0})")]
    Unreadable(String),
    /// It cannot be written.
    #[error(
        "the index cannot be written ({0}): what is cached is served, nothing new is; `ondine gc --max-bytes` makes room on a full disk"
    )]
    NotWritable(String),
}

/// The state; clones share it.
#[derive(Clone)]
pub(in crate::index) struct Condition(Arc<Shared>);

struct Shared {
    file: PathBuf,
    damage: Trouble,
    writes: Trouble,
    looked_through: AtomicBool,
    opened_at: Instant,
    probed_at: Mutex<Option<Instant>>,
}

impl Condition {
    pub(in crate::index) fn new(file: &Path) -> Self {
        Self(Arc::new(Shared {
            file: file.to_owned(),
            damage: Trouble::default(),
            writes: Trouble::default(),
            looked_through: AtomicBool::new(false),
            opened_at: Instant::now(),
            probed_at: Mutex::new(None),
        }))
    }

    /// Takes note of what came of a look at the index.
    pub(in crate::index) fn note_read<T>(&self, outcome: &Result<T, Error>) {
        if let Err(error) = outcome
            && is_damage(error)
        {
            if self.0.damage.get().is_none() {
                let error = error as &dyn std::error::Error;
                tracing::error!(error, "the index is damaged: stop the server and run `ondine recover`");
            }
            self.0.damage.note(error);
        }
    }

    /// Takes note of what came of a write.
    pub(in crate::index) fn note_write<T>(&self, outcome: &Result<T, Error>) {
        self.note_read(outcome);
        match outcome {
            Ok(_) => {
                if self.0.writes.clear() {
                    tracing::info!("the index can be written again");
                }
            }
            Err(error) if is_refused_by_the_system(error) => self.0.writes.note(error),
            Err(_) => {}
        }
    }

    /// Whether it is time for another write that only shows whether there can be one.
    fn is_time_to_probe(&self) -> bool {
        let mut probed_at = self.0.probed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = probed_at.is_none_or(|at| at.elapsed() >= PROBE_EVERY);
        if due {
            *probed_at = Some(Instant::now());
        }
        due
    }

    /// Bytes that are left on its file system, where those are too few.
    fn short_of_room(&self) -> Option<u64> {
        let room = Room::of(self.0.file.parent()?).ok()?;
        (room.free_bytes < WRITABLE_BYTES_MIN).then_some(room.free_bytes)
    }

    /// Reads all pages and looks for damage. Blocking.
    fn look_through(&self) -> Result<(), Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.0.file, flags)
            .map_err(|source| Error::open(&self.0.file, source))?;
        let found: Result<String, Error> =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(Error::Sql);
        match found {
            Ok(found) if found == "ok" => Ok(()),
            Ok(found) => Err(Error::Pages(found)),
            Err(error) if is_damage(&error) => Err(Error::Pages(with_causes(&error))),
            Err(error) => Err(error),
        }
    }
}

impl Index {
    /// Looks for damage in all of the file after the start and once a day, for as long as the server runs.
    pub async fn watch_for_damage(&self) {
        loop {
            let outcome = self.look_through().await;
            self.condition.0.looked_through.store(true, Ordering::Relaxed);
            if let Err(error) = outcome
                && !is_damage(&error)
            {
                tracing::warn!(error = &error as &dyn std::error::Error, "the index was not looked through");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks for damage in all of the file, as far down in rank as a thread can be.
    ///
    /// # Errors
    /// With the damage, or when the file cannot be read.
    pub async fn look_through(&self) -> Result<(), Error> {
        let condition = self.condition.clone();
        let (done, looked) = tokio::sync::oneshot::channel();
        let begun = std::thread::Builder::new().name("index-checker".into()).spawn(move || {
            // Where it is refused, the look costs the others a little more.
            let _ = rustix::process::nice(NICE);
            let outcome = condition.look_through();
            condition.note_read(&outcome);
            let _ = done.send(outcome);
        });
        match begun {
            Ok(_) => looked.await.unwrap_or(Err(Error::ReaderGone)),
            Err(error) => Err(Error::Thread(error)),
        }
    }

    /// Whether it can be relied on; where the last write has failed, that is tried again.
    ///
    /// # Errors
    /// With the reason why not.
    pub async fn check(&self) -> Result<(), Unfit> {
        let Shared { damage, writes, looked_through, opened_at, .. } = &*self.condition.0;
        if let Some(reason) = damage.get() {
            return Err(Unfit::Damaged(reason));
        }
        if !looked_through.load(Ordering::Relaxed) && opened_at.elapsed() < LOOK_WAIT_MAX {
            return Err(Unfit::Unchecked);
        }
        let read = |connection: &Connection| Ok(connection.execute_batch("SELECT 1 FROM path LIMIT 1")?);
        self.readers.run(read).await.map_err(|error| Unfit::Unreadable(error.to_string()))?;
        if let Some(bytes) = self.condition.short_of_room() {
            return Err(Unfit::NotWritable(format!("the disk is full: {bytes} bytes are left")));
        }
        if writes.get().is_some() && self.condition.is_time_to_probe() {
            // The same values: no trigger and no reader sees it.
            let write = self.writer.run(|transaction| {
                transaction.execute("UPDATE stored SET nars = nars", [])?;
                Ok(())
            });
            // Noted where it was done.
            let _ = write.await;
        }
        writes.get().map_or(Ok(()), |reason| Err(Unfit::NotWritable(reason)))
    }

    /// Resolves once a write was refused by the system, a full disk as a rule, since this resolved last.
    pub async fn write_refused(&self) {
        self.condition.0.writes.noted().await;
    }
}

/// Whether it tells of a file that is not what SQLite or this program has written.
fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. } | Error::Pages(_))
        || matches!(code(error), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn is_refused_by_the_system(error: &Error) -> bool {
    matches!(error, Error::Ledger(_))
        || matches!(
            code(error),
            Some(
                ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::ReadOnly
                    | ErrorCode::CannotOpen
                    | ErrorCode::PermissionDenied
            )
        )
}

fn code(error: &Error) -> Option<ErrorCode> {
    match error {
        Error::Sql(source) | Error::Open { source, .. } => source.sqlite_error_code(),
        _ => None,
    }
}
