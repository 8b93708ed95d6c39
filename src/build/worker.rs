//! The worker: takes the oldest request, has the daemon build what it lacks, has the outputs adopted, and tells those who wait.
//! One request at a time; a request always ends, whatever the daemon does.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use narinfo::StorePath;

use super::verdict::Verdict;
use super::{Builds, Doing, Ending, Logs, Settings, plan};
use crate::adopt::Adopter;
use crate::index::{Failure, Index};
use crate::nix::{BuildEvent, BuildTarget, Daemon, DaemonError, Pool};

/// How often a request is begun anew when the daemon goes away under it.
const ATTEMPTS_MAX: u32 = 3;
/// The rest between two attempts: a daemon that restarts is back within it.
const ATTEMPT_PAUSE: Duration = Duration::from_secs(2);

/// What the worker works with.
#[derive(Clone)]
pub struct Worker {
    /// The queue.
    pub builds: Builds,
    /// The connections to the daemon.
    pub pool: Pool,
    /// What makes outputs into served paths.
    pub adopter: Adopter,
    /// Where failures are remembered.
    pub index: Index,
    /// Where logs go.
    pub logs: Logs,
    /// How long failures are remembered.
    pub settings: Settings,
}

/// Why a request did not succeed: at which derivation, and what it means.
struct Failed {
    cause: StorePath,
    verdict: Verdict,
}

/// Why an attempt ended early.
enum Stop {
    /// The daemon went away: worth another attempt.
    Lost(DaemonError),
    /// Another attempt would end the same way.
    Failed(Failed),
}

impl Worker {
    /// Works for as long as the server runs. Dropping this future ends the running build.
    pub async fn run(self) {
        loop {
            let now = self.builds.0.now();
            let next = {
                let mut state = self.builds.0.lock();
                let (next, dropped) = state.queue.start_next(now);
                for id in dropped {
                    state.endings.remove(&id);
                }
                next
            };
            let Some((id, drv)) = next else {
                self.builds.0.work.notified().await;
                continue;
            };
            let ending = self.request_apart(&drv).await;
            let mut state = self.builds.0.lock();
            state.doing = None;
            state.queue.finish(id);
            if let Some(waiters) = state.endings.remove(&id) {
                waiters.send_replace(Some(ending));
            }
        }
    }

    /// In a task of its own, so that a bug in it ends this request and not the worker.
    async fn request_apart(&self, drv: &StorePath) -> Ending {
        let mut task = tokio::task::JoinSet::new();
        let (worker, wanted) = (self.clone(), drv.clone());
        task.spawn(async move { worker.request(&wanted).await });
        match task.join_next().await {
            Some(Ok(ending)) => ending,
            _ => {
                tracing::error!(%drv, "the build was given up because of a bug in this server");
                let verdict = Verdict::passing("a bug in this server; its log has the details");
                Err(Arc::new(self.remember(drv, Failed { cause: drv.clone(), verdict }).await))
            }
        }
    }

    async fn request(&self, drv: &StorePath) -> Ending {
        tracing::info!(%drv, "building");
        let begun = Instant::now();
        match self.attempts(drv).await {
            Ok(()) => {
                tracing::info!(%drv, seconds = begun.elapsed().as_secs(), "built");
                // A failure that was remembered is no longer true; that it stays a little longer harms nobody.
                let _ = self.index.forget_failure(drv.clone()).await;
                Ok(())
            }
            Err(failed) => {
                tracing::warn!(%drv, cause = %failed.cause, permanent = failed.verdict.permanent, reason = %first_line(&failed.verdict.reason), "not built");
                Err(Arc::new(self.remember(drv, failed).await))
            }
        }
    }

    async fn attempts(&self, drv: &StorePath) -> Result<(), Failed> {
        let mut attempt = 1;
        loop {
            match self.attempt(drv).await {
                Ok(()) => return Ok(()),
                Err(Stop::Failed(failed)) => return Err(failed),
                Err(Stop::Lost(error)) if attempt == ATTEMPTS_MAX => {
                    return Err(Failed { cause: drv.clone(), verdict: Verdict::of_error(&error) });
                }
                Err(Stop::Lost(error)) => {
                    tracing::warn!(%drv, attempt, error = &error as &dyn std::error::Error, "the Nix daemon went away; trying again");
                    attempt += 1;
                    tokio::time::sleep(ATTEMPT_PAUSE).await;
                }
            }
        }
    }

