//! The steps of a start that touch the machine, each with the error that tells why it cannot be done and what
//! to do.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::{TcpListener, UnixListener};

use super::Settings;
use crate::{http, index, isolation, key, nix, recover, state_dir, telemetry, upstream};

/// The control socket's name in the state directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Ports below are for those who may administer the network.
const UNPRIVILEGED_PORTS_FROM: u16 = 1024;

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory, or a part of it, cannot be used.
    #[error(transparent)]
    State(#[from] state_dir::Error),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] key::Error),
    /// The index cannot be used.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// The index cannot be copied.
    #[cfg(feature = "postgres")]
    #[error("the index was not copied")]
    Copy(#[from] index::CopyError),
    /// Another server uses the database, and this one has its NARs for itself.
    #[error(
        "another server uses the index in PostgreSQL; several servers need the same bucket for their NARs \
         (setting nar-store)"
    )]
    NotAlone,
    /// The system gives no randomness.
    #[error("the system gives no randomness for the name of this server")]
    Randomness(getrandom::Error),
    /// A missing index cannot be recovered.
    #[error("no index was made anew")]
    Recover(#[from] recover::Error),
    /// An upstream cannot be used.
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    /// The background lane is not available.
    #[error(transparent)]
    Background(#[from] isolation::BackgroundError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", listen_advice(*.address, .source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// The sockets of systemd cannot be used.
    #[error(
        "the sockets that systemd passed (LISTEN_FDS) cannot be used; the socket unit needs ListenStream= with \
         an address and a port, and no Accept=yes"
    )]
    Inherited(#[source] io::Error),
    /// The log or the traces are not available.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// A task without which the server cannot go on has ended.
    #[error("the task {0} has ended because of a bug; see the message above, and start the server again")]
    Stopped(&'static str),
    /// The system gives no threads.
    #[error("cannot start the threads that serve")]
    Threads(#[source] io::Error),
    /// The signals cannot be watched.
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
}

/// The Nix daemon, and that of the background lane.
pub(super) fn pools(settings: &Settings) -> (nix::Pool, Option<nix::Pool>) {
    let pool = |nix: &nix::Environment| nix::Pool::new(nix.clone(), settings.daemon.clone());
    (pool(&settings.nix), settings.background.as_ref().map(pool))
}

/// Listens, and gives the address with its true port.
pub(super) fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let listening = || {
        let listener = http::listen(address)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    listening().map_err(|source| Error::Listen { address, source })
}

fn listen_advice(address: SocketAddr, error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there; --listen takes another address",
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; 0.0.0.0 or [::] are all that it has"
        }
        io::ErrorKind::PermissionDenied if address.port() < UNPRIVILEGED_PORTS_FROM => {
            "ports below 1024 are not for every user; take another one, have systemd give the right \
             (AmbientCapabilities=CAP_NET_BIND_SERVICE), or put a reverse proxy before it"
        }
        _ => "--listen takes another address",
    }
}

/// The lock is ours, so a socket that is there is a dead server's.
pub(super) fn control_socket(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_listened_on_is_told_with_the_way_out_of_just_that() {
        let advice = |address: &str, kind: io::ErrorKind| {
            let address = address.parse().expect("an address");
            Error::Listen { address, source: kind.into() }.to_string()
        };
        let low = advice("0.0.0.0:80", io::ErrorKind::PermissionDenied);
        assert!(low.contains("CAP_NET_BIND_SERVICE") && !low.contains("another program"), "{low}");
        assert!(!advice("0.0.0.0:8080", io::ErrorKind::PermissionDenied).contains("CAP_NET"));
        assert!(advice("0.0.0.0:80", io::ErrorKind::AddrInUse).contains("another program listens there"));
    }
}
