//! Serving, shown by one suite that runs over SQLite and a directory, over PostgreSQL and a directory, and
//! over the doubles of both walls, an index and NARs in memory. Nix, its daemon, the upstream and HTTP are
//! real each time.

#[cfg(feature = "postgres")]
mod database_away;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use narinfo::{DrvOutput, Realisation, StoreDir, StorePath};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::config::RawSettings;
use crate::index::{Index, MemoryBackend};
use crate::model::RealisationOutcome;
use crate::nar_store::NarStore;
use crate::nar_store::blobs::memory::MemoryBlobs;
use crate::nix;
use crate::serve::{CONTROL_SOCKET, Server, Settings, Stores};
use crate::support::addresses::{base_name, field, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::derivations::{noise, text_file};
use crate::support::http::Response;
use crate::support::store::{Folder, text};
use crate::support::{Daemon, Derivation, Http, NixStore, Release, Sample, Upstream, process, wait_until};

/// Time within which a NAR is packed, or something is evicted.
const SOON: Duration = Duration::from_secs(60);
/// Bytes of a NAR that is not small: it is sent as a file, and has a plain copy.
const LARGE_BYTES: u32 = 2 * 1024 * 1024;
/// A hash that nobody knows.
const UNKNOWN: &str = "00000000000000000000000000000000";

/// Storage below the walls.
#[derive(Clone, Copy, Debug)]
enum Below {
    /// SQLite, and a directory of NARs.
    Disk,
    /// PostgreSQL, and a directory of NARs.
    #[cfg(feature = "postgres")]
    Postgres,
    /// The doubles.
    Memory,
}

/// A server in this process, and what it stands on. The fields are dropped in this order.
struct ServingBench {
    http: Http,
    index: Index,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    folder: Folder,
    _daemon: Daemon,
    store: NixStore,
}

impl Drop for ServingBench {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic in there is told by the server's own output.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl ServingBench {
    fn new(below: Below) -> Self {
        Self::behind(below, NixStore::new(Release::Host), &[])
    }

    /// A server of this store with other caches behind it, each a table of its settings file.
    fn behind(below: Below, store: NixStore, tables: &[String]) -> Self {
        let daemon = store.daemon();
        let folder = Folder::new();
        #[cfg(feature = "postgres")]
        let index = match below {
            Below::Postgres => format!("index = \"{}\"", crate::support::PostgresServer::shared().schema()),
            _ => String::new(),
        };
        #[cfg(not(feature = "postgres"))]
        let index = String::new();
        let settings = settings(&folder, &store, &[&[index], tables].concat());
        Self::start(below, store, daemon, folder, settings)
    }

    /// A server with these settings, of this store and in this folder.
    fn start(below: Below, store: NixStore, daemon: Daemon, folder: Folder, settings: Settings) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let server = runtime.block_on(open(below, settings));
        let (http, index) = (Http::new(&server.url.to_string()), server.index());
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || run(&runtime, server, stopped));
        Self { http, index, stop: Some(stop), thread: Some(thread), folder, _daemon: daemon, store }
    }

    fn ask(&self, path: &Path) -> Response {
        self.http.get(&narinfo_address(path))
    }

    fn ask_cached(&self, path: &Path) -> Response {
        self.http.get(&format!("/cached{}", narinfo_address(path)))
    }

    /// Builds a path and waits until it is packed; gives its narinfo.
    fn packed(&self, path: &Path) -> String {
        assert_narinfo(&self.ask(path), path);
        wait_until("it is packed", SOON, || self.ask(path).text().contains("FileSize: "));
        self.ask(path).text()
    }

    /// The NAR that Nix makes of a path.
    fn dump(&self, path: &Path) -> Vec<u8> {
        let command = self.store.command("nix-store", &["--dump", text(path)]);
        process::run(command).must_succeed().stdout
    }

    /// The whole answer to a request on the control socket.
    fn control(&self, request: &str) -> String {
        let socket = self.folder.path().join("state").join(CONTROL_SOCKET);
        let mut stream = UnixStream::connect(socket).expect("the server listens there");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answered");
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn collect_all(&self) -> String {
        let body = r#"{"max_bytes":0,"dry_run":false}"#;
        let length = body.len();
        self.control(&format!(
            "POST /api/v1/gc HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ))
    }
}

fn settings(folder: &Folder, store: &NixStore, tables: &[String]) -> Settings {
    let state_dir = folder.path().join("state");
    let file = folder.path().join("ondine.toml");
    let own =
        format!("listen = \"127.0.0.1:0\"\nstate-dir = \"{}\"\neviction-grace = \"0s\"\n", text(&state_dir));
    std::fs::write(&file, [&[own], tables].concat().join("\n")).expect("written");
    let mut settings = RawSettings::read(&file).and_then(RawSettings::resolve).expect("good settings");
    settings.nix = nix::Environment {
        store_dir: StoreDir::new(text(&store.store_dir())).expect("a store directory"),
        state_dir: store.state_dir(),
        log_dir: store.folder().join("log"),
        socket: store.socket(),
    };
    settings
}

async fn open(below: Below, settings: Settings) -> Server {
    let opened = match below {
        #[cfg(feature = "postgres")]
        Below::Postgres => Server::open(settings).await,
        Below::Disk => Server::open(settings).await,
        Below::Memory => {
            let index = Index::new(MemoryBackend::default(), settings.narinfo_memory_bytes);
            let dir = settings.state_dir.join("nar");
            std::fs::create_dir_all(&settings.state_dir).expect("made");
            let nars = NarStore::new(Arc::new(MemoryBlobs::default()), &dir, settings.nar_store.clone());
            Server::open_over(settings, Stores { index, nars: nars.expect("opened") }).await
        }
    };
    opened.expect("it opens")
}

fn run(runtime: &Runtime, server: Server, stopped: oneshot::Receiver<()>) {
    let until = async {
        // An error is the end of the bench, too.
        let _ = stopped.await;
    };
    runtime.block_on(server.run(until)).expect("it ends as it was told to");
}

fn store_path(path: &Path) -> StorePath {
    StorePath::parse(base_name(path)).expect("a store path")
}

/// Contents of a zstd file.
fn decoded(file: &[u8]) -> Vec<u8> {
    zstd::decode_all(file).expect("a zstd file")
}

fn address(narinfo: &str) -> String {
    format!("/{}", field(narinfo, "URL"))
}

/// Both forms of a NAR are what Nix makes of the path, whole and in ranges.
fn assert_nar(bench: &ServingBench, narinfo: &str, plain: &[u8]) {
    let packed = address(narinfo);
    let answer = bench.http.get(&packed);
    assert_eq!((answer.status, decoded(&answer.body).as_slice() == plain), (200, true), "{packed}");
    let whole = packed.trim_end_matches(".zst").to_owned();
    let answer = bench.http.get(&whole);
    assert_eq!((answer.status, answer.body == plain), (200, true), "{whole}");
    let range = bench.http.get_with(&whole, &[("Range", "bytes=8-39")]);
    assert_eq!((range.status, range.body.as_slice()), (206, &plain[8..40]), "{whole}");
    let length = plain.len().to_string();
    let head = bench.http.head(&whole);
    assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())), "{whole}");
    let beyond = bench.http.get_with(&whole, &[("Range", &format!("bytes={length}-"))]);
    assert_eq!(beyond.status, 416);
}