    /// Builds `drv` with all that it lacks. One connection holds everything with temporary roots until the outputs are adopted.
    async fn attempt(&self, drv: &StorePath) -> Result<(), Stop> {
        let at = |error| Stop::of_daemon(drv, error);
        let mut daemon = self.pool.get().await.map_err(at)?;
        daemon.add_temp_root(drv).await.map_err(at)?;
        let steps = match plan::plan(&mut daemon, drv).await {
            Ok(steps) => steps,
            Err(plan::Error::Daemon(error)) => return Err(at(error)),
            Err(plan::Error::Impossible(verdict)) => return Err(Stop::failed(drv, verdict)),
        };
        for (n, step) in steps.iter().enumerate() {
            self.builds.0.lock().doing =
                Some(Doing { drv: step.clone(), step: n + 1, steps: steps.len(), since: Instant::now() });
            self.step(&mut daemon, step).await?;
        }
        let outputs = daemon.query_derivation_output_map(drv).await.map_err(at)?;
        let outputs: Vec<StorePath> = outputs.into_values().flatten().collect();
        let adopted = self.adopter.adopt(&outputs).await;
        daemon.discard();
        adopted.map_err(|error| {
            tracing::error!(%drv, error = &error as &dyn std::error::Error, "built, but not published");
            Stop::failed(drv, Verdict::passing(format!("it was built, but could not be published: {error}")))
        })
    }

    /// Builds one derivation whose inputs are all there.
    async fn step(&self, daemon: &mut Daemon, drv: &StorePath) -> Result<(), Stop> {
        let at = |error| Stop::of_daemon(drv, error);
        if let Ok(Some(failure)) = self.index.failure(drv.clone(), SystemTime::now()).await {
            let verdict = Verdict { permanent: failure.permanent, reason: failure.reason };
            return Err(Stop::failed(&failure.cause, verdict));
        }
        // Before the build: its outputs must not be collected in the moment after it.
        for output in daemon.query_derivation_output_map(drv).await.map_err(at)?.into_values().flatten() {
            daemon.add_temp_root(&output).await.map_err(at)?;
        }
        let mut log = self.logs.create(drv);
        let target = BuildTarget::All { drv: drv.clone() };
        let built = daemon
            .build(&target, |event| match event {
                BuildEvent::LogLine { line, .. } => log.line(&line),
                BuildEvent::Message { text } => {
                    tracing::debug!(%drv, message = %text.trim_end(), "the daemon says")
                }
                _ => {}
            })
            .await;
        match built {
            Ok(result) => match Verdict::of(&result) {
                None => {
                    log.finish(None);
                    for output in result.outputs.values() {
                        daemon.add_temp_root(output).await.map_err(at)?;
                    }
                    Ok(())
                }
                Some(verdict) => {
                    log.finish(Some(&verdict.reason));
                    Err(Stop::failed(drv, verdict))
                }
            },
            Err(error) => {
                log.finish(Some(&Verdict::of_error(&error).reason));
                Err(at(error))
            }
        }
    }

    /// Remembers the failure, for the derivation that failed as for the one that needed it.
    async fn remember(&self, drv: &StorePath, failed: Failed) -> Failure {
        let Failed { cause, verdict } = failed;
        let memory =
            if verdict.permanent { self.settings.remember_permanent } else { self.settings.remember_passing };
        let now = SystemTime::now();
        let failure = Failure {
            drv: drv.clone(),
            permanent: verdict.permanent,
            cause: cause.clone(),
            reason: verdict.reason,
            failed_at: now,
            expires_at: now + memory,
        };
        let mut remembered = self.index.remember_failure(failure.clone()).await;
        if remembered.is_ok() && cause != *drv {
            remembered = self.index.remember_failure(Failure { drv: cause, ..failure.clone() }).await;
        }
        if let Err(error) = remembered {
            tracing::error!(%drv, error = &error as &dyn std::error::Error, "the failure is not remembered");
        }
        failure
    }
}

impl Stop {
    fn failed(cause: &StorePath, verdict: Verdict) -> Self {
        Self::Failed(Failed { cause: cause.clone(), verdict })
    }

    fn of_daemon(drv: &StorePath, error: DaemonError) -> Self {
        if error.is_connection_lost() {
            Self::Lost(error)
        } else {
            Self::failed(drv, Verdict::of_error(&error))
        }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
