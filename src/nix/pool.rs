//! Connections to the daemon that are kept for the next one who needs one, and a bound on how many there are.
//! A connection that was abandoned, looks dead or holds temporary roots is never handed out again.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::connection::Daemon;
use super::environment::Environment;
use super::error::DaemonError;
use super::ops::Options;
use super::ssh::SshMachine;

/// Connections in use at most. Each is a process of the daemon.
pub const CONNECTIONS_MAX: usize = 64;
/// Connections that are kept open at most while nobody uses them.
pub const IDLE_MAX: usize = 4;
/// Connections that are kept at most from one build to the next: all others need their turns, too.
const KEPT_MAX: usize = CONNECTIONS_MAX / 4;
/// Connections that are opened ahead while requests come: one holds the next derivation, one plans it.
const AHEAD: usize = 2;
/// Time limit for a returned connection when all are in use.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);

/// Without an attempt to connect for this long, nobody knows that the daemon was away all the time.
const OUTAGE_AGE_MAX: Duration = Duration::from_secs(60);

/// Where a daemon is.
#[derive(Clone, Debug)]
pub enum DaemonAddress {
    /// On this machine.
    Socket(Environment),
    /// On another one.
    Ssh(SshMachine),
}

impl From<Environment> for DaemonAddress {
    fn from(environment: Environment) -> Self {
        Self::Socket(environment)
    }
}

/// Hands out connections that have the same options; clones share them.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: DaemonAddress,
    /// Options of new connections; a change makes a new edition, and connections of older ones are retired.
    options: Mutex<(u64, Options)>,
    /// The one that was used last is at the end, and used next. Never locked across an await.
    idle: Mutex<Vec<Daemon>>,
    /// Those that were opened ahead: nothing was asked through them.
    unused: Mutex<Vec<Daemon>>,
    /// Wakes who opens connections ahead.
    expected: Notify,
    turns: Arc<Semaphore>,
    /// Locked for a moment only.
    outage: Mutex<Option<DaemonOutage>>,
}

/// The daemon takes no connection.
#[derive(Debug)]
struct DaemonOutage {
    since: Instant,
    /// Last sight of it.
    seen: Instant,
    /// Reason of the first failure.
    reason: String,
}

impl Pool {
    /// A pool without connections yet; they are made when they are needed.
    #[must_use]
    pub fn new(address: impl Into<DaemonAddress>, options: Options) -> Self {
        let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self(Arc::new(Shared {
            address: address.into(),
            options: Mutex::new((0, options)),
            idle: Mutex::default(),
            unused: Mutex::default(),
            expected: Notify::new(),
            turns,
            outage: Mutex::default(),
        }))
    }

    /// A connection that is idle and seems alive, or else a new one.
    ///
    /// It comes back to the pool when it is dropped, unless it is unusable, holds temporary roots (they would
    /// hold their paths for whoever uses the connection next) or was [`discarded`](PooledDaemon::discard).
    /// The daemon may still die at any time; then operations fail with an error that
    /// [`is_connection_lost`](DaemonError::is_connection_lost).
    ///
    /// # Errors
    /// If no connection can be made, or [`CONNECTIONS_MAX`] are in use for a minute.
    pub async fn get(&self) -> Result<PooledDaemon, DaemonError> {
        let turn = self.turn().await?;
        if let Some(daemon) = take_alive(|| self.0.idle().pop(), self.0.edition(), |daemon| daemon).await {
            return Ok(PooledDaemon::new(daemon, self.0.clone(), turn));
        }
        // In a box: this is rare and large, and those who wait for a turn are many.
        Box::pin(self.unused(turn)).await
    }

    /// A connection that nobody used before, which may have been opened ahead.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn get_unused(&self) -> Result<PooledDaemon, DaemonError> {
        let turn = self.turn().await?;
        self.unused(turn).await
    }

    async fn unused(&self, turn: OwnedSemaphorePermit) -> Result<PooledDaemon, DaemonError> {
        match take_alive(|| self.0.unused().pop(), self.0.edition(), |daemon| daemon).await {
            Some(daemon) => Ok(PooledDaemon::new(daemon, self.0.clone(), turn)),
            None => self.open(turn).await,
        }
    }

    /// Opens connections ahead each time [`Pool::expect_more`] is called, for as long as this runs: opening
    /// one takes the daemon as long as a short build. One that cannot be opened is left to who needs it.
    pub async fn open_ahead(&self) {
        loop {
            self.0.expected.notified().await;
            while self.0.unused().len() < AHEAD {
                let Ok(turn) = self.0.turns.clone().try_acquire_owned() else { break };
                let Ok(mut opened) = self.open(turn).await else { break };
                self.0.unused().extend(opened.daemon.take());
            }
        }
    }

    /// Tells that more connections may be needed soon, and that there is time to open them: a build begins.
    pub fn expect_more(&self) {
        self.0.expected.notify_one();
    }

    /// A connection that is made now, for whoever found that an idle one was lost.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn get_fresh(&self) -> Result<PooledDaemon, DaemonError> {
        let turn = self.turn().await?;
        self.open(turn).await
    }

    /// Sets the substituters of builds from now on. The daemon reads options with the first request of a
    /// connection, so this applies to new ones.
    pub fn use_substituters(&self, urls: &str) {
        let mut options = self.0.options();
        if options.1.substituters != urls {
            urls.clone_into(&mut options.1.substituters);
            options.0 += 1;
        }
    }

    /// From now on new connections tell the daemon one more of Nix's settings.
    pub fn tell(&self, name: &str, value: &str) {
        let mut options = self.0.options();
        options.1.extra.push((name.to_owned(), value.to_owned()));
        options.0 += 1;
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, DaemonError> {
        match tokio::time::timeout(TURN_TIMEOUT, self.0.turns.clone().acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            // The semaphore is never closed, so this is the time-out.
            _ => Err(DaemonError::Exhausted { limit: CONNECTIONS_MAX }),
        }
    }

    /// For how long the daemon has taken no connection, as far as anybody tried, and how it does not.
    #[must_use]
    pub fn outage(&self) -> Option<(Duration, String)> {
        let outage = self.0.outage();
        outage.as_ref().map(|outage| (outage.since.elapsed(), outage.reason.clone()))
    }

    async fn open(&self, turn: OwnedSemaphorePermit) -> Result<PooledDaemon, DaemonError> {
        let opened = self.try_open(turn).await;
        // Who uses other machines takes note of their outages.
        if matches!(self.0.address, DaemonAddress::Socket(_)) {
            self.0.note(opened.as_ref().err());
        }
        opened
    }

    async fn try_open(&self, turn: OwnedSemaphorePermit) -> Result<PooledDaemon, DaemonError> {
        let mut daemon = match &self.0.address {
            DaemonAddress::Socket(environment) => Daemon::connect(environment).await?,
            DaemonAddress::Ssh(machine) => machine.connect().await?,
        };
        let (edition, options) = self.0.options().clone();
        daemon.edition = edition;
        daemon.set_options(&options).await?;
        Ok(PooledDaemon::new(daemon, self.0.clone(), turn))
    }
}

