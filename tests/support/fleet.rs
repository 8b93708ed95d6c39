//! Several servers over one PostgreSQL and one bucket, with the same signing key and the same Nix daemon, and
//! a check of what they have done together: one history.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::addresses::{base_name, field, narinfo_address};
use super::buckets::TestBucket as _;
use super::cache::assert_narinfo;
use super::derivations::Derivation;
use super::faulty_proxy::FaultyProxy;
use super::gate::Gate;
use super::history::{AUDIT, History};
use super::http::{Ending, Http, Response};
use super::object_store::Bucket;
use super::ondine::Ondine;
use super::postgres::PostgresServer;
use super::process::{Signal, run, signal, wait_until};
use super::release::Release;
use super::store::{Daemon, Instantiated, NixStore, text};

/// Time limit of an answer, of a start, and of a takeover that is not itself measured.
const SOON: Duration = Duration::from_secs(60);

/// Schema of the index: the first one of its database.
const SCHEMA: &str = "test0";

/// The servers. The fields are dropped in this order.
pub struct Fleet {
    /// The servers; those that were killed are there, too.
    pub servers: Vec<Ondine>,
    /// The daemon that all of them build with.
    pub daemon: Daemon,
    /// Its store.
    pub store: NixStore,
    /// The database that takes writes.
    pub database: PostgresServer,
    /// Its replica, or what was the database before that was promoted.
    pub replica: Option<PostgresServer>,
    /// The bucket.
    pub bucket: Bucket,
    /// The proxy by which the servers reach it.
    pub proxy: FaultyProxy,
    schema: &'static str,
    arguments: Vec<String>,
}

/// A client that waits for a path at one server, and asks again where it is cut off, as Nix does.
pub struct Waiting {
    path: PathBuf,
    thread: JoinHandle<Option<Response>>,
}

impl Fleet {
    /// So many servers, each with these arguments more; `None` where there is no object store to test with.
    #[track_caller]
    pub fn start(size: usize, arguments: &[&str]) -> Option<Fleet> {
        let bucket = Bucket::new()?;
        Some(Fleet::over(bucket, PostgresServer::start(), None, size, arguments))
    }

    /// The same over a database with a replica, either of which the servers may use.
    #[track_caller]
    pub fn replicated(size: usize, arguments: &[&str]) -> Option<Fleet> {
        let bucket = Bucket::new()?;
        let database = PostgresServer::start();
        let replica = PostgresServer::replica_of(&database);
        Some(Fleet::over(bucket, database, Some(replica), size, arguments))
    }

    #[track_caller]
    fn over(
        bucket: Bucket,
        database: PostgresServer,
        replica: Option<PostgresServer>,
        size: usize,
        arguments: &[&str],
    ) -> Fleet {
        let (store, proxy) = (NixStore::new(Release::Host), FaultyProxy::new(&bucket.address()));
        let (url, schema) = (database.schema(), SCHEMA);
        assert!(url.ends_with(SCHEMA), "{url}");
        let index = replica.as_ref().map_or(url, |replica| database.url_of_either(replica, SCHEMA));
        let key = store.folder().join("key");
        let keys = [text(&key).to_owned(), text(&store.folder().join("key.pub")).to_owned()];
        let mut generate = store.command("nix-store", &["--generate-binary-cache-key", "fleet-1"]);
        generate.args(&keys);
        run(generate).must_succeed();
        let place = bucket.url_through(proxy.address());
        let own = ["--index", &index, "--nar-store", &place, "--signing-key", text(&key), "--hold", "1s"];
        let arguments = own.iter().chain(arguments).map(|argument| (*argument).to_owned()).collect();
        let daemon = store.daemon();
        let servers = Vec::new();
        let mut fleet = Fleet { servers, daemon, store, database, replica, bucket, proxy, schema, arguments };
        for _ in 0..size {
            fleet.add(&[]);
        }
        fleet.sql(AUDIT);
        fleet
    }

    /// Kills the database, and has its replica take over.
    #[track_caller]
    pub fn fail_over(&mut self) {
        self.database.kill();
        self.promote();
    }

    /// Has the replica take over from a database that is away.
    #[track_caller]
    pub fn promote(&mut self) {
        let replica = self.replica.take().expect("there is a replica");
        replica.promote();
        self.replica = Some(std::mem::replace(&mut self.database, replica));
    }

    /// Waits until the replica follows.
    #[track_caller]
    pub fn wait_for_replica(&self) {
        self.database.wait_for_replica();
    }

    /// Makes what was the database, and was killed, a replica of the one that took over.
    #[track_caller]
    pub fn replicate_again(&mut self) {
        self.replica.as_mut().expect("it was killed").follow(&self.database);
    }

    /// One more server, with these arguments more. Gives its number.
    #[track_caller]
    pub fn add(&mut self, arguments: &[&str]) -> usize {
        let all: Vec<&str> =
            self.arguments.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        self.servers.push(Ondine::start_with(&self.store, &all, &Bucket::VARIABLES));
        self.servers.len() - 1
    }

