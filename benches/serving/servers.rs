//! The servers that are compared: Ondine, nginx with the same answers as static files, and peers that run
//! already. The first two are started anew for each measurement.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::usage::{Processes, listener};
use crate::support::Cache;
use crate::support::process::{self, Signal, kill_tree, signal, wait};
use crate::support::store::{Folder, write};
use crate::support::{text, wait_until};

/// Time to the first answer of a server, and to its end, at most.
const LIMIT: Duration = Duration::from_secs(60);
/// Pause between two tries at a server that starts.
const TRY_EVERY: Duration = Duration::from_micros(200);

/// A server has settled when it has used so little processor time in a second, in seconds: what it does
/// beside the start, such as to read which hashes there are, is done by then. It may take so long.
const SETTLED: f64 = 0.02;
const SETTLED_WITHIN: Duration = Duration::from_secs(300);

/// Name of an earlier build in the tables.
pub const EARLIER: &str = "earlier";

/// Which program it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ondine,
    Nginx,
    Peer,
}

/// A server that can be started, or is there already.
pub struct Server {
    /// Name in the tables.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Beginning of all its addresses: nothing, or a slash and more.
    prefix: String,
    kind: Kind,
    /// Command that starts it; none for peers.
    program: Option<Program>,
    /// Processes that work for it and are not its children.
    helpers: Vec<u32>,
}

struct Program {
    command: Box<dyn Fn() -> Command>,
    log: PathBuf,
}

/// A server that runs; stopped when dropped, but for peers.
pub struct Running {
    /// Its processes.
    pub processes: Processes,
    /// From its start to its first answer; nothing for peers.
    pub to_first_answer: Duration,
    child: Option<Child>,
}

impl Server {
    /// Ondine on the store of `cache`, with this state and these arguments. It writes its log to that folder.
    pub fn ondine(cache: &Cache, state: &Path, log: &Folder, arguments: &[&str]) -> Server {
        Server::of_command("Ondine", cache.ondine.command("serve"), cache, state, log, arguments)
    }

    /// An earlier build of Ondine, whose program this is, on the same store with a state of its own.
    pub fn earlier(program: &Path, cache: &Cache, state: &Path, log: &Folder) -> Server {
        let command = copy_of(program.as_os_str(), &cache.ondine.command("serve"), &[]);
        Server::of_command(EARLIER, command, cache, state, log, &[])
    }

    fn of_command(
        name: &str,
        command: Command,
        cache: &Cache,
        state: &Path,
        log: &Folder,
        arguments: &[&str],
    ) -> Server {
        let address = free_address();
        let own = ["--listen", &address.to_string(), "--state-dir", text(state)].map(str::to_owned);
        let arguments = [&own[..], &arguments.iter().map(ToString::to_string).collect::<Vec<_>>()].concat();
        let program = Program {
            command: Box::new(move || copy_of(command.get_program(), &command, &arguments)),
            log: log.path().join(format!("{name}.log")),
        };
        let helpers = vec![cache.daemon.id()];
        Server {
            name: name.into(),
            address,
            prefix: String::new(),
            kind: Kind::Ondine,
            program: Some(program),
            helpers,
        }
    }

    /// nginx on static files, set up in `folder`.
    pub fn nginx(files: &Path, folder: &Folder) -> Server {
        Server::nginx_with("", files, folder)
    }

    /// The same, which stores what it is sent among the files, and looks at none of it.
    // The benchmark of hits uploads nothing.
    #[allow(dead_code)]
    pub fn storing_nginx(files: &Path, folder: &Folder) -> Server {
        let uploads = "dav_methods PUT; create_full_put_path on; client_max_body_size 0;";
        Server::nginx_with(uploads, files, folder)
    }

    /// nginx on static files, with more settings of its one server.
    fn nginx_with(more: &str, files: &Path, folder: &Folder) -> Server {
        let address = free_address();
        let settings = folder.path().join("nginx.conf");
        write(&settings, &nginx_conf(files, folder.path(), address, more));
        let log = folder.path().join("nginx.log");
        let arguments = ["-c", text(&settings), "-e", text(&log)].map(str::to_owned);
        let program = Program {
            command: Box::new(move || copy_of(nginx().as_ref(), &Command::new(nginx()), &arguments)),
            log: log.clone(),
        };
        Server {
            name: "nginx".into(),
            address,
            prefix: String::new(),
            kind: Kind::Nginx,
            program: Some(program),
            helpers: Vec::new(),
        }
    }

    /// A server that runs at `NAME=http://host:port/prefix`.
    ///
    /// # Errors
    /// That is not how it is written, or the host is not known.
    pub fn peer(written: &str) -> Result<Server, String> {
        let parts =
            written.split_once('=').and_then(|(name, url)| Some((name, url.strip_prefix("http://")?)));
        let (name, rest) = parts.ok_or("a peer is written NAME=http://HOST:PORT")?;
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let addresses = host.to_socket_addrs().map_err(|error| format!("{host}: {error}"))?;
        let prefix = prefix.trim_end_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        let address = addresses.into_iter().next().ok_or("the host has no address")?;
        Ok(Server {
            name: name.to_owned(),
            address,
            prefix,
            kind: Kind::Peer,
            program: None,
            helpers: Vec::new(),
        })
    }

