//! The ledger: a second record, beside the NARs, of what is served, from which the index can be made anew.
//! Lines are added before the transaction that they belong to is committed, and never changed; now and then
//! the index is written out as a whole, and what came before goes. Nothing is read from it but for a
//! recovery.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use narinfo::{DrvOutput, Realisation};
use rusqlite::{Connection, Row, Transaction};

use super::nar::joined_nar_row;
use super::pushed::recorded_pushed;
use super::rows::{PATH_COLUMNS, path_row};
use super::{Error, Sqlite, upstream};
use crate::index::{Record, Recorded};

/// The files in its folder, in the order in which they are read: the index as it once was, what was added
/// until it was last begun to be written out, and what was added since.
static FILES: [&str; 3] = ["base", "before", "added"];
/// Bytes appended before a compaction, at least; more where the compacted ledger is larger.
const ADDED_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Bytes of empty lines that are written ahead of the next ones: to write over them changes no length of a
/// file, and so takes the disk once instead of twice (the file system's journal).
const ROOM_AHEAD: usize = 256 * 1024;
/// Bytes of a line at most: a path that refers to a hundred thousand others.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Interval at which a compaction is considered, and the pause after one failed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Temporary tables of the connection that writes: a transaction's changes of what can be served.
const NOTES: &str = "
CREATE TEMP TABLE noted_path (hash TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TEMP TABLE noted_realisation (file TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TEMP TABLE noted_pushed (hash TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TEMP TRIGGER packed_path_noted AFTER INSERT ON main.path
WHEN EXISTS (SELECT 1 FROM main.nar WHERE nar_hash = NEW.nar_hash) BEGIN
    INSERT OR IGNORE INTO noted_path VALUES (NEW.hash);
END;
CREATE TEMP TRIGGER nar_noted AFTER INSERT ON main.nar BEGIN
    INSERT OR IGNORE INTO noted_path SELECT hash FROM main.path WHERE nar_hash = NEW.nar_hash;
END;
CREATE TEMP TRIGGER nar_change_noted AFTER UPDATE ON main.nar BEGIN
    INSERT OR IGNORE INTO noted_path SELECT hash FROM main.path WHERE nar_hash = NEW.nar_hash;
END;
CREATE TEMP TRIGGER upstream_nar_noted AFTER INSERT ON main.upstream_nar BEGIN
    INSERT OR IGNORE INTO noted_path SELECT hash FROM main.path WHERE nar_hash = NEW.nar_hash;
END;
CREATE TEMP TRIGGER signatures_noted AFTER UPDATE OF sigs ON main.path
WHEN EXISTS (SELECT 1 FROM main.nar WHERE nar_hash = NEW.nar_hash)
    OR EXISTS (SELECT 1 FROM main.upstream_nar WHERE nar_hash = NEW.nar_hash)
BEGIN
    INSERT OR IGNORE INTO noted_path VALUES (NEW.hash);
END;
CREATE TEMP TRIGGER realisation_noted AFTER INSERT ON main.realisation BEGIN
    INSERT OR IGNORE INTO noted_realisation VALUES (NEW.file);
END;
CREATE TEMP TRIGGER pushed_noted AFTER INSERT ON main.pushed_derivation BEGIN
    INSERT OR IGNORE INTO noted_pushed VALUES (NEW.hash);
END;
";

/// Query of the noted realisations. Begins with the notes, which are few: SQLite would rather begin with all
/// that there is, in each transaction.
const NOTED_REALISATIONS: &str =
    "SELECT r.file, r.body FROM temp.noted_realisation t CROSS JOIN realisation r ON r.file = t.file";

/// Query of the noted paths, with their files, in the same way.
fn noted_paths() -> String {
    format!(
        "SELECT {PATH_COLUMNS}, n.nar_hash, n.file_hash, n.file_size FROM temp.noted_path t \
         CROSS JOIN path p ON p.hash = t.hash LEFT JOIN nar n ON n.nar_hash = p.nar_hash"
    )
}

/// The way to the ledger of an index, if it has one; clones share it.
#[derive(Clone, Default)]
pub(super) struct LedgerHandle(Arc<Mutex<Option<Ledger>>>);

/// An open ledger.
struct Ledger {
    dir: PathBuf,
    file: File,
    /// End of the last line, where the next one is written.
    bytes: u64,
    /// End of the empty lines behind it.
    room: u64,
    /// True once its name is durable.
    is_named: bool,
}

impl LedgerHandle {
    /// Appends the changes of a transaction before it is committed. Durable where a stored file is
    /// concerned: what only an upstream has can be found there again.
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let mut ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ledger) = &mut *ledger else { return Ok(()) };
        let (mut lines, mut durable) = (String::new(), false);
        {
            let mut statement = transaction.prepare_cached(&noted_paths())?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let recorded = recorded(transaction, row)?;
                durable |= recorded.packed.is_some();
                lines.push_str(&Record::Path(Box::new(recorded)).render());
            }
            let mut statement = transaction.prepare_cached(NOTED_REALISATIONS)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                lines.extend(realisation(row)?.map(|realisation| Record::Realisation(realisation).render()));
            }
            let mut statement = transaction.prepare_cached("SELECT hash FROM temp.noted_pushed")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let pushed = recorded_pushed(transaction, &row.get::<_, String>(0)?)?;
                durable |= pushed.is_some();
                lines.extend(pushed.map(|pushed| Record::Pushed(pushed).render()));
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        transaction.prepare_cached("DELETE FROM temp.noted_path")?.execute([])?;
        transaction.prepare_cached("DELETE FROM temp.noted_realisation")?.execute([])?;
        transaction.prepare_cached("DELETE FROM temp.noted_pushed")?.execute([])?;
        ledger.append(lines.as_bytes(), durable).map_err(Error::Ledger)
    }

    fn open(&self, dir: &Path) -> io::Result<()> {
        let ledger = Ledger::open(dir)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ledger);
        Ok(())
    }

    fn folder(&self) -> Option<PathBuf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|ledger| ledger.dir.clone())
    }

    /// True where the index is to be written out.
    fn is_due(&self) -> bool {
        let ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.as_ref().is_some_and(Ledger::is_due)
    }

    /// Starts a file of its own for what is added from now on. To be called between two transactions.
    fn turn_over(&self) -> io::Result<()> {
        let mut ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = &mut *ledger else { return Ok(()) };
        let [_, old, added] = FILES.map(|name| open.dir.join(name));
        // Where one is left, the last time was interrupted: what is in it is in the index, too.
        if !old.exists() {
            match fs::rename(&added, &old) {
                // Somebody has removed it: all that it said is about to be written out.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => *open = Ledger::open(&open.dir)?,
            }
        }
        Ok(())
    }
}

