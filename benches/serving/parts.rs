//! Measurements, part by part. Within a part the servers take turns, each started anew, so that whatever
//! else the machine does meets all of them alike.

use std::io;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::data::{self, Data};
use super::load::{self, Times};
use super::report::Target::{self, AtMost, PeersAtLeast, RatioAtLeast, RatioAtMost};
use super::report::{LOAD_UNIT, Report};
use super::requests::{Forms, Requests, Wanted};
use super::servers::{Running, Server};
use super::sink;
use super::usage::{Memory, Window};
use crate::support::addresses::{field, narinfo_address};
use crate::support::process::spawn;
use crate::support::store::Folder;
use crate::support::{Client, Http, Release, text};

/// Connections that ask for small things.
const CONNECTIONS: usize = 64;
/// Connections of the second measurement of a large NAR.
const PARALLEL: usize = 8;
/// Starts in a round.
const STARTS: usize = 5;
/// Time that a server is left alone before its memory counts as idle, and before a client copies.
const IDLE: Duration = Duration::from_millis(500);
/// Pause between two looks at memory.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Narinfos that are there.
    Narinfo,
    /// Narinfos that are not.
    Miss,
    /// NARs of small paths.
    Small,
    /// The NAR of mixed files, plain and as zstd.
    Large,
    /// The NAR of small files, plain and as zstd.
    Many,
    /// The same two NARs before they are packed.
    First,
    /// A stock client that copies all small paths.
    Copy,
    /// Memory of the servers.
    Memory,
    /// From the start to the first answer.
    Start,
    /// Narinfos while other work is done.
    Beside,
}

/// Everything that measuring needs.
pub struct Bench<'a> {
    /// Data that is served.
    pub data: &'a Data,
    /// By whom, and what is asked of each.
    pub servers: Vec<(Server, Requests)>,
    /// For how long.
    pub times: Times,
    /// Results.
    pub report: Report,
}

