//! A port of the loopback interface that leads to a server's control socket, for stock clients that speak TCP
//! alone: whoever comes through it is an administrator.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use super::ondine::Ondine;

/// The door; it stays open to the end of the test.
pub struct Door(String);

impl Door {
    /// Opens a door to the control socket of a server that runs or will.
    #[track_caller]
    pub fn to(ondine: &Ondine) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let socket = ondine.state_dir().join("control.sock");
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let socket = socket.clone();
                thread::spawn(move || pass(&client, &socket));
            }
        });
        Door(format!("http://{address}"))
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.0
    }
}

/// Passes bytes in both directions until both have ended.
fn pass(client: &TcpStream, socket: &Path) -> Option<()> {
    let server = UnixStream::connect(PathBuf::from(socket)).ok()?;
    let (mut from_client, mut to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
    let up = thread::spawn(move || {
        // Either end may go at any time.
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client.try_clone().ok()?);
    let _ = io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Both);
    up.join().ok()
}
