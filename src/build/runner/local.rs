//! Runner of the local Nix daemon: a derivation is given to it, watched, and stopped where it goes over a
//! bound. The outputs are held when this returns them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use narinfo::StorePath;

use super::{Built, Loss, NotBuilt, Runner};
use crate::build::Settings;
use crate::build::log::LogWriter;
use crate::build::verdict::{Evidence, Verdict, told_to_stop};
use crate::nix::{
    BuildEvent, BuildResult, BuildStatus, BuildTarget, Connections, Daemon, DaemonError, PooledDaemon,
};
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
    /// Bounds of a build.
    pub settings: Settings,
}

/// Reason why an attempt ended early.
enum Stop {
    /// The daemon failed.
    Daemon(DaemonError),
    /// The builder was told to end, as if the daemon's service were stopped with all that is in it.
    ToldToEnd(Verdict),
    /// The build failed, or it was stopped.
    NotBuilt(NotBuilt),
}

impl From<DaemonError> for Stop {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error)
    }
}

impl From<Verdict> for Stop {
    fn from(verdict: Verdict) -> Self {
        Self::NotBuilt(verdict.into())
    }
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
        // Before the build: its outputs must not be collected in the moment after it.
        for output in known_outputs(&mut daemon, drv).await? {
            daemon.add_temp_root(&output).await?;
        }
        let (mut daemon, worked) = self.watched(daemon, drv, log, stop).await?;
        let outputs = known_outputs(&mut daemon, drv).await?;
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
        Ok(Built { outputs, worked })
    }

    /// The build itself, with its log. Gives the connection back unless it was stopped (closing it is what
    /// stops a build), and whether there was anything to do.
    async fn watched(
        &self,
        mut daemon: PooledDaemon,
        drv: &StorePath,
        log: &LogWriter,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(PooledDaemon, bool), Stop> {
        log.start();
        let heard = OutputWatch::new();
        let daemon_error = Mutex::new(String::new());
        let target = BuildTarget::All { drv: drv.clone() };
        let building = daemon.build(&target, |event| {
            heard.note();
            match event {
                BuildEvent::LogLine { line, dropped, .. } => log.line(&line, dropped),
                BuildEvent::Message { text } => {
                    tracing::debug!(%drv, message = %text.trim_end(), "the daemon says");
                    if text.contains("error:") {
                        *daemon_error.lock().unwrap_or_else(PoisonError::into_inner) = text;
                    }
                }
                _ => {}
            }
        });
        let ended = tokio::select! {
            built = building => {
                let daemon_error = daemon_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let log_end = log.last();
                judge(built, Evidence { daemon_error: &daemon_error, log_end: &log_end }, log)
            }
            verdict = self.over_a_bound(&heard) => Err(Stop::from(verdict)),
            reason = log.over_its_bound() => Err(Stop::from(Verdict::permanent(reason))),
            () = stop => Err(Stop::NotBuilt(NotBuilt::Stopped)),
        };
        match ended {
            Ok(worked) => Ok((daemon, worked)),
            Err(stop) => {
                daemon.discard();
                Err(stop)
            }
        }
    }

    /// Resolves when the build takes too long, or says nothing for too long.
    async fn over_a_bound(&self, heard: &OutputWatch) -> Verdict {
        let too_long = async {
            match self.settings.build_max {
                Some(max) => tokio::time::sleep(max).await,
                None => std::future::pending().await,
            }
        };
        let too_silent = async {
            match self.settings.silent_max {
                Some(max) => heard.silent_for(max).await,
                None => std::future::pending().await,
            }
        };
        let (what, setting, max) = tokio::select! {
            () = too_long => ("took longer than", "max-build-time", self.settings.build_max),
            () = too_silent => ("said nothing for", "max-silent-time", self.settings.silent_max),
        };
        let seconds = max.unwrap_or_default().as_secs();
        Verdict::transient(format!("timed out: it {what} {seconds} seconds (setting {setting})"))
    }
}

/// True when the daemon had anything to do; else the reason why there are no outputs.
fn judge(
    built: Result<BuildResult, DaemonError>,
    evidence: Evidence<'_>,
    log: &LogWriter,
) -> Result<bool, Stop> {
    let over = match &built {
        Ok(result) if result.status == BuildStatus::LogLimitExceeded => log.over_by_daemon(&result.message),
        // Whatever came of it in the moment in which it was to be stopped.
        Ok(result) if result.status.is_success() => None,
        _ => log.is_over(),
    };
    if let Some(reason) = over {
        return Err(Verdict::permanent(reason).into());
    }
    match built {
        Ok(result) => match Verdict::of(&result, evidence) {
            Some(verdict) if told_to_stop(&result) => Err(Stop::ToldToEnd(verdict)),
            Some(verdict) => Err(verdict.into()),
            None => Ok(result.status == BuildStatus::Built),
        },
        Err(error) if error.is_connection_lost() => Err(error.into()),
        Err(error) => Err(Verdict::of_build_error(&error, evidence).into()),
    }
}

/// Time of the latest output of a build.
struct OutputWatch {
    begun: Instant,
    millis: AtomicU64,
}

impl OutputWatch {
    fn new() -> Self {
        Self { begun: Instant::now(), millis: AtomicU64::new(0) }
    }

    fn note(&self) {
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// Resolves once there was no output for so long.
    async fn silent_for(&self, max: Duration) {
        loop {
            let silent_since = self.begun + Duration::from_millis(self.millis.load(Ordering::Relaxed));
            let silent = silent_since.elapsed();
            if silent >= max {
                return;
            }
            tokio::time::sleep(max - silent).await;
        }
    }
}

/// Outputs of a derivation whose paths are known: all of them once it is built.
pub(in crate::build) async fn known_outputs(
    daemon: &mut Daemon,
    drv: &StorePath,
) -> Result<Vec<StorePath>, DaemonError> {
    Ok(daemon.query_derivation_output_map(drv).await?.into_values().flatten().collect())
}
