//! Remote builders on this machine: each has a store of its own behind the store directory of the test, a Nix
//! of its own release, and an sshd of its own that runs nothing but that Nix. They can be killed, frozen and
//! filled up.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::process::{Signal, run, signal, spawn, tree_of, wait_until};
use super::release::{Launcher, Release};
use super::small_disk::SmallDisk;
use super::sshd::NO_BASHRC;
use super::store::{Folder, NIX_CONF, NixStore, nix_variables, text, write};

/// Time limit until an sshd listens.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A machine that builds, as the settings of a server name it. The fields are dropped in this order.
pub struct Builder {
    name: String,
    port: u16,
    /// Its Nix, without a daemon.
    nix: Launcher,
    sshd: Option<Child>,
    /// Processes that are frozen. They may have lost their parents since.
    frozen: Mutex<Vec<u32>>,
    /// Its store, where that is small.
    disk: Option<SmallDisk>,
    folder: Folder,
}

impl Builder {
    /// Starts a machine of this name whose Nix has this release. Its store directory is that of `store`.
    #[track_caller]
    pub fn start(store: &NixStore, release: &Release, name: &str) -> Builder {
        Builder::with_disk(store, release, name, None)
    }

    /// The same with a store of so many bytes, such as `size=16m`.
    #[track_caller]
    pub fn with_disk(store: &NixStore, release: &Release, name: &str, size: Option<&str>) -> Builder {
        let folder = Folder::new();
        let own_store = folder.subfolder("store");
        let disk = size.map(|size| SmallDisk::mount(&own_store, size));
        std::fs::set_permissions(&own_store, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        let variables = nix_variables(&folder, &store.store_dir());
        let features = "system-features = benchmark big-parallel moon-dust\n";
        write(&folder.path().join("etc/nix.conf"), &format!("{NIX_CONF}{features}"));
        // What the scripts of derivations know of the machine.
        let (label, place) = (folder.path().join("machine"), store.folder().join("machine"));
        write(&label, name);
        if !place.exists() {
            write(&place, "nobody");
        }
        let launcher = Launcher::new(release.clone(), variables)
            .bind(&own_store, &store.store_dir())
            .bind(&label, &place);
        run(launcher.command("nix-store", ["--init"])).must_succeed();
        let script = folder.path().join("daemon");
        write(&script, &in_shell(&launcher.command("nix-daemon", ["--stdio"])));
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        for key in ["host", "client"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f", text(&folder.path().join(key))]);
            run(command).must_succeed();
        }
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("the loopback interface has a free port").port();
        let name = name.to_owned();
        let mut builder =
            Builder { name, port, nix: launcher, sshd: None, frozen: Mutex::default(), disk, folder };
        builder.configure(&script);
        builder.start_again();
        builder
    }

    /// Adds lines to its nix.conf.
    #[track_caller]
    pub fn configure_nix(&self, lines: &str) {
        let file = self.folder.path().join("etc/nix.conf");
        let before = std::fs::read_to_string(&file).expect("it was written");
        write(&file, &format!("{before}{lines}\n"));
    }

    /// A command of its Nix on its own store.
    pub fn nix_command(&self, program: &str, arguments: &[&str]) -> Command {
        self.nix.clone().variable("NIX_REMOTE", "local").command(program, arguments)
    }

    /// True where a path is valid in its store.
    pub fn has(&self, path: &Path) -> bool {
        run(self.nix_command("nix-store", &["--check-validity", text(path)])).succeeded()
    }

    fn configure(&self, script: &Path) {
        let at = self.folder.path();
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {host}\nPidFile none\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nAuthorizedKeysFile {client}\nPasswordAuthentication no\nMaxStartups 100\n\
             MaxSessions 100\nForceCommand {script}\n{NO_BASHRC}\n",
            self.port,
            host = at.join("host").display(),
            client = at.join("client.pub").display(),
            script = script.display(),
        );
        write(&at.join("sshd_config"), &config);
        let key = std::fs::read_to_string(at.join("host.pub")).expect("ssh-keygen has written it");
        write(&at.join("known-hosts"), &format!("[127.0.0.1]:{} {key}", self.port));
    }