impl Bench<'_> {
    /// One round of a part: every server once.
    pub fn round(&mut self, part: Part) {
        match part {
            Part::First => return self.first(),
            Part::Beside => return self.beside(),
            _ => {}
        }
        let servers = std::mem::take(&mut self.servers);
        for (server, requests) in &servers {
            let running = server.start();
            match part {
                Part::Narinfo => self.narinfo(server, &running, requests),
                Part::Miss => self.miss(server, &running, requests),
                Part::Small => self.small(server, &running, requests),
                Part::Large => self.nar("large", server, &running, &requests.large, true),
                Part::Many => self.nar("many", server, &running, &requests.many, false),
                Part::Copy => self.copy(server, &running),
                Part::Memory => self.memory(server, &running, requests),
                Part::Start => self.start(server, running),
                Part::First | Part::Beside => unreachable!("they have servers of their own"),
            }
        }
        self.servers = servers;
        if part == Part::Copy {
            self.copy_from_files();
        }
    }

    fn narinfo(&mut self, server: &Server, running: &Running, requests: &Requests) {
        let targets = [Some(RatioAtLeast(1.5)), Some(RatioAtMost(0.65))];
        self.load("narinfo hit", targets, server, running, &requests.narinfos, *b"200");
    }

    fn miss(&mut self, server: &Server, running: &Running, requests: &Requests) {
        self.load(
            "narinfo miss",
            [Some(RatioAtLeast(1.5)), None],
            server,
            running,
            &requests.misses,
            *b"404",
        );
    }

    fn small(&mut self, server: &Server, running: &Running, requests: &Requests) {
        self.load("small NARs", [Some(RatioAtLeast(1.2)), None], server, running, &requests.small, *b"200");
    }

    /// Requests a second, and the processor time of one, at the server and here.
    fn load(
        &mut self,
        what: &str,
        targets: [Option<Target>; 2],
        server: &Server,
        running: &Running,
        requests: &[Vec<u8>],
        status: [u8; 3],
    ) {
        match load::measure(&[server.address], CONNECTIONS, requests, status, &running.processes, self.times)
        {
            Ok(load::Seen { answers, used }) => {
                let micros = |seconds: f64| seconds * 1e6 / answers;
                self.add(what, "requests/s", targets[0], server, answers / used.seconds);
                self.add(what, "CPU µs/request", targets[1], server, micros(used.server));
                self.add(what, LOAD_UNIT, None, server, micros(used.own));
                self.report.note_others(used.others);
            }
            Err(error) => self.report.note_trouble(&server.name, what, &error),
        }
    }

    /// A NAR in both forms, on one connection and on several.
    fn nar(&mut self, what: &str, server: &Server, running: &Running, forms: &Forms, judged: bool) {
        for (form, wanted) in [("plain", &forms.plain), ("zstd", &forms.zstd)] {
            let Some(wanted) = wanted else { continue };
            for connections in [1, PARALLEL] {
                let name = format!("{what}, {form} x{connections}");
                let speed = judged.then_some(RatioAtLeast(0.8));
                let cost = (judged && form == "plain").then_some(AtMost(0.2));
                let seen = sink::measure(server.address, wanted, connections, &running.processes, self.times);
                self.sunk(&name, [speed, cost], server, seen);
            }
        }
    }

    fn sunk(
        &mut self,
        what: &str,
        targets: [Option<Target>; 2],
        server: &Server,
        seen: io::Result<sink::Seen>,
    ) {
        match seen {
            Ok(sink::Seen { nar_bytes, used }) => {
                let gigabytes = nar_bytes / 1e9;
                self.add(what, "GB/s", targets[0], server, gigabytes / used.seconds);
                self.add(what, "CPU s/GB", targets[1], server, used.server / gigabytes);
                self.report.note_others(used.others);
            }
            Err(error) => self.report.note_trouble(&server.name, what, &error),
        }
    }

    /// Both trees in both forms, each from an Ondine that has never seen it; from peers, which make it anew
    /// each time; and for scale what `nix-store --dump` does.
    fn first(&mut self) {
        let data = self.data;
        for (path, wanted) in [(&data.large, PeersAtLeast(1.5)), (&data.many, PeersAtLeast(2.0))] {
            let seconds = self.dump(path);
            for (form, end) in [("zstd", ".zst"), ("plain", "")] {
                let state = Folder::new();
                let server = Server::ondine(&data.cache, &state.path().join("state"), &data.files, &[]);
                let running = server.start();
                let narinfo = Http::new(&server.url()).get(&narinfo_address(path)).text();
                let address = format!("/{}{end}", field(&narinfo, "URL").trim_end_matches(".zst"));
                let nar_bytes = field(&narinfo, "NarSize").parse().expect("a size");
                let asked = Wanted { request: server.request(&address, ""), nar_bytes };
                let what = format!("{}, {form}, first download", data::name(path));
                let target = (form == "plain").then_some(wanted);
                let seen = sink::once(server.address, &asked, &running.processes);
                self.sunk(&what, [target, None], &server, seen);
                self.first_of_peers(&what, path, form);
                self.report.add(&what, "GB/s", None, "nix-store --dump", nar_bytes as f64 / 1e9 / seconds);
            }
        }
    }

    fn first_of_peers(&mut self, what: &str, path: &std::path::Path, form: &str) {
        let servers = std::mem::take(&mut self.servers);
        for (server, requests) in servers.iter().filter(|(server, _)| !server.starts()) {
            let forms = if path == self.data.large { &requests.large } else { &requests.many };
            let asked = if form == "plain" { &forms.plain } else { &forms.zstd };
            if let Some(asked) = asked {
                let seen = sink::once(server.address, asked, &server.start().processes);
                self.sunk(what, [None, None], server, seen);
            }
        }
        self.servers = servers;
    }

    /// Seconds that Nix takes to make the NAR.
    fn dump(&self, path: &std::path::Path) -> f64 {
        let mut command = self.data.cache.store.command("nix-store", &["--dump", text(path)]);
        let begun = Instant::now();
        let status = spawn(command.stdout(Stdio::null())).wait().expect("a child of ours");
        assert!(status.success());
        begun.elapsed().as_secs_f64()
    }

    fn copy(&mut self, server: &Server, running: &Running) {
        // What it does beside its start is done by then.
        std::thread::sleep(IDLE);
        let window = Window::open(&running.processes);
        let seconds = self.copy_from(&server.url());
        let used = window.close();
        self.add("nix copy", "s", Some(RatioAtMost(1.05)), server, seconds);
        self.add("nix copy", "CPU s of the server", None, server, used.server);
    }

    fn copy_from_files(&mut self) {
        let seconds = self.copy_from(&format!("file://{}", text(self.data.files.path())));
        self.report.add("nix copy", "s", None, "file://", seconds);
    }

    /// Seconds that a client with an empty store takes to copy the closure.
    fn copy_from(&self, url: &str) -> f64 {
        let client = Client::new(Release::Host, &self.data.cache.store.store_dir());
        let arguments = ["copy", "--no-check-sigs", "--from", url, text(&self.data.closure)];
        let finished = client.run("nix", &arguments).must_succeed();
        assert!(client.has(&self.data.closure), "{url} did not give the closure");
        finished.elapsed.as_secs_f64()
    }

    fn memory(&mut self, server: &Server, running: &Running, requests: &Requests) {
        if !server.starts() {
            return;
        }
        std::thread::sleep(IDLE);
        let idle = running.processes.memory();
        let loaded = load::measure(
            &[server.address],
            CONNECTIONS,
            &requests.narinfos,
            *b"200",
            &running.processes,
            self.times,
        );
        let after = running.processes.memory();
        let mut downloaded = Ok(());
        let most = most_memory(running, || {
            for wanted in [&requests.large.plain, &requests.large.zstd].into_iter().flatten() {
                let seen = sink::measure(server.address, wanted, PARALLEL, &running.processes, self.times);
                downloaded = std::mem::replace(&mut downloaded, Ok(())).and(seen.map(|_| ()));
            }
        });
        if let Err(error) = loaded.map(|_| ()).and(downloaded) {
            return self.report.note_trouble(&server.name, "memory", &error);
        }
        for (what, memory, target) in
            [("idle", idle, 12.0), ("after narinfo hits", after, 24.0), ("at most, large x8", most, 40.0)]
        {
            let name = format!("memory {what}");
            self.add(&name, "MiB", Some(AtMost(target)), server, mebibytes(memory.resident));
            self.add(&name, "MiB, but for mapped files", None, server, mebibytes(memory.anonymous));
        }
    }

    fn start(&mut self, server: &Server, running: Running) {
        if !server.starts() {
            return;
        }
        let mut running = Some(running);
        for _ in 0..STARTS {
            // One that was stopped leaves nothing of its own behind but what it knows.
            let started = running.take().unwrap_or_else(|| server.start());
            let millis = started.to_first_answer.as_secs_f64() * 1000.0;
            self.add("start to the first answer", "ms", Some(AtMost(8.0)), server, millis);
        }
    }

    pub(super) fn add(
        &mut self,
        what: &str,
        unit: &'static str,
        target: Option<Target>,
        server: &Server,
        value: f64,
    ) {
        self.report.add(what, unit, target, &server.name, value);
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The most memory that a server holds while `work` is done.
fn most_memory(running: &Running, work: impl FnOnce()) -> Memory {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = Memory::default();
            while !done.load(Ordering::Relaxed) {
                let now = running.processes.memory();
                most.resident = most.resident.max(now.resident);
                most.anonymous = most.anonymous.max(now.anonymous);
                std::thread::sleep(LOOK_EVERY);
            }
            most
        });
        work();
        done.store(true, Ordering::Relaxed);
        looking.join().expect("looking at memory does not panic")
    })
}
