//! A lost or damaged index, after Nix has collected what was packed: it is made anew from what is recorded
//! beside the NARs, with whole closures or not at all; and a server never says that it is ready while it has
//! lost what it promised.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::addresses::{base_name, field, narinfo_address};
use crate::support::derivations::{chain, noise, text_file};
use crate::support::{
    Cache, Client, Compression, Finished, NixStore, Ondine, Release, Sample, Upstream, nar_digest, process,
    text, wait_until,
};

const SOON: Duration = Duration::from_secs(60);

/// A server, stored paths, and what was said of each; Nix has none of them any more.
struct Served {
    cache: Cache,
    paths: Vec<PathBuf>,
    narinfos: Vec<String>,
}

impl Served {
    /// A chain of three paths, and one that stands alone.
    #[track_caller]
    fn new() -> Served {
        let cache = Cache::new(&[]);
        let top = cache.store.instantiate(&chain("row", 3, |_| String::new()));
        let alone = cache.store.instantiate(&text_file("alone", "alone"));
        for path in [&top, &alone] {
            cache.narinfo(path.out());
        }
        let closure = cache.store.nix_store(&["--query", "--requisites", text(top.out())]);
        let mut paths: Vec<PathBuf> = closure.lines().map(PathBuf::from).collect();
        paths.push(alone.out().to_owned());
        assert_eq!(paths.len(), 4, "{paths:?}");
        wait_until("all is packed", SOON, || {
            paths.iter().all(|path| cached(&cache, path).1.contains("FileHash: "))
        });
        wait_until("Nix collects them", SOON, || {
            cache.store.gc();
            !paths.iter().any(|path| cache.store.is_valid(path))
        });
        let narinfos = paths.iter().map(|path| cached(&cache, path).1).collect();
        Served { cache, paths, narinfos }
    }

    #[track_caller]
    fn assert_all_served(&self) {
        for (path, narinfo) in self.paths.iter().zip(&self.narinfos) {
            assert_eq!(cached(&self.cache, path), (200, narinfo.clone()));
        }
        for release in Release::all() {
            let client = Client::new(release, &self.cache.store.store_dir());
            let wanted: Vec<&Path> = self.paths.iter().map(|path| &**path).collect();
            client.fetch(&self.cache.ondine.cached(), &wanted).must_succeed();
        }
    }

    fn file(&self, number: usize) -> PathBuf {
        let name = field(&self.narinfos[number], "URL").trim_start_matches("nar/").to_owned();
        self.cache.ondine.state_dir().join("nar").join(&name[..2]).join(name)
    }
}

/// Status and text of the answer for a path, without building it.
fn cached(cache: &Cache, path: &Path) -> (u16, String) {
    let answer = cache.http.get(&format!("/cached{}", narinfo_address(path)));
    (answer.status, answer.text())
}

fn index(ondine: &Ondine) -> PathBuf {
    ondine.state_dir().join("index.sqlite")
}

fn delete_index(ondine: &Ondine) {
    for ending in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(ondine.state_dir().join(format!("index.sqlite{ending}")));
    }
}

#[track_caller]
fn recover(ondine: &Ondine) -> Finished {
    let mut recover = ondine.command("recover");
    recover.args(["--state-dir", text(&ondine.state_dir())]);
    process::run(recover)
}

#[test]
fn a_deleted_index_is_made_anew_at_the_start_and_says_the_same() {
    let mut served = Served::new();
    assert!(served.cache.ondine.sigterm().success());
    delete_index(&served.cache.ondine);
    served.cache.ondine.start_again();
    let log = served.cache.ondine.log();
    assert!(log.contains("recovered: 4 paths with 4 NARs"), "{log}");
    served.assert_all_served();
    // They are nobody's orphans.
    let mut gc = served.cache.ondine.command("gc");
    gc.args(["--state-dir", text(&served.cache.ondine.state_dir())]);
    let collected = process::run(gc).must_succeed().text();
    assert!(!collected.contains("removed"), "{collected}");
    // Once more, from what was written down since.
    let next = served.cache.store.instantiate(&noise("next", 4096));
    served.cache.narinfo(next.out());
    wait_until("it is packed", SOON, || cached(&served.cache, next.out()).1.contains("FileHash: "));
    served.cache.ondine.kill9();
    delete_index(&served.cache.ondine);
    served.cache.ondine.start_again();
    served.assert_all_served();
    assert_eq!(cached(&served.cache, next.out()).0, 200);
}

