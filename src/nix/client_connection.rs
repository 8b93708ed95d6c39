//! Connection of a Nix client that takes this program for a daemon: greeting, requests, what follows them,
//! news for the user, and replies. Announces no protocol feature, and never that the client is trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use narinfo::{PathInfo, StoreDir, StorePath};
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::build::BuildResult;
use super::build_events::{ACTIVITY_BUILD, RESULT_BUILD_LOG_LINE, RESULT_SET_PHASE};
use super::client_request::{self, ClientRequest, ClientTarget};
use super::error::DaemonError;
use super::handshake::{CLIENT_MAGIC, DAEMON_MAGIC, FEATURES_SINCE, TRUST_SINCE};
use super::ops::MissingPaths;
use super::path_info::path_info;
use super::protocol::{NEWEST_PROTOCOL, OLDEST_PROTOCOL, ProtocolVersion, Trust};
use super::stderr::Field;
use super::wire::{Patience, RequestBytes, Wire, WireStream};

/// Time limit of the greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(60);
/// Time in which a client must go on with a request that it has begun, or take what it has asked for.
const STALLED_AFTER: Duration = Duration::from_secs(300);
/// Features of the protocol that a client names at most.
const FEATURES_MAX: u64 = 1_000;
/// Bytes of what follows a request that are read ahead.
const BODY_BUFFER_BYTES: usize = 256 * 1024;
/// Paths that follow one request at most.
const ADDED_PATHS_MAX: u64 = 200_000;
/// The activity of waiting for a build.
const ACTIVITY_BUILD_WAITING: u64 = 111;
/// Names of the operations in a time-out error.
const GREETING: &str = "greeting";
const ASKING: &str = "sending a request";
const SENDING: &str = "sending contents";
const TAKING: &str = "receiving a reply";

/// A client that has been greeted, and waits to hear that it may ask.
#[derive(Debug)]
pub struct NewClient {
    wire: Wire,
    version: ProtocolVersion,
}

/// A client that may ask.
#[derive(Debug)]
pub struct ClientConnection {
    wire: Wire,
    store_dir: StoreDir,
    version: ProtocolVersion,
}

/// Number of an activity in the user's terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActivityId(pub u64);

/// News for the user while a request is worked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientNews {
    /// A line of text.
    Message(String),
    /// A builder was started, or its log is about to come.
    Building {
        /// Number of the activity.
        id: ActivityId,
        /// The derivation.
        drv: StorePath,
    },
    /// The client waits for its turn.
    Waiting {
        /// Number of the activity.
        id: ActivityId,
        /// The state of the wait.
        text: String,
    },
    /// A line of the log of a build.
    Line(ActivityId, String),
    /// A build entered a phase.
    Phase(ActivityId, String),
    /// An activity has ended.
    Ended(ActivityId),
}

impl NewClient {
    /// Greets a client. `name` is shown where it tells the version of the daemon.
    ///
    /// # Errors
    /// The peer is no Nix client, speaks an unknown protocol or says nothing.
    pub async fn greet(stream: impl WireStream + 'static, name: &str) -> Result<Self, DaemonError> {
        let mut wire = Wire::over(stream);
        wire.set_patience(Some(Patience::new(GREETING, GREETING_TIMEOUT)));
        let magic = wire.number().await?;
        if magic != CLIENT_MAGIC {
            let seen = magic.to_le_bytes().escape_ascii().to_string();
            return Err(DaemonError::Protocol(format!(
                "its first 8 bytes are {seen}, which no Nix client sends: this is a remote builder for Nix, to be \
                 named in `builders` as ssh-ng://HOST"
            )));
        }
        let hello = RequestBytes::default().number(DAEMON_MAGIC).number(NEWEST_PROTOCOL.to_wire());
        wire.send(hello.as_bytes()).await?;
        let seen = ProtocolVersion::from_wire(wire.number().await?);
        if seen < OLDEST_PROTOCOL || seen.major != NEWEST_PROTOCOL.major {
            return Err(DaemonError::Protocol(format!(
                "it speaks protocol {seen}, but {OLDEST_PROTOCOL} to {NEWEST_PROTOCOL} is needed: Nix 2.8 or newer"
            )));
        }
        let version = seen.min(NEWEST_PROTOCOL);
        if version >= FEATURES_SINCE {
            for _ in 0..wire.count("a list of features", FEATURES_MAX).await? {
                wire.text("a feature").await?;
            }
            wire.send(RequestBytes::default().texts::<&str>(&[]).as_bytes()).await?;
        }
        // Two wishes that daemons have long ignored: a CPU, which is named where it is wanted, and to reserve
        // space.
        if wire.flag().await? {
            wire.number().await?;
        }
        wire.number().await?;
        let mut about = RequestBytes::default().text(name);
        if version >= TRUST_SINCE {
            about = about.number(Trust::NotTrusted.to_wire());
        }
        wire.send(about.as_bytes()).await?;
        Ok(Self { wire, version })
    }

