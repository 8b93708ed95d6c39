//! A throw-away Nix store with its own database, settings and daemon, under one temporary folder.
//! It never reads or writes the machine's own store, settings or caches, and knows no substituter.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::derivations::Derivation;
use super::gate::Gate;
use super::process::{self, Finished, kill_tree, wait_until};
use super::release::{Launcher, Release};

/// The longest path a Unix socket may have, its final NUL included.
const SOCKET_PATH_BYTES_MAX: usize = 108;

/// Time limit until a daemon accepts a connection.
const DAEMON_START_LIMIT: Duration = Duration::from_secs(30);

/// Settings of every store: builds as the current user, beside no other store's build users, from nowhere
/// else.
pub const NIX_CONF: &str = "\
sandbox = false
build-users-group =
substituters =
experimental-features = nix-command
";

/// Those, and after them these, which win.
pub fn nix_conf(settings: &[(&str, &str)]) -> String {
    let lines = settings.iter().map(|(name, value)| format!("{name} = {value}\n"));
    format!("{NIX_CONF}{}", lines.collect::<String>())
}

/// A temporary folder whose read-only store paths are removed with it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// A fresh folder with a short name, for the sake of socket paths.
    pub fn new() -> Folder {
        let made = tempfile::Builder::new().prefix("ond").rand_bytes(5).tempdir();
        Folder(made.expect("the temporary folder of this machine can be written to"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A folder in it, made when missing.
    pub fn subfolder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = Command::new("chmod").args(["-R", "u+w"]).arg(self.path()).stderr(Stdio::null()).status();
    }
}

/// Writes a file of the fixture, or fails the test saying which.
#[track_caller]
pub fn write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// The variables that keep Nix inside `folder` while it takes `store_dir` for its store.
pub fn nix_variables(folder: &Folder, store_dir: &Path) -> Vec<(String, OsString)> {
    let inside = |name: &str| OsString::from(folder.subfolder(name));
    vec![
        ("NIX_STORE_DIR".into(), store_dir.into()),
        ("NIX_STATE_DIR".into(), inside("var")),
        ("NIX_LOCALSTATE_DIR".into(), inside("var")),
        ("NIX_LOG_DIR".into(), inside("log")),
        ("NIX_CONF_DIR".into(), inside("etc")),
        ("NIX_DAEMON_SOCKET_PATH".into(), folder.path().join("socket").into()),
        ("HOME".into(), inside("home")),
        ("XDG_CACHE_HOME".into(), inside("cache")),
    ]
}

/// A Nix store of one release.
pub struct NixStore {
    release: Release,
    folder: Arc<Folder>,
    store_dir: PathBuf,
    launcher: Launcher,
    names: AtomicU64,
}

impl NixStore {
    /// An empty store.
    pub fn new(release: Release) -> NixStore {
        NixStore::with_settings(release, &[])
    }

    /// The same with these lines in its nix.conf, such as `("secret-key-files", "/the/key")`.
    pub fn with_settings(release: Release, settings: &[(&str, &str)]) -> NixStore {
        let folder = Folder::new();
        let store_dir = folder.subfolder("store");
        NixStore::within(release, folder, store_dir, settings)
    }

    /// A store of the same directory, whose database knows nothing of what is in it.
    pub fn forgotten(&self) -> NixStore {
        NixStore::within(self.release.clone(), Folder::new(), self.store_dir.clone(), &[])
    }

    fn within(release: Release, folder: Folder, store_dir: PathBuf, settings: &[(&str, &str)]) -> NixStore {
        let launcher = Launcher::new(release.clone(), nix_variables(&folder, &store_dir));
        write(&folder.path().join("etc/nix.conf"), &nix_conf(settings));
        NixStore { release, folder: Arc::new(folder), store_dir, launcher, names: AtomicU64::new(0) }
    }

    /// Makes its database, if there is none. Nix makes one in whatever process is first, and another process
    /// that looks in the same moment finds an empty `schema` and calls it corrupt (Nix's
    /// src/libstore/local-store.cc: the lock is a shared one). A daemon serves each connection by a process
    /// of its own.
    #[track_caller]
    fn initialise(&self) {
        if !self.state_dir().join("db/schema").exists() {
            self.nix_store(&["--init"]);
        }
    }

    /// The Nix it runs.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// The temporary folder that holds all of it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The store directory, physical and logical in one.
    pub fn store_dir(&self) -> PathBuf {
        self.store_dir.clone()
    }

    /// The state directory, with Nix's database in `db/db.sqlite`.
    pub fn state_dir(&self) -> PathBuf {
        self.folder().join("var")
    }

    /// Where its daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("socket")
    }

    /// The variables that point a program on this machine, such as Ondine, at this store.
    pub fn variables(&self) -> Vec<(String, OsString)> {
        nix_variables(&self.folder, &self.store_dir())
    }

    /// Adds lines to its nix.conf, for daemons started from now on.
    #[track_caller]
    pub fn configure(&self, lines: &str) {
        write(&self.folder().join("etc/nix.conf"), &format!("{NIX_CONF}{lines}"));
    }

    /// Starts its daemon and waits until it accepts connections.
    #[track_caller]
    pub fn daemon(&self) -> Daemon {
        Daemon::start(self, self.socket())
    }

    /// Starts another daemon of this store, with a socket of its own.
    #[track_caller]
    pub fn second_daemon(&self) -> Daemon {
        Daemon::start(self, self.folder().join("socket-2"))
    }

    /// A command of this release on this store that opens the store itself.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        self.launcher.clone().variable("NIX_REMOTE", "local").command(program, arguments)
    }

    /// A command of this release on this store that asks the daemon.
    pub fn command_through_daemon(&self, program: &str, arguments: &[&str]) -> Command {
        self.launcher.clone().variable("NIX_REMOTE", "daemon").command(program, arguments)
    }

    /// `ondine` with these arguments as a user of this machine runs it, whose Nix asks the daemon.
    pub fn ondine(&self, arguments: &[&str]) -> Command {
        self.launcher.clone().variable("NIX_REMOTE", "daemon").ondine(self.folder(), arguments)
    }

    /// The output of `nix` with these arguments; a failure fails the test.
    #[track_caller]
    pub fn nix(&self, arguments: &[&str]) -> String {
        process::run(self.command("nix", arguments)).must_succeed().text()
    }

    /// The output of `nix-store` with these arguments; a failure fails the test.
    #[track_caller]
    pub fn nix_store(&self, arguments: &[&str]) -> String {
        process::run(self.command("nix-store", arguments)).must_succeed().text()
    }

    /// The .drv paths of a Nix expression, which are written to the store and not built.
    #[track_caller]
    pub fn nix_instantiate(&self, expression: &str) -> Vec<PathBuf> {
        let finished = process::run(self.command("nix-instantiate", &["--expr", expression])).must_succeed();
        // With more than one output Nix appends `!output` to the path.
        finished.text().lines().map(|line| PathBuf::from(line.split('!').next().unwrap_or(line))).collect()
    }

    /// Writes a derivation to the store without building it, and says where it and its outputs are or would
    /// be.
    #[track_caller]
    pub fn instantiate(&self, derivation: &Derivation) -> Instantiated {
        let drv = self.nix_instantiate(&derivation.to_nix());
        let drv = drv.into_iter().next().expect("nix-instantiate names one path for one derivation");
        let outputs = derivation.output_names();
        let paths = outputs.iter().map(|output| {
            let path = self.nix_store(&["--query", "--binding", output, text(&drv)]);
            (output.clone(), PathBuf::from(path))
        });
        Instantiated { outputs: paths.collect(), drv }
    }

    /// Builds a derivation here and now, or fails the test with the log.
    #[track_caller]
    pub fn realise(&self, drv: &Path) -> Finished {
        process::run(self.command("nix-store", &["--realise", text(drv)])).must_succeed()
    }

    /// True if `path` is valid in the store's database.
    pub fn is_valid(&self, path: &Path) -> bool {
        process::run(self.command("nix-store", &["--check-validity", text(path)])).succeeded()
    }

    /// Protects `path` and its closure from the garbage collector.
    #[track_caller]
    pub fn root(&self, path: &Path) {
        let roots = self.state_dir().join("gcroots");
        std::fs::create_dir_all(&roots).expect("the state directory of a test's store can be written to");
        let link = roots.join(path.file_name().expect("a store path has a name"));
        std::os::unix::fs::symlink(path, &link)
            .unwrap_or_else(|error| panic!("cannot make the root {}: {error}", link.display()));
    }

    /// Collects every path that no root holds.
    #[track_caller]
    pub fn gc(&self) {
        self.nix_store(&["--gc"]);
    }

    /// Deletes `path` from the store; fails the test when something holds it.
    #[track_caller]
    pub fn delete(&self, path: &Path) {
        self.nix_store(&["--delete", text(path)]);
    }

    /// A gate in this store's folder for the scripts of derivations.
    pub fn gate(&self) -> Gate {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        Gate::new(self.folder.clone(), self.folder.subfolder(&format!("gate-{number}")))
    }
}