    /// Starts its sshd, which must not run.
    #[track_caller]
    pub fn start_again(&mut self) {
        // Where sshd separates its privileges.
        let _ = std::fs::create_dir_all("/run/sshd");
        let log =
            std::fs::File::options().create(true).append(true).open(self.folder.path().join("sshd.log"));
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f", text(&self.folder.path().join("sshd_config"))]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.expect("the folder of a test can be written to"));
        self.sshd = Some(spawn(&mut command));
        let port = self.port;
        wait_until("sshd listens", START_LIMIT, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// Kills it with all that runs on it, as the loss of its power would.
    pub fn kill(&mut self) {
        let sshd = self.sshd.take();
        let roots = sshd.iter().map(Child::id).chain(self.take_frozen());
        let all: Vec<u32> = roots.flat_map(tree_of).collect();
        signal(&all, Signal::Kill);
        if let Some(mut sshd) = sshd {
            let _ = sshd.wait();
        }
    }

    /// Freezes all that runs on it: it answers nothing, and its connections stay open.
    pub fn freeze(&self) {
        self.freeze_those(|_| true);
    }

    /// Freezes what runs on it but its sshd: the machine answers, its Nix does not.
    pub fn freeze_nix(&self) {
        self.freeze_those(|id| {
            let name = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            !name.trim().starts_with("sshd")
        });
    }

    fn freeze_those(&self, is_meant: impl Fn(&u32) -> bool) {
        let Some(sshd) = &self.sshd else { return };
        let ids: Vec<u32> = tree_of(sshd.id()).into_iter().filter(is_meant).collect();
        signal(&ids, Signal::Stop);
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    /// Ends that.
    pub fn thaw(&self) {
        signal(&self.take_frozen(), Signal::Cont);
    }

    fn take_frozen(&self) -> Vec<u32> {
        std::mem::take(&mut *self.frozen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its small disk.
    #[track_caller]
    pub fn disk(&self) -> &SmallDisk {
        self.disk.as_ref().expect("this builder has a small disk")
    }

    /// Place of a path of the store directory in its own store.
    pub fn own_place(&self, path: &Path) -> PathBuf {
        self.folder.path().join("store").join(path.file_name().expect("a store path has a name"))
    }

    /// Its table in a settings file, with these lines more.
    pub fn table(&self, more: &str) -> String {
        self.table_at(self.port, more)
    }

    /// The same for a port that leads to that of its sshd.
    pub fn table_at(&self, port: u16, more: &str) -> String {
        let at = self.folder.path();
        let known_hosts = at.join(format!("known-hosts-{port}"));
        let key = std::fs::read_to_string(at.join("host.pub")).expect("ssh-keygen has written it");
        write(&known_hosts, &format!("[127.0.0.1]:{port} {key}"));
        format!(
            "[[builder]]\nname = '{}'\nssh = 'root@127.0.0.1:{port}'\nkey-file = '{}'\nknown-hosts = '{}'\n{more}\n",
            self.name,
            at.join("client").display(),
            known_hosts.display(),
        )
    }

    /// Its line in Nix's own syntax, with so many builds at a time.
    pub fn line(&self, system: &str, slots: usize) -> String {
        let key = std::fs::read_to_string(self.folder.path().join("host.pub")).expect("it was written");
        let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key.trim());
        let client = self.folder.path().join("client");
        format!("ssh-ng://root@127.0.0.1:{} {system} {} {slots} 1 - - {key}", self.port, client.display())
    }

    /// Port of its sshd.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The private key with which clients log in.
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("client")
    }

    /// The file that has its host key.
    pub fn known_hosts(&self) -> PathBuf {
        self.folder.path().join("known-hosts")
    }

    /// Options of ssh with which a Nix logs in that names no port.
    pub fn ssh_options(&self) -> String {
        let at = self.folder.path();
        let (key, hosts) = (at.join("client"), at.join("known-hosts"));
        let files = format!("-F /dev/null -i {} -o UserKnownHostsFile={}", key.display(), hosts.display());
        format!("{files} -p {} -o BatchMode=yes", self.port)
    }

    /// Text of sshd's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("sshd.log")).unwrap_or_default()
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the sshd of {} said\n{}", self.name, self.log());
        }
    }
}

/// A line of a derivation's script that notes its start at `file`, with its name and that of the machine.
pub fn note_start(store: &NixStore, file: &Path, name: &str) -> String {
    let machine = store.folder().join("machine");
    format!("echo \"{name} $(cat {})\" >> {}\n", machine.display(), file.display())
}

/// A script that runs a command with exactly its environment.
fn in_shell(command: &Command) -> String {
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_string_lossy().replace('\'', "'\\''"));
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    let line: Vec<String> = variables.chain(words).collect();
    format!("#!/bin/sh\nexec env -i {}\n", line.join(" "))
}

/// Writes a settings file of a store with these tables, and gives its path.
#[track_caller]
pub fn settings(store: &NixStore, lines: &str) -> String {
    let file = store.folder().join("farm.toml");
    write(&file, lines);
    text(&file).to_owned()
}
