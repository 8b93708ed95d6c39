//! A PostgreSQL of its own, in a folder that is thrown away. One is shared by all tests of a program, each of
//! which gets a schema; a test that stops or kills its server starts another one.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::process::{Finished, Signal, run, signal, spawn, wait_until};
use super::store::{Folder, text};

/// Time limit until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Port of one that is reached on this machine alone, which names its socket.
const PORT: u16 = 5432;
/// Folder of the releases that Debian has.
const RELEASES: &str = "/usr/lib/postgresql";
/// Runs the server until its standard input ends: it goes with the test, however that ends.
const WRAPPER: &str = "\"$@\" & server=$!; echo $server >\"$PID_FILE\"; read -r _; kill -s QUIT $server; \
    kill -s CONT $server; wait $server; rm -rf \"$REMOVE\"";
/// For tests, which lose nothing that matters with the machine.
const OPTIONS: [&str; 6] = [
    "fsync=off",
    "max_connections=300",
    "shared_buffers=64MB",
    "listen_addresses=",
    "log_min_messages=warning",
    "wal_retrieve_retry_interval=200ms",
];

/// A running PostgreSQL.
pub struct PostgresServer {
    folder: Folder,
    wrapper: Option<Child>,
    user: Option<PostgresUser>,
    schemas: AtomicU32,
    port: u16,
    /// Options of one that is reached over the network.
    network: Vec<String>,
}

/// Way to a server over the network, with TLS and a password.
pub struct NetworkAccess {
    /// Its port on the loopback interface.
    pub port: u16,
    /// File of the certificate, which is for `localhost`.
    pub authority: PathBuf,
    /// File of the password.
    pub password: PathBuf,
}

/// The user that PostgreSQL runs as, where this is root.
#[derive(Clone, Copy)]
struct PostgresUser {
    id: u32,
    group: u32,
}

