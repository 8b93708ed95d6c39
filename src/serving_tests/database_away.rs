//! Serving over a PostgreSQL that is killed and started again: what is in memory or in a file is served, what
//! is not waits, and is told why once that takes too long. Nothing that was acknowledged is lost.

use std::time::{Duration, Instant};

use super::{Below, LARGE_BYTES, SOON, ServingBench, UNKNOWN, assert_nar, settings, store_path};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::derivations::{noise, text_file};
use crate::support::store::Folder;
use crate::support::{NixStore, PostgresServer, Release, wait_until};

/// Settings of a server that waits for a short time.
const IMPATIENT: &str = "transient-retry = \"2s\"";

fn bench(database: &str, more: &str) -> ServingBench {
    let store = NixStore::new(Release::Host);
    let (daemon, folder) = (store.daemon(), Folder::new());
    let settings = settings(&folder, &store, &[format!("index = \"{database}\"\n{more}")]);
    ServingBench::start(Below::Postgres, store, daemon, folder, settings)
}

impl ServingBench {
    /// Ends the server, and starts another one of the same store and state.
    fn restarted(mut self, database: &str) -> Self {
        drop(self.stop.take());
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
        let folder = std::mem::replace(&mut self.folder, Folder::new());
        let store = std::mem::replace(&mut self.store, NixStore::new(Release::Host));
        let daemon = std::mem::replace(&mut self._daemon, self.store.daemon());
        let settings = settings(&folder, &store, &[format!("index = \"{database}\"")]);
        Self::start(Below::Postgres, store, daemon, folder, settings)
    }
}

#[test]
fn hits_go_on_while_the_database_is_away_and_after_a_restart_all_is_served_as_before() {
    let mut database = PostgresServer::start();
    let schema = database.schema();
    let bench = bench(&schema, IMPATIENT);
    let mut paths = Vec::new();
    for derivation in [text_file("small", "small"), noise("large", LARGE_BYTES)] {
        let path = bench.store.instantiate(&derivation);
        let narinfo = bench.packed(path.out());
        let plain = bench.dump(path.out());
        assert_nar(&bench, &narinfo, &plain);
        paths.push((path, narinfo, plain));
    }
    database.kill();
    for (path, narinfo, plain) in &paths {
        assert_narinfo(&bench.ask(path.out()), path.out());
        assert_nar(&bench, narinfo, plain);
    }
    let begun = Instant::now();
    assert_missing(&bench.http.get(&format!("/{UNKNOWN}.narinfo")), &["the index cannot be read"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(bench.http.get(&format!("/nar/{UNKNOWN}00000000000000000000.nar.zst")).status, 404);
    database.restart();
    assert_missing(&bench.http.get(&format!("/{UNKNOWN}.narinfo")), &["unknown"]);
    let bench = bench.restarted(&schema);
    let hash = store_path(paths[0].0.out()).hash();
    assert!(bench.index.lookup_cached(hash).is_none(), "its memory is empty");
    for (path, narinfo, plain) in &paths {
        assert_eq!(&bench.ask(path.out()).text(), narinfo);
        assert_nar(&bench, narinfo, plain);
    }
    assert!(bench.index.lookup_cached(hash).is_some());
    database.kill();
    assert_narinfo(&bench.ask(paths[0].0.out()), paths[0].0.out());
}

#[test]
fn a_build_that_is_asked_for_while_the_database_is_away_is_served_once_it_is_back() {
    let mut database = PostgresServer::start();
    let schema = database.schema();
    let bench = bench(&schema, "transient-retry = \"2m\"");
    let path = bench.store.instantiate(&text_file("waits", "waits"));
    wait_until("the server is ready", SOON, || bench.http.get("/readyz").status == 200);
    database.kill();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| bench.ask(path.out()));
        std::thread::sleep(Duration::from_secs(2));
        assert!(!asking.is_finished(), "it waits for the database");
        database.restart();
        assert_narinfo(&asking.join().expect("answered"), path.out());
    });
}
