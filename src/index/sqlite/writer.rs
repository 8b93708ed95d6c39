//! The writer of SQLite: one thread that owns the only connection that writes. Must never run SQL on an async
//! thread.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, FileControl, MAIN_DB, OpenFlags, Transaction};
use tokio::sync::{mpsc, oneshot};

use super::Error;
use super::condition::Condition;
use super::ledger::LedgerHandle;
use crate::index::backend::{Changes, Follower};

/// Time for which a reader waits for a lock that only a checkpoint or a migration holds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes queued for the writer thread; further callers wait to queue theirs.
const WRITES_QUEUED_MAX: usize = 256;
/// Pages of the write-ahead log that force a checkpoint, 64 MiB. A checkpoint writes its pages all over a
/// large index, so steady publishing wants few of them; in a pause one is made earlier.
const LOG_PAGES_MAX: i64 = 16_384;
/// Bytes of the log that stay on the disk after a checkpoint; a large transaction makes it much longer.
const LOG_BYTES_KEPT: i64 = 64 * 1024 * 1024;
/// The schema's version, in `user_version`.
const SCHEMA_VERSION: i64 = 11;
/// Migrations of each older version to the next one, from version 1 on.
const MIGRATIONS: [&str; 10] = [
    include_str!("from_1.sql"),
    include_str!("from_2.sql"),
    include_str!("from_3.sql"),
    include_str!("from_4.sql"),
    include_str!("from_5.sql"),
    include_str!("from_6.sql"),
    include_str!("from_7.sql"),
    include_str!("from_8.sql"),
    include_str!("from_9.sql"),
    include_str!("from_10.sql"),
];

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The way to the writer thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    /// True where the log may have pages that no checkpoint has written back.
    written: Arc<AtomicBool>,
    condition: Condition,
    ledger: LedgerHandle,
    feed: Feed,
}

/// Feed of committed changes to the follower; clones share it.
#[derive(Clone, Default)]
struct Feed(Arc<Mutex<FeedState>>);

/// Number of the latest change, and the follower.
#[derive(Default)]
struct FeedState {
    sequence: u64,
    follower: Option<Arc<dyn Follower>>,
}

impl Feed {
    /// Passes the changes of a committed write to the follower.
    fn publish(&self, changes: &Changes) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.sequence += 1;
        if let Some(follower) = &state.follower {
            follower.apply(state.sequence, changes);
        }
    }
}

impl Writer {
    /// Opens (or makes) the database and starts the thread that writes to it.
    pub(super) fn open(file: &Path, condition: Condition) -> Result<Self, Error> {
        let mut connection = Connection::open(file).map_err(|source| Error::open(file, source))?;
        prepare(&mut connection, file)?;
        let (sender, mut jobs) = mpsc::channel::<Job>(WRITES_QUEUED_MAX);
        std::thread::Builder::new()
            .name("index-writer".into())
            .spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job(&mut connection);
                }
            })
            .map_err(Error::Thread)?;
        // The last run may have been stopped before its checkpoint.
        Ok(Self {
            jobs: sender,
            written: Arc::new(AtomicBool::new(true)),
            condition,
            ledger: LedgerHandle::default(),
            feed: Feed::default(),
        })
    }

    /// Checkpoints the write-ahead log whenever no write waits; checks for that at this interval.
    pub(super) async fn checkpoint_in_pauses(&self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let pause = self.jobs.capacity() == WRITES_QUEUED_MAX;
            if pause && self.written.swap(false, Ordering::Relaxed) {
                // Pages that a reader still needs stay in the log until the next checkpoint.
                let done = self.do_job(|connection| Ok(connection.execute_batch("PRAGMA wal_checkpoint")?));
                if let Err(error) = done.await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "checkpoint of the index failed; it is tried again after the next write. Check the disk of the \
                         state directory if this repeats"
                    );
                }
            }
        }
    }

    /// Checkpoints and truncates the write-ahead log, which the next start would have to read first.
    pub(super) async fn truncate_log(&self) -> Result<(), Error> {
        let empty =
            |connection: &mut Connection| Ok(connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?);
        self.do_job(empty).await
    }

    /// Runs `work` in one transaction; it is durable when this returns `Ok`.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.change(|transaction| Ok((Changes::default(), work(transaction)?))).await
    }

    /// Runs a write in one transaction. Its changes are passed to the follower after the commit, before the
    /// next transaction and before the write is acknowledged, also when the caller has gone.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<(Changes, T), Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.written.store(true, Ordering::Relaxed);
        let (condition, ledger, feed) = (self.condition.clone(), self.ledger.clone(), self.feed.clone());
        let job = move |connection: &mut Connection| {
            let outcome = in_transaction(connection, &ledger, work);
            condition.note_write(&outcome);
            outcome.map(|(changes, value)| {
                feed.publish(&changes);
                value
            })
        };
        self.do_job(job).await
    }

    /// Makes `follower` the one that every later change is passed to.
    pub(super) fn follow(&self, follower: Arc<dyn Follower>) {
        self.feed.0.lock().unwrap_or_else(PoisonError::into_inner).follower = Some(follower);
    }

    /// Runs `work` between two transactions.
    pub(super) async fn on_connection<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.do_job(|connection| work(connection)).await
    }

    /// The ledger that is written beside the database.
    pub(super) fn ledger(&self) -> &LedgerHandle {
        &self.ledger
    }

    async fn do_job<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // The asker may have gone away; what was done stands all the same.
            let _ = sender.send(work(connection));
        });
        self.jobs.send(job).await.map_err(|_| Error::WriterGone)?;
        receiver.await.map_err(|_| Error::WriterGone)?
    }
}