#[test]
fn what_refers_to_a_lost_file_is_not_served_and_all_else_is() {
    let mut served = Served::new();
    assert!(served.cache.ondine.sigterm().success());
    delete_index(&served.cache.ondine);
    // The first of a closure refers to nothing.
    fs::remove_file(served.file(0)).expect("removed");
    served.cache.ondine.start_again();
    let statuses: Vec<u16> = served.paths.iter().map(|path| cached(&served.cache, path).0).collect();
    assert_eq!(statuses, [404, 404, 404, 200]);
    assert!(served.cache.ondine.log().contains("left out: 2 paths"), "{}", served.cache.ondine.log());
}

#[test]
fn a_spoilt_index_is_never_ready_and_recover_makes_it_anew_with_its_pins() {
    for byte in [0x00, 0x5a, 0xff] {
        let mut served = Served::new();
        let mut pin = served.cache.ondine.command("pin");
        pin.args([base_name(&served.paths[3]), "--state-dir", text(&served.cache.ondine.state_dir())]);
        process::run(pin).must_succeed();
        let refused = recover(&served.cache.ondine).must_fail();
        assert!(refused.stderr.contains("a server runs with the state directory"), "{refused}");
        assert!(served.cache.ondine.sigterm().success());
        // Three pages that have served paths: the tree of them, and those by hash and by NAR.
        let pages = pages_of_paths(&index(&served.cache.ondine));
        let file = fs::File::options().write(true).open(index(&served.cache.ondine)).expect("the index");
        for page in pages {
            file.write_all_at(&[byte; 4096], 4096 * (page - 1)).expect("spoilt");
        }
        let mut server = served.cache.ondine.command("serve");
        server.args(["--listen", "127.0.0.1:0", "--state-dir", text(&served.cache.ondine.state_dir())]);
        let mut server = process::Background::start(server);
        // It refuses to start, or it starts and is not ready.
        std::thread::sleep(Duration::from_secs(1));
        if server.is_running() {
            server.kill();
            served.cache.ondine.start_again();
            let ready = served.cache.http.get("/readyz");
            assert_eq!(ready.status, 503, "{byte:x}: {}", ready.text());
            wait_until("it is told", SOON, || {
                let ready = served.cache.http.get("/readyz");
                assert_eq!(ready.status, 503, "{byte:x}: {}", ready.text());
                ready.text().contains("damaged") && ready.text().contains("ondine recover")
            });
            served.cache.ondine.kill9();
        } else {
            let refused = server.finish().must_fail();
            assert!(refused.stderr.contains("ondine recover"), "{refused}");
        }
        let recovered = recover(&served.cache.ondine).must_succeed().text();
        assert!(recovered.contains("recovered: 4 paths with 4 NARs"), "{recovered}");
        assert!(served.cache.ondine.state_dir().join("index.damaged.sqlite").exists());
        served.cache.ondine.start_again();
        served.assert_all_served();
        let pins = served.cache.http.get("/api/v1/pins").text();
        assert!(pins.contains(base_name(&served.paths[3])), "{pins}");
    }
}

/// The first page of the table of paths, and those of its indexes.
fn pages_of_paths(index: &Path) -> Vec<u64> {
    let connection = rusqlite::Connection::open(index).expect("opened");
    let sql = "SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'path' AND type IN ('table', 'index')";
    let mut statement = connection.prepare(sql).expect("prepared");
    let pages = statement.query_map([], |row| row.get::<_, i64>(0)).expect("read");
    pages.map(|page| page.expect("read").unsigned_abs()).collect()
}