    /// Its URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.address, self.prefix)
    }

    /// True if it is started here, and serves the plain NAR beside the zstd file.
    pub fn serves_plain(&self) -> bool {
        self.kind != Kind::Peer
    }

    /// True for nginx.
    pub fn is_nginx(&self) -> bool {
        self.kind == Kind::Nginx
    }

    /// True if it can be started anew.
    pub fn starts(&self) -> bool {
        self.program.is_some()
    }

    /// A request with these headers, each ending in a line break.
    pub fn request(&self, address: &str, headers: &str) -> Vec<u8> {
        format!("GET {}{address} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.prefix, self.address)
            .into_bytes()
    }

    /// Where to ask for a hash so that nothing is built for it.
    pub fn miss_address(&self, hash: &str) -> String {
        let folder = if self.kind == Kind::Ondine { "/cached" } else { "" };
        format!("{folder}/{hash}.narinfo")
    }

    /// Starts it and waits for its first answer; a peer is there already.
    #[track_caller]
    pub fn start(&self) -> Running {
        let Some(program) = &self.program else {
            // Of a server on another machine nothing is known but its answers.
            let server = listener(self.address.port()).unwrap_or(u32::MAX);
            let processes = Processes { server, helpers: Vec::new() };
            return Running { processes, to_first_answer: Duration::ZERO, child: None };
        };
        let log = File::create(&program.log).expect("the folder can be written to");
        let mut command = (program.command)();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let begun = Instant::now();
        let mut child = process::spawn(&mut command);
        while !self.answers() {
            let ended = child.try_wait().expect("a child of ours");
            let said = || std::fs::read_to_string(&program.log).unwrap_or_default();
            assert!(ended.is_none(), "{} ended at once; it said:\n{}", self.name, said());
            assert!(begun.elapsed() < LIMIT, "{} does not answer; it said:\n{}", self.name, said());
            std::thread::sleep(TRY_EVERY);
        }
        let to_first_answer = begun.elapsed();
        let processes = Processes { server: child.id(), helpers: self.helpers.clone() };
        Running { processes, to_first_answer, child: Some(child) }
    }

    /// Starts it, and waits until it has nothing more to do.
    // The benchmark of hits has too little data for that to take time.
    #[allow(dead_code)]
    #[track_caller]
    pub fn settled(&self) -> Running {
        let running = self.start();
        let mut used = running.processes.cpu();
        wait_until("the server has settled", SETTLED_WITHIN, || {
            std::thread::sleep(Duration::from_secs(1));
            let before = std::mem::replace(&mut used, running.processes.cpu());
            used - before < SETTLED
        });
        running
    }

    /// True if it says what cache it is.
    pub fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(&self.request("/nix-cache-info", ""))?;
            let mut status = [0; 12];
            stream.read_exact(&mut status)?;
            Ok(status.ends_with(b" 200"))
        };
        ask().unwrap_or(false)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        signal(&[child.id()], Signal::Term);
        if wait(&mut child, LIMIT).is_none() {
            kill_tree(child.id());
            let _ = child.wait();
        }
    }
}

/// The same command once more, of this program, with these arguments added.
fn copy_of(program: &OsStr, command: &Command, arguments: &[String]) -> Command {
    let mut copy = Command::new(program);
    if command.get_envs().next().is_some() {
        copy.env_clear();
    }
    copy.args(command.get_args()).args(arguments);
    copy.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    copy
}

/// An address of this machine that is free now, and stays it well enough.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("this machine has a free port");
    listener.local_addr().expect("it is bound")
}

/// Debian has it where the PATH of users does not look.
fn nginx() -> &'static str {
    let debian = "/usr/sbin/nginx";
    if Path::new(debian).exists() { debian } else { "nginx" }
}

/// Fails with what to install when there is no nginx.
#[track_caller]
pub fn need_nginx() {
    let mut command = Command::new(nginx());
    command.arg("-v").stderr(Stdio::null());
    let _ = process::spawn(&mut command).wait();
}

/// As somebody would set it up who wants static files served fast.
fn nginx_conf(files: &Path, folder: &Path, address: SocketAddr, more: &str) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {}/{kind};\n", text(folder)))
        .concat();
    format!(
        "user root;
worker_processes 2;
daemon off;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    log_not_found off;
    sendfile on;
    tcp_nodelay on;
    keepalive_timeout 65;
    keepalive_requests 1000000000;
    open_file_cache max=10000 inactive=10m;
    open_file_cache_valid 10m;
    open_file_cache_errors on;
    default_type application/octet-stream;
    types {{ text/x-nix-narinfo narinfo; application/x-nix-nar nar; application/zstd zst; }}
{temporary}    server {{ listen {address}; root {files}; {more} }}
}}
",
        folder = text(folder),
        files = text(files),
    )
}
