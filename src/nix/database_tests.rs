//! Tests of the reading of Nix's database, of its version, and of what is kept of it in memory, on databases
//! made here.

use std::path::Path;
use std::time::{Duration, Instant};

use narinfo::{StoreDir, StorePath};
use rusqlite::Connection;

use super::database::{DERIVERS, Database, KnownOutput, VALID_PATH};
use super::environment::Environment;
use super::known::{KnownHashes, Mark};
use super::version::{CounterFile, Watches};

/// The part of Nix's schema that is read here, as Nix 2.8 to 2.34 make it.
const SCHEMA: &str = "
    CREATE TABLE ValidPaths (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, path TEXT UNIQUE NOT NULL);
    CREATE TABLE DerivationOutputs (drv INTEGER NOT NULL, id TEXT NOT NULL, path TEXT NOT NULL,
        PRIMARY KEY (drv, id), FOREIGN KEY (drv) REFERENCES ValidPaths(id) ON DELETE CASCADE);
    CREATE INDEX IndexDerivationOutputs ON DerivationOutputs(path);";

fn environment(state_dir: &Path) -> Environment {
    let socket = state_dir.join("socket");
    let (state_dir, log_dir) = (state_dir.to_owned(), state_dir.join("log"));
    Environment { store_dir: StoreDir::default(), state_dir, log_dir, socket }
}

fn made(state_dir: &Path, rows: &str) -> Environment {
    let environment = environment(state_dir);
    std::fs::create_dir_all(state_dir.join("db")).expect("a folder");
    let connection = Connection::open(environment.database()).expect("made");
    connection.execute_batch(&format!("{SCHEMA}{rows}")).expect("filled");
    environment
}

fn path(letter: char, name: &str) -> StorePath {
    StorePath::parse(&format!("{}-{name}", letter.to_string().repeat(32))).expect("a store path")
}

#[test]
fn look_ups_search_an_index_and_never_scan() {
    let folder = tempfile::tempdir().expect("a folder");
    let environment = made(folder.path(), "");
    let connection = Connection::open(environment.database()).expect("opened");
    for (query, values) in [(DERIVERS, 2), (VALID_PATH, 1)] {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).expect("prepared");
        let values = rusqlite::params_from_iter(std::iter::repeat_n("1", values));
        let rows = statement.query_map(values, |row| row.get::<_, String>(3)).expect("a plan");
        let plan: Vec<String> = rows.collect::<Result<_, _>>().expect("a plan");
        assert!(plan[0].starts_with("SEARCH") && plan[0].contains("(path>? AND path<?)"), "{plan:?}");
        assert!(!plan.iter().any(|step| step.starts_with("SCAN")), "{plan:?}");
    }
}

#[test]
fn a_hash_finds_its_paths_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let [drv, other, out] = [path('d', "x.drv"), path('f', "x.drv"), path('b', "x")];
    let full = |path: &StorePath| path.in_dir(&StoreDir::default());
    let (drv_path, other_path, out_path) = (full(&drv), full(&other), full(&out));
    let environment = made(
        folder.path(),
        &format!(
            "INSERT INTO ValidPaths VALUES (1, '{drv_path}'), (2, '{other_path}');
            INSERT INTO DerivationOutputs VALUES (1, 'out', '{out_path}'), (2, 'dev', '{out_path}'),
                (1, 'doc', '{}'), (1, 'man', '{}');",
            full(&path('a', "x")),
            full(&path('c', "x")),
        ),
    );
    let database = Database::open(&environment).expect("opened");
    let known = |drv: &StorePath, output: &str| KnownOutput {
        path: out.clone(),
        drv: drv.clone(),
        output: output.into(),
    };
    let makers = database.derivers_of(out.hash()).expect("read");
    assert_eq!(makers, [known(&drv, "out"), known(&other, "dev")], "the oldest first");
    assert_eq!(database.valid_path(out.hash()).expect("read"), None);
    assert_eq!(database.valid_path(drv.hash()).expect("read"), Some(drv));
}

#[test]
fn what_is_wrong_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let environment = environment(folder.path());
    let error = Database::open(&environment).expect_err("not there").to_string();
    assert!(error.contains("db.sqlite") && error.contains("NIX_STATE_DIR"), "{error}");
    std::fs::create_dir(folder.path().join("db")).expect("a folder");
    std::fs::write(environment.database(), "no database, whatever its name says").expect("written");
    let error = Database::open(&environment).expect_err("garbage").to_string();
    assert!(error.contains("db.sqlite") && error.contains("read access"), "{error}");
}

fn counted(folder: &Path, mode: &str) -> (Connection, Watches) {
    let file = folder.join(mode);
    let connection = Connection::open(&file).expect("made");
    connection.pragma_update(None, "journal_mode", mode).expect("set");
    connection.execute_batch("CREATE TABLE t (n INTEGER)").expect("a table");
    let log = folder.join(format!("{mode}-shm"));
    let mut watches = Watches::default();
    watches
        .watch(if mode == "wal" { CounterFile::Log(log) } else { CounterFile::Database(file) })
        .expect("it can be opened");
    (connection, watches)
}