/// A derivation that is in a store, with its outputs by name.
pub struct Instantiated {
    /// The .drv file.
    pub drv: PathBuf,
    /// Each output's name and path, in the order the derivation declares them.
    pub outputs: Vec<(String, PathBuf)>,
}

impl Instantiated {
    /// The path of the first output.
    pub fn out(&self) -> &Path {
        &self.outputs[0].1
    }

    /// The path of the output called `name`.
    #[track_caller]
    pub fn output(&self, name: &str) -> &Path {
        let found = self.outputs.iter().find(|(output, _)| output == name);
        &found.unwrap_or_else(|| panic!("{} has no output {name}", self.drv.display())).1
    }
}

/// A running nix-daemon; killed with its workers and builders when dropped.
pub struct Daemon {
    launcher: Launcher,
    folder: Arc<Folder>,
    socket: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    #[track_caller]
    fn start(store: &NixStore, socket: PathBuf) -> Daemon {
        store.initialise();
        let launcher = store.launcher.clone().variable("NIX_DAEMON_SOCKET_PATH", text(&socket));
        let mut daemon = Daemon { launcher, folder: store.folder.clone(), socket, child: None };
        daemon.restart();
        daemon
    }

    /// Stops it if it runs, starts it, and waits until it accepts connections.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        let socket = self.socket.clone();
        assert!(
            socket.as_os_str().len() < SOCKET_PATH_BYTES_MAX,
            "{} is too long for a socket: set TMPDIR to a folder with a shorter path",
            socket.display()
        );
        let log_path = self.log_path();
        let log = std::fs::File::options().create(true).append(true).open(&log_path);
        let log = log.unwrap_or_else(|error| panic!("cannot write {}: {error}", log_path.display()));
        let again = log.try_clone().expect("a descriptor can be doubled");
        let mut command = self.launcher.command("nix-daemon", [""; 0]);
        command.stdin(Stdio::null()).stdout(log).stderr(again);
        let child = self.child.insert(process::spawn(&mut command));
        wait_until("nix-daemon accepts a connection", DAEMON_START_LIMIT, || {
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                panic!("nix-daemon ended at once, {status}; it said:\n{log}");
            }
            UnixStream::connect(&socket).is_ok()
        });
    }

    /// Kills it at once, with its workers and their builders, as a crash of all of it would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_tree(child.id());
            let _ = child.wait();
            let _ = std::fs::remove_file(&self.socket);
        }
    }

    /// Its process.
    #[track_caller]
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("the daemon of this test is not running").id()
    }

    /// Text of its standard error until now.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- nix-daemon said\n{}", self.log());
        }
    }
}

/// A path as an argument; the fixture's own are UTF-8.
#[track_caller]
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
}
