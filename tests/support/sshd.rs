//! An sshd on the loopback interface that starts one command for everyone who logs in, and the files with
//! which a client does.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::process::{kill_tree, run, spawn, wait_until};
use super::store::{Folder, text, write};

/// Setting with which bash reads no ~/.bashrc for the command of a login: that of the user who runs the tests
/// may take long. Bash does so in the first of nested shells alone.
pub const NO_BASHRC: &str = "SetEnv SHLVL=2";
/// Time limit until it listens.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running sshd; killed with all that it started when dropped.
pub struct Sshd {
    child: Child,
    port: u16,
    folder: Folder,
}

impl Sshd {
    /// Starts one whose logins all run `command`, a line of shell.
    #[track_caller]
    pub fn start(command: &str) -> Sshd {
        let folder = Folder::new();
        let place = |name: &str| folder.path().join(name);
        for key in ["host", "client"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", text(&place(key))]);
            run(keygen).must_succeed();
        }
        write(&place("command"), &format!("#!/bin/sh\nexec {command}\n"));
        std::fs::set_permissions(place("command"), std::fs::Permissions::from_mode(0o755))
            .expect("it is ours");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("the loopback interface has a free port").port();
        let lines = [
            format!("Port {port}\nListenAddress 127.0.0.1\nHostKey {}", place("host").display()),
            format!("AuthorizedKeysFile {}", place("client.pub").display()),
            format!("ForceCommand {}", place("command").display()),
            "PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nMaxStartups 100".to_owned(),
            NO_BASHRC.to_owned(),
        ];
        write(&place("config"), &format!("{}\n", lines.join("\n")));
        let key = std::fs::read_to_string(place("host.pub")).expect("ssh-keygen has written it");
        write(&place("known-hosts"), &format!("[127.0.0.1]:{port} {key}"));
        // Where sshd separates its privileges.
        let _ = std::fs::create_dir_all("/run/sshd");
        let log = std::fs::File::create(place("log")).expect("the folder of a test can be written to");
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f", text(&place("config"))]);
        sshd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = spawn(&mut sshd);
        wait_until("sshd listens", START_LIMIT, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Sshd { child, port, folder }
    }

    /// The builder as a client's setting `builders` names it.
    pub fn builder(&self) -> String {
        format!("{} x86_64-linux {} 8 1", self.url(), self.place("client").display())
    }

    /// Its store as a client's commands name it.
    pub fn url(&self) -> String {
        "ssh-ng://root@127.0.0.1".to_owned()
    }

    /// Options of ssh with which a client logs in.
    pub fn ssh_options(&self) -> String {
        let (key, hosts) = (self.place("client"), self.place("known-hosts"));
        let files = format!("-F /dev/null -i {} -o UserKnownHostsFile={}", key.display(), hosts.display());
        format!("{files} -p {} -o BatchMode=yes", self.port)
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        kill_tree(self.child.id());
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.place("log")).unwrap_or_default();
            eprintln!("--- sshd said\n{log}");
        }
    }
}
