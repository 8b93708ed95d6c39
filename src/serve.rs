//! Life of the server: its parts are opened, wired together, run, and drained.
//! No other place knows every part, and it has no logic of any of them.

mod backup;
mod builds;
mod caches;
mod daemons;
mod index_stamp;
mod leadership;
mod preflight;
#[cfg(test)]
mod simulation;
mod steps;
mod storage;
mod systemd;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::auth::Auth;
use crate::contents::Contents;
use crate::http::{AppState, Listener, PublicUrl, Service};
use crate::nar_store::NarStore;
use crate::recover::Recovery;
use crate::requests::Requests;
use crate::retry::Retry;
use crate::state_dir::{INDEX, LEDGER, NARS, using};
use crate::substitute::Substitute;
use crate::tasks::{Supervisor, Tasks, unfinished};
use crate::{
    auth, build, catalogue, http, import, index, key, nar_store, nix, recover, requests, retention,
    state_dir, substitute, telemetry, upstream,
};

pub use backup::{BackupReport, backup};
use builds::Builds;
use caches::Caches;
use daemons::Daemons;
use index_stamp::IndexStamp;
pub use leadership::{Role, Roles};
pub use preflight::{Preflight, check};
use steps::control_socket;
pub use steps::{CONTROL_SOCKET, Error};
use storage::Storage;
pub(crate) use storage::Stores;

/// Time that tasks are given to end.
const STOP_TASKS_FOR: Duration = Duration::from_secs(1);

/// Time that recording the latest uses is given, each path with all that it refers to.
const WRITE_USES_FOR: Duration = Duration::from_secs(2);

/// Time that closing the index is given.
const CLOSE_FOR: Duration = Duration::from_secs(2);

/// All settings, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address for clients.
    pub listen: SocketAddr,
    /// Directory of all that is kept.
    pub state_dir: PathBuf,
    /// The name of the signing key.
    pub key_name: key::WantedName,
    /// Files of the signing keys; none for those in the state directory.
    pub signing_keys: Vec<PathBuf>,
    /// Places of Nix.
    pub nix: nix::Environment,
    /// The daemon of the background lane.
    pub background: Option<nix::Environment>,
    /// Options that the Nix daemon is given.
    pub daemon: nix::Options,
    /// Capabilities of the daemon, as far as an admin names them.
    pub capabilities: nix::CapabilitySettings,
    /// Upstreams.
    pub upstream: upstream::Settings,
    /// Bytes that a NAR may have to be fetched; `None` goes by what is free.
    pub nar_bytes_max: Option<u64>,
    /// Database of the index.
    pub index: index::Settings,
    /// Part of this server where several share the index.
    pub roles: Roles,
    /// Bytes of narinfos that are kept in memory.
    pub narinfo_memory_bytes: u64,
    /// Package sets.
    pub catalogue: catalogue::Settings,
    /// Sources of derivations that are built.
    pub substitute: substitute::Settings,
    /// The order of builds, and their bounds.
    pub build: build::Settings,
    /// The machines that build.
    pub farm: build::FarmSettings,
    /// Bounds of build logs.
    pub logs: build::LogSettings,
    /// Compression and memory of the NAR store.
    pub nar_store: nar_store::Settings,
    /// Retention of NARs.
    pub retention: retention::Settings,
    /// Rights of clients without a token.
    pub auth: auth::Settings,
    /// Pushes.
    pub import: import::Settings,
    /// Behaviour towards clients.
    pub http: http::Settings,
    /// Requests that no connection stands for.
    pub requests: requests::Settings,
    /// The log, and traces.
    pub telemetry: telemetry::Settings,
}

/// A server that is ready: everything is open, nothing is answered yet.
pub struct Server {
    service: Service,
    listeners: Vec<Listener>,
    storage: Storage,
    daemons: Daemons,
    caches: Caches,
    builds: Builds,
    auth: Auth,
    tasks: Tasks,
    supervisor: Supervisor,
    stop: watch::Sender<bool>,
    /// Held for as long as the server lives.
    _lock: File,
    control: PathBuf,
    /// The address that clients are told.
    pub url: PublicUrl,
    /// The key that clients trust.
    pub public_key: String,
}

impl Server {
    /// Opens everything and binds the address. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The state, the key, the index or the address cannot be used.
    pub async fn open(settings: Settings) -> Result<Self, Error> {
        Self::open_on(settings, None).await
    }