    /// A client of a server.
    pub fn http(&self, number: usize) -> Http {
        Http::new(&self.servers[number].url())
    }

    /// A derivation that waits at the gate and then makes a file.
    #[track_caller]
    pub fn gated(&self, name: &str, gate: &Gate) -> Instantiated {
        let script = format!("{}echo {name} > \"$out\"", gate.script(name));
        self.store.instantiate(&Derivation::new(name, &script))
    }

    /// Begins to wait for a path at a server.
    pub fn wait_for(&self, number: usize, path: &Path) -> Waiting {
        let (url, path) = (self.servers[number].url(), path.to_owned());
        let wanted = path.clone();
        let thread = std::thread::spawn(move || {
            let deadline = Instant::now() + SOON;
            while Instant::now() < deadline {
                if let Ok(mut answer) = Http::new(&url).try_open(&narinfo_address(&wanted), &[]) {
                    let (status, headers) = (answer.status, answer.headers.clone());
                    if let (body, Ending::Complete) = answer.read_to_end() {
                        return Some(Response { status, headers, body });
                    }
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            None
        });
        Waiting { path, thread }
    }

    /// A value of the database.
    #[track_caller]
    pub fn sql(&self, query: &str) -> String {
        self.database.sql(&format!("SET search_path TO {}; {query}", self.schema))
    }

    /// Number of the server that leads, as the database has it.
    #[track_caller]
    pub fn leader(&self) -> Option<usize> {
        let holder = self.sql("SELECT holder FROM leadership");
        self.servers.iter().position(|server| {
            std::fs::read_to_string(server.state_dir().join("node")).is_ok_and(|node| node == holder)
        })
    }

    /// Waits until a server leads, and gives its number.
    #[track_caller]
    pub fn wait_for_leader(&self) -> usize {
        wait_until("a server leads", SOON, || self.leader().is_some());
        self.leader().expect("one leads")
    }

    /// Waits until the requests for these derivations are in the queue, in this order.
    #[track_caller]
    pub fn wait_for_queue(&self, wanted: &[&Instantiated]) {
        let wanted: Vec<&str> = wanted.iter().map(|wanted| base_name(&wanted.drv)).collect();
        let listed = || self.sql("SELECT drv FROM request ORDER BY id");
        wait_until(&format!("{wanted:?} are in the queue"), SOON, || {
            listed().lines().eq(wanted.iter().copied())
        });
    }

    /// Requests of clients at these servers in turn, in the order of these names, of which the first one is
    /// being built.
    pub fn ask_in_order(
        &self,
        names: &[&str],
        servers: &[usize],
        gate: &Gate,
    ) -> (Vec<Instantiated>, Vec<Waiting>) {
        let (mut wanted, mut waiting) = (Vec::new(), Vec::new());
        for (name, server) in names.iter().zip(servers.iter().cycle()) {
            let next = self.gated(name, gate);
            waiting.push(self.wait_for(*server, next.out()));
            wanted.push(next);
            self.wait_for_queue(&wanted.iter().collect::<Vec<_>>());
        }
        gate.wait_for_starts(1);
        (wanted, waiting)
    }

    /// Freezes a server, or lets it go on.
    pub fn signal(&self, number: usize, name: Signal) {
        signal(&[self.servers[number].id()], name);
    }

    /// The served path has its NAR at a server, from the bucket.
    #[track_caller]
    pub fn assert_served(&self, number: usize, path: &Path) {
        let http = self.http(number);
        let answer = http.get(&format!("/cached{}", narinfo_address(path)));
        assert_narinfo(&answer, path);
        let nar = http.get(&format!("/{}", field(&answer.text(), "URL")));
        assert_eq!(nar.status, 200, "server {number}: {}", nar.text());
        let dump = run(self.store.command("nix-store", &["--dump", text(path)])).must_succeed().stdout;
        assert!(
            zstd::decode_all(&nar.body[..]).expect("a zstd file") == dump,
            "server {number} has other bytes"
        );
    }

    /// Checks what all servers have recorded together.
    #[track_caller]
    pub fn check_history(&self) -> History {
        History::check(self)
    }
}

impl Waiting {
    /// True once the answer is there.
    pub fn is_answered(&self) -> bool {
        self.thread.is_finished()
    }

    /// The answer; none within a minute fails the test.
    #[track_caller]
    pub fn answer(self) -> Response {
        wait_until(&format!("{} is answered", self.path.display()), SOON, || self.thread.is_finished());
        self.thread.join().expect("no panic").expect("an answer in time")
    }

    /// The narinfo; none within a minute, or another answer, fails the test.
    #[track_caller]
    pub fn assert_answered(self) {
        let path = self.path.clone();
        assert_narinfo(&self.answer(), &path);
    }
}