#[test]
fn damage_that_comes_while_it_runs_is_told() {
    let mut served = Served::new();
    assert!(served.cache.ondine.sigterm().success());
    served.cache.ondine.start_again();
    wait_until("it is ready", SOON, || served.cache.http.get("/readyz").status == 200);
    let file = fs::File::options().write(true).open(index(&served.cache.ondine)).expect("the index");
    let pages = file.metadata().expect("its size").len() / 4096;
    for page in 1..pages {
        file.write_all_at(&[0x5a; 4096], 4096 * page).expect("spoilt");
    }
    let mut fsck = served.cache.ondine.command("fsck");
    fsck.args(["--state-dir", text(&served.cache.ondine.state_dir())]);
    let failed = process::run(fsck).must_fail().text();
    assert!(failed.contains("failed: ") && failed.contains("the index is damaged"), "{failed}");
    let ready = served.cache.http.get("/readyz");
    assert!(ready.status == 503 && ready.text().contains("ondine recover"), "{}", ready.text());
    for path in &served.paths {
        let answer = cached(&served.cache, path);
        assert!([200, 404].contains(&answer.0), "{answer:?}");
    }
}

#[test]
fn what_an_upstream_has_of_a_closure_is_served_again_too() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &chain("row", 3, |_| String::new()));
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect_with_derivation(&store);
    let mut cache = Cache::behind(store, &[upstream.table("")], &[]);
    // Its narinfos are known, and the contents of one.
    let narinfo = cache.narinfo(&sample.path);
    assert_eq!(cache.http.get(&format!("/{}", field(&narinfo, "URL"))).status, 200);
    wait_until("one is stored", SOON, || cache.narinfo(&sample.path).contains("FileHash: "));
    assert!(cache.ondine.sigterm().success());
    delete_index(&cache.ondine);
    cache.ondine.start_again();
    assert!(cache.ondine.log().contains("recovered: 3 paths with"), "{}", cache.ondine.log());
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &sample.paths()).must_succeed();
    sample.assert_held_by(&client);
    assert_eq!(nar_digest(&client.physical(&sample.path)), client.nar_digest(&sample.path));
}

#[test]
fn a_key_that_is_lost_with_the_index_is_asked_for_and_not_made_anew() {
    let mut served = Served::new();
    assert!(served.cache.ondine.sigterm().success());
    delete_index(&served.cache.ondine);
    let key = served.cache.ondine.state_dir().join("signing-key");
    let kept = fs::read(&key).expect("the key");
    fs::remove_file(&key).expect("removed");
    let mut server = served.cache.ondine.command("serve");
    server.args(["--listen", "127.0.0.1:0", "--state-dir", text(&served.cache.ondine.state_dir())]);
    let refused = process::run(server).must_fail();
    assert!(refused.stderr.contains("restore it from a copy"), "{refused}");
    fs::write(&key, kept).expect("restored");
    served.cache.ondine.start_again();
    served.assert_all_served();
}

#[test]
fn recover_without_a_ledger_says_what_to_do() {
    let mut cache = Cache::new(&["--build-from"]);
    assert!(cache.ondine.sigterm().success());
    fs::remove_dir_all(cache.ondine.state_dir().join("ledger")).expect("removed");
    let refused = recover(&cache.ondine).must_fail();
    assert!(refused.stderr.contains("nothing is recorded in"), "{refused}");
    cache.ondine.start_again();
}

#[test]
fn each_recovery_keeps_the_index_that_was_there_and_makes_a_private_one() {
    let mut served = Served::new();
    assert!(served.cache.ondine.sigterm().success());
    let state_dir = served.cache.ondine.state_dir();
    let first = fs::read(index(&served.cache.ondine)).expect("an index");
    let asides = ["index.damaged.sqlite", "index.damaged-2.sqlite", "index.damaged-3.sqlite"];
    for number in 1..=asides.len() {
        recover(&served.cache.ondine).must_succeed();
        for (at, aside) in asides.iter().enumerate() {
            assert_eq!(state_dir.join(aside).exists(), at < number, "{aside} after {number}");
        }
        assert_eq!(fs::read(state_dir.join(asides[0])).expect("kept"), first);
        let mode = index(&served.cache.ondine).metadata().expect("an index").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    served.cache.ondine.start_again();
    served.assert_all_served();
}