    /// Opens everything over an index and NARs that are not in the state directory.
    #[cfg(test)]
    pub(crate) async fn open_over(settings: Settings, stores: Stores) -> Result<Self, Error> {
        Self::open_on(settings, Some(stores)).await
    }

    /// Its index.
    #[cfg(test)]
    pub(crate) fn index(&self) -> crate::index::Index {
        self.storage.index.clone()
    }

    async fn open_on(settings: Settings, stores: Option<Stores>) -> Result<Self, Error> {
        raise_descriptor_limit();
        preflight::folders(&settings.state_dir)?;
        let state_dir = state_dir::open(&settings.state_dir)?;
        let lock = state_dir::lock(&state_dir)?;
        let control = state_dir.join(CONTROL_SOCKET);
        // Making a file takes its time; all else is opened meanwhile.
        let control_door = tokio::task::spawn_blocking({
            let control = control.clone();
            move || using(&control, control_socket)
        });
        let (tasks, supervisor) = Tasks::new();
        let storage = Storage::open(state_dir, &settings, stores).await?;
        let public_keys = storage.public_keys();
        let public_key = public_keys.first().cloned().unwrap_or_default();
        let daemons = Daemons::open(&settings, &storage.state_dir).await?;
        let caches = Caches::open(&settings, &storage, &daemons, &tasks, &public_key).await?;
        // Before anything is promised.
        if !storage.is_as_left
            && let Err(error) = caches.adopter.drop_lost().await
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot look for lost NARs; run `ondine fsck` later");
        }
        let builds = Builds::open(&settings, &storage, &daemons, &caches, &tasks).await?;
        let substitute = Substitute {
            index: storage.index.clone(),
            local: daemons.local.clone(),
            adopter: caches.adopter.clone(),
            builds: builds.scheduler.clone(),
            failures: builds.failures.clone(),
            joined: substitute::RecentDecisions::default(),
            exhausted: substitute::Exhausted::default(),
            unknown_waits: substitute::UnknownWaits::default(),
            settings: settings.substitute,
        };
        let substitute = Arc::new(substitute);
        let requests = Requests::new(Arc::clone(&substitute), builds.names.clone(), settings.requests);
        let retry = Retry {
            index: storage.index.clone(),
            local: daemons.local.clone(),
            failures: builds.failures.clone(),
            requests: requests.clone(),
        };
        let auth = Auth::open(storage.index.clone(), settings.auth).await?;
        let (public, address) = match settings.roles.serve {
            true => systemd::listeners(settings.listen)?,
            false => (Vec::new(), settings.listen),
        };
        let public_url = settings.http.public_url.clone();
        let url = public_url.unwrap_or_else(|| PublicUrl::of_listener(address, &host_name()));
        let (stop, stopping) = watch::channel(false);
        let contents = Contents::new(caches.packer.clone(), storage.index.clone(), storage.store_dir.clone());
        let state = AppState {
            substitute,
            requests: requests.clone(),
            packer: caches.packer.clone(),
            publication: caches.publication.clone(),
            contents,
            debug_info: storage.debug_info.clone(),
            importer: caches.importer.clone(),
            retention: caches.retention.clone(),
            failures: builds.failures.clone(),
            retry,
            logs: storage.logs.clone(),
            daemon_logs: daemons.logs.clone(),
            auth: auth.clone(),
            builds: builds.scheduler.clone(),
            worker: builds.worker(),
            drained: builds.drained.clone(),
            names: builds.names.clone(),
            catalogue: builds.catalogue.clone(),
            upstreams: caches.upstreams.clone(),
            index: storage.index.clone(),
            pool: daemons.pool.clone(),
            detected: daemons.detected.clone(),
            store_dir: storage.store_dir.clone(),
            url: url.clone(),
            public_keys,
            settings: settings.http,
        };
        tasks.restarted("owners of requests", move || requests.clone().expire_owners());
        let control_door = match control_door.await {
            Ok(door) => door?,
            Err(error) => unfinished(error).await,
        };
        let mut listeners: Vec<_> = public.into_iter().map(Listener::Tcp).collect();
        listeners.push(Listener::Unix(control_door));
        let service = Service::new(state, stopping);
        Ok(Self {
            service,
            listeners,
            storage,
            daemons,
            caches,
            builds,
            auth,
            tasks,
            supervisor,
            stop,
            _lock: lock,
            control,
            url,
            public_key,
        })
    }

    /// Serves until `until` resolves, then drains: waits are ended, running downloads are given their time.
    ///
    /// # Errors
    /// A task without which the server cannot go on has ended: a bug, after which only a restart helps.
    pub async fn run(self, until: impl Future<Output = ()>) -> Result<(), Error> {
        let (tasks, mut supervisor, index) = (self.tasks, self.supervisor, self.storage.index.clone());
        let leadership = self.builds.leadership.clone();
        let closed = IndexStamp::of(&self.storage.state_dir);
        // First of all: clients may wait already.
        let mut serving = JoinSet::new();
        serving.spawn(http::serve(self.listeners, self.service, tasks.clone()));
        self.storage.start(&tasks);
        self.daemons.start(&tasks);
        self.caches.start(&tasks);
        let url = self.url.to_string();
        systemd::start(&tasks, &self.builds.scheduler, &url);
        self.builds.start(&tasks);
        let auth = self.auth.clone();
        tasks.restarted("token-uses", move || {
            let auth = auth.clone();
            async move { auth.maintain().await }
        });
        systemd::ready(&url);
        let stopping = async {
            until.await;
            tracing::info!("stopping");
            systemd::stopping();
            self.stop.send_replace(true);
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            Some(served) = serving.join_next() => match served {
                Ok(served) => served.map_err(Error::Threads),
                Err(error) => unfinished(error).await,
            },
            () = stopping => Ok(()),
            name = supervisor.ended() => Err(Error::Stopped(name)),
        };
        serving.shutdown().await;
        // The running build ends with its connection to the daemon; whoever waits for it asks again.
        if !supervisor.stop(STOP_TASKS_FOR).await {
            tracing::warn!("a task did not end in {STOP_TASKS_FOR:?}; the server ends without it");
        }
        if let Some(leadership) = leadership {
            // Else another server takes over some seconds later.
            let _ = timeout(CLOSE_FOR, leadership.release()).await;
        }
        match timeout(WRITE_USES_FOR, index.record_uses(SystemTime::now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "cannot record the uses of the last minutes; eviction may take a path too early"
                );
            }
            Err(_) => tracing::info!("recorded a part of the uses of the last minutes in {WRITE_USES_FOR:?}"),
        }
        if let Ok(Err(error)) = timeout(CLOSE_FOR, self.auth.record_uses()).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot record the last uses of tokens");
        }
        // An index that is not closed in time takes the next start some milliseconds.
        if let Ok(Ok(())) = timeout(CLOSE_FOR, index.close()).await
            && let Err(error) = closed.leave()
        {
            tracing::debug!(%error, "cannot stamp the index: the next start looks for its NARs");
        }
        let _ = fs::remove_file(&self.control);
        ended
    }
}