    /// Lets the client ask, about paths of this store.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn welcome(self, store_dir: StoreDir) -> Result<ClientConnection, DaemonError> {
        let Self { mut wire, version } = self;
        wire.send(RequestBytes::default().last().as_bytes()).await?;
        Ok(ClientConnection { wire, store_dir, version })
    }

    /// Tells the client that nothing can be done for it.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn refuse(mut self, reason: &str) -> Result<(), DaemonError> {
        self.wire.send(RequestBytes::default().error(reason).as_bytes()).await
    }
}

impl ClientConnection {
    /// True for clients that cannot be told that they are not trusted.
    #[must_use]
    pub fn is_before_trust(&self) -> bool {
        self.version < TRUST_SINCE
    }

    /// Where its paths are.
    #[must_use]
    pub fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// The next request, for which a client may take as long as it likes; `None` once it has closed the
    /// connection.
    ///
    /// # Errors
    /// The request is malformed, exceeds a bound, or stalls.
    pub async fn next_request(&mut self) -> Result<Option<ClientRequest>, DaemonError> {
        self.wire.set_patience(None);
        if self.wire.is_at_end().await? {
            return Ok(None);
        }
        self.wire.set_patience(Some(Patience::new(ASKING, STALLED_AFTER)));
        client_request::read(&mut self.wire, &self.store_dir).await.map(Some)
    }

    /// Resolves once the client closes the connection. May be dropped.
    pub async fn hung_up(&mut self) {
        self.wire.hung_up().await;
    }

    /// Reads what follows a request, up to its end, whatever is taken of it.
    ///
    /// # Errors
    /// The client goes away before the end, or stalls.
    pub async fn body<T>(&mut self, take: impl AsyncFnOnce(ClientBody) -> T) -> Result<T, DaemonError> {
        let (theirs, ours) = tokio::io::duplex(BODY_BUFFER_BYTES);
        let body = ClientBody { wire: Wire::over(ours), store_dir: self.store_dir.clone() };
        let (mut taking, mut passing) = (pin!(take(body)), pin!(pass_on(&mut self.wire, theirs)));
        tokio::select! {
            passed = &mut passing => {
                passed?;
                Ok(taking.await)
            }
            taken = &mut taking => {
                passing.await?;
                Ok(taken)
            }
        }
    }