impl Shared {
    fn options(&self) -> MutexGuard<'_, (u64, Options)> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outage(&self) -> MutexGuard<'_, Option<DaemonOutage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody has tried to connect.
    fn note(&self, error: Option<&DaemonError>) {
        let mut outage = self.outage();
        let now = Instant::now();
        match (error.and_then(DaemonError::lost), outage.as_mut()) {
            (None, None) => {}
            (None, Some(DaemonOutage { since, .. })) => {
                if error.is_none() {
                    tracing::info!(seconds = since.elapsed().as_secs(), "the Nix daemon answers again");
                }
                *outage = None;
            }
            (Some(_), Some(outage)) if outage.seen.elapsed() < OUTAGE_AGE_MAX => outage.seen = now,
            (Some(reason), _) => {
                tracing::warn!(
                    %reason,
                    "the Nix daemon does not answer; builds wait for it, and what is served already is still served"
                );
                *outage = Some(DaemonOutage { since: now, seen: now, reason });
            }
        }
    }

    fn unused(&self) -> MutexGuard<'_, Vec<Daemon>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edition(&self) -> u64 {
        self.options().0
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Daemon>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, daemon: Daemon) {
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(daemon);
        }
    }
}

/// The next connection that seems alive and knows this edition of the options; others are closed.
async fn take_alive<T>(
    next: impl Fn() -> Option<T>,
    edition: u64,
    daemon: impl Fn(&mut T) -> &mut Daemon,
) -> Option<T> {
    // Lets the runtime notice hang-ups of which the system has told it.
    tokio::task::yield_now().await;
    loop {
        let mut taken = next()?;
        let daemon = daemon(&mut taken);
        if daemon.edition == edition && daemon.seems_alive() {
            return Some(taken);
        }
    }
}

/// Connections for builds, kept with their temporary roots from one build to the next while there is one:
/// opening one takes longer than a short build. Clones share them.
#[derive(Clone)]
pub struct Connections {
    /// Where new ones come from.
    pub pool: Pool,
    kept: Arc<Mutex<KeptConnections>>,
}

#[derive(Default)]
struct KeptConnections {
    daemons: Vec<PooledDaemon>,
    /// True from a build on until all are closed.
    builds: bool,
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        Self { pool, kept: Arc::default() }
    }

    /// One that was kept and seems alive, or else one of the pool.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn get(&self) -> Result<PooledDaemon, DaemonError> {
        let kept = || self.kept().daemons.pop();
        match take_alive(kept, self.pool.0.edition(), |daemon| daemon).await {
            Some(daemon) => Ok(daemon),
            None => self.pool.get().await,
        }
    }

    /// Keeps one after a build for the next one, or closes it where enough are kept.
    pub fn keep(&self, daemon: PooledDaemon) {
        self.kept().builds = true;
        self.give_back(daemon);
    }

    /// Keeps one that no build had, unless all are closed or enough are kept.
    pub fn give_back(&self, daemon: PooledDaemon) {
        let mut kept = self.kept();
        if kept.builds && kept.daemons.len() < KEPT_MAX {
            kept.daemons.push(daemon);
        }
    }

    /// Closes them all, and those that were opened ahead: their temporary roots, on all that was built
    /// through them, end.
    pub fn close(&self) {
        self.pool.0.unused().clear();
        *self.kept() = KeptConnections::default();
    }

    fn kept(&self) -> MutexGuard<'_, KeptConnections> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is lent. Derefs to [`Daemon`].
#[derive(Debug)]
pub struct PooledDaemon {
    /// Taken only when this is dropped.
    daemon: Option<Daemon>,
    pool: Arc<Shared>,
    _turn: OwnedSemaphorePermit,
}

impl PooledDaemon {
    fn new(daemon: Daemon, pool: Arc<Shared>, turn: OwnedSemaphorePermit) -> Self {
        Self { daemon: Some(daemon), pool, _turn: turn }
    }

    /// Closes the connection: whatever the daemon does for it ends, and its temporary roots with it.
    pub fn discard(mut self) {
        self.daemon = None;
    }
}

impl Drop for PooledDaemon {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take()
            && daemon.usable()
            && !daemon.has_temp_roots()
        {
            self.pool.push(daemon);
        }
    }
}

impl Deref for PooledDaemon {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        self.daemon.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for PooledDaemon {
    fn deref_mut(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("it is there until it is dropped")
    }
}