impl PostgresServer {
    /// The server that all tests of this program share.
    #[track_caller]
    pub fn shared() -> &'static PostgresServer {
        static SHARED: OnceLock<PostgresServer> = OnceLock::new();
        SHARED.get_or_init(PostgresServer::start)
    }

    /// A server of its own.
    #[track_caller]
    pub fn start() -> PostgresServer {
        let mut server = PostgresServer::initialised(&[]);
        server.restart();
        server
    }

    /// One that is reached over the network, too: with TLS alone, and with this password.
    #[track_caller]
    pub fn start_on_network(password: &str) -> (PostgresServer, NetworkAccess) {
        let secrets = Folder::new();
        let file = secrets.path().join("password");
        super::store::write(&file, password);
        std::fs::set_permissions(secrets.path(), std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        let pwfile = format!("--pwfile={}", file.display());
        let mut server = PostgresServer::initialised(&["--auth-host=scram-sha-256", &pwfile]);
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (certificate, key) = (server.data().join("server.crt"), server.data().join("server.key"));
        super::store::write(&certificate, &made.cert.pem());
        super::store::write(&key, &made.signing_key.serialize_pem());
        for file in [&certificate, &key] {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
            if let Some(PostgresUser { id, group }) = server.user {
                chown(file, Some(id), Some(group)).expect("this is root");
            }
        }
        super::store::write(
            &server.data().join("pg_hba.conf"),
            "local all all trust\nhostssl all all all scram-sha-256\n",
        );
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        server.port = listener.local_addr().expect("an address").port();
        drop(listener);
        server.network = vec!["ssl=on".to_owned(), "listen_addresses=127.0.0.1".to_owned()];
        server.restart();
        let kept = server.folder.path().join("password");
        super::store::write(&kept, &format!("{password}\n"));
        let authority = server.folder.path().join("authority.pem");
        super::store::write(&authority, &made.cert.pem());
        let access = NetworkAccess { port: server.port, authority, password: kept };
        (server, access)
    }

    /// A running replica of another server: see [`PostgresServer::follow`].
    #[track_caller]
    pub fn replica_of(primary: &PostgresServer) -> PostgresServer {
        let mut replica = PostgresServer::in_a_folder();
        replica.follow(primary);
        replica
    }

    /// Copies another server, and follows it from now on. That one acknowledges no write before it is here,
    /// too. This one must not run; what it has is thrown away.
    #[track_caller]
    pub fn follow(&mut self, primary: &PostgresServer) {
        let _ = std::fs::remove_dir_all(self.data());
        let mut copy = self.command("pg_basebackup");
        copy.args(["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "--username=postgres"]);
        copy.args([format!("--port={}", primary.port), format!("--host={}", text(primary.folder.path()))]);
        copy.arg("--pgdata").arg(self.data());
        run(copy).must_succeed();
        self.restart();
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
        primary.sql("SELECT pg_reload_conf()");
        primary.wait_for_replica();
    }

    /// Waits until a replica follows this server, which acknowledges nothing before that.
    #[track_caller]
    pub fn wait_for_replica(&self) {
        let caught_up = "SELECT count(*) FROM pg_stat_replication \
            WHERE sync_state = 'sync' AND flush_lsn >= pg_current_wal_flush_lsn()";
        wait_until("the replica has all", START_LIMIT, || self.sql(caught_up) == "1");
    }

    /// Makes a replica a server that takes writes, and waits for nobody.
    #[track_caller]
    pub fn promote(&self) {
        self.sql("ALTER SYSTEM RESET synchronous_standby_names");
        assert_eq!(self.sql("SELECT pg_promote()"), "t");
    }

    /// One that was not started yet.
    #[track_caller]
    fn initialised(arguments: &[&str]) -> PostgresServer {
        let server = PostgresServer::in_a_folder();
        let mut initdb = server.command("initdb");
        initdb.args([
            "--no-sync",
            "--auth-local=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
        ]);
        initdb.args(arguments).arg("-D").arg(server.data());
        run(initdb).must_succeed();
        server
    }

    /// One without data.
    #[track_caller]
    fn in_a_folder() -> PostgresServer {
        let folder = Folder::new();
        let user = postgres_user();
        if let Some(PostgresUser { id, group }) = user {
            chown(folder.path(), Some(id), Some(group)).expect("this is root");
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        PostgresServer {
            folder,
            wrapper: None,
            user,
            schemas: AtomicU32::new(0),
            port: PORT,
            network: Vec::new(),
        }
    }

    /// Starts it again, after [`PostgresServer::kill`].
    #[track_caller]
    pub fn restart(&mut self) {
        let pid_file = self.folder.path().join("pid");
        let log =
            std::fs::File::create(self.folder.path().join("log")).expect("the folder can be written to");
        let server = self.command("postgres");
        let mut wrapper = Command::new("/bin/sh");
        wrapper.args(["-c", WRAPPER, "sh"]).arg(server.get_program()).args(server.get_args());
        wrapper.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        wrapper.args(OPTIONS.iter().flat_map(|option| ["-c", option]));
        wrapper
            .args(self.network.iter().flat_map(|option| ["-c", option]))
            .arg(format!("--port={}", self.port));
        wrapper.env("PID_FILE", &pid_file).env("REMOVE", self.folder.path());
        wrapper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        self.wrapper = Some(spawn(&mut wrapper));
        wait_until("PostgreSQL answers", START_LIMIT, || self.try_sql("SELECT 1").succeeded());
    }

    /// Kills it with all its connections, as a crash does.
    pub fn kill(&mut self) {
        self.signal(Signal::Kill);
        if let Some(mut wrapper) = self.wrapper.take() {
            // What is left of the data is needed by the next start.
            signal(&[wrapper.id()], Signal::Kill);
            let _ = wrapper.wait();
        }
        // The process that these name is not waited for by all systems at once.
        let socket = format!(".s.PGSQL.{}", self.port);
        for left in [&*socket, &*format!("{socket}.lock"), "data/postmaster.pid"] {
            let _ = std::fs::remove_file(self.folder.path().join(left));
        }
        // Its children end by themselves.
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Freezes or unfreezes all of it.
    pub fn signal(&self, name: Signal) {
        let main = self.main_process();
        let listed = Command::new("ps").args(["-o", "pid=", "--ppid", &main.to_string()]).output();
        let listed = String::from_utf8_lossy(&listed.expect("procps is there").stdout).into_owned();
        let mut all = vec![main];
        all.extend(listed.split_ascii_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        signal(&all, name);
    }

    /// URL of a schema that nobody has used.
    #[track_caller]
    pub fn schema(&self) -> String {
        let name = format!("test{}", self.schemas.fetch_add(1, Ordering::Relaxed));
        self.sql(&format!("CREATE SCHEMA {name}"));
        self.url_of(&name)
    }

    /// URL of a schema.
    pub fn url_of(&self, schema: &str) -> String {
        let folder = text(self.folder.path()).replace('/', "%2F");
        format!("postgres:///postgres?host={folder}&user=postgres&options=-csearch_path%3D{schema}")
    }

    /// URL of a schema that is either here, or in `other`, whichever of the two takes writes.
    pub fn url_of_either(&self, other: &PostgresServer, schema: &str) -> String {
        let there = text(other.folder.path()).replace('/', "%2F");
        format!("{}&host={there}", self.url_of(schema))
    }

    /// Runs a statement, and gives what it says.
    #[track_caller]
    pub fn sql(&self, statement: &str) -> String {
        self.try_sql(statement).must_succeed().text()
    }

    fn try_sql(&self, statement: &str) -> Finished {
        let mut psql = self.command("psql");
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-U",
            "postgres",
            "-h",
            text(self.folder.path()),
            "-p",
            &self.port.to_string(),
            "-c",
            statement,
            "postgres",
        ]);
        run(psql)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn main_process(&self) -> u32 {
        let written = std::fs::read_to_string(self.folder.path().join("pid")).expect("it was started");
        written.trim().parse().expect("a number")
    }

    /// A program of PostgreSQL, as its user.
    fn command(&self, program: &str) -> Command {
        let path = program_path(program);
        let mut command = match self.user {
            None => Command::new(path),
            Some(PostgresUser { id, group }) => {
                let mut command = Command::new("setpriv");
                command.args([
                    format!("--reuid={id}"),
                    format!("--regid={group}"),
                    "--clear-groups".to_owned(),
                ]);
                command.arg("--").arg(path);
                command
            }
        };
        command.current_dir("/");
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Some(mut wrapper) = self.wrapper.take() {
            // Its standard input ends.
            drop(wrapper.stdin.take());
            let _ = wrapper.wait();
        }
    }
}

/// A program of the newest release, or a failed test with what to install.
#[track_caller]
fn program_path(program: &str) -> PathBuf {
    let releases = std::fs::read_dir(RELEASES).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = releases.map(|release| release.path().join("bin").join(program)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().unwrap_or_else(|| panic!("there is no {program}; it comes with: apt-get install postgresql"))
}

/// `None` where this is not root: PostgreSQL runs as whoever runs the tests.
#[track_caller]
fn postgres_user() -> Option<PostgresUser> {
    let id = |flag: &str, user: &[&str]| -> Option<u32> {
        let output = Command::new("id").arg(flag).args(user).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if id("-u", &[]) != Some(0) {
        return None;
    }
    let user = ["postgres"];
    let found = id("-u", &user).zip(id("-g", &user));
    let (id, group) = found.expect("there is no user postgres; it comes with: apt-get install postgresql");
    Some(PostgresUser { id, group })
}
