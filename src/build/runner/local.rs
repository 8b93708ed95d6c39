//! Runner of the local Nix daemon: a derivation is given to it, watched, and stopped where it goes over a
//! bound. The outputs are held when this returns them.

use std::collections::BTreeSet;

use narinfo::StorePath;

use super::watch::{RunBounds, Stop, WatchedBuild, watch};
use super::{BuildJob, Built, Loss, NotBuilt, Runner, input_paths};
use crate::build::Settings;
use crate::build::log::LogWriter;
use crate::build::verdict::Verdict;
use crate::import::Importer;
use crate::nix::{Connections, Daemon, DaemonError, SentDerivation, SentDerivations};
use crate::roots::{self, Roots};
use crate::upstream::Upstreams;

/// Starts of a build at most: one may lose its daemon because that restarts, or because of what it does each
/// time.
const STARTS_MAX: u32 = 10;
/// The same for a build whose builder is told to stop: it may have told itself.
const TOLD_TO_STOP_MAX: u32 = 3;

/// A Nix daemon that builds; clones share it.
#[derive(Clone)]
pub struct LocalRunner {
    /// Connections to the daemon.
    pub connections: Connections,
    /// Upstreams that the daemon may take inputs from.
    pub upstreams: Upstreams,
    /// GC roots of outputs that others in the queue need.
    pub roots: Roots,
    /// Bringer of inputs into the Nix store.
    pub importer: Importer,
    /// True where other machines build, too: their outputs may be inputs here.
    pub has_others: bool,
    /// Derivations that clients have sent.
    pub sent: SentDerivations,
    /// RunBounds of a build.
    pub settings: Settings,
}

impl From<Stop> for NotBuilt {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Daemon(error) => {
                let verdict = Verdict::of_error(&error);
                match error.lost() {
                    Some(reason) => Self::Lost(Loss { reason, starts_max: STARTS_MAX, verdict }),
                    None => Self::Failed(verdict),
                }
            }
            Stop::ToldToEnd(verdict) => {
                let reason = "the builder was told to stop (signal 15)".to_owned();
                Self::Lost(Loss { reason, starts_max: TOLD_TO_STOP_MAX, verdict })
            }
            Stop::Result(verdict) => Self::Failed(verdict),
            Stop::Silent(max) => Verdict::transient(format!("silent for {} s", max.as_secs())).into(),
            Stop::NotBuilt(why) => why,
        }
    }
}

impl Runner for LocalRunner {
    async fn build(
        &self,
        drv: &StorePath,
        log: &LogWriter,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Built, NotBuilt> {
        Ok(self.attempt(drv, log, stop).await?)
    }
}

impl LocalRunner {
    /// Has the daemon take inputs from the upstreams that answer now.
    pub(in crate::build) async fn use_upstreams(&self) {
        self.connections.pool.use_substituters(&self.upstreams.answering().await.join(" "));
    }

    /// The temporary roots of the connection hold the outputs until ours do, or they are adopted.
    async fn attempt(
        &self,
        drv: &StorePath,
        log: &LogWriter,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Built, Stop> {
        self.use_upstreams().await;
        let mut daemon = self.connections.get().await?;
        let sent = self.sent.find(drv);
        self.bring_inputs(&mut daemon, drv, sent.as_deref()).await?;
        // Before the build: its outputs must not be collected in the moment after it.
        for output in outputs_of(&mut daemon, drv, sent.as_deref()).await? {
            daemon.add_temp_root(&output).await?;
        }
        let bounds = RunBounds { settings: &self.settings, machine_silent_max: None };
        let job = BuildJob { drv, sent: sent.as_deref(), outputs: &[] };
        let WatchedBuild { mut daemon, worked, took, .. } = watch(daemon, job, log, bounds, stop).await?;
        let outputs = outputs_of(&mut daemon, drv, sent.as_deref()).await?;
        self.roots.hold(&mut daemon, &outputs).await.map_err(|error| match error {
            roots::Error::Daemon(error) if error.is_connection_lost() => Stop::Daemon(error),
            error => {
                let logged = &error as &dyn std::error::Error;
                tracing::error!(%drv, error = logged, "cannot hold what was built; check the state directory");
                let reason = "it was built, but could not be kept; the server's log has the details";
                Stop::from(Verdict::transient(reason))
            }
        })?;
        self.connections.keep(daemon);
        Ok(Built { outputs, worked, took })
    }

    /// Adds inputs to the Nix store that other machines have built, or that a client has sent. The daemon
    /// builds or fetches those itself that cannot be added.
    async fn bring_inputs(
        &self,
        daemon: &mut Daemon,
        drv: &StorePath,
        sent: Option<&SentDerivation>,
    ) -> Result<(), DaemonError> {
        let inputs = match sent {
            Some(sent) => Ok(sent.resolved.inputs.clone()),
            None if !self.has_others => return Ok(()),
            None => input_paths(daemon.store_dir(), drv).await,
        };
        let inputs: BTreeSet<StorePath> = match inputs {
            Ok(inputs) => inputs,
            Err(reason) => {
                tracing::debug!(%drv, reason, "the inputs of a derivation cannot be told");
                return Ok(());
            }
        };
        let Err(error) = self.importer.bring_into_store(daemon, &inputs).await else { return Ok(()) };
        let error = match error.lost() {
            Ok(lost) => return Err(lost),
            Err(error) => error,
        };
        let error = &error as &dyn std::error::Error;
        tracing::warn!(
            %drv,
            error,
            "cannot add inputs to the Nix store, so its daemon builds them again; have it trust this user, or the \
             public key of this server (trusted-public-keys)"
        );
        Ok(())
    }
}

/// Outputs of a derivation that a client has sent, or of one in the store.
async fn outputs_of(
    daemon: &mut Daemon,
    drv: &StorePath,
    sent: Option<&SentDerivation>,
) -> Result<Vec<StorePath>, DaemonError> {
    match sent {
        Some(sent) => Ok(sent.outputs.clone()),
        None => known_outputs(daemon, drv).await,
    }
}

/// Outputs of a derivation whose paths are known: all of them once it is built.
pub(in crate::build) async fn known_outputs(
    daemon: &mut Daemon,
    drv: &StorePath,
) -> Result<Vec<StorePath>, DaemonError> {
    Ok(daemon.query_derivation_output_map(drv).await?.into_values().flatten().collect())
}
