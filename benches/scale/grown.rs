//! Indexes of every size: synthetic paths with references and a signature, all packed. Their NARs are names
//! of empty files: a server looks whether they are there, and none is asked for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use narinfo::{NarHash, PathInfo, Signature, StorePath};
use ondine::index::Index;
use ondine::model::PathRow;
use rusqlite::{Connection, params};

use crate::random::Random;
use crate::support::Cache;
use crate::support::store::Folder;

/// The file of the index in the state directory, and its log.
const INDEX: &str = "index.sqlite";
const LOG: &str = "index.sqlite-wal";
/// Paths that each refers to.
const REFERENCES: u64 = 5;
/// Passes over the tables while they are filled. An index that was filled in one go has no
/// room in its pages, and each path that comes later splits some; one that grew path by path, in the order of
/// no hash, has.
const PASSES: u64 = 8;
/// Names of one file: ext4 allows some more.
const NAMES_MAX: u64 = 60_000;
/// A step through all numbers below any size that is no multiple of it: a prime.
const STRIDE: u64 = 7_368_787;

/// The index of a server that does not run.
pub struct Grown {
    state: Folder,
    file: PathBuf,
    /// Number of its paths.
    paths: u64,
    /// A signature in the form that all have.
    signature: String,
    random: Random,
}

impl Grown {
    /// An index of so many paths, in a state directory of its own that begins as that of this cache, whose
    /// server was stopped. The paths go straight into the tables: this is to take no time. On disk when it
    /// returns, so that nothing is written beside what is measured.
    pub fn new(cache: &Cache, paths: u64) -> Grown {
        let state = Folder::new();
        // With its log: that is written back by the last connection that is closed, if any is.
        for name in ["signing-key", INDEX, LOG] {
            std::fs::copy(cache.ondine.state_dir().join(name), state.path().join(name)).expect("copied");
        }
        let file = state.path().join(INDEX);
        let (key, _) = cache.ondine.public_key().split_once(':').expect("a key has a name");
        let signature = format!("{key}:{}==", "A".repeat(86));
        signature.parse::<Signature>().expect("it looks like one");
        let mut numbers: Vec<u64> = (0..paths).collect();
        // In the order of the tables: each page is written once in a pass.
        numbers.sort_by_cached_key(|number| (number % PASSES, hash(*number)));
        let mut connection = Connection::open(&file).expect("the index opens");
        for (setting, value) in [("synchronous", "off"), ("journal_mode", "off")] {
            connection.pragma_update(None, setting, value).expect("set");
        }
        let transaction = connection.transaction().expect("begun");
        {
            let path = "INSERT INTO path (hash, name, nar_hash, nar_size, refs, deriver, sigs, added_at) \
                        VALUES (?1, ?2, ?3, 100000, ?4, ?5, ?6, 0)";
            let nar = "INSERT INTO nar (nar_hash, file_hash, file_size, packed_at) VALUES (?1, ?1, 20000, 0)";
            let mut path = transaction.prepare(path).expect("a statement");
            let mut nar = transaction.prepare(nar).expect("a statement");
            for number in numbers {
                let (hash, nar_hash) = (hash(number), nar_hash(number));
                let references: Vec<String> = references(number).iter().map(StorePath::to_string).collect();
                let deriver = format!("{}-synthetic-{number}.drv", self::hash(!number));
                let row = params![hash, name(number), nar_hash, references.join(" "), deriver, signature];
                path.execute(row).expect("inserted");
                nar.execute(params![nar_hash]).expect("inserted");
            }
        }
        transaction.commit().expect("committed");
        connection.pragma_update(None, "journal_mode", "wal").expect("set");
        drop(connection);
        link_nars(&state.path().join("nar"), paths).expect("linked");
        rustix::fs::syncfs(std::fs::File::open(&file).expect("it is there")).expect("on disk");
        Grown { state, file, paths, signature, random: Random(1) }
    }

    /// The state directory that it is in.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Bytes of its file.
    pub fn bytes(&self) -> u64 {
        self.file.metadata().expect("it is there").len()
    }

    /// The hashes of so many paths that are there, from everywhere; some twice where there are not as many.
    pub fn some(&self, count: usize) -> impl Iterator<Item = String> {
        (0..count as u64).map(|step| hash(step.wrapping_mul(STRIDE) % self.paths))
    }

    /// Hashes of no path.
    pub fn unknown(&self, count: usize) -> impl Iterator<Item = String> {
        (0..count as u64).map(|step| hash(u64::MAX / 2 + step))
    }

    /// Publishes closures of so many paths each, so many of them, as a server does: durable one by one. The
    /// time that it takes.
    pub fn publish(&mut self, (paths, closures): (usize, usize)) -> Duration {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let index = Index::open(&self.file).expect("the index opens");
        let signature: Signature = self.signature.parse().expect("it looks like one");
        let batches: Vec<Vec<PathRow>> =
            (0..closures).map(|_| (0..paths).map(|_| self.new_row(&signature)).collect()).collect();
        let begun = Instant::now();
        runtime.block_on(async {
            for batch in batches {
                assert!(index.publish(batch).await.expect("published"), "not all references are there");
            }
        });
        begun.elapsed()
    }

    /// A path that is not there, and refers to some that are.
    fn new_row(&mut self, signature: &Signature) -> PathRow {
        let number = u64::MAX / 4 + (self.random.next() >> 8);
        let info = PathInfo {
            path: path(number),
            nar_hash: NarHash::from_bytes(nar_hash(number)),
            nar_size: 100_000,
            references: references(self.random.below(self.paths)).into_iter().collect(),
            deriver: None,
            ca: None,
            signatures: vec![signature.clone()],
        };
        PathRow { info, built: true }
    }
}

/// Gives each path the file of its NAR: some file of many names.
fn link_nars(dir: &Path, paths: u64) -> std::io::Result<()> {
    let mut named: Option<PathBuf> = None;
    for number in 0..paths {
        let nar = NarHash::from_bytes(nar_hash(number)).to_nixbase32();
        let folder = dir.join(&nar[..2]);
        std::fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{nar}.nar.zst"));
        match named.as_ref().filter(|_| number % NAMES_MAX > 0) {
            Some(named) => std::fs::hard_link(named, file)?,
            None => {
                std::fs::File::create(&file)?;
                named = Some(file);
            }
        }
    }
    Ok(())
}

fn references(number: u64) -> Vec<StorePath> {
    (1..=REFERENCES).filter_map(|before| number.checked_sub(before)).map(path).collect()
}

fn path(number: u64) -> StorePath {
    StorePath::parse(&format!("{}-{}", hash(number), name(number))).expect("a store path")
}

fn name(number: u64) -> String {
    format!("synthetic-{number}")
}

/// The hash of the path with this number: always the same, and different for each.
fn hash(number: u64) -> String {
    Random(number).hash()
}

/// In the order of the hashes of the paths.
fn nar_hash(number: u64) -> [u8; 32] {
    hash(number).into_bytes().try_into().expect("a hash has 32 characters")
}
