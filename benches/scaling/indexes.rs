//! One index in SQLite and in PostgreSQL: hits from memory, hits that are read from the index, misses, and
//! the time to the first answer; and front ends that share the one in PostgreSQL.

use std::path::Path;

use crate::comparison::{Comparison, Goal};
use crate::grown::Grown;
use crate::pinned::Pinned;
use crate::serving::load::{self, Seen, Times};
use crate::serving::servers::{Running, Server};
use crate::serving::usage::Processes;
use crate::support::process::run;
use crate::support::store::Folder;
use crate::support::{Bucket, Cache, NixStore, PostgresServer, Release, TestBucket, text};

/// Connections under which requests are counted, to all servers together.
const CONNECTIONS: usize = 48;
/// Paths that everyone asks for: their narinfos stay in memory.
const POPULAR: usize = 2_000;
/// Paths that are asked for once in a while, by a server that keeps no narinfos in memory.
const RARE: usize = 100_000;
/// Hashes that nobody knows.
const UNKNOWN: usize = 100_000;
/// Starts in a round.
const STARTS: usize = 5;
/// Measurements of each server in a round.
const TURNS: usize = 4;
/// Front ends that are compared with one.
const FRONT_ENDS_MAX: usize = 3;

/// Rate of hits from memory, and of what is read from the index, in proportion to SQLite.
const HITS_MIN: f64 = 0.95;
const READS_MIN: f64 = 0.5;
/// Milliseconds to the first answer.
const START_MAX: f64 = 1_000.0;
/// Difference in requests per second of processor time between one front end and several.
const FRONT_ENDS_WITHIN: f64 = 0.1;

const SQLITE: &str = "SQLite";
const POSTGRES: &str = "PostgreSQL";
const KINDS: [&str; 2] = [SQLITE, POSTGRES];

/// The index in both databases, and the store whose server is stopped.
pub struct Indexes {
    grown: Grown,
    url: String,
    logs: Folder,
    cache: Cache,
    _database: PostgresServer,
}

impl Indexes {
    /// An index of so many paths, copied from SQLite to PostgreSQL as an operator does it.
    pub fn new(paths: u64) -> Indexes {
        let mut cache = Cache::of(NixStore::new(Release::Host), &[], &Bucket::VARIABLES);
        assert!(cache.ondine.sigterm().success());
        let (grown, database) = (Grown::new(&cache, paths), PostgresServer::start());
        let url = database.schema();
        eprintln!("copying {paths} paths to PostgreSQL");
        let mut migrate = cache.ondine.command("migrate");
        migrate.args(["--to", &url, "--state-dir", text(grown.state_dir())]);
        run(migrate).must_succeed();
        Indexes { grown, url, logs: Folder::new(), cache, _database: database }
    }

    /// One round: hits, misses and starts with each index. Both servers run all the time, and take their
    /// turns one after the other, so that what else the machine does meets both.
    pub fn measure(&self, table: &mut Comparison, times: Times) {
        let states = KINDS.map(|kind| (kind, Folder::new()));
        let started = |arguments: &[&str]| {
            states.each_ref().map(|(kind, state)| {
                let server = self.server(kind, state, arguments);
                let running = server.settled();
                Started { kind, server, running }
            })
        };
        for (kind, state) in &states {
            let server = self.server(kind, state, &[]);
            for _ in 0..STARTS {
                let millis = server.start().to_first_answer.as_secs_f64() * 1e3;
                table.add("start to the first answer", "ms", Goal::AtMost(START_MAX), kind, millis);
            }
        }
        let both = started(&[]);
        let popular = |server: &Server| self.narinfos(server, POPULAR);
        let what = "hit, in memory";
        take_turns(&both, what, Goal::RatioAtLeast(HITS_MIN), popular, *b"200", times, table);
        let unknown = |server: &Server| {
            let addresses = self.grown.unknown(UNKNOWN).map(|hash| server.miss_address(&hash));
            addresses.map(|address| server.request(&address, "")).collect()
        };
        let what = "miss, by the filter in memory";
        take_turns(&both, what, Goal::Nothing, unknown, *b"404", times, table);
        drop(both);
        let both = started(&["--narinfo-memory-bytes", "0"]);
        let rare = |server: &Server| self.narinfos(server, RARE);
        let what = "miss in memory, read from the index";
        take_turns(&both, what, Goal::RatioAtLeast(READS_MIN), rare, *b"200", times, table);
    }