/// The name of this machine.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Copies the index that the settings name to another database. Gives the number of rows.
///
/// # Errors
/// A server that runs with the state directory, or an index that cannot be copied.
#[cfg(feature = "postgres")]
pub async fn migrate(
    settings: &Settings,
    target: &index::CopyPlace,
    told: &mut (dyn FnMut(index::CopyProgress) + Send),
) -> Result<u64, Error> {
    let (state_dir, _lock) = state_dir::take(&settings.state_dir)?;
    let source = match &settings.index.location {
        index::IndexLocation::Sqlite => index::CopyPlace::Sqlite(state_dir.join(INDEX)),
        index::IndexLocation::Postgres(url) => {
            index::CopyPlace::Postgres(url.clone(), settings.index.password_file.clone())
        }
    };
    Ok(source.copy_to(target, told).await?)
}

/// Makes the index of a state directory anew from what is recorded beside its NARs; what was there is moved
/// aside.
///
/// # Errors
/// A server runs there, the key cannot be read, or nothing is recorded.
pub async fn recover(settings: Settings) -> Result<recover::RecoveryReport, Error> {
    let (state_dir, _lock) = state_dir::take(&settings.state_dir)?;
    let keys = key::SignerRecord::read(&state_dir)?.keys().cloned().collect();
    let [index, ledger, nars] = [INDEX, LEDGER, NARS].map(|name| state_dir.join(name));
    let nars = using(&nars, |dir| NarStore::open(dir, settings.nar_store))?;
    let store_dir = settings.nix.store_dir;
    Ok(Recovery { state_dir, index, ledger, nars, store_dir, keys }.run().await?)
}

/// Each client that waits is an open file: as many as the system lets us have, not as many as a shell asks
/// for.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files above {:?}; raise it for this service", limit.current);
    }
}

/// Resolves when a signal tells the process to end.
///
/// # Errors
/// Signals cannot be watched.
pub fn told_to_end() -> Result<impl Future<Output = ()>, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