fn what_is_built_is_served_in_every_form(below: Below) {
    let bench = ServingBench::new(below);
    for derivation in [text_file("small", "small"), noise("large", LARGE_BYTES)] {
        let path = bench.store.instantiate(&derivation);
        let narinfo = bench.packed(path.out());
        let plain = bench.dump(path.out());
        assert_eq!(field(&narinfo, "NarSize"), plain.len().to_string());
        assert_nar(&bench, &narinfo, &plain);
        assert_eq!(bench.http.head(&narinfo_address(path.out())).status, 200);
        assert_narinfo(&bench.ask_cached(path.out()), path.out());
        assert!(bench.index.lookup_cached(store_path(path.out()).hash()).is_some(), "it is in memory by now");
    }
    let status: serde_json::Value =
        serde_json::from_slice(&bench.http.get("/api/v1/status").body).expect("the status is JSON");
    assert_eq!(status["cache"]["paths"], 2, "{status}");
    bench.http.wait_until_ready();
}

fn what_nobody_has_is_missing_with_the_reason(below: Below) {
    let bench = ServingBench::new(below);
    assert_missing(&bench.http.get(&format!("/{UNKNOWN}.narinfo")), &["unknown"]);
    assert_eq!(bench.http.head(&format!("/{UNKNOWN}.narinfo")).status, 404);
    assert_eq!(bench.http.get(&format!("/nar/{UNKNOWN}00000000000000000000.nar.zst")).status, 404);
    let path = bench.store.instantiate(&text_file("known", "known"));
    assert_missing(&bench.ask_cached(path.out()), &["not built yet"]);
    let fails = bench.store.instantiate(&Derivation::new("fails", "exit 1"));
    assert_missing(&bench.ask(fails.out()), &["failed (permanent)"]);
    // The filter knows all hashes by now.
    wait_until("memory denies a hash", SOON, || {
        bench.index.definitely_absent(UNKNOWN.parse().expect("a hash"))
    });
    assert_missing(&bench.http.get(&format!("/{UNKNOWN}.narinfo")), &["unknown"]);
    assert_narinfo(&bench.ask(path.out()), path.out());
}

