//! Errors between us and the Nix daemon. Each text says what was seen, what is needed and what to do.
//! A source is chained, never repeated in the text.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::protocol::{NEWEST_PROTOCOL, OLDEST_PROTOCOL, ProtocolVersion};
use crate::causes::with_causes;

/// Why an operation on the Nix daemon failed.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Nothing listens there, or we may not connect.
    #[error("cannot connect to the Nix daemon at {}; start nix-daemon, or set NIX_DAEMON_SOCKET_PATH to its socket", socket.display())]
    Connect {
        /// The socket that was tried.
        socket: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another machine was not reached; the text is ssh's own.
    #[error("{words}")]
    Ssh {
        /// The last words of ssh.
        words: String,
    },
    /// The daemon closed the connection during the handshake, as Nix does with users whom it does not allow
    /// and when it cannot open its store.
    #[error(
        "the Nix daemon closed the connection during the handshake; see its log, and check that allowed-users in its nix.conf has this user"
    )]
    Refused,
    /// Something else than a Nix daemon listens there.
    #[error(
        "what answered is not a Nix daemon: its first 8 bytes are {seen}, where 0x6478696f is needed; set NIX_DAEMON_SOCKET_PATH to the daemon's socket"
    )]
    NotADaemon {
        /// The bytes, made printable.
        seen: String,
    },
    /// The daemon's protocol is not supported.
    #[error(
        "the Nix daemon speaks protocol {seen}, but {OLDEST_PROTOCOL} to {NEWEST_PROTOCOL} is needed; install Nix 2.8 or newer on the machine of the daemon"
    )]
    Version {
        /// The announced version.
        seen: ProtocolVersion,
    },
    /// The daemon did not answer.
    #[error("the Nix daemon did not answer within {} s while {doing}; see its log", limit.as_secs_f32())]
    TimedOut {
        /// The operation.
        doing: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The daemon closed the connection: it was stopped, or it failed.
    #[error("the Nix daemon closed the connection; see its log")]
    Closed,
    /// The socket failed.
    #[error("the connection to the Nix daemon failed")]
    Io(#[source] io::Error),
    /// An earlier operation on this connection was abandoned or failed half-way, so an answer to it may still
    /// arrive.
    #[error(
        "this connection to the Nix daemon was given up in the middle of an operation; a new one is needed"
    )]
    Unusable,
    /// All connections are in use and none was returned in time.
    #[error("all {limit} connections to the Nix daemon are in use")]
    Exhausted {
        /// The limit.
        limit: usize,
    },
    /// The daemon announced something larger than the limit.
    #[error(
        "the Nix daemon announced {what} of size {size}, at most {limit} is accepted; it may speak another protocol"
    )]
    TooLarge {
        /// The announced thing.
        what: &'static str,
        /// The announced size, in bytes or items.
        size: u64,
        /// The most that we accept.
        limit: u64,
    },
    /// The daemon sent something that the protocol does not allow here.
    #[error("the Nix daemon broke the protocol: {0}")]
    Protocol(String),
    /// The daemon reported an error of its own; the text is Nix's, with its escape codes. The connection
    /// stays usable.
    #[error("{0}")]
    Nix(String),
}

impl DaemonError {
    /// The lost connection and its reason, in one line, where the connection is to blame.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.is_connection_lost().then(|| with_causes(self))
    }

    /// True if the connection is to blame: the same operation may succeed on a new connection, at once or
    /// when the daemon is up again.
    #[must_use]
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Ssh { .. }
            | Self::Refused
            | Self::TimedOut { .. }
            | Self::Closed
            | Self::Io(_)
            | Self::Unusable
            | Self::Exhausted { .. } => true,
            Self::NotADaemon { .. }
            | Self::Version { .. }
            | Self::TooLarge { .. }
            | Self::Protocol(_)
            | Self::Nix(_) => false,
        }
    }
}

impl From<io::Error> for DaemonError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Self::Closed
            }
            _ => Self::Io(error),
        }
    }
}
