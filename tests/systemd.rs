//! The server as a service of systemd: it takes the sockets that systemd opened, and tells when it is ready,
//! alive and stopping. The sockets are passed by systemd's own program; the manager's end is the test's.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::process::wait_until;
use crate::support::{Background, Http, NixStore, Ondine, Release, text};

/// Time in which a message must come.
const SOON: Duration = Duration::from_secs(30);
/// Period of the watchdog, in microseconds as systemd writes it.
const WATCHDOG_USEC: &str = "900000";

/// The service manager's end of its socket.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).expect("a socket in the test's folder");
        socket.set_read_timeout(Some(SOON)).expect("a limit");
        Manager(socket)
    }

    /// Lines of the next message.
    #[track_caller]
    fn hear(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned).collect()
    }
}

/// A server without a daemon, which systemd starts on the first connection to this address.
fn activated(store: &NixStore, listen: &str) -> Background {
    let mut command = Command::new("systemd-socket-activate");
    command.args(["--listen", listen]);
    for (name, value) in store.variables() {
        command.args(["-E", &format!("{name}={}", value.to_string_lossy())]);
    }
    let state = store.folder().join("state");
    command.args([env!("CARGO_BIN_EXE_ondine"), "serve", "--state-dir", text(&state)]);
    command.args(["--listen", "192.0.2.1:1"]);
    Background::start(command)
}

/// A connection to a socket that is about to be listened on.
fn connect<S>(mut open: impl FnMut() -> std::io::Result<S>) -> S {
    let mut opened = None;
    wait_until("the socket is listened on", SOON, || {
        opened = open().ok();
        opened.is_some()
    });
    opened.expect("it was opened")
}

#[test]
fn the_service_manager_learns_that_it_is_ready_alive_and_stopping() {
    let store = NixStore::new(Release::Host);
    let socket = store.folder().join("notify");
    let manager = Manager::at(&socket);
    let variables = [("NOTIFY_SOCKET", text(&socket)), ("WATCHDOG_USEC", WATCHDOG_USEC)];
    let mut ondine = Ondine::start_with(&store, &["--drain-timeout", "1s"], &variables);
    let serving = format!("STATUS=serving {}", ondine.url());
    assert_eq!(manager.hear(), ["READY=1".to_owned(), serving.clone()]);
    assert_eq!(Http::new(&ondine.url()).get("/nix-cache-info").status, 200, "it answers when it is ready");

    let since = Instant::now();
    for _ in 0..4 {
        let alive = manager.hear();
        assert_eq!(alive, ["WATCHDOG=1".to_owned(), format!("{serving}; 0 builds run, 0 requests")]);
    }
    assert!(since.elapsed() < Duration::from_secs(5), "{:?} for four signs of life", since.elapsed());

    ondine.start_stopping();
    let last = std::iter::repeat_with(|| manager.hear()).find(|lines| lines[0] != "WATCHDOG=1");
    assert_eq!(last.expect("an endless iterator"), ["STOPPING=1", "STATUS=finishing open responses"]);
    assert!(ondine.wait_stopped().success());
}

#[test]
fn a_socket_of_systemd_is_used_instead_of_the_address() {
    let store = NixStore::new(Release::Host);
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let address = free.expect("a free port").to_string();
    let mut server = activated(&store, &address);
    let mut client = connect(|| TcpStream::connect(&address));
    client.write_all(b"GET /nix-cache-info HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    client.set_read_timeout(Some(SOON)).expect("a limit");
    let answer = std::io::read_to_string(&client).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("StoreDir: "), "{answer}");
    assert!(server.is_running());
}

#[test]
fn a_socket_of_the_wrong_kind_is_refused_with_what_the_unit_needs() {
    let store = NixStore::new(Release::Host);
    let socket = store.folder().join("wrong.sock");
    let server = activated(&store, text(&socket));
    let _client = connect(|| UnixStream::connect(&socket));
    let said = server.finish_within(SOON).must_fail().stderr;
    assert!(said.contains("ListenStream=") && said.contains("not a valid tcp socket"), "{said}");
}
