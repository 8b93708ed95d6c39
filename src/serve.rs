//! The server's life: open the parts, wire them together, run, drain.
//! The only place that knows every part; holds no logic of any of them.

mod preflight;
mod steps;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use narinfo::StoreDir;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::adopt::{Adopter, Asking};
use crate::build::{Failures, LocalRunner, Logs, Scheduler, Worker};
use crate::catalogue::{Catalogue, NameResolver, Refresher, Tools};
use crate::compare::Comparer;
use crate::http::{Door, Parts, PublicUrl, Service};
use crate::index::{Index, has_ledger};
use crate::keep::{Keeper, Reserve};
use crate::key::Keys;
use crate::nar_store::NarStore;
use crate::packer::Packer;
use crate::recover::Recovery;
use crate::retry::Retry;
use crate::roots::Roots;
use crate::state_dir::{INDEX, LEDGER, NARS, using};
use crate::substitute::Substitute;
use crate::upstream::Upstreams;
use crate::{
    build, catalogue, http, isolation, keep, key, nar_store, nix, recover, state_dir, substitute, upstream,
};

pub use preflight::check;
pub use steps::{CONTROL_SOCKET, Error};
use steps::{control_socket, listen, pools};

/// When Nix is asked what nobody waits for: it takes a core for a while, and the first clients come first.
const ASK_NIX_AFTER: Duration = Duration::from_millis(100);

/// How long the end waits until it is on record what was used lately, each path with all that it refers to.
const WRITE_USES_FOR: Duration = Duration::from_secs(2);

/// How long the end waits for the index to be closed.
const CLOSE_FOR: Duration = Duration::from_secs(2);

/// All settings, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients come in.
    pub listen: SocketAddr,
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// The name of the signing key.
    pub key_name: key::WantedName,
    /// Files of the signing keys; none for those in the state directory.
    pub signing_keys: Vec<PathBuf>,
    /// Where Nix is.
    pub nix: nix::Environment,
    /// The daemon of the background lane.
    pub background: Option<nix::Environment>,
    /// What the Nix daemon is told.
    pub daemon: nix::Options,
    /// What an admin says of what the daemon can build.
    pub capabilities: nix::CapabilitySettings,
    /// The caches behind this one.
    pub upstream: upstream::Settings,
    /// Bytes that a NAR may have to be fetched; `None` goes by what is free.
    pub nar_bytes_max: Option<u64>,
    /// Bytes of narinfos that are kept in memory.
    pub narinfo_memory_bytes: u64,
    /// Package sets.
    pub catalogue: catalogue::Settings,
    /// Sources and patience.
    pub substitute: substitute::Settings,
    /// The order of builds, and their bounds.
    pub build: build::Settings,
    /// Bounds of build logs.
    pub logs: build::LogSettings,
    /// How NARs are stored.
    pub nar_store: nar_store::Settings,
    /// How much of them is kept.
    pub keep: keep::Settings,
    /// How the cache presents itself.
    pub http: http::Settings,
}

/// A server that is ready: everything is open, nothing is answered yet.
pub struct Server {
    service: Service,
    doors: Vec<Door>,
    detector: nix::Detector,
    index: Index,
    local: nix::LocalStore,
    worker: Worker,
    packer: Packer,
    keeper: Keeper,
    comparer: Comparer,
    refresher: Refresher,
    /// Adds the signatures of new keys to what is served; `None` where nothing lacks one.
    resigner: Option<Resigner>,
    stop: watch::Sender<bool>,
    /// Held for as long as the server lives.
    _lock: File,
    control: PathBuf,
    /// The address that clients are told.
    pub url: PublicUrl,
    /// What clients trust.
    pub public_key: String,
}

/// Adds signatures of new keys to every served path, and notes that in the state directory.
struct Resigner {
    adopter: Adopter,
    state_dir: PathBuf,
}

impl Resigner {
    async fn run(self) {
        match self.adopter.resign().await {
            Ok(paths) => {
                tracing::info!(paths, "every served path has a signature by each signing key");
                if let Err(error) = key::Record::finish(&self.state_dir, &self.adopter.keys) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "signatures are looked through again at the next start"
                    );
                }
            }
            // Answers are complete without it; the next start tries again.
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "signatures of new keys could not be stored in the index"
            ),
        }
    }
}