impl Ledger {
    fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join(FILES[2]);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let room = file.metadata()?.len();
        let mut bytes = end_of_lines(&file, room)?;
        if bytes > 0 {
            // A run that was killed may have left a part of a line: the next one begins on its own.
            file.write_all_at(b"\n", bytes)?;
            bytes += 1;
        }
        Ok(Self { dir: dir.to_owned(), file, bytes, room: room.max(bytes), is_named: false })
    }

    fn append(&mut self, lines: &[u8], durable: bool) -> io::Result<()> {
        let written = self.write(lines).and_then(|()| if durable { self.sync() } else { Ok(()) });
        match written {
            Ok(()) => self.bytes += lines.len() as u64,
            Err(_) => self.cut()?,
        }
        written
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let end = self.bytes + lines.len() as u64;
        if end <= self.room {
            return self.file.write_all_at(lines, self.bytes);
        }
        let mut with_room = lines.to_vec();
        with_room.resize(lines.len() + ROOM_AHEAD, b'\n');
        match self.file.write_all_at(&with_room, self.bytes) {
            Ok(()) => self.room = end + ROOM_AHEAD as u64,
            // The lines themselves may still have a place.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.cut()?;
                self.file.write_all_at(lines, self.bytes)?;
                self.room = end;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes what was written durable, and the name of a file that is new to this run.
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if !self.is_named {
            File::open(&self.dir)?.sync_all()?;
            self.is_named = true;
        }
        Ok(())
    }

    /// Removes what was written behind the last line: a part of a line would spoil the next one.
    fn cut(&mut self) -> io::Result<()> {
        self.room = self.bytes;
        self.file.set_len(self.bytes)
    }

    fn is_due(&self) -> bool {
        let [base, old, _] = FILES.map(|name| self.dir.join(name));
        match base.metadata() {
            Ok(base) => old.exists() || self.bytes > base.len().max(ADDED_BYTES_MIN),
            Err(_) => true,
        }
    }
}

