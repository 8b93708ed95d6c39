//! One index in SQLite and in PostgreSQL: hits from memory, hits that are read from the index, misses, and
//! the time to the first answer; and front ends that share the one in PostgreSQL.

use std::path::Path;

use crate::comparison::{Comparison, Goal};
use crate::grown::Grown;
use crate::serving::load::{self, Seen, Times};
use crate::serving::servers::{Running, Server};
use crate::support::process::run;
use crate::support::store::Folder;
use crate::support::{Bucket, Cache, NixStore, PostgresServer, Release, text};

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

    /// One round: hits, misses and starts with each index.
    pub fn measure(&self, table: &mut Comparison, times: Times) {
        for kind in [SQLITE, POSTGRES] {
            let state = Folder::new();
            let server = self.server(kind, &state, &[]);
            for _ in 0..STARTS {
                let millis = server.start().to_first_answer.as_secs_f64() * 1e3;
                table.add("start to the first answer", "ms", Goal::AtMost(START_MAX), kind, millis);
            }
            let running = server.settled();
            let popular = self.narinfos(&server, POPULAR);
            let unknown = self.grown.unknown(UNKNOWN).map(|hash| server.miss_address(&hash));
            let unknown: Vec<_> = unknown.map(|address| server.request(&address, "")).collect();
            let mut serve = |what, goal, server: &Server, running: &Running, requests: &[Vec<u8>], status| {
                let address = server.address;
                let seen = load::measure(address, CONNECTIONS, requests, status, &running.processes, times);
                let Seen { answers, used } = seen.expect("the server answers");
                table.add(what, "requests/s", goal, kind, answers / used.seconds);
                table.add(what, "CPU µs/request", Goal::Nothing, kind, used.server * 1e6 / answers);
            };
            serve("hit, in memory", Goal::RatioAtLeast(HITS_MIN), &server, &running, &popular, *b"200");
            serve("miss, by the filter in memory", Goal::Nothing, &server, &running, &unknown, *b"404");
            drop(running);
            let forgetful = self.server(kind, &state, &["--narinfo-memory-bytes", "0"]);
            let rare = self.narinfos(&forgetful, RARE);
            let running = forgetful.settled();
            let what = "miss in memory, read from the index";
            serve(what, Goal::RatioAtLeast(READS_MIN), &forgetful, &running, &rare, *b"200");
        }
    }

    /// One round: hits of one front end, of two and of three, each asked by its share of the connections.
    pub fn measure_front_ends(&self, bucket: &Bucket, table: &mut Comparison, times: Times) {
        for count in 1..=FRONT_ENDS_MAX {
            let states: Vec<Folder> = (0..count).map(|_| Folder::new()).collect();
            let place = bucket.url();
            let servers: Vec<Server> =
                states.iter().map(|state| self.server(POSTGRES, state, &["--nar-store", &place])).collect();
            let running: Vec<Running> = servers.iter().map(Server::settled).collect();
            let asked: Vec<_> =
                servers.iter().map(|server| (server.address, self.narinfos(server, POPULAR))).collect();
            let seen: Vec<Seen> = std::thread::scope(|scope| {
                let asked = asked.iter().zip(&running).map(|((address, popular), running)| {
                    let share = CONNECTIONS / count;
                    scope.spawn(move || {
                        load::measure(*address, share, popular, *b"200", &running.processes, times)
                    })
                });
                let asked: Vec<_> = asked.collect();
                let answered = asked.into_iter().map(|thread| thread.join().expect("no panic"));
                answered.map(|seen| seen.expect("the server answers")).collect()
            });
            let kind = format!("{count} front ends");
            let [answers, rate, seconds] = seen.iter().fold([0.0; 3], |[answers, rate, seconds], seen| {
                let Seen { answers: more, used } = seen;
                [answers + more, rate + more / used.seconds, seconds + used.server]
            });
            let flat = Goal::Flat(FRONT_ENDS_WITHIN);
            table.add("hits of all front ends", "requests/CPU s", flat, &kind, answers / seconds);
            table.add("hits of all front ends", "requests/s", Goal::Nothing, &kind, rate);
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
