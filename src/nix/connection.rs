//! One connection to the Nix daemon: send a request, follow the daemon's messages, read the reply. A
//! connection on which an operation was aborted half-way marks itself unusable, so that no reply is taken for
//! another.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use narinfo::{StoreDir, StorePath};

use super::error::DaemonError;
use super::protocol::{ProtocolVersion, Trust};
use super::ssh_process::SshProcess;
use super::stderr::{self, DaemonMessage};
use super::wire::{Patience, RequestBytes, Wire};

/// Time limit of an operation other than a build. Some wait for a garbage collection or ask substituters.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(300);

/// One connection to a Nix daemon, through which one operation at a time is done.
///
/// Temporary roots ([`Daemon::add_temp_root`], and the outputs of builds) live as long as the connection:
/// dropping this releases them. Dropping the future of an operation leaves the connection open but not
/// [`usable`](Self::usable): only dropping the `Daemon` too makes the real daemon stop its work, within a
/// second.
#[derive(Debug)]
pub struct Daemon {
    pub(super) wire: Wire,
    pub(super) store_dir: StoreDir,
    version: ProtocolVersion,
    nix_version: String,
    trust: Trust,
    /// The daemon answers questions for realisations by the hash of the derivation; others lose track of the
    /// protocol.
    pub(super) realisations_by_hash: bool,
    /// Set before the first byte of a request and cleared after the last one of its reply.
    in_operation: bool,
    pub(super) has_temp_roots: bool,
    /// Paths that are valid, and that this connection holds.
    pub(super) held: BTreeSet<StorePath>,
    /// Time limit of an operation other than a build.
    pub(super) operation_timeout: Duration,
    /// The ssh that leads to the machine of the daemon, where that is another one.
    ssh: Option<SshProcess>,
    /// Which edition of the pool's options it was told.
    pub(super) edition: u64,
}

impl Daemon {
    pub(super) fn new(
        wire: Wire,
        store_dir: StoreDir,
        version: ProtocolVersion,
        nix_version: String,
        trust: Trust,
        realisations_by_hash: bool,
    ) -> Self {
        Self {
            wire,
            store_dir,
            version,
            nix_version,
            trust,
            realisations_by_hash,
            in_operation: false,
            has_temp_roots: false,
            held: BTreeSet::new(),
            operation_timeout: OPERATION_TIMEOUT,
            ssh: None,
            edition: 0,
        }
    }

    /// The same on another machine.
    pub(super) fn over_ssh(mut self, process: SshProcess, operation_timeout: Duration) -> Self {
        self.ssh = Some(process);
        self.operation_timeout = operation_timeout;
        self
    }

    /// The error of this connection, in ssh's words where it leads to another machine and is lost.
    pub async fn explained(&mut self, error: DaemonError) -> DaemonError {
        match &mut self.ssh {
            Some(ssh) if error.is_connection_lost() => ssh.explained(error).await,
            _ => error,
        }
    }

    /// The protocol that both sides agreed on.
    #[must_use]
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// The daemon's version of Nix, in its own words.
    #[must_use]
    pub fn nix_version(&self) -> &str {
        &self.nix_version
    }

    /// The daemon's trust in this user.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// Where the paths of its store are.
    #[must_use]
    pub fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// The process that made the socket which the daemon listens on, where it can be seen from here.
    #[must_use]
    pub fn peer(&self) -> Option<i32> {
        self.wire.peer()
    }

    /// True if another operation is possible: no earlier one was aborted or broke the connection.
    #[must_use]
    pub fn usable(&self) -> bool {
        !self.in_operation
    }

    /// True if this connection protects store paths from garbage collection.
    #[must_use]
    pub fn has_temp_roots(&self) -> bool {
        self.has_temp_roots
    }

    /// True if the other side still seems to be there. Never waits; a daemon that dies later is noticed in
    /// use.
    pub(super) fn seems_alive(&mut self) -> bool {
        self.usable() && self.wire.is_quiet()
    }