fn what_an_upstream_has_is_adopted_and_kept(below: Below) {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &noise("elsewhere", LARGE_BYTES));
    let plain =
        process::run(store.command("nix-store", &["--dump", text(&sample.path)])).must_succeed().stdout;
    let mut upstream = Upstream::new(&store, &[&sample.path]);
    sample.collect_with_derivation(&store);
    let bench = ServingBench::behind(below, store, &[upstream.table("")]);
    assert_narinfo(&bench.ask(&sample.path), &sample.path);
    let narinfo = bench.ask(&sample.path).text();
    let fetched = bench.http.get(&address(&narinfo));
    assert_eq!((fetched.status, decoded(&fetched.body) == plain), (200, true));
    let narinfo = bench.packed(&sample.path);
    upstream.server.stop();
    assert_nar(&bench, &narinfo, &plain);
}

fn what_was_evicted_is_had_again_for_whoever_asks(below: Below) {
    let bench = ServingBench::new(below);
    let path = bench.store.instantiate(&noise("evicted", LARGE_BYTES));
    bench.store.root(&path.drv);
    let narinfo = bench.packed(path.out());
    let plain = bench.dump(path.out());
    let hash = store_path(path.out()).hash();
    wait_until("it is evicted", SOON, || {
        let told = bench.collect_all();
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        told.contains(&format!("evicted: {}", base_name(path.out())))
    });
    assert!(bench.index.lookup_cached(hash).is_none());
    // A client that holds the narinfo asks for the NAR alone.
    let again = bench.http.get(&address(&narinfo));
    assert_eq!((again.status, decoded(&again.body) == plain), (200, true), "{}", again.status);
    assert_narinfo(&bench.ask_cached(path.out()), path.out());
}

fn a_realisation_is_served_as_long_as_its_path_is(below: Below) {
    let bench = ServingBench::new(below);
    let path = bench.store.instantiate(&text_file("output", "output"));
    bench.packed(path.out());
    let id: DrvOutput = format!("sha256:{}!out", "1".repeat(64)).parse().expect("a name");
    let address = format!("/realisations/{id}.doi");
    assert_eq!(bench.http.get(&address).status, 404);
    let realisation = Realisation::new(id, store_path(path.out()));
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let published = runtime.block_on(bench.index.publish_realisations(vec![realisation]));
    assert_eq!(published.expect("asked"), RealisationOutcome::Published);
    let answer = bench.http.get(&address);
    assert!(answer.status == 200 && answer.text().contains(base_name(path.out())), "{}", answer.text());
}

macro_rules! promises {
    ($($promise:ident,)*) => {
        mod on_disk {
            $(
                #[test]
                fn $promise() {
                    super::$promise(super::Below::Disk);
                }
            )*
        }

        #[cfg(feature = "postgres")]
        mod on_postgres {
            $(
                #[test]
                fn $promise() {
                    super::$promise(super::Below::Postgres);
                }
            )*
        }

        mod on_doubles {
            $(
                #[test]
                fn $promise() {
                    super::$promise(super::Below::Memory);
                }
            )*
        }
    };
}

promises! {
    what_is_built_is_served_in_every_form,
    what_nobody_has_is_missing_with_the_reason,
    what_an_upstream_has_is_adopted_and_kept,
    what_was_evicted_is_had_again_for_whoever_asks,
    a_realisation_is_served_as_long_as_its_path_is,
}
