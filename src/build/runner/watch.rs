//! A build through one connection to a Nix daemon, whichever machine that is on: its lines go into the log,
//! it is stopped where it goes over a bound, and its end is judged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{BuildJob, NotBuilt};
use crate::build::Settings;
use crate::build::log::LogWriter;
use crate::build::verdict::{Evidence, Verdict, told_to_stop};
use crate::nix::{BuildEvent, BuildResult, BuildStatus, DaemonError, PooledDaemon, ValidPath};

/// Reason why an attempt ended early.
pub(super) enum Stop {
    /// The daemon failed.
    Daemon(DaemonError),
    /// The builder was told to end, as if the daemon's service were stopped with all that is in it.
    ToldToEnd(Verdict),
    /// The daemon's result is no success.
    Result(Verdict),
    /// The daemon said nothing for so long, after which its machine counts as lost.
    Silent(Duration),
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

/// A build that has ended well.
pub(super) struct WatchedBuild {
    /// The connection, which holds the outputs.
    pub(super) daemon: PooledDaemon,
    /// Records of the outputs that were asked for; `None` of those that are not valid.
    pub(super) outputs: Vec<Option<ValidPath>>,
    /// True when there was anything to do.
    pub(super) worked: bool,
    /// From the start of the builder to its end.
    pub(super) took: Duration,
}

/// RunBounds of a build on a machine.
#[derive(Clone, Copy)]
pub(super) struct RunBounds<'a> {
    /// RunBounds after which the build has failed.
    pub(super) settings: &'a Settings,
    /// Silence after which the machine is lost.
    pub(super) machine_silent_max: Option<Duration>,
}

/// Has `daemon` build one derivation. The connection is closed where the build is stopped: that is what stops
/// it.
pub(super) async fn watch(
    mut daemon: PooledDaemon,
    job: BuildJob<'_>,
    log: &LogWriter,
    bounds: RunBounds<'_>,
    stop: impl Future<Output = ()> + Send,
) -> Result<WatchedBuild, Stop> {
    log.start();
    let heard = OutputWatch::new();
    let daemon_error = Mutex::new(String::new());
    let drv = job.drv;
    let building = job.run(&mut daemon, |event| {
        heard.note();
        match event {
            BuildEvent::LogLine { line, dropped, .. } => log.line(&line, dropped),
            BuildEvent::Phase { phase, .. } => log.phase(&phase),
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
            let evidence = Evidence { daemon_error: &daemon_error, log_end: &log_end };
            let (built, outputs) = match built {
                Ok((built, outputs)) => (Ok(built), outputs),
                Err(error) => (Err(error), Vec::new()),
            };
            judge(built, evidence, log).map(|worked| (worked, outputs))
        }
        verdict = over_a_bound(bounds.settings, &heard) => Err(Stop::from(verdict)),
        reason = log.over_its_bound() => Err(Stop::from(Verdict::permanent(reason))),
        max = silent(&heard, bounds.machine_silent_max) => Err(Stop::Silent(max)),
        () = stop => Err(Stop::NotBuilt(NotBuilt::Stopped)),
    };
    match ended {
        Ok((worked, outputs)) => Ok(WatchedBuild { daemon, outputs, worked, took: heard.begun.elapsed() }),
        Err(Stop::Daemon(error)) => {
            let error = daemon.explained(error).await;
            daemon.discard();
            Err(Stop::Daemon(error))
        }
        Err(stop) => {
            daemon.discard();
            Err(stop)
        }
    }
}

/// Resolves once there was no output for so long; never without a bound.
async fn silent(heard: &OutputWatch, max: Option<Duration>) -> Duration {
    let Some(max) = max else { return std::future::pending().await };
    heard.silent_for(max).await;
    max
}

/// Resolves when the build takes too long, or says nothing for too long.
async fn over_a_bound(settings: &Settings, heard: &OutputWatch) -> Verdict {
    let too_long = async {
        match settings.build_max {
            Some(max) => tokio::time::sleep(max).await,
            None => std::future::pending().await,
        }
    };
    let (what, setting, max) = tokio::select! {
        () = too_long => ("took longer than", "max-build-time", settings.build_max),
        _ = silent(heard, settings.silent_max) => ("said nothing for", "max-silent-time", settings.silent_max),
    };
    let seconds = max.unwrap_or_default().as_secs();
    Verdict::transient(format!("timed out: it {what} {seconds} seconds (setting {setting})"))
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
            Some(verdict) => Err(Stop::Result(verdict)),
            None => Ok(result.status == BuildStatus::Built),
        },
        Err(error) if error.is_connection_lost() => Err(error.into()),
        Err(error) => Err(Stop::Result(Verdict::of_build_error(&error, evidence))),
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