impl Server {
    /// Opens everything and binds the address. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the state, the key, the index or the address cannot be used.
    pub async fn open(settings: Settings) -> Result<Self, Error> {
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
        let index_file = state_dir.join(INDEX);
        // On a full disk the index could not even be opened.
        let reserve = Reserve::of(&state_dir);
        using(&state_dir, |_| reserve.release_if_needed())?;
        let (nar_dir, ledger) = (state_dir.join(NARS), state_dir.join(LEDGER));
        let is_old = index_file.exists() || has_ledger(&ledger);
        let keys = Keys::open(&state_dir, &settings.signing_keys, &settings.key_name, is_old)?;
        if let Some(warning) = keys.unheeded(&settings.key_name) {
            tracing::warn!("{warning}");
        }
        let resign = key::Record::begin(&state_dir, &keys, !is_old)?;
        let public_keys: Vec<String> = keys.public().map(|key| key.to_string()).collect();
        let public_key = public_keys.first().cloned().unwrap_or_default();
        let store_dir = settings.nix.store_dir.clone();
        let nars = using(&nar_dir, |dir| NarStore::open(dir, settings.nar_store))?;
        let recovery = Recovery {
            state_dir: state_dir.clone(),
            index: index_file.clone(),
            ledger: ledger.clone(),
            nars: nar_dir.clone(),
            store_dir: store_dir.clone(),
            keys: keys.public().collect(),
        };
        recovery.run_if_needed().await?;
        let index = Index::open(&index_file)?.remembering(settings.narinfo_memory_bytes);
        let index = index.with_ledger(&ledger).await?;
        let logs = using(&state_dir.join("log"), |dir| Logs::open(dir, settings.logs))?;
        let roots = using(&state_dir.join("gcroots"), |dir| Roots::open(dir, store_dir.clone()))?;

        let bounds = isolation::BuildLimits {
            build_cores: settings.daemon.build_cores,
            builds: settings.daemon.jobs.saturating_mul(settings.build.lanes.get() as u64),
        };
        let (pool, background) = pools(&settings);
        if let Some(background) = &background {
            isolation::check_background(&pool, background).await?;
        }
        let detected = nix::Detected::default();
        let detector = nix::Detector {
            settings: settings.capabilities,
            pools: background.iter().chain([&pool]).cloned().collect(),
            dir: state_dir.clone(),
            detected: detected.clone(),
        };
        let sets = settings.catalogue.sets.iter().map(|set| set.name.to_string()).collect();
        let isolation = settings.catalogue.isolation;
        let catalogue = Catalogue::new(settings.catalogue);
        let tools = Tools {
            index: index.clone(),
            pool: pool.clone(),
            roots: using(&state_dir.join("catalogue"), |dir| Roots::open(dir, store_dir.clone()))?,
            nix: settings.nix.clone(),
            home: state_dir.join("evaluator"),
            hidden: [state_dir.clone()].into_iter().chain(settings.signing_keys).collect(),
            isolation,
        };
        let refresher = Refresher { catalogue: catalogue.clone(), tools: tools.clone() };
        let daemon_logs = nix::DaemonLogs::new(settings.nix.log_dir.clone(), settings.logs.log_bytes_max);
        let local = nix::LocalStore::new(settings.nix, pool.clone());
        let upstreams = Upstreams::new(settings.upstream, &store_dir, upstream::ViaName::of(&public_key))?;
        let names = upstreams.names().map(|(name, redirect)| (name.to_owned(), redirect)).collect();
        let failures = Failures::new(index.clone(), settings.build);
        tokio::try_join!(failures.apply_settings(), index.keep_sets(sets), index.keep_upstreams(names))?;
        let packer = Packer::new(
            index.clone(),
            nars,
            roots.clone(),
            upstreams.clone(),
            pool.clone(),
            store_dir.clone(),
            settings.nar_bytes_max,
        );
        let keeper = Keeper::new(index.clone(), packer.clone(), reserve, settings.keep);
        let adopter = Adopter {
            pool: pool.clone(),
            index: index.clone(),
            roots,
            packer: packer.clone(),
            keys: Arc::new(keys),
            store_dir: store_dir.clone(),
            local: local.clone(),
            upstreams: upstreams.clone(),
            asking: Asking::default(),
        };
        let builds = Scheduler::open(settings.build, &index).await?;
        let building = using(&state_dir.join("building"), |dir| Roots::open(dir, store_dir.clone()))?;
        let runner = LocalRunner {
            connections: nix::Connections::new(pool.clone()),
            upstreams: upstreams.clone(),
            roots: building,
            settings: settings.build,
        };
        let background =
            background.map(|pool| LocalRunner { connections: nix::Connections::new(pool), ..runner.clone() });
        let worker = Worker {
            scheduler: builds.clone(),
            runner,
            background,
            logs: logs.clone(),
            adopter: adopter.clone(),
            index: index.clone(),
            failures: failures.clone(),
            bumps: catalogue.bumps(),
            requested: using(&state_dir.join("requested"), |dir| Roots::open(dir, store_dir.clone()))?,
            capabilities: detected.clone(),
            settings: settings.build,
        };
        let comparer = Comparer { index: index.clone(), upstreams: upstreams.clone() };
        let builds_here = (!settings.substitute.build_from.is_empty()).then_some(bounds);
        tokio::spawn({
            let pool = pool.clone();
            async move {
                sleep(ASK_NIX_AFTER).await;
                isolation::report(pool, builds_here).await;
            }
        });
        let substitute = Substitute {
            index: index.clone(),
            local: local.clone(),
            adopter,
            builds: builds.clone(),
            failures: failures.clone(),
            joined: substitute::Joined::default(),
            exhausted: substitute::Exhausted::default(),
            settings: settings.substitute,
        };
        let retry = Retry {
            index: index.clone(),
            local: local.clone(),
            failures: failures.clone(),
            builds: builds.clone(),
        };
        let (listener, address) = listen(settings.listen)?;
        let public_url = settings.http.public_url.clone();
        let url = public_url.unwrap_or_else(|| PublicUrl::of_listener(address, &host_name()));
        let resigner =
            resign.then(|| Resigner { adopter: substitute.adopter.clone(), state_dir: state_dir.clone() });
        let (stop, stopping) = watch::channel(false);
        let parts = Parts {
            substitute: Arc::new(substitute),
            packer: packer.clone(),
            keeper: keeper.clone(),
            failures,
            retry,
            logs,
            daemon_logs,
            builds,
            names: NameResolver::new(catalogue.clone(), tools),
            catalogue,
            upstreams,
            index: index.clone(),
            pool,
            detected,
            store_dir,
            url: url.clone(),
            public_keys,
            settings: settings.http,
        };

        let control_door = control_door.await.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))?;
        let doors = vec![Door::Tcp(listener), Door::Unix(control_door)];
        let service = Service::new(parts, stopping);
        Ok(Self {
            service,
            doors,
            detector,
            index,
            local,
            worker,
            packer,
            keeper,
            comparer,
            refresher,
            resigner,
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
    /// When a part that must run for ever has stopped: a bug, after which only a restart helps.
    pub async fn run(self, until: impl Future<Output = ()>) -> Result<(), Error> {
        let (detector, worker) = (self.detector, self.worker);
        let adopter = worker.adopter.clone();
        let detecting = async {
            sleep(ASK_NIX_AFTER).await;
            detector.run().await;
        };
        let mut worker = tokio::spawn(async { tokio::join!(detecting, worker.run()) });
        let mut packer = tokio::spawn(self.packer.run());
        let scrubbing = tokio::spawn(self.keeper.clone().scrub());
        let mut keeper = tokio::spawn(self.keeper.run());
        let (index, local) = (self.index.clone(), self.local);
        let knowing = tokio::spawn(async move {
            let index = async {
                tokio::join!(
                    index.watch_for_damage(),
                    index.keep_known(),
                    index.keep_log_short(),
                    index.keep_ledger_short()
                )
            };
            tokio::join!(index, local.keep_known(), adopter.keep_signatures())
        });
        let comparing = tokio::spawn(self.comparer.run());
        let mut refresher = tokio::spawn(self.refresher.run());
        let resigning = self.resigner.map(|resigner| tokio::spawn(resigner.run()));
        let serving = http::serve(self.doors, self.service);
        let stopping = async {
            until.await;
            tracing::info!("stopping");
            self.stop.send_replace(true);
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            served = serving => served.map_err(Error::Threads),
            () = stopping => Ok(()),
            _ = &mut worker => Err(Error::Stopped("the part that builds")),
            _ = &mut packer => Err(Error::Stopped("the part that packs NARs")),
            _ = &mut keeper => Err(Error::Stopped("the part that keeps the NAR store within its limit")),
            _ = &mut refresher => Err(Error::Stopped("the part that refreshes package sets")),
        };
        // The running build ends with its connection to the daemon; whoever waits for it asks again.
        worker.abort();
        packer.abort();
        keeper.abort();
        scrubbing.abort();
        knowing.abort();
        comparing.abort();
        refresher.abort();
        resigning.inspect(tokio::task::JoinHandle::abort);
        match timeout(WRITE_USES_FOR, self.index.write_uses(SystemTime::now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what was used in the last minutes is not on record");
            }
            Err(_) => tracing::info!(
                "not all that was used in the last minutes is on record: there was too much of it"
            ),
        }
        // Whatever does not come of it takes the next start some milliseconds.
        let _ = timeout(CLOSE_FOR, self.index.close()).await;
        let _ = fs::remove_file(&self.control);
        ended
    }
}

/// The name of this machine.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Makes the index of a state directory anew from what is recorded beside its NARs; what was there is moved aside.
///
/// # Errors
/// When a server runs there, the key cannot be read, or nothing is recorded.
pub async fn recover(dir: &Path, store_dir: StoreDir) -> Result<recover::Outcome, Error> {
    let state_dir = state_dir::open(dir)?;
    let _lock = state_dir::lock(&state_dir)?;
    let keys = key::Record::read(&state_dir)?.keys().cloned().collect();
    let [index, ledger, nars] = [INDEX, LEDGER, NARS].map(|name| state_dir.join(name));
    Ok(Recovery { state_dir, index, ledger, nars, store_dir, keys }.run().await?)
}

/// Each client that waits is an open file: as many as the system lets us have, not as many as a shell asks for.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays {:?}", limit.current);
    }
}

/// Resolves when the process is told to end.
///
/// # Errors
/// When signals cannot be watched.
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