fn in_transaction<T>(
    connection: &mut Connection,
    ledger: &LedgerHandle,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let transaction = connection.transaction()?;
    let value = work(&transaction)?;
    ledger.write(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// Sets the connection up and brings the schema to [`SCHEMA_VERSION`].
fn prepare(connection: &mut Connection, file: &Path) -> Result<(), Error> {
    let open_error = |source| Error::open(file, source);
    connection.busy_timeout(BUSY_TIMEOUT).map_err(open_error)?;
    connection.pragma_update(None, "journal_mode", "wal").map_err(open_error)?;
    // FULL: what was acknowledged survives a power cut.
    connection.pragma_update(None, "synchronous", "full").map_err(open_error)?;
    // Else each start would make its log, and the index of that, anew. It is empty after the last connection.
    connection.file_control(Some(MAIN_DB), FileControl::PersistWal(&mut 1)).map_err(open_error)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT).map_err(open_error)?;
    // Else deletions on a full disk would want temporary files.
    connection.pragma_update(None, "temp_store", "memory").map_err(open_error)?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES_MAX).map_err(open_error)?;
    let version = known_version(connection, file)?;
    let steps = match usize::try_from(version) {
        Ok(done @ 1..) => &MIGRATIONS[done - 1..],
        _ => &[include_str!("schema.sql")][..],
    };
    if version < SCHEMA_VERSION {
        if version > 0 {
            tracing::info!(
                from = version,
                to = SCHEMA_VERSION,
                "migrating the index; a million paths take some seconds"
            );
        }
        let transaction = connection.transaction()?;
        drop_triggers(&transaction)?;
        for step in steps.iter().chain([&include_str!("triggers.sql")]) {
            transaction.execute_batch(step).map_err(open_error)?;
        }
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.commit()?;
    }
    Ok(())
}

/// The version of the schema, which must be one that this program knows.
fn known_version(connection: &Connection, file: &Path) -> Result<i64, Error> {
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    let version: i64 = version.map_err(|source| Error::open(file, source))?;
    if version > SCHEMA_VERSION {
        return Err(Error::Newer { file: file.to_owned(), found: version, known: SCHEMA_VERSION });
    }
    Ok(version)
}

/// Looks whether the file could be opened as an index, and changes nothing.
pub(super) fn check(file: &Path) -> Result<(), Error> {
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY);
    known_version(&connection.map_err(|source| Error::open(file, source))?, file).map(drop)
}

