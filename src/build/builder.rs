//! One build: a derivation whose inputs are all there is given to the daemon, watched, and stopped where it goes over a
//! bound. Its outputs are held when this returns them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use narinfo::StorePath;

use super::log::LogWriter;
use super::verdict::{Evidence, Verdict, logged, told_to_stop};
use super::{Builds, Logs, Settings};
use crate::nix::{
    BuildEvent, BuildResult, BuildStatus, BuildTarget, Connections, Daemon, DaemonError, PooledDaemon,
};
use crate::roots::{self, Roots};
use crate::upstream::Upstreams;

/// How often a build is begun at most: one may lose its daemon because that restarts, or because of what it does.
const ATTEMPTS_MAX: u32 = 10;
/// The same for a build whose builder is told to end: it may have told itself.
const TOLD_TO_STOP_MAX: u32 = 3;

/// What has the daemon build; clones share it.
#[derive(Clone)]
pub struct Builder {
    /// The connections to the daemon.
    pub connections: Connections,
    /// Where builds may take inputs from.
    pub upstreams: Upstreams,
    /// What holds outputs that others in the queue need.
    pub roots: Roots,
    /// Where logs go.
    pub logs: Logs,
    /// The queue, which knows when a build has to stop.
    pub builds: Builds,
    /// How builds are bounded.
    pub settings: Settings,
}

/// A derivation whose outputs are there.
#[derive(Clone, Debug)]
pub(super) struct Built {
    /// All of them; they are held.
    pub(super) outputs: Vec<StorePath>,
    /// Whether the daemon had to build it for that.
    pub(super) worked: bool,
}

/// Why there are no outputs.
#[derive(Clone, Debug)]
pub(super) enum NotBuilt {
    /// It could not be built.
    Failed(Verdict),
    /// It was stopped: an older request must not be delivered later than promised, or it was nobody's and may not go on.
    Stopped,
}

/// Why an attempt ended early.
enum Stop {
    /// The daemon failed.
    Daemon(DaemonError),
    /// The builder was told to end, as if the daemon's service were stopped with all that is in it.
    ToldToEnd(Verdict),
    /// The build did, or it was stopped.
    NotBuilt(NotBuilt),
}

impl From<DaemonError> for Stop {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error)
    }
}

impl From<Verdict> for Stop {
    fn from(verdict: Verdict) -> Self {
        Self::NotBuilt(NotBuilt::Failed(verdict))
    }
}

impl Builder {
    /// Builds one derivation whose inputs are all there.
    pub(super) async fn build(&self, drv: &StorePath) -> Result<Built, NotBuilt> {
        tracing::info!(%drv, "building");
        let begun = Instant::now();
        let log = self.logs.begin(drv);
        let lost = |stop: &Stop| match stop {
            // A build that brings the daemon down does so each time.
            Stop::Daemon(error) if log.attempts() < ATTEMPTS_MAX => error.lost(),
            Stop::ToldToEnd(_) if log.attempts() < TOLD_TO_STOP_MAX => {
                Some("the builder was told to stop (signal 15)".to_owned())
            }
            _ => None,
        };
        let built = self.builds.patiently(drv, || self.attempt(drv, &log), lost).await;
        log.finish(built.as_ref().err().map(Stop::last_line).as_deref());
        let built = built.map_err(|stop| match stop {
            Stop::Daemon(error) => NotBuilt::Failed(Verdict::of_error(&error)),
            Stop::ToldToEnd(verdict) => NotBuilt::Failed(verdict),
            Stop::NotBuilt(why) => why,
        });
        let seconds = begun.elapsed().as_secs();
        match &built {
            Ok(_) => tracing::info!(%drv, seconds, "built"),
            Err(NotBuilt::Stopped) => tracing::info!(%drv, seconds, "stopped: others go first"),
            Err(NotBuilt::Failed(verdict)) => {
                let reason = logged(&verdict.reason);
                tracing::warn!(%drv, seconds, %reason, "not built");
            }
        }
        built
    }

