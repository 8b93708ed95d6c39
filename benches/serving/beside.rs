//! Cost of other work for those who read at the same time: a client asks for narinfos that are there, one
//! after the other, while a large NAR is packed, or fetched from another cache, while something is built that
//! nobody has asked for yet, and while much is evicted.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::data::{Data, PACKED_WITHIN, packed};
use super::load;
use super::parts::Bench;
use super::report::Target::{self, AtMost};
use super::requests::Wanted;
use super::servers::{Running, Server};
use super::sink;
use crate::support::addresses::{field, narinfo_address};
use crate::support::derivations::text_file;
use crate::support::package_set::{must_be_had, refresh, wait_for_generation};
use crate::support::process::run;
use crate::support::store::Folder;
use crate::support::{Cache, Derivation, Http, PackageSet, text, wait_until};

/// Answers that are timed before, when nothing else is done.
const IDLE_ANSWERS: usize = 20_000;
/// Factor by which one in a hundred may take longer meanwhile.
const GROWTH_MAX: Option<Target> = Some(AtMost(3.0));
/// Paths that are asked for while others go: the first group, which refers to nothing.
const STAYING: usize = 100;
/// A build that keeps two cores busy for some seconds.
const BUSY: &str =
    "work() { for ((n = 0; n < 1500000; n++)); do :; done; }; work & work; wait; echo 2 > $out";

impl Bench<'_> {
    /// The 99th percentile before and meanwhile, of each kind of work.
    pub(super) fn beside(&mut self) {
        self.beside_packing();
        self.beside_proxying();
        self.beside_prebuilding();
        self.beside_evicting();
    }

    fn beside_packing(&mut self) {
        let state = Folder::new();
        let (server, running, http) = fresh(self.data, &state, &[]);
        adopt_small(self.data, &http);
        let all = self.data.small.len() as u64 + 2;
        let work = || {
            assert_eq!(http.get(&narinfo_address(&self.data.large)).status, 200);
            wait_until("the large path is packed", PACKED_WITHIN, || packed(&http) == all);
        };
        let seen = compare(&server, &self.data.small, work);
        drop(running);
        self.note("a NAR is packed", GROWTH_MAX, &server, seen);
    }

    fn beside_proxying(&mut self) {
        let nginx = self.servers.iter().map(|(server, _)| server).find(|server| server.is_nginx());
        let nginx = nginx.expect("nginx is always measured");
        let upstream = nginx.start();
        let flag = format!("{} {}", nginx.url(), self.data.cache.ondine.public_key());
        // Its Nix knows nothing of what is in the store.
        let cache = Cache::of(self.data.cache.store.forgotten(), &["--upstream", &flag], &[]);
        let server = Server::peer(&format!("Ondine={}", cache.ondine.url())).expect("an address");
        for path in self.data.small.iter().chain([&self.data.large]) {
            cache.narinfo(path);
        }
        let narinfo = cache.narinfo(&self.data.large);
        let request = server.request(&format!("/{}", field(&narinfo, "URL")), "");
        let wanted = Wanted { request, nar_bytes: field(&narinfo, "NarSize").parse().expect("a size") };
        let running = server.start();
        let seen = compare(&server, &self.data.small, || {
            sink::once(server.address, &wanted, &running.processes).expect("the NAR comes");
        });
        drop((cache, upstream));
        self.note("a NAR is fetched from another cache", GROWTH_MAX, &server, seen);
    }

    fn beside_prebuilding(&mut self) {
        // Others each time: what is in the store need not be built, and how long it takes is learned from the
        // first.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos();
        let mut set = PackageSet::new([("a".to_owned(), text_file("a", &since.to_string()).to_nix())]);
        let store = &self.data.cache.store;
        let ondine = set.serve(store, "prebuild = 'always'", "");
        let (server, http) = (Server::peer(&format!("Ondine={}", ondine.url())), Http::new(&ondine.url()));
        let server = server.expect("an address");
        adopt_small(self.data, &http);
        wait_for_generation(&ondine);
        must_be_had(&ondine, &set.paths(store, "a").1);
        let asked = || http.get("/api/v1/catalogue/pkgs/a").text().replace(' ', "").contains("\"asked\":1");
        wait_until("the request is counted", PACKED_WITHIN, asked);
        let work = || {
            let busy = format!("round={since}; {BUSY}");
            set.attributes.insert("a".to_owned(), Derivation::new("a", &busy).to_nix());
            set.write();
            refresh(&ondine).must_succeed();
            let built = "ondine_prebuild_seconds_count{outcome=\"built\"} 1";
            wait_until("it is built", PACKED_WITHIN, || http.get("/metrics").text().contains(built));
        };
        let seen = compare(&server, &self.data.small, work);
        drop(ondine);
        // How much builders get is for the services' weights to say, which a benchmark does not set.
        self.note("something is pre-built on all cores", None, &server, seen);
    }

    fn beside_evicting(&mut self) {
        let state = Folder::new();
        let (server, running, http) = fresh(self.data, &state, &["--eviction-grace", "0s"]);
        adopt_small(self.data, &http);
        let staying = &self.data.small[..STAYING];
        let command = |arguments: &[&str]| {
            let mut command = self.data.cache.ondine.command(arguments[0]);
            command.args(&arguments[1..]).arg("--state-dir").arg(state.path().join("state"));
            run(command).must_succeed().text()
        };
        staying.iter().for_each(|path| drop(command(&["pin", text(path)])));
        let seen = compare(&server, staying, || {
            command(&["gc", "--max-bytes", "1"]);
        });
        assert!(packed(&http) < self.data.small.len() as u64 / 2, "not much was evicted");
        drop(running);
        self.note("most paths are evicted", GROWTH_MAX, &server, seen);
    }

    fn note(&mut self, what: &str, target: Option<Target>, server: &Server, [idle, beside]: [f64; 2]) {
        self.add("hit, p99 when idle", "µs", None, server, idle);
        let name = format!("hit, p99 while {what}");
        self.add(&name, "µs", None, server, beside);
        self.add(&name, "x idle", target, server, beside / idle);
    }
}

/// An Ondine that has never seen the paths, with its state in `state`.
fn fresh(data: &Data, state: &Folder, arguments: &[&str]) -> (Server, Running, Http) {
    let server = Server::ondine(&data.cache, &state.path().join("state"), &data.files, arguments);
    let running = server.start();
    let http = Http::new(&server.url());
    (server, running, http)
}

/// Has the small paths served, and waits until they are packed.
fn adopt_small(data: &Data, http: &Http) {
    assert_eq!(http.get(&narinfo_address(&data.closure)).status, 200);
    let small = data.small.len() as u64 + 1;
    wait_until("the small paths are packed", PACKED_WITHIN, || packed(http) == small);
}

/// Says so when it is dropped.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The 99th percentile of hits, in microseconds, before and while `work` is done.
fn compare(server: &Server, paths: &[PathBuf], work: impl FnOnce() + Send) -> [f64; 2] {
    let requests: Vec<_> = paths.iter().map(|path| server.request(&narinfo_address(path), "")).collect();
    let p99 = |more: &mut dyn FnMut(usize) -> bool| {
        let taken = load::latencies(server.address, &requests, *b"200", more);
        let taken = taken.expect("the server answers");
        taken[taken.len() * 99 / 100].as_secs_f64() * 1e6
    };
    let idle = p99(&mut |answers| answers < IDLE_ANSWERS);
    let done = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Also where it fails, which ends all.
            let _done = Done(&done);
            work();
        });
        p99(&mut |_| !done.load(Ordering::Relaxed))
    });
    [idle, beside]
}
