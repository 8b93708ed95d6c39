//! The built program under test, serving a test's store on a free port of the loopback interface.
//! Its standard error is kept and shown when a test fails; it never outlives its test.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::client::Substituter;
use super::process::{self, Finished, Signal, kill_tree, memory_bytes, signal, wait, wait_until};
use super::small_disk::SmallDisk;
use super::store::{Folder, NixStore, text};

/// Time limit until the server prints its address and key.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Time limit of the server's end after SIGTERM: more than its own limit.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// A server under test.
pub struct Ondine {
    variables: Vec<(String, OsString)>,
    arguments: Vec<String>,
    /// Small disks below its folder, which are unmounted before that goes.
    disks: Vec<SmallDisk>,
    folder: Arc<Folder>,
    child: Option<Child>,
    printed: Arc<Mutex<Vec<String>>>,
    address: String,
    public_key: String,
}

impl Ondine {
    /// Serves `store` (whose daemon should run) from a fresh state directory, with these arguments more.
    #[track_caller]
    pub fn start(store: &NixStore, arguments: &[&str]) -> Ondine {
        Ondine::start_with(store, arguments, &[])
    }

    /// The same with these environment variables more.
    #[track_caller]
    pub fn start_with(store: &NixStore, arguments: &[&str], variables: &[(&str, &str)]) -> Ondine {
        let mut ondine = Ondine::prepared(store, arguments, variables);
        ondine.start_again();
        ondine
    }

    /// One that does not run yet, with the folders of these names in its state directory (itself where there
    /// is none) on small disks of their own, each with these options. A Nix daemon sees only what was mounted
    /// before it was started.
    #[track_caller]
    pub fn on_disks(store: &NixStore, arguments: &[&str], disks: &[(&str, &str)]) -> Ondine {
        let mut ondine = Ondine::prepared(store, arguments, &[]);
        for (name, options) in disks {
            ondine.disks.push(SmallDisk::mount(&ondine.state_dir().join(name), options));
        }
        ondine
    }