/// End of the last line that is not empty, before `end`.
fn end_of_lines(file: &File, end: u64) -> io::Result<u64> {
    let mut part = [0; 4096];
    let mut behind = end;
    while behind > 0 {
        let begin = behind.saturating_sub(part.len() as u64);
        let read = &mut part[..usize::try_from(behind - begin).unwrap_or_default()];
        file.read_exact_at(read, begin)?;
        if let Some(last) = read.iter().rposition(|byte| *byte != b'\n') {
            return Ok(begin + last as u64 + 1);
        }
        behind = begin;
    }
    Ok(0)
}

impl Sqlite {
    /// Opens the ledger in the folder `dir`, in which everything is recorded that it takes to make the index
    /// anew.
    ///
    /// # Errors
    /// The files there cannot be opened.
    pub async fn with_ledger(self, dir: &Path) -> Result<Self, crate::index::Error> {
        self.writer.on_connection(|connection| Ok(connection.execute_batch(NOTES)?)).await?;
        self.writer.ledger().open(dir).map_err(Error::Ledger)?;
        Ok(self)
    }

    /// Compacts the ledger whenever it has grown enough, for as long as the server runs.
    pub(super) async fn compact_ledger_when_due(&self) {
        loop {
            let written = if self.writer.ledger().is_due() { self.compact_ledger().await } else { Ok(()) };
            let rest = if written.is_ok() { LOOK_EVERY } else { RETRY_AFTER };
            if let Err(error) = written {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "compaction of the ledger beside the NARs failed; it is tried again. Check the disk of the state directory"
                );
            }
            tokio::time::sleep(rest).await;
        }
    }

    /// Writes the whole index into a new ledger, and removes the old one.
    pub(super) async fn compact_ledger(&self) -> Result<(), Error> {
        let ledger = self.writer.ledger().clone();
        let Some(dir) = ledger.folder() else { return Ok(()) };
        // Whatever was added before is committed by now, and seen by who reads below.
        self.writer.on_connection(move |_| ledger.turn_over().map_err(Error::Ledger)).await?;
        self.readers.run(move |connection| write_all(connection, &dir)).await
    }
}

/// True where a ledger in this folder has any record.
#[must_use]
pub fn has_ledger(dir: &Path) -> bool {
    FILES.iter().any(|name| dir.join(name).metadata().is_ok_and(|file| file.len() > 0))
}

/// The records of a ledger, in the order in which they were written. Corrupt lines are passed over, and
/// counted. Blocking.
pub struct LedgerReader {
    dir: PathBuf,
    /// Files that are not begun.
    left: std::slice::Iter<'static, &'static str>,
    file: Option<BufReader<File>>,
    line: Vec<u8>,
    corrupt: u64,
}

impl LedgerReader {
    /// The ledger in this folder, from its begin.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), left: FILES.iter(), file: None, line: Vec::new(), corrupt: 0 }
    }

    /// Number of corrupt lines so far.
    #[must_use]
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            let Some(file) = &mut self.file else {
                let Some(name) = self.left.next() else { return Ok(None) };
                self.file = match File::open(self.dir.join(name)) {
                    Ok(file) => Some(BufReader::new(file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(error),
                };
                continue;
            };
            self.line.clear();
            if file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)? == 0 {
                self.file = None;
                continue;
            }
            let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            match Record::parse(line) {
                Some(record) => return Ok(Some(record)),
                None => self.corrupt += u64::from(!line.is_empty()),
            }
        }
    }
}

