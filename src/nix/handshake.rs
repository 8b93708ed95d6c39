//! The start of a connection: magic numbers, protocol version, trust. A typestate: only the next legal step
//! compiles. Announces no protocol feature, because none is decoded here.

use std::io;
use std::path::Path;
use std::time::Duration;

use narinfo::StoreDir;
use tokio::net::UnixStream;

use super::connection::Daemon;
use super::environment::Environment;
use super::error::DaemonError;
use super::protocol::{NEWEST_PROTOCOL, OLDEST_PROTOCOL, ProtocolVersion, Trust};
use super::stderr;
use super::wire::{LIST_ITEMS_MAX, Patience, RequestBytes, Wire, WireStream};

/// Time limit of the handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Delay before the next attempt to enter a full queue of the daemon's socket.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// First word of a client.
pub(super) const CLIENT_MAGIC: u64 = 0x6e69_7863;
/// First word of a daemon.
pub(super) const DAEMON_MAGIC: u64 = 0x6478_696f;
/// From here on a daemon tells whether it trusts us.
pub(super) const TRUST_SINCE: ProtocolVersion = ProtocolVersion { major: 1, minor: 35 };
/// From here on both sides list their features.
pub(super) const FEATURES_SINCE: ProtocolVersion = ProtocolVersion { major: 1, minor: 38 };
/// The feature of daemons that keep realisations by the derivation's path, and have none by hash: Nix 2.35.
const REALISATIONS_BY_PATH: &str = "realisation-with-path-not-hash";

impl Daemon {
    /// Connects to the daemon of `environment`, within [`HANDSHAKE_TIMEOUT`].
    ///
    /// # Errors
    /// If nothing listens there, or the listener is no Nix daemon, is too old, refuses us or does not answer.
    pub async fn connect(environment: &Environment) -> Result<Self, DaemonError> {
        Handshake::connect(environment, HANDSHAKE_TIMEOUT).await?.perform().await
    }
}

/// A connected socket on which nothing was said yet.
#[derive(Debug)]
pub struct Handshake {
    wire: Wire,
    store_dir: StoreDir,
}

impl Handshake {
    /// Connects to the daemon's socket; `limit` bounds this and the whole handshake.
    ///
    /// # Errors
    /// [`DaemonError::Connect`] when nothing listens there or we may not connect.
    pub async fn connect(environment: &Environment, limit: Duration) -> Result<Self, DaemonError> {
        let patience = Patience::new("a connection was made", limit);
        let connecting = tokio::time::timeout(limit, connected(&environment.socket));
        let stream = match connecting.await {
            Ok(outcome) => outcome
                .map_err(|source| DaemonError::Connect { socket: environment.socket.clone(), source })?,
            Err(_) => return Err(DaemonError::TimedOut { doing: "a connection was made", limit }),
        };
        let mut wire = Wire::new(stream);
        wire.set_patience(Some(patience));
        Ok(Self { wire, store_dir: environment.store_dir.clone() })
    }

    /// Uses a connection that is there already: a socket, or the pipes of a process.
    #[must_use]
    pub fn over(stream: impl WireStream + 'static, store_dir: StoreDir, limit: Duration) -> Self {
        let mut wire = Wire::over(stream);
        wire.set_patience(Some(Patience::new("the handshake", limit)));
        Self { wire, store_dir }
    }

    /// Greets the daemon and makes it ours.
    ///
    /// # Errors
    /// The peer is no Nix daemon, speaks an unknown protocol, refuses us or does not answer in time.
    pub async fn perform(self) -> Result<Daemon, DaemonError> {
        let done = async { self.agree().await?.introduce().await }.await;
        // Nix hangs up without a word on those whom it does not allow, and when its store is in trouble.
        done.map_err(|error| if matches!(error, DaemonError::Closed) { DaemonError::Refused } else { error })
    }

    async fn agree(self) -> Result<Agreed, DaemonError> {
        let Self { mut wire, store_dir } = self;
        let hello = RequestBytes::default().number(CLIENT_MAGIC).number(NEWEST_PROTOCOL.to_wire());
        wire.send(hello.as_bytes()).await?;
        let magic = wire.number().await?;
        if magic != DAEMON_MAGIC {
            return Err(DaemonError::NotADaemon { seen: magic.to_le_bytes().escape_ascii().to_string() });
        }
        let seen = ProtocolVersion::from_wire(wire.number().await?);
        if seen < OLDEST_PROTOCOL || seen.major != NEWEST_PROTOCOL.major {
            return Err(DaemonError::Version { seen });
        }
        Ok(Agreed { wire, store_dir, version: seen.min(NEWEST_PROTOCOL) })
    }
}

/// Waits for a place in the queue of those whom the daemon has not accepted yet: where Nix itself listens
/// there are but five, and a client asks for more paths than that at once.
async fn connected(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
            }
            outcome => return outcome,
        }
    }
}

/// Both sides know which protocol they speak.
struct Agreed {
    wire: Wire,
    store_dir: StoreDir,
    version: ProtocolVersion,
}

impl Agreed {
    async fn introduce(self) -> Result<Daemon, DaemonError> {
        let Self { mut wire, store_dir, version } = self;
        let mut words = RequestBytes::default();
        if version >= FEATURES_SINCE {
            words = words.texts::<&str>(&[]);
        }
        // Two wishes that daemons have long ignored: a CPU, and to reserve space.
        wire.send(words.number(0).number(0).as_bytes()).await?;
        let mut realisations_by_hash = true;
        if version >= FEATURES_SINCE {
            for _ in 0..wire.count("a list of features", LIST_ITEMS_MAX).await? {
                realisations_by_hash &= wire.text("a feature").await? != REALISATIONS_BY_PATH;
            }
        }
        let nix_version = wire.text("the version of Nix").await?;
        let trust = if version >= TRUST_SINCE { trust(wire.number().await?)? } else { Trust::Unknown };
        stderr::until_last(&mut wire, |_| {}).await?;
        Ok(Daemon::new(wire, store_dir, version, nix_version, trust, realisations_by_hash))
    }
}

fn trust(number: u64) -> Result<Trust, DaemonError> {
    match number {
        0 => Ok(Trust::Unknown),
        1 => Ok(Trust::Trusted),
        2 => Ok(Trust::NotTrusted),
        other => Err(DaemonError::Protocol(format!("{other} is no kind of trust"))),
    }
}
