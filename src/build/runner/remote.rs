//! Runner of another machine, reached by ssh: inputs are copied to its Nix daemon, which builds, and outputs
//! come straight into the NAR store. Whatever happens to the machine is its loss, and not the build's
//! failure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use narinfo::{StoreDir, StorePath};

use super::watch::{RunBounds, Stop, WatchedBuild, watch};
use super::{BuildJob, Built, KnownPaths, Loss, NotBuilt, RebuiltOutputs, Runner, known_paths};
use crate::build::Settings;
use crate::build::log::LogWriter;
use crate::build::verdict::{Evidence, Verdict};
use crate::causes::with_causes;
use crate::import::{CopyHelpers, Importer, InputFetcher, StoreError, TakeError};
use crate::model::FailureClass;
use crate::nix::{
    Connections, Daemon, DaemonError, PooledDaemon, SentDerivation, SentDerivations, ValidPath,
};

/// Starts of a build at most whose machine is lost each time.
const STARTS_MAX: u32 = 5;
/// The same where the machine answers, and is in trouble of its own: the build may be what fills its disk.
const TROUBLED_STARTS_MAX: u32 = 3;

/// Time limit of a second build where builds have none.
const REBUILT_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// One slot or several of a machine; clones share them.
#[derive(Clone)]
pub struct RemoteRunner {
    /// Name of the builder.
    pub name: Arc<str>,
    /// Connections to its daemon.
    pub connections: Connections,
    /// Supplier of inputs, and publisher of outputs.
    pub importer: Importer,
    /// Fetcher of large inputs on the machine itself; `None` where they are copied.
    pub fetcher: Option<InputFetcher>,
    /// Connections beside that of a build, which help to copy its inputs.
    pub helpers: CopyHelpers,
    /// Derivations that clients have sent.
    pub sent: SentDerivations,
    /// Silence of its daemon after which the machine is lost.
    pub silent_max: Option<Duration>,
    /// RunBounds of a build.
    pub settings: Settings,
}

impl Runner for RemoteRunner {
    async fn build(
        &self,
        drv: &StorePath,
        log: &LogWriter,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Built, NotBuilt> {
        // Dropping an attempt closes its connection, which stops whatever the daemon does for it.
        tokio::select! {
            built = self.attempt(drv, log) => built,
            () = stop => Err(NotBuilt::Stopped),
        }
    }
}

impl RemoteRunner {
    async fn attempt(&self, drv: &StorePath, log: &LogWriter) -> Result<Built, NotBuilt> {
        let mut daemon = self.connections.get().await.map_err(|error| self.lost(&error))?;
        let sent = self.sent.find(drv);
        let known = paths_of(daemon.store_dir(), drv, sent.as_deref()).await.map_err(|reason| {
            NotBuilt::Failed(Verdict::transient(format!("the derivation cannot be read: {reason}")))
        })?;
        let absent = daemon.hold_valid(known.outputs.iter().chain(&known.needed)).await;
        let absent = absent.map_err(|error| self.lost(&error))?;
        // A build whose connection broke may have come to its end.
        let is_there = !known.outputs.iter().any(|output| absent.contains(output));
        if is_there {
            return self.take_built(drv, daemon, &known).await;
        }
        self.supply(&mut daemon, &known, absent).await?;
        let bounds = RunBounds { settings: &self.settings, machine_silent_max: self.silent_max };
        let job = BuildJob { drv, sent: sent.as_deref(), outputs: &known.outputs };
        let watched = watch(daemon, job, log, bounds, std::future::pending()).await;
        let WatchedBuild { daemon, outputs, worked, took } = watched.map_err(|stop| self.judge(stop))?;
        self.take(drv, daemon, &known, outputs).await?;
        Ok(Built { outputs: Vec::new(), worked, took })
    }

    /// Takes outputs that the machine has already.
    async fn take_built(
        &self,
        drv: &StorePath,
        mut daemon: PooledDaemon,
        known: &KnownPaths,
    ) -> Result<Built, NotBuilt> {
        let outputs = daemon.query_path_infos(&known.outputs).await.map_err(|error| self.lost(&error))?;
        self.take(drv, daemon, known, outputs).await?;
        Ok(Built { outputs: Vec::new(), worked: false, took: Duration::ZERO })
    }

    /// Publishes outputs by the records that the machine has of them, and keeps the connection.
    async fn take(
        &self,
        drv: &StorePath,
        daemon: PooledDaemon,
        known: &KnownPaths,
        outputs: Vec<Option<ValidPath>>,
    ) -> Result<(), NotBuilt> {
        let mut infos = Vec::new();
        for (path, valid) in known.outputs.iter().zip(outputs) {
            let lacks =
                || self.loss(&format!("its daemon lacks {path}, which it says it has built"), STARTS_MAX);
            infos.push(valid.ok_or_else(lacks)?.info);
        }
        let taken = self.importer.take_outputs(daemon, infos).await;
        self.connections.keep(taken.map_err(|error| self.not_taken(drv, &error))?);
        Ok(())
    }