impl Iterator for LedgerReader {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_record().transpose()
    }
}

fn write_all(connection: &Connection, dir: &Path) -> Result<(), Error> {
    let [base, old, _] = FILES.map(|name| dir.join(name));
    let draft = dir.join("base.new");
    let created = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
    let mut out = BufWriter::new(created.map_err(Error::Ledger)?);
    let mut write = |record: Record| out.write_all(record.render().as_bytes()).map_err(Error::Ledger);
    // One transaction, so that all is of the same moment.
    let transaction = connection.unchecked_transaction()?;
    {
        let mut statement = transaction.prepare(&format!(
            "SELECT {PATH_COLUMNS}, n.nar_hash, n.file_hash, n.file_size \
             FROM path p LEFT JOIN nar n ON n.nar_hash = p.nar_hash"
        ))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let recorded = recorded(&transaction, row)?;
            if recorded.packed.is_some() || !recorded.upstreams.is_empty() {
                write(Record::Path(Box::new(recorded)))?;
            }
        }
        let mut statement = transaction.prepare("SELECT file, body FROM realisation")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(realisation) = realisation(row)? {
                write(Record::Realisation(realisation))?;
            }
        }
        let mut statement = transaction.prepare("SELECT hash FROM pushed_derivation")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(pushed) = recorded_pushed(&transaction, &row.get::<_, String>(0)?)? {
                write(Record::Pushed(pushed))?;
            }
        }
    }
    drop(transaction);
    connection.execute_batch("PRAGMA shrink_memory")?;
    let kept = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| {
        file.sync_all()?;
        fs::rename(&draft, &base)?;
        File::open(dir)?.sync_all()?;
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    });
    kept.map_err(Error::Ledger)
}

/// A path, its file, and who else has its contents.
fn recorded(connection: &Connection, row: &Row<'_>) -> Result<Recorded, Error> {
    let path = path_row(row)?;
    let upstreams = upstream::with_nar(connection, path.info.nar_hash)?;
    Ok(Recorded { packed: joined_nar_row(row)?, upstreams, path })
}

/// `None` for one that this version cannot read.
fn realisation(row: &Row<'_>) -> Result<Option<Realisation>, Error> {
    let (file, body): (String, String) = (row.get(0)?, row.get(1)?);
    let id = DrvOutput::from_file(&file).ok();
    Ok(id.and_then(|id| Realisation::parse(&id, body.as_bytes()).ok()))
}

#[cfg(test)]
mod tests {
    use super::super::plans::scans;
    use super::*;

    #[test]
    fn lines_take_the_room_ahead_of_them_also_behind_a_torn_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(FILES[2]);
        let mut ledger = Ledger::open(folder.path()).expect("opened");
        assert!(!has_ledger(folder.path()), "room alone is no record");
        ledger.append(b"one\n", true).expect("written");
        let length = ledger.file.metadata().expect("there").len();
        for _ in 0..100 {
            ledger.append(b"two\n", true).expect("written");
        }
        assert_eq!(ledger.file.metadata().expect("there").len(), length, "they need no room of their own");
        ledger.file.write_all_at(b"tor", ledger.bytes).expect("written");
        drop(ledger);
        let mut ledger = Ledger::open(folder.path()).expect("opened");
        ledger.append(b"three\n", false).expect("written");
        ledger.append(&[b'4'; ROOM_AHEAD * 2], false).expect("written");
        let text = fs::read_to_string(file).expect("text");
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.pop().map(str::len), Some(ROOM_AHEAD * 2));
        assert_eq!(lines, [&["one"][..], &["two"; 100], &["tor", "three"]].concat());
    }

    #[test]
    fn what_a_transaction_has_changed_is_found_without_a_look_at_every_path() {
        for sql in [&*noted_paths(), NOTED_REALISATIONS] {
            assert_eq!(scans(NOTES, sql, []), ["SCAN t"], "{sql}");
        }
    }
}