    /// One round: hits of one front end, of two and of three, which share as many connections each time. All
    /// run all the time, on one core: three on two would be moved and switched as servers of three machines
    /// are not.
    pub fn measure_front_ends(&self, bucket: &Bucket, table: &mut Comparison, times: Times) {
        let (states, place) = ([(); FRONT_ENDS_MAX].map(|()| Folder::new()), bucket.url());
        let server = |state| self.server(POSTGRES, state, &["--nar-store", &place]);
        let servers = states.each_ref().map(server);
        let running = servers.each_ref().map(Server::settled);
        let popular = self.narinfos(&servers[0], POPULAR);
        let (addresses, ids) = (
            servers.each_ref().map(|server| server.address),
            running.each_ref().map(|one| one.processes.server),
        );
        for _ in 0..TURNS {
            for count in 1..=FRONT_ENDS_MAX {
                let processes = Processes { server: ids[0], helpers: ids[1..count].to_vec() };
                let connections = CONNECTIONS * FRONT_ENDS_MAX;
                let apart = Pinned::apart(&processes);
                let seen =
                    load::measure(&addresses[..count], connections, &popular, *b"200", &processes, times);
                drop(apart);
                let Seen { answers, used } = seen.expect("the servers answer");
                let (what, kind) = ("hits of all front ends", format!("{count} front ends"));
                let flat = Goal::Flat(FRONT_ENDS_WITHIN);
                table.add(what, "requests/CPU s", flat, &kind, answers / used.server);
                table.add(what, "requests/s", Goal::Nothing, &kind, answers / used.seconds);
            }
        }
    }

    /// A server of this kind of index; with PostgreSQL, its state is in `state`.
    fn server(&self, kind: &str, state: &Folder, arguments: &[&str]) -> Server {
        let (state, index): (&Path, &[&str]) = match kind {
            SQLITE => (self.grown.state_dir(), &[]),
            _ => {
                let key = "signing-key";
                std::fs::copy(self.grown.state_dir().join(key), state.path().join(key)).expect("copied");
                let [grown, nars] = [self.grown.state_dir(), state.path()].map(|dir| dir.join("nar"));
                // A bucket is not looked into for the NARs of narinfos.
                if !arguments.contains(&"--nar-store") && !nars.exists() {
                    std::os::unix::fs::symlink(grown, nars).expect("linked");
                }
                (state.path(), &["--index", &self.url])
            }
        };
        Server::ondine(&self.cache, state, &self.logs, &[index, arguments].concat())
    }

    /// Requests for so many paths that are there.
    fn narinfos(&self, server: &Server, count: usize) -> Vec<Vec<u8>> {
        self.grown.some(count).map(|hash| server.request(&format!("/{hash}.narinfo"), "")).collect()
    }
}

/// A server of one kind, which has settled.
struct Started {
    kind: &'static str,
    server: Server,
    running: Running,
}

/// Asks each server for what is made of it, in turns.
fn take_turns(
    servers: &[Started],
    what: &'static str,
    goal: Goal,
    requests: impl Fn(&Server) -> Vec<Vec<u8>>,
    status: [u8; 3],
    times: Times,
    table: &mut Comparison,
) {
    let requests: Vec<_> = servers.iter().map(|started| requests(&started.server)).collect();
    for _ in 0..TURNS {
        for (Started { kind, server, running }, requests) in servers.iter().zip(&requests) {
            let addresses = [server.address];
            let seen = load::measure(&addresses, CONNECTIONS, requests, status, &running.processes, times);
            let Seen { answers, used } = seen.expect("the server answers");
            table.add(what, "requests/s", goal, kind, answers / used.seconds);
            table.add(what, "CPU µs/request", Goal::Nothing, kind, used.server * 1e6 / answers);
        }
    }
}
