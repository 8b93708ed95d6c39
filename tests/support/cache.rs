//! A cache as the tests of its promises use it: a store, its daemon, the server, and what is asked of them;
//! and what an answer must be.

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use narinfo::{NarInfo, StoreDir};

use super::addresses::{base_name, narinfo_address};
use super::client::Client;
use super::derivations::Derivation;
use super::gate::Gate;
use super::http::{Http, Response, connect};
use super::ondine::Ondine;
use super::process::{run, wait_until};
use super::release::Release;
use super::store::{Daemon, Instantiated, NixStore, text};
use super::upstream::settings_file;

/// Time limit of a change of state, of an answer, or of a short build.
const SOON: Duration = Duration::from_secs(60);

/// A server of this machine's Nix. The fields are dropped in this order, the server before its daemon.
pub struct Cache {
    /// Asks the server.
    pub http: Http,
    /// The server.
    pub ondine: Ondine,
    /// The daemon of its store.
    pub daemon: Daemon,
    /// Its store.
    pub store: NixStore,
}

impl Cache {
    /// An empty store and a server with these arguments.
    #[track_caller]
    pub fn new(arguments: &[&str]) -> Cache {
        Cache::of(NixStore::new(Release::Host), arguments, &[])
    }

    /// A server of this store with these arguments and environment variables.
    #[track_caller]
    pub fn of(store: NixStore, arguments: &[&str], variables: &[(&str, &str)]) -> Cache {
        let daemon = store.daemon();
        let ondine = Ondine::start_with(&store, arguments, variables);
        Cache { http: Http::new(&ondine.url()), ondine, daemon, store }
    }

    /// An empty store and a server whose state directory is on small disks: see [`Ondine::on_disks`].
    #[track_caller]
    pub fn on_disks(arguments: &[&str], disks: &[(&str, &str)]) -> Cache {
        let store = NixStore::new(Release::Host);
        let mut ondine = Ondine::on_disks(&store, arguments, disks);
        let daemon = store.daemon();
        ondine.start_again();
        Cache { http: Http::new(&ondine.url()), ondine, daemon, store }
    }

    /// A server of this store with other caches behind it, each a table of its settings file.
    #[track_caller]
    pub fn behind(store: NixStore, tables: &[String], arguments: &[&str]) -> Cache {
        let file = settings_file(&store, tables);
        let arguments = [&["--config", &file], arguments].concat();
        Cache::of(store, &arguments, &[])
    }

    /// A derivation that waits at the gate and then makes a file.
    #[track_caller]
    pub fn gated(&self, name: &str, gate: &Gate) -> Instantiated {
        let script = format!("{}echo {name} > \"$out\"", gate.script(name));
        self.store.instantiate(&Derivation::new(name, &script))
    }

    /// A derivation that notes its start at the gate, says its last words and ends with these lines.
    #[track_caller]
    pub fn failing(&self, name: &str, gate: &Gate, end: &str) -> Instantiated {
        let script = format!("{}echo 'famous last words'\n{end}", gate.note(name));
        self.store.instantiate(&Derivation::new(name, &script))
    }

    /// The server's whole answer to a request for the narinfo of a path.
    #[track_caller]
    pub fn ask(&self, path: &Path) -> Response {
        self.http.get(&narinfo_address(path))
    }

    /// Asks in a thread of its own; dropping the cache ends it.
    pub fn ask_in_background(&self, path: &Path) -> Asked {
        let (http, address) = (Http::new(&self.ondine.url()), narinfo_address(path));
        Asked(std::thread::spawn(move || http.get(&address)))
    }

    /// Asks for a path and does not look at the answer: a client that stands in line until this is closed.
    #[track_caller]
    pub fn stand_in_line(&self, path: &Path) -> TcpStream {
        let mut stream = connect(self.ondine.address());
        let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", narinfo_address(path));
        stream.write_all(request.as_bytes()).expect("a new connection takes a request");
        stream
    }

    /// The path is served already: nothing is built for it.
    #[track_caller]
    pub fn assert_served(&self, path: &Path) {
        assert_narinfo(&self.http.get(&format!("/cached{}", narinfo_address(path))), path);
    }