    /// Has the machine get what it lacks of what a build needs.
    async fn supply(
        &self,
        daemon: &mut Daemon,
        known: &KnownPaths,
        mut absent: BTreeSet<StorePath>,
    ) -> Result<(), NotBuilt> {
        absent.retain(|path| known.needed.contains(path));
        let supplied = self.importer.supply(daemon, absent, self.fetcher.as_ref(), &self.helpers).await;
        supplied.map_err(|error| self.not_supplied(error))
    }

    /// Takes the outputs of a derivation if the machine has them all. Builds nothing.
    pub(in crate::build) async fn take_if_built(&self, drv: &StorePath) -> Result<Option<Built>, NotBuilt> {
        let mut daemon = self.connections.get().await.map_err(|error| self.lost(&error))?;
        let sent = self.sent.find(drv);
        let Ok(known) = paths_of(daemon.store_dir(), drv, sent.as_deref()).await else { return Ok(None) };
        let absent = daemon.hold_valid(&known.outputs).await.map_err(|error| self.lost(&error))?;
        if !absent.is_empty() {
            self.connections.keep(daemon);
            return Ok(None);
        }
        self.take_built(drv, daemon, &known).await.map(Some)
    }

    /// Builds a derivation whose outputs are served, and gives those of this machine; they stay there. None
    /// where it has them already.
    pub(in crate::build) async fn rebuild(&self, drv: &StorePath) -> Result<RebuiltOutputs, NotBuilt> {
        let mut daemon = self.connections.get().await.map_err(|error| self.lost(&error))?;
        let sent = self.sent.find(drv);
        let known = paths_of(daemon.store_dir(), drv, sent.as_deref()).await;
        let known = known.map_err(|reason| NotBuilt::Failed(Verdict::transient(reason)))?;
        let absent = daemon.hold_valid(known.outputs.iter().chain(&known.needed)).await;
        let absent = absent.map_err(|error| self.lost(&error))?;
        if !known.outputs.iter().all(|output| absent.contains(output)) {
            self.connections.keep(daemon);
            return Ok(Vec::new());
        }
        self.supply(&mut daemon, &known, absent).await?;
        let limit = self.settings.build_max.unwrap_or(REBUILT_WITHIN);
        let job = BuildJob { drv, sent: sent.as_deref(), outputs: &known.outputs };
        let built = tokio::time::timeout(limit, job.run(&mut daemon, |_| {})).await;
        let built = built.map_err(|_| self.loss("it took too long", STARTS_MAX))?;
        let (built, outputs) = built.map_err(|error| self.lost(&error))?;
        let evidence = Evidence { daemon_error: "", log_end: &[] };
        if let Some(verdict) = Verdict::of(&built, evidence) {
            return Err(self.judge(Stop::Result(verdict)));
        }
        self.connections.keep(daemon);
        let infos = outputs.into_iter().flatten().map(|valid| valid.info);
        Ok(infos.map(|info| (info.path, info.nar_hash)).collect())
    }

    fn loss(&self, reason: &str, starts_max: u32) -> NotBuilt {
        let reason = format!("builder {}: {reason}", self.name);
        let verdict = Verdict::transient(reason.clone());
        NotBuilt::Lost(Loss { reason, starts_max, verdict })
    }

    fn lost(&self, error: &DaemonError) -> NotBuilt {
        self.loss(&with_causes(error), STARTS_MAX)
    }

    /// Verdict of a build that has ended early: trouble that the daemon reports of its machine is no fault of
    /// the build.
    fn judge(&self, stop: Stop) -> NotBuilt {
        match stop {
            Stop::Daemon(error) => self.lost(&error),
            Stop::ToldToEnd(verdict) => self.loss(&verdict.reason, TROUBLED_STARTS_MAX),
            Stop::Result(verdict) if verdict.class == FailureClass::Transient => {
                self.loss(&verdict.reason, TROUBLED_STARTS_MAX)
            }
            Stop::Result(verdict) => NotBuilt::Failed(verdict),
            Stop::Silent(max) => {
                let reason = format!("said nothing for {} s (setting max-silent)", max.as_secs());
                self.loss(&reason, STARTS_MAX)
            }
            Stop::NotBuilt(why) => why,
        }
    }

    /// A builder that takes no inputs is to blame, unless they are not to be had.
    fn not_supplied(&self, error: StoreError) -> NotBuilt {
        let reason = with_causes(&error);
        match error {
            StoreError::Daemon { .. } | StoreError::Inputs { .. } => self.loss(&reason, STARTS_MAX),
            _ => NotBuilt::Failed(Verdict::transient(format!("its inputs cannot be copied: {reason}"))),
        }
    }

    fn not_taken(&self, drv: &StorePath, error: &TakeError) -> NotBuilt {
        let reason = with_causes(error);
        if error.is_of_builder() {
            return self.loss(&reason, STARTS_MAX);
        }
        tracing::error!(%drv, builder = %self.name, reason, "cannot publish what a builder has built");
        NotBuilt::Failed(Verdict::transient(format!("it was built, but could not be published: {reason}")))
    }
}

/// Paths of a derivation that a client has sent, or of one in the Nix store of this machine.
async fn paths_of(
    store_dir: &StoreDir,
    drv: &StorePath,
    sent: Option<&SentDerivation>,
) -> Result<KnownPaths, String> {
    match sent {
        Some(sent) => Ok(KnownPaths::of_sent(sent)),
        None => known_paths(store_dir, drv).await,
    }
}