/// Drops all triggers, which have no data of their own, until `triggers.sql` makes them anew.
pub(super) fn drop_triggers(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'")?;
    let names = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    names.iter().try_for_each(|name| transaction.execute_batch(&format!("DROP TRIGGER {name}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Every column of every table: its type, if it may be null, its place in the primary key; and if the
    /// table is one without row numbers.
    type Shape = BTreeMap<(String, String), (String, bool, i64, bool)>;

    fn shape(file: &Path) -> Shape {
        let connection = Connection::open(file).expect("a database");
        let sql = "SELECT t.name, c.name, c.type, c.\"notnull\", c.pk, t.wr FROM pragma_table_list t, \
                   pragma_table_info(t.name) c WHERE t.schema = 'main' AND t.name NOT LIKE 'sqlite_%'";
        let mut statement = connection.prepare(sql).expect("a good statement");
        let rows = statement.query_map([], |row| {
            Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)))
        });
        rows.expect("an answer").collect::<Result<_, _>>().expect("rows")
    }

    /// Everything else, indexes and triggers, and what each was made with.
    fn beside_tables(file: &Path) -> BTreeMap<String, Option<String>> {
        let connection = Connection::open(file).expect("a database");
        let sql = "SELECT name, sql FROM sqlite_schema WHERE type IN ('index', 'trigger')";
        let mut statement = connection.prepare(sql).expect("a good statement");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.expect("an answer").collect::<Result<_, _>>().expect("rows")
    }

    /// A database as version 1 of the schema made it.
    fn old(file: &Path) -> Connection {
        let connection = Connection::open(file).expect("a database");
        connection.execute_batch(include_str!("schema_1.sql")).expect("the old schema");
        connection.pragma_update(None, "user_version", 1).expect("set");
        connection
    }

    #[test]
    fn an_index_of_version_1_becomes_what_a_fresh_one_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let (fresh, migrated) = (folder.path().join("fresh"), folder.path().join("migrated"));
        drop(old(&migrated));
        for file in [&fresh, &migrated, &migrated] {
            drop(Writer::open(file, Condition::new(file)).expect("opened"));
        }
        assert!(shape(&fresh).len() > 20, "the tables were not found");
        assert_eq!(shape(&migrated), shape(&fresh));
        assert_eq!(beside_tables(&migrated), beside_tables(&fresh));
    }

    #[test]
    fn what_an_older_index_did_with_rows_that_come_or_go_is_what_a_fresh_one_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let (fresh, older) = (folder.path().join("fresh"), folder.path().join("older"));
        for file in [&fresh, &older] {
            drop(Writer::open(file, Condition::new(file)).expect("opened"));
        }
        let changed = "DROP TRIGGER nar_gone; DROP TRIGGER path_served; PRAGMA user_version = 5; \
                       ALTER TABLE request DROP COLUMN builder; \
                       DROP TABLE token; DROP TRIGGER path_refers; DROP TRIGGER path_refers_no_more; \
                       DROP TABLE reference; DROP TABLE history; \
                       DROP TRIGGER former_nar_forgotten; DROP TABLE program; DROP TABLE catalogue_version; \
                       DROP INDEX catalogue_attribute_by_program; \
                       ALTER TABLE catalogue_attribute DROP COLUMN program; \
                       ALTER TABLE catalogue_new_attribute DROP COLUMN program; \
                       DROP TRIGGER pushed_path_gone; DROP TABLE pushed_derivation; DROP TABLE pushed_output; \
                       ALTER TABLE catalogue_attribute DROP COLUMN output; \
                       ALTER TABLE catalogue_new_attribute DROP COLUMN output; \
                       DROP INDEX eviction_order_by_need; ALTER TABLE eviction_order RENAME TO turn; \
                       CREATE INDEX turn_by_need ON turn (needed_at); \
                       CREATE TRIGGER path_served AFTER INSERT ON path BEGIN DELETE FROM turn; END;";
        Connection::open(&older).and_then(|older| older.execute_batch(changed)).expect("changed");
        assert_ne!(beside_tables(&older), beside_tables(&fresh));
        drop(Writer::open(&older, Condition::new(&older)).expect("migrated"));
        assert_eq!((shape(&older), beside_tables(&older)), (shape(&fresh), beside_tables(&fresh)));
    }

    /// A database to which a row was written.
    async fn written(file: &Path) -> Writer {
        let writer = Writer::open(file, Condition::new(file)).expect("opened");
        let insert = "INSERT INTO duration (work, millis, built) VALUES ('x', 1, 0)";
        writer.run(|transaction| Ok(transaction.execute(insert, [])?)).await.expect("written");
        writer
    }

    fn has_the_row(file: &Path) -> bool {
        let other = Connection::open(file).expect("opened");
        other.query_row("SELECT count(*) FROM duration", [], |row| row.get(0)).unwrap_or(0) == 1
    }

    #[tokio::test]
    async fn the_log_is_empty_once_it_is_closed_and_nothing_is_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, log) = (folder.path().join("index"), folder.path().join("index-wal"));
        let writer = written(&file).await;
        assert!(log.metadata().expect("the log").len() > 0);
        writer.truncate_log().await.expect("emptied");
        assert_eq!(log.metadata().expect("the log").len(), 0);
        assert!(has_the_row(&file));
    }

    #[tokio::test]
    async fn the_log_is_written_back_in_a_pause() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, alone) = (folder.path().join("index"), folder.path().join("alone"));
        let writer = written(&file).await;
        // The database by itself, without its log.
        let has_it = || {
            std::fs::copy(&file, &alone).expect("copied");
            has_the_row(&alone)
        };
        assert!(!has_it());
        let written_back = async {
            while !has_it() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = writer.checkpoint_in_pauses(Duration::from_millis(1)) => unreachable!("it goes on for ever"),
            () = written_back => {}
        }
    }

    #[tokio::test]
    async fn the_paths_of_version_1_are_served_and_come_and_go_as_all_others() {
        use crate::index::{Index, samples};
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("index");
        let before = old(&file);
        let rows = [samples::row(1, &[]), samples::row(2, &[])];
        for row in &rows {
            let path = "INSERT INTO path VALUES (?1, ?2, ?3, 1, '', NULL, NULL, '', 0)";
            let (hash, name) = (row.info.path.hash(), row.info.path.name());
            before.execute(path, (hash.as_str(), name, row.info.nar_hash.as_bytes())).expect("a row");
        }
        let packed = "INSERT INTO nar VALUES (?1, ?1, 1, 0)";
        before.execute(packed, [rows[0].info.nar_hash.as_bytes()]).expect("a row");
        drop(before);
        let index = Index::open(&file).expect("migrated");
        let [first, second] = rows;
        let hit = index.find(first.info.path.hash()).await.expect("read").expect("served");
        assert_eq!(
            (&hit.row.info.path, hit.row.info.nar_hash, hit.packed.is_some()),
            (&first.info.path, first.info.nar_hash, true)
        );
        let sought = index.unpacked().await.expect("read");
        assert_eq!(sought.iter().map(|row| &row.info.path).collect::<Vec<_>>(), [&second.info.path]);
        assert_eq!(index.counts().await.expect("read").paths, 2);
        index.forget_paths(second.info.nar_hash).await.expect("forgotten");
        assert!(index.publish(vec![samples::row(3, &[])]).await.expect("published"));
        assert_eq!(index.counts().await.expect("read").paths, 2);
        let sought = index.unpacked().await.expect("read");
        assert_eq!(
            sought.iter().map(|row| &row.info.path).collect::<Vec<_>>(),
            [&samples::row(3, &[]).info.path]
        );
    }

    #[tokio::test]
    async fn the_failures_that_version_1_remembered_are_of_the_same_class() {
        use crate::index::Index;
        use crate::model::FailureClass;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("index");
        let names = ["0123456789abcdfghijklmnpqrsvwxyz-p.drv", "1123456789abcdfghijklmnpqrsvwxyz-q.drv"];
        let before = old(&file);
        for (permanent, name) in names.iter().enumerate() {
            let row = (name, permanent == 1, name, "why", 1, i64::from(u32::MAX));
            before.execute("INSERT INTO failure VALUES (?1, ?2, ?3, ?4, ?5, ?6)", row).expect("a row");
        }
        drop(before);
        let index = Index::open(&file).expect("migrated");
        for (name, class) in names.into_iter().zip([FailureClass::Transient, FailureClass::Permanent]) {
            let drv = narinfo::StorePath::parse(name).expect("a name");
            let failure = index.failure(drv, std::time::SystemTime::now()).await.expect("read");
            assert_eq!(failure.map(|failure| failure.class), Some(class), "{name}");
        }
    }
}