    /// The narinfo of a path, built where need be.
    #[track_caller]
    pub fn narinfo(&self, path: &Path) -> String {
        let answer = self.ask(path);
        assert_eq!(answer.status, 200, "{}: {}", path.display(), answer.text());
        answer.text()
    }

    /// The names of the derivations that somebody asked for, in order, the running one first.
    #[track_caller]
    pub fn queued(&self) -> Vec<String> {
        let status: serde_json::Value =
            serde_json::from_slice(&self.http.get("/api/v1/status").body).expect("the status is JSON");
        let requests = status["queue"]["requests"].as_array().expect("the queue is listed");
        let base_names = requests.iter().map(|request| request["derivation"].as_str().expect("a name"));
        base_names.map(|name| name[33..].trim_end_matches(".drv").to_owned()).collect()
    }

    /// Waits until just these are in the queue, in this order.
    #[track_caller]
    pub fn wait_for_queue(&self, names: &[&str]) {
        wait_until(&format!("{names:?} are in the queue"), SOON, || self.queued() == names);
    }

    /// A client with an empty store and these settings.
    pub fn client(&self, settings: &[(&str, &str)]) -> Client {
        Client::with_settings(Release::Host, &self.store.store_dir(), settings)
    }

    /// The paths and all that they refer to, as Nix knows them.
    #[track_caller]
    pub fn closure(&self, paths: &[&Path]) -> Vec<PathBuf> {
        let mut arguments = vec!["--query", "--requisites"];
        arguments.extend(paths.iter().map(|path| text(path)));
        self.store.nix_store(&arguments).lines().map(Into::into).collect()
    }

    /// The NAR that Nix makes of a path.
    #[track_caller]
    pub fn dump(&self, path: &Path) -> Vec<u8> {
        run(self.store.command("nix-store", &["--dump", text(path)])).must_succeed().stdout
    }
}

/// A request in a thread.
pub struct Asked(JoinHandle<Response>);

impl Asked {
    /// True once the answer is there.
    pub fn is_answered(&self) -> bool {
        self.0.is_finished()
    }

    /// The answer; none within a minute fails the test.
    #[track_caller]
    pub fn answer(self) -> Response {
        wait_until("an answer comes", SOON, || self.0.is_finished());
        self.0.join().expect("the request was answered")
    }
}

/// The answer is a whole narinfo of `path`, whatever lines about the wait it has.
#[track_caller]
pub fn assert_narinfo(answer: &Response, path: &Path) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let store_dir = StoreDir::new(text(path.parent().expect("a store path is in a store"))).expect("a store");
    let parsed = NarInfo::parse(&store_dir, &answer.body);
    let parsed = parsed.unwrap_or_else(|error| panic!("{error}: {}", answer.text()));
    assert_eq!(parsed.path_info.path.to_string(), base_name(path));
    assert!(!parsed.path_info.signatures.is_empty(), "not signed: {}", answer.text());
}

/// The answer is 404 and its text has all of `words`.
#[track_caller]
pub fn assert_missing(answer: &Response, words: &[&str]) {
    assert_eq!(answer.status, 404, "{}", answer.text());
    for word in words {
        assert!(answer.text().contains(word), "no {word:?} in: {}", answer.text());
    }
}

/// A narinfo without the lines about the wait and those about the packed file, which is packed at its own
/// time.
pub fn without_wait_and_file(narinfo: &str) -> Vec<&str> {
    let passing = ["X-Ondine-Wait: ", "FileHash: ", "FileSize: "];
    narinfo.lines().filter(|line| !passing.iter().any(|start| line.starts_with(start))).collect()
}

/// Number of open connections to `address`, of the loopback interface.
pub fn connections(address: &str) -> usize {
    let port: u16 = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let local = format!("0100007F:{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel lists connections");
    let words = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.filter(|words| words.get(1) == Some(&&*local) && words.get(3) == Some(&"01")).count()
}

/// The status of an answer as it came over the wire.
#[track_caller]
pub fn status_of(answer: &[u8]) -> u16 {
    let line = String::from_utf8_lossy(answer).lines().next().unwrap_or_default().to_owned();
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status line: {line:?}"))
}