    /// Does an operation up to its reply, which bounded by the time limit of operations is to be read and
    /// then [`done`](Reply::done).
    pub(super) async fn ask(
        &mut self,
        doing: &'static str,
        request: RequestBytes,
    ) -> Result<Reply<'_>, DaemonError> {
        self.ask_within(doing, self.operation_timeout, request).await
    }

    /// The same with another time limit.
    pub(super) async fn ask_within(
        &mut self,
        doing: &'static str,
        limit: Duration,
        request: RequestBytes,
    ) -> Result<Reply<'_>, DaemonError> {
        self.follow(Some(Patience::new(doing, limit)), request, |news| {
            if let DaemonMessage::Message(text) = news {
                tracing::debug!(message = %text.trim_end().escape_debug(), "the Nix daemon says");
            }
        })
        .await
    }

    /// Does an operation up to its reply, telling what the daemon tells.
    pub(super) async fn follow(
        &mut self,
        patience: Option<Patience>,
        request: RequestBytes,
        on_news: impl FnMut(DaemonMessage),
    ) -> Result<Reply<'_>, DaemonError> {
        self.begin(patience, request).await?;
        self.await_reply(on_news).await
    }

    /// Sends a request.
    pub(super) async fn begin(
        &mut self,
        patience: Option<Patience>,
        request: RequestBytes,
    ) -> Result<(), DaemonError> {
        self.begin_head(patience, RequestBytes::default()).await?;
        self.wire.send(request.as_bytes()).await
    }

    /// Begins a request by its head, which is sent with what follows it.
    pub(super) async fn begin_head(
        &mut self,
        patience: Option<Patience>,
        head: RequestBytes,
    ) -> Result<(), DaemonError> {
        if self.in_operation {
            return Err(DaemonError::Unusable);
        }
        self.in_operation = true;
        self.wire.set_patience(patience);
        self.wire.queue(head.as_bytes()).await
    }

    /// Sends several requests at once. Each [reply](Self::next_reply) is to be read before their
    /// [end](Self::end_many).
    pub(super) async fn begin_many(
        &mut self,
        doing: &'static str,
        requests: RequestBytes,
    ) -> Result<(), DaemonError> {
        self.begin(Some(Patience::new(doing, self.operation_timeout)), requests).await
    }

    /// The reply to the next of several requests. After an error, the others are never read: the connection
    /// is unusable.
    pub(super) async fn next_reply(&mut self) -> Result<Reply<'_>, DaemonError> {
        stderr::until_last(&mut self.wire, |_| {}).await?;
        Ok(Reply { daemon: self })
    }

    /// All replies were read.
    pub(super) fn end_many(&mut self) {
        self.in_operation = false;
    }

    /// Waits for the reply to a request that was sent.
    pub(super) async fn await_reply(
        &mut self,
        on_news: impl FnMut(DaemonMessage),
    ) -> Result<Reply<'_>, DaemonError> {
        let outcome = stderr::until_last(&mut self.wire, on_news).await;
        self.reply(outcome, false)
    }

    /// The reply to a request whose messages have come. With `more` requests behind it, an error makes the
    /// connection unusable: their replies are never read.
    pub(super) fn reply(
        &mut self,
        outcome: Result<(), DaemonError>,
        more: bool,
    ) -> Result<Reply<'_>, DaemonError> {
        if let (Err(DaemonError::Nix(_)), false) = (&outcome, more) {
            // An error is a whole reply.
            self.in_operation = false;
        }
        outcome?;
        Ok(Reply { daemon: self })
    }
}

/// A reply that is being read. Unless it is read to its end and [`done`](Self::done), the connection is
/// unusable.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    daemon: &'a mut Daemon,
}

impl Reply<'_> {
    /// The reply was read completely.
    pub(super) fn done<T>(self, value: T) -> Result<T, DaemonError> {
        self.daemon.in_operation = false;
        Ok(value)
    }

    /// Where the paths of this reply are.
    pub(super) fn store_dir(&self) -> StoreDir {
        self.daemon.store_dir.clone()
    }
}

impl Deref for Reply<'_> {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.daemon.wire
    }
}

impl DerefMut for Reply<'_> {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.daemon.wire
    }
}