    /// Tells the user something.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn tell(&mut self, news: &ClientNews) -> Result<(), DaemonError> {
        let frame = RequestBytes::default();
        let text = |text: &str| Field::Text(text.to_owned());
        let frame = match news {
            ClientNews::Message(text) => frame.message(text),
            ClientNews::Building { id, drv } => {
                let path = drv.in_dir(&self.store_dir);
                let fields = [text(&path), text(""), Field::Number(1), Field::Number(1)];
                frame.started(id.0, ACTIVITY_BUILD, &format!("building '{path}'"), &fields)
            }
            ClientNews::Waiting { id, text } => frame.started(id.0, ACTIVITY_BUILD_WAITING, text, &[]),
            ClientNews::Line(id, line) => frame.result(id.0, RESULT_BUILD_LOG_LINE, &[text(line)]),
            ClientNews::Phase(id, phase) => frame.result(id.0, RESULT_SET_PHASE, &[text(phase)]),
            ClientNews::Ended(id) => frame.stopped(id.0),
        };
        self.send(&frame).await
    }

    /// Ends the request with an error; the client may ask again.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn refuse(&mut self, reason: &str) -> Result<(), DaemonError> {
        self.send(&RequestBytes::default().error(reason)).await
    }

    /// Ends a request that is answered with nothing more.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn done(&mut self) -> Result<(), DaemonError> {
        self.send(&RequestBytes::default().last()).await
    }

    /// Ends a request with a number: a flag, the length of an empty list, or 1 for what was done.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn reply_number(&mut self, number: u64) -> Result<(), DaemonError> {
        self.send(&RequestBytes::default().last().number(number)).await
    }

    /// Ends a request with paths.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn reply_paths(&mut self, paths: &BTreeSet<StorePath>) -> Result<(), DaemonError> {
        let reply = self.paths(RequestBytes::default().last(), paths);
        self.send(&reply).await
    }

    /// Ends a request with a path, or none.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn reply_path(&mut self, path: Option<&StorePath>) -> Result<(), DaemonError> {
        let reply = RequestBytes::default().last().text(&self.text_of(path));
        self.send(&reply).await
    }

    /// Ends a request with the record of a path, if there is one.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn reply_info(&mut self, info: Option<&PathInfo>) -> Result<(), DaemonError> {
        let reply = RequestBytes::default().last();
        let reply = match info {
            None => reply.number(0),
            Some(info) => self.info(reply.number(1), info),
        };
        self.send(&reply).await
    }

    /// Ends a request with a path that was added.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn reply_added(&mut self, info: &PathInfo) -> Result<(), DaemonError> {
        let reply = self.info(RequestBytes::default().last().text(&self.text_of(Some(&info.path))), info);
        self.send(&reply).await
    }

    /// Ends a request with the outputs of a derivation.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn reply_outputs(
        &mut self,
        outputs: &BTreeMap<String, Option<StorePath>>,
    ) -> Result<(), DaemonError> {
        let reply = RequestBytes::default().last().number(outputs.len() as u64);
        let reply = outputs
            .iter()
            .fold(reply, |reply, (name, path)| reply.text(name).text(&self.text_of(path.as_ref())));
        self.send(&reply).await
    }

    /// Ends a request with the work that a build would take.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn reply_missing(&mut self, missing: &MissingPaths) -> Result<(), DaemonError> {
        let MissingPaths { will_build, will_substitute, unknown, download_size, nar_size } = missing;
        let reply = [will_build, will_substitute, unknown]
            .into_iter()
            .fold(RequestBytes::default().last(), |reply, paths| self.paths(reply, paths));
        self.send(&reply.number(*download_size).number(*nar_size)).await
    }

    /// Ends a request with the result of one build.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn reply_result(&mut self, drv: &StorePath, result: &BuildResult) -> Result<(), DaemonError> {
        let reply = result.to_wire(RequestBytes::default().last(), drv, self.version);
        self.send(&reply).await
    }

    /// Ends a request with the results of its targets.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn reply_results(
        &mut self,
        results: &[(ClientTarget, BuildResult)],
    ) -> Result<(), DaemonError> {
        let reply = RequestBytes::default().last().number(results.len() as u64);
        let reply = results.iter().fold(reply, |reply, (target, result)| {
            result.to_wire(reply.text(&target.to_wire(&self.store_dir)), target.path(), self.version)
        });
        self.send(&reply).await
    }

    /// Sends bytes of a NAR, after [`done`](Self::done).
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send_nar(&mut self, bytes: &[u8]) -> Result<(), DaemonError> {
        self.wire.set_patience(Some(Patience::new(TAKING, STALLED_AFTER)));
        self.wire.send(bytes).await
    }

    async fn send(&mut self, frame: &RequestBytes) -> Result<(), DaemonError> {
        self.wire.set_patience(Some(Patience::new(TAKING, STALLED_AFTER)));
        self.wire.send(frame.as_bytes()).await
    }

    fn text_of(&self, path: Option<&StorePath>) -> String {
        path.map(|path| path.in_dir(&self.store_dir)).unwrap_or_default()
    }

    fn paths(&self, reply: RequestBytes, paths: &BTreeSet<StorePath>) -> RequestBytes {
        let paths: Vec<String> = paths.iter().map(|path| path.in_dir(&self.store_dir)).collect();
        reply.texts(&paths)
    }

    fn info(&self, reply: RequestBytes, info: &PathInfo) -> RequestBytes {
        let signatures: Vec<String> = info.signatures.iter().map(ToString::to_string).collect();
        let reply = reply.text(&self.text_of(info.deriver.as_ref())).text(&info.nar_hash.to_hex());
        let reply = self.paths(reply, &info.references).number(0).number(info.nar_size).number(0);
        reply.texts(&signatures).text(&info.ca.as_ref().map(ToString::to_string).unwrap_or_default())
    }
}