    /// Builds take their inputs from the caches that answer now.
    pub(super) async fn heed_upstreams(&self) {
        self.connections.pool.use_substituters(&self.upstreams.answering().await.join(" "));
    }

    /// The temporary roots of the connection hold the outputs until ours do, or they are adopted.
    async fn attempt(&self, drv: &StorePath, log: &LogWriter) -> Result<Built, Stop> {
        self.heed_upstreams().await;
        let mut daemon = self.connections.get().await?;
        self.builds.note_daemon();
        // Before the build: its outputs must not be collected in the moment after it.
        for output in known_outputs(&mut daemon, drv).await? {
            daemon.add_temp_root(&output).await?;
        }
        let (mut daemon, worked) = self.watched(daemon, drv, log).await?;
        let outputs = known_outputs(&mut daemon, drv).await?;
        self.roots.hold(&mut daemon, &outputs).await.map_err(|error| match error {
            roots::Error::Daemon(error) if error.is_connection_lost() => Stop::Daemon(error),
            error => {
                tracing::error!(%drv, error = &error as &dyn std::error::Error, "built, but not held");
                let reason = "it was built, but could not be kept; the server's log has the details";
                Stop::from(Verdict::passing(reason))
            }
        })?;
        self.connections.keep(daemon);
        Ok(Built { outputs, worked })
    }

    /// The build itself, with its log. Gives the connection back unless it was stopped (closing it is what stops a build),
    /// and whether there was anything to do.
    async fn watched(
        &self,
        mut daemon: PooledDaemon,
        drv: &StorePath,
        log: &LogWriter,
    ) -> Result<(PooledDaemon, bool), Stop> {
        log.attempt();
        let heard = Heard::now();
        let daemon_error = Mutex::new(String::new());
        let target = BuildTarget::All { drv: drv.clone() };
        let building = daemon.build(&target, |event| {
            heard.something();
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
            () = self.builds.overdue(drv) => Err(Stop::NotBuilt(NotBuilt::Stopped)),
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
    async fn over_a_bound(&self, heard: &Heard) -> Verdict {
        let too_long = async {
            match self.settings.build_max {
                Some(max) => tokio::time::sleep(max).await,
                None => std::future::pending().await,
            }
        };
        let too_silent = async {
            match self.settings.silent_max {
                Some(max) => heard.nothing_for(max).await,
                None => std::future::pending().await,
            }
        };
        let (what, setting, max) = tokio::select! {
            () = too_long => ("took longer than", "max-build-time", self.settings.build_max),
            () = too_silent => ("said nothing for", "max-silent-time", self.settings.silent_max),
        };
        let seconds = max.unwrap_or_default().as_secs();
        Verdict::passing(format!("timed out: it {what} {seconds} seconds (setting {setting})"))
    }
}

impl Stop {
    /// What the end of the log says.
    fn last_line(&self) -> String {
        match self {
            Self::Daemon(error) => Verdict::of_error(error).reason,
            Self::ToldToEnd(verdict) | Self::NotBuilt(NotBuilt::Failed(verdict)) => verdict.reason.clone(),
            Self::NotBuilt(NotBuilt::Stopped) => "stopped: others go first; it is built later".to_owned(),
        }
    }
}

/// Whether the daemon had anything to do, or why there are no outputs.
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

/// When a build last said something.
struct Heard {
    begun: Instant,
    millis: AtomicU64,
}

impl Heard {
    fn now() -> Self {
        Self { begun: Instant::now(), millis: AtomicU64::new(0) }
    }

    fn something(&self) {
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// Resolves once nothing was heard for so long.
    async fn nothing_for(&self, max: Duration) {
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

/// The outputs of a derivation whose paths are known: all of them once it is built.
pub(super) async fn known_outputs(
    daemon: &mut Daemon,
    drv: &StorePath,
) -> Result<Vec<StorePath>, DaemonError> {
    Ok(daemon.query_derivation_output_map(drv).await?.into_values().flatten().collect())
}
