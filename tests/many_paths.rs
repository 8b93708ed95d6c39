//! Many paths: an eviction from an index of a hundred thousand takes little memory, and nobody who reads or
//! writes meanwhile waits for long. Alone in its process, whose memory is measured.

#[allow(dead_code)]
#[path = "simulation/random.rs"]
mod random;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ondine::index::Index;
use ondine::retention::{Bounds, Eviction};
use random::Random;
use rusqlite::{Connection, params};

/// `ONDINE_TEST_PATHS` takes another number.
const PATHS: u64 = 100_000;
const FILE_BYTES: u32 = 20_000;
/// Memory of an eviction at most, in KiB; all of it at once took 70,000.
const MEMORY_MAX: u64 = 16 * 1024;
/// Time limit of another client's wait: on a machine that does much else meanwhile, with a server that is not
/// optimised.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// The hash of the path with this number: always the same, and different for each.
fn hash(number: u64) -> String {
    Random(number).hash()
}

/// Fills an index: each path refers to some of those before it, and none was used since it came.
fn fill(file: &Path, paths: u64) {
    let mut connection = Connection::open(file).expect("the index opens");
    connection.pragma_update(None, "synchronous", "off").expect("set");
    let transaction = connection.transaction().expect("begun");
    {
        let mut path = transaction
            .prepare(
                "INSERT INTO path (hash, name, nar_hash, nar_size, refs, sigs, added_at) \
                 VALUES (?1, ?2, ?3, 100000, ?4, '', 0)",
            )
            .expect("a statement");
        let mut nar = transaction.prepare("INSERT INTO nar VALUES (?1, ?1, ?2, 0)").expect("a statement");
        for number in 0..paths {
            let below = [2, 3, 5, 7, 11].map(|part| number / part);
            let below = below.iter().filter(|below| **below < number);
            let references: Vec<String> = below.map(|below| format!("{}-p{below}", hash(*below))).collect();
            let hash = hash(number);
            let row = params![hash, format!("p{number}"), hash.as_bytes(), references.join(" ")];
            path.execute(row).expect("inserted");
            nar.execute(params![hash.as_bytes(), i64::from(FILE_BYTES)]).expect("inserted");
        }
    }
    transaction.commit().expect("committed");
    connection.pragma_update(None, "wal_checkpoint", "truncate").expect("written through");
}

/// A line of /proc/self/status, in KiB.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is readable");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("it is there");
    line.trim_end_matches("kB").trim().parse().expect("a number")
}

/// Reads and writes again and again until `done`. The longest of each.
async fn others(index: Index, done: Arc<AtomicBool>) -> (Duration, Duration) {
    let (mut read_max, mut write_max) = (Duration::ZERO, Duration::ZERO);
    while !done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        index.find(hash(0).parse().expect("a hash")).await.expect("read");
        read_max = read_max.max(begun.elapsed());
        let begun = Instant::now();
        index.pin("nothing".to_owned(), Vec::new()).await.expect("written");
        write_max = write_max.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (read_max, write_max)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_among_many_takes_little_memory_and_lets_others_read_and_write() {
    let paths = std::env::var("ONDINE_TEST_PATHS").map_or(PATHS, |paths| paths.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("index");
    let index = Index::open(&file).expect("opened");
    fill(&file, paths);
    let used_since = SystemTime::now() + Duration::from_secs(3600);
    // The first one brings all in order; the second one finds it so.
    for round in 1..=2 {
        let stored = index.nar_bytes().await.expect("read");
        std::fs::write("/proc/self/clear_refs", "5").expect("the peak is measured from here");
        let before = status("VmRSS:");
        let done = Arc::new(AtomicBool::new(false));
        let others = tokio::spawn(others(index.clone(), done.clone()));
        let begun = Instant::now();
        let bounds = Bounds { max_bytes: Some(stored - 1), used_since, pushed_since: used_since };
        let mut eviction = Eviction::new(index.clone(), bounds, false);
        let mut evicted = 0;
        while let Some(gone) = eviction.next().await.expect("evicted") {
            evicted += gone.len() as u64;
        }
        let took = begun.elapsed();
        done.store(true, Ordering::Relaxed);
        let (read_max, write_max) = others.await.expect("they end");
        let memory = status("VmHWM:").saturating_sub(before);
        println!(
            "{paths} paths, round {round}: {evicted} evicted in {took:?}, {memory} KiB; \
             others waited {read_max:?} to read and {write_max:?} to write"
        );
        assert!(evicted >= stored / u64::from(FILE_BYTES) / 20, "{evicted} are too few");
        assert!(memory < MEMORY_MAX, "it took {memory} KiB");
        assert!(read_max < WAIT_MAX && write_max < WAIT_MAX, "others waited {read_max:?} and {write_max:?}");
    }
}