#[test]
fn every_commit_is_seen_and_nothing_else_in_each_kind_of_journal() {
    let folder = tempfile::tempdir().expect("a folder");
    for mode in ["wal", "delete", "truncate"] {
        let (writer, watches) = counted(folder.path(), mode);
        let mut before = watches.version().expect("nobody writes");
        for number in 0..100 {
            assert_eq!(watches.version(), Some(before), "{mode}: nothing was written");
            writer.execute("INSERT INTO t VALUES (?1)", [number]).expect("written");
            let after = watches.version().expect("nobody writes any more");
            assert_ne!(before, after, "{mode}: commit {number} was not seen");
            before = after;
            if number % 30 == 0 {
                writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("done");
                before = watches.version().expect("nobody writes");
            }
        }
    }
}

#[test]
fn another_file_in_its_place_and_another_journal_are_no_version_that_was_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let (writer, watches) = counted(folder.path(), "delete");
    assert_ne!(watches.version(), None);
    writer.pragma_update(None, "journal_mode", "wal").expect("set");
    assert_eq!(watches.version(), None, "the database itself tells no more");
    let (_writer, mut watches) = counted(folder.path(), "truncate");
    let before = watches.version().expect("nobody writes");
    let file = folder.path().join("truncate");
    std::fs::copy(&file, folder.path().join("copy")).expect("copied");
    std::fs::rename(folder.path().join("copy"), &file).expect("replaced");
    eventually("the other file is noticed", || watches.version().is_none());
    watches.watch(CounterFile::Database(file)).expect("opened");
    assert!(watches.version().is_some_and(|version| version != before), "the same bytes in another file");
}

/// A store whose database is open for writing, as a daemon has it, and the reader of it.
fn written(state_dir: &Path, mode: &str) -> (Connection, Database) {
    let environment = made(state_dir, "");
    let writer = Connection::open(environment.database()).expect("opened");
    writer.pragma_update(None, "journal_mode", mode).expect("set");
    (writer, Database::lazy(&environment))
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn numbered(number: i64, name: &str) -> StorePath {
    StorePath::parse(&format!("{number:032}-{name}")).expect("a store path")
}

/// Registers a derivation and, where it is odd, nothing but that; else another path with it.
fn register(writer: &mut Connection, number: i64) {
    let full = |path: StorePath| path.in_dir(&StoreDir::default());
    let transaction = writer.transaction().expect("begun");
    let insert = "INSERT INTO ValidPaths (path) VALUES (?1)";
    transaction.execute(insert, [full(numbered(3 * number, "x.drv"))]).expect("written");
    let drv = transaction.last_insert_rowid();
    let output = (drv, "out", full(numbered(3 * number + 1, "x")));
    transaction.execute("INSERT INTO DerivationOutputs VALUES (?1, ?2, ?3)", output).expect("written");
    if number % 2 == 0 {
        transaction.execute(insert, [full(numbered(3 * number + 2, "source"))]).expect("written");
    }
    transaction.commit().expect("committed");
}

#[test]
fn what_came_into_the_store_is_never_denied_and_what_did_not_is_once_all_is_read() {
    for mode in ["wal", "truncate"] {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut writer, database) = written(folder.path(), mode);
        let (known, mut mark) = (KnownHashes::default(), Mark::default());
        let lacks = |known: &KnownHashes, number: i64| known.definitely_absent(numbered(number, "x").hash());
        assert!(!lacks(&known, 0), "nobody knows yet");
        for number in 0..50 {
            mark = known.learn(&database, mark).expect("read").expect("its version can be told");
            assert!((0..3).all(|of| lacks(&known, 3 * number + of)), "{mode}, {number}: they are not there");
            register(&mut writer, number);
            assert!(
                (0..3).all(|of| !lacks(&known, 3 * number + of)),
                "{mode}, {number}: nobody has read them"
            );
            mark = known.learn(&database, mark).expect("read").expect("its version can be told");
            let there = |of: &i64| *of < 2 || number % 2 == 0;
            assert!((0..3).all(|of| lacks(&known, 3 * number + of) != there(&of)), "{mode}, {number}");
            if number % 7 == 0 {
                // The garbage collector; the numbers of its rows are not used again.
                writer
                    .execute_batch("DELETE FROM DerivationOutputs; DELETE FROM ValidPaths")
                    .expect("deleted");
                writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("done");
            }
        }
    }
}

#[test]
fn another_store_in_its_place_is_read_from_its_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut writer, database) = written(folder.path(), "wal");
    (0..9).for_each(|number| register(&mut writer, number));
    let known = KnownHashes::default();
    let mark = known.learn(&database, Mark::default()).expect("read").expect("told");
    drop(writer);
    std::fs::remove_dir_all(folder.path().join("db")).expect("removed");
    let (mut writer, _) = written(folder.path(), "wal");
    register(&mut writer, 100);
    eventually("the other store is noticed", || !known.definitely_absent(numbered(300, "x.drv").hash()));
    known.learn(&database, mark).expect("read").expect("told");
    assert!(!known.definitely_absent(numbered(300, "x.drv").hash()));
    assert!(known.definitely_absent(numbered(0, "x.drv").hash()), "the old one is gone");
}