    fn prepared(store: &NixStore, arguments: &[&str], variables: &[(&str, &str)]) -> Ondine {
        let mut all = store.variables();
        all.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))));
        Ondine {
            variables: all,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            disks: Vec::new(),
            folder: Arc::new(Folder::new()),
            child: None,
            printed: Arc::default(),
            address: "127.0.0.1:0".to_owned(),
            public_key: String::new(),
        }
    }

    /// Its small disks, in the order in which they were asked for.
    pub fn disks(&self) -> &[SmallDisk] {
        &self.disks
    }

    /// Gives it these arguments more from the next start on.
    pub fn add_arguments(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    }

    /// Starts the server on the same state directory and, from the second time on, the same port. It must not
    /// be running.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server of this test still runs");
        self.printed = Arc::default();
        let mut command = self.command("serve");
        command
            .args(["--listen", &self.address, "--state-dir", text(&self.state_dir())])
            .args(&self.arguments);
        let log = std::fs::File::options().create(true).append(true).open(self.log_path());
        let log = log.unwrap_or_else(|error| panic!("cannot write {}: {error}", self.log_path().display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = process::spawn(&mut command);
        let stdout = child.stdout.take().expect("the output was asked for");
        let printed = self.printed.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                printed.lock().expect("nothing panics with the lines locked").push(line);
            }
        });
        self.child = Some(child);
        self.read_introduction();
    }

    /// Waits for the printed address and key. What the server prints last is the line with the key for
    /// nix.conf.
    #[track_caller]
    fn read_introduction(&mut self) {
        let log_path = self.log_path();
        let printed = self.printed.clone();
        let child = self.child.as_mut().expect("it was just started");
        wait_until("ondine prints its address and key", START_LIMIT, || {
            let said =
                |what: &str| printed.lock().expect("nothing panics").iter().any(|line| line.contains(what));
            if said("extra-trusted-public-keys") {
                return true;
            }
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                panic!("ondine ended at once, {status}; it said:\n{log}");
            }
            false
        });
        let url = self.printed_after("url: ");
        let address = url.strip_prefix("http://").unwrap_or(&url).trim_end_matches('/').to_owned();
        self.public_key = self.printed_after("public key: ");
        self.address = address;
    }

    #[track_caller]
    fn printed_after(&self, label: &str) -> String {
        let lines = self.printed_lines();
        let found = lines.iter().find_map(|line| line.strip_prefix(label));
        found
            .unwrap_or_else(|| panic!("ondine printed no line {label:?}, but:\n{}", lines.join("\n")))
            .to_owned()
    }

    /// Every line it has printed to its standard output since it was last started.
    pub fn printed_lines(&self) -> Vec<String> {
        self.printed.lock().expect("nothing panics with the lines locked").clone()
    }

    /// `ondine COMMAND` in the environment of the server, for the program's other commands.
    pub fn command(&self, command: &str) -> Command {
        let mut ondine = Command::new(process::program());
        ondine.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        ondine.envs(self.variables.iter().map(|(name, value)| (name, value)));
        ondine.arg(command);
        ondine
    }

    /// The same with these arguments, on the state directory of the server.
    pub fn command_here(&self, command: &str, arguments: &[&str]) -> Command {
        let mut ondine = self.command(command);
        ondine.args(arguments).args(["--state-dir", text(&self.state_dir())]);
        ondine
    }

    /// Runs it.
    #[track_caller]
    pub fn run(&self, command: &str, arguments: &[&str]) -> Finished {
        process::run(self.command_here(command, arguments))
    }

    /// Ends all uses until now, of a server with `--eviction-grace 0s`: they are put on record, to the
    /// second, and are over one more second later.
    #[track_caller]
    pub fn end_all_uses(&self) {
        self.run("gc", &["--dry-run"]).must_succeed();
        let seconds = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_secs();
        let now = seconds();
        wait_until("the uses are over", Duration::from_secs(10), || seconds() > now + 1);
    }

    /// Makes a token with `ondine token new`, and gives its text: of this name, with these rights
    /// (`read,push`) and these flags more.
    #[track_caller]
    pub fn new_token(&self, name: &str, rights: &str, flags: &[&str]) -> String {
        let arguments = [&["new", "--name", name, "--may", rights], flags].concat();
        self.run("token", &arguments).must_succeed().text().trim().to_owned()
    }

    /// Where it listens, such as `127.0.0.1:40123`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its URL without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its public key, `name:base64`.
    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// Address and key that a client needs to fetch from it.
    pub fn substituter(&self) -> Substituter {
        Substituter { url: self.url(), public_key: self.public_key.clone() }
    }

    /// The same cache without building: `/cached`.
    pub fn cached(&self) -> Substituter {
        Substituter { url: format!("{}/cached", self.url()), public_key: self.public_key.clone() }
    }

    /// Its state directory; it stays when the server is stopped and goes when the test ends.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Text of its standard error until now.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("stderr")
    }

    /// Its process.
    #[track_caller]
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("the server of this test is not running").id()
    }

    /// Kills it with no chance to tidy up, as a power cut would. The Nix daemon is not its child and stays.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It alone: what it has started ends by its own means, or a test is to see that it does not.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends SIGTERM and waits for the end; fails the test when the server does not end.
    #[track_caller]
    pub fn sigterm(&mut self) -> ExitStatus {
        self.start_stopping();
        self.wait_stopped()
    }

    /// Sends SIGTERM and returns at once.
    pub fn start_stopping(&self) {
        signal(&[self.id()], Signal::Term);
    }

    /// Waits for the end of a server that was told to stop.
    #[track_caller]
    pub fn wait_stopped(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the server of this test is not running");
        let status = wait(&mut child, STOP_LIMIT);
        if status.is_none() {
            kill_tree(child.id());
            let _ = child.wait();
        }
        status.unwrap_or_else(|| {
            panic!("ondine had not stopped {STOP_LIMIT:?} after SIGTERM; it said:\n{}", self.log())
        })
    }

    /// Kills it with no chance to tidy up and starts it on the same state directory and port.
    #[track_caller]
    pub fn crash_and_restart(&mut self) {
        self.kill9();
        self.start_again();
    }

    /// The memory it holds now, in bytes.
    #[track_caller]
    pub fn rss_bytes(&self) -> u64 {
        memory_bytes(self.id(), "VmRSS").expect("it runs")
    }

    /// The most memory it has held, in bytes.
    #[track_caller]
    pub fn peak_rss_bytes(&self) -> u64 {
        memory_bytes(self.id(), "VmHWM").expect("it runs")
    }

    /// Number of its open file descriptors.
    pub fn open_descriptors(&self) -> usize {
        std::fs::read_dir(Path::new("/proc").join(self.id().to_string()).join("fd"))
            .map_or(0, Iterator::count)
    }
}

impl Drop for Ondine {
    fn drop(&mut self) {
        self.kill9();
        // The inner ones first.
        while self.disks.pop().is_some() {}
        if std::thread::panicking() {
            eprintln!("--- ondine said\n{}", self.log());
        }
    }
}