/// Passes the frames that follow a request on as plain bytes, to the frame that ends them. What nobody takes
/// is read all the same: the client sends it before it listens.
async fn pass_on(wire: &mut Wire, to: DuplexStream) -> Result<(), DaemonError> {
    let mut to = Some(to);
    loop {
        wire.set_patience(Some(Patience::new(SENDING, STALLED_AFTER)));
        let mut left = wire.number().await?;
        if left == 0 {
            return Ok(());
        }
        while left > 0 {
            wire.set_patience(Some(Patience::new(SENDING, STALLED_AFTER)));
            let bytes = wire.some_bytes(left.min(BODY_BUFFER_BYTES as u64)).await?;
            left -= bytes.len() as u64;
            if let Some(open) = &mut to
                && open.write_all(&bytes).await.is_err()
            {
                to = None;
            }
        }
    }
}

/// Contents that follow a request.
#[derive(Debug)]
pub struct ClientBody {
    wire: Wire,
    store_dir: StoreDir,
}

impl ClientBody {
    /// Number of paths that follow.
    ///
    /// # Errors
    /// The paths are too many, or there is no number.
    pub async fn path_count(&mut self) -> Result<u64, DaemonError> {
        self.wire.count("a list of paths", ADDED_PATHS_MAX).await.map_err(too_short)
    }

    /// The record of the next path, whose NAR follows.
    ///
    /// # Errors
    /// The record is malformed, or there is none.
    pub async fn path_info(&mut self) -> Result<PathInfo, DaemonError> {
        let path = self.wire.path(&self.store_dir).await.map_err(too_short)?;
        Ok(path_info(&mut self.wire, &self.store_dir, &path).await.map_err(too_short)?.info)
    }

    /// The next bytes: at least one, at most so many.
    ///
    /// # Errors
    /// There are none.
    pub async fn some_bytes(&mut self, most: u64) -> Result<Bytes, DaemonError> {
        self.wire.some_bytes(most).await.map(Bytes::from).map_err(too_short)
    }

    /// True behind the last byte.
    ///
    /// # Errors
    /// None in practice: the bytes are in memory.
    pub async fn is_at_end(&mut self) -> Result<bool, DaemonError> {
        self.wire.is_at_end().await
    }
}

/// The end of what a client has sent is its fault. One that has gone away is noticed before.
fn too_short(error: DaemonError) -> DaemonError {
    match error {
        DaemonError::Closed => DaemonError::Protocol("the contents that it sent end early".to_owned()),
        other => other,
    }
}
