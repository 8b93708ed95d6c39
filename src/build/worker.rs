//! The worker: plans each request, has the daemon build one derivation after the other in the order of the queue, and
//! delivers each request the moment its closure is complete. A request always ends, whatever the daemon does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use narinfo::StorePath;
use tokio::task::JoinSet;

use super::queue::RequestId;
use super::verdict::Verdict;
use super::{Builds, Doing, Ending, Held, Logs, Settings, plan};
use crate::adopt::Adopter;
use crate::index::{Failure, Index};
use crate::nix::{BuildEvent, BuildTarget, Daemon, DaemonError, Pool};
use crate::roots::Roots;

/// How often something is begun anew when the daemon goes away under it.
const ATTEMPTS_MAX: u32 = 3;
/// The rest between two attempts: a daemon that restarts is back within it.
const ATTEMPT_PAUSE: Duration = Duration::from_secs(2);
/// How often requests are looked at whose clients have left.
const LOOK_FOR_ABANDONED_EVERY: Duration = Duration::from_secs(5);

/// What the worker works with.
#[derive(Clone)]
pub struct Worker {
    /// The queue.
    pub builds: Builds,
    /// The connections to the daemon.
    pub pool: Pool,
    /// What makes outputs into served paths.
    pub adopter: Adopter,
    /// What holds outputs that others in the queue need.
    pub roots: Roots,
    /// Where failures are remembered.
    pub index: Index,
    /// Where logs go.
    pub logs: Logs,
    /// How long failures are remembered.
    pub settings: Settings,
}

/// What did not succeed, and what it means.
#[derive(Clone)]
struct Failed {
    cause: StorePath,
    verdict: Verdict,
}

/// The derivations that a request lacks, each with its inputs among them.
type Needs = BTreeMap<StorePath, BTreeSet<StorePath>>;

impl Worker {
    /// Works for as long as the server runs. Dropping this future ends the running build.
    pub async fn run(self) {
        for path in self.roots.held().unwrap_or_default() {
            self.roots.release(&path);
        }
        tokio::join!(self.plan_all(), self.build_all(), self.drop_abandoned());
    }

    /// Plans requests in the order of their arrival.
    async fn plan_all(&self) {
        loop {
            let next = self.builds.0.lock().unplanned.pop_front();
            let Some(id) = next else {
                self.builds.0.asked.notified().await;
                continue;
            };
            // It may have left the queue by now.
            let wanted = self.builds.0.lock().queue.wanted(id).cloned();
            if let Some(drv) = wanted {
                self.plan(id, drv).await;
            }
        }
    }

    async fn plan(&self, id: RequestId, drv: StorePath) {
        let planned = match self.lacking(&drv).await {
            Ok(needs) => match self.remembered(&needs).await {
                Some(failed) => Err(failed),
                None => Ok(needs),
            },
            Err(verdict) => Err(Failed { cause: drv.clone(), verdict }),
        };
        match planned {
            Ok(needs) => {
                tracing::info!(%drv, derivations = needs.len(), "asked for");
                let now = self.builds.0.now();
                let complete = self.builds.0.lock().queue.plan(id, needs, now);
                if complete {
                    self.deliver(id, drv).await;
                }
            }
            Err(failed) => {
                self.builds.0.lock().queue.remove(id);
                self.fail(id, &drv, failed).await;
            }
        }
        self.builds.0.work.notify_one();
    }

    async fn lacking(&self, drv: &StorePath) -> Result<Needs, Verdict> {
        let attempt = || async {
            let mut daemon = self.pool.get().await?;
            plan::plan(&mut daemon, drv).await
        };
        again(drv, attempt, |error| matches!(error, plan::Error::Daemon(e) if e.is_connection_lost()))
            .await
            .map_err(|error| match error {
                plan::Error::Daemon(error) => Verdict::of_error(&error),
                plan::Error::Impossible(verdict) => verdict,
            })
    }

    /// A failure that stands in the way of one of these: better said at once than after building the others.
    async fn remembered(&self, needs: &Needs) -> Option<Failed> {
        for drv in needs.keys() {
            if let Ok(Some(failure)) = self.index.failure(drv.clone(), SystemTime::now()).await {
                let verdict = Verdict { permanent: failure.permanent, reason: failure.reason };
                return Some(Failed { cause: failure.cause, verdict });
            }
        }
        None
    }

    /// Builds in the order of the queue; deliveries go on beside the next build.
    async fn build_all(&self) {
        let mut deliveries = JoinSet::new();
        loop {
            while deliveries.try_join_next().is_some() {}
            let next = {
                let mut state = self.builds.0.lock();
                let next = state.queue.start(self.builds.0.now(), |_| None);
                state.doing = next.clone().map(|drv| Doing { drv, since: Instant::now() });
                next
            };
            let Some(drv) = next else {
                self.builds.0.work.notified().await;
                continue;
            };
            let built = self.build_apart(&drv).await;
            for (id, wanted) in self.ended_by(&drv, &built) {
                let worker = self.clone();
                let failed = built.clone().err();
                deliveries.spawn(async move {
                    match failed {
                        None => worker.deliver(id, wanted).await,
                        Some(failed) => worker.fail(id, &wanted, failed).await,
                    }
                });
            }
        }
    }

    /// Tells the queue how a build has ended. Gives the requests that are complete, or cannot be completed, by it.
    fn ended_by(
        &self,
        drv: &StorePath,
        built: &Result<Vec<StorePath>, Failed>,
    ) -> Vec<(RequestId, StorePath)> {
        let mut state = self.builds.0.lock();
        state.doing = None;
        let needed_by: BTreeMap<RequestId, StorePath> =
            state.queue.needed_by(drv).filter_map(|id| Some((id, state.queue.wanted(id)?.clone()))).collect();
        let ended = match built {
            Ok(outputs) => {
                state
                    .held
                    .push(Held { outputs: outputs.clone(), needed_by: needed_by.keys().copied().collect() });
                state.queue.built(drv, self.builds.0.now())
            }
            Err(_) => state.queue.failed(drv, self.builds.0.now()),
        };
        ended.into_iter().filter_map(|id| Some((id, needed_by.get(&id)?.clone()))).collect()
    }

    /// In a task of its own, so that a bug in it ends this build and not the worker.
    async fn build_apart(&self, drv: &StorePath) -> Result<Vec<StorePath>, Failed> {
        let mut task = JoinSet::new();
        let (worker, wanted) = (self.clone(), drv.clone());
        task.spawn(async move { worker.build(&wanted).await });
        let built = match task.join_next().await {
            Some(Ok(built)) => built,
            _ => {
                tracing::error!(%drv, "the build was given up because of a bug in this server");
                Err(Verdict::passing("a bug in this server; its log has the details"))
            }
        };
        built.map_err(|verdict| Failed { cause: drv.clone(), verdict })
    }

    /// Builds one derivation whose inputs are all there. Gives its outputs, which are held.
    async fn build(&self, drv: &StorePath) -> Result<Vec<StorePath>, Verdict> {
        tracing::info!(%drv, "building");
        let begun = Instant::now();
        let lost = |error: &Stop| matches!(error, Stop::Daemon(error) if error.is_connection_lost());
        let built = again(drv, || self.attempt(drv), lost).await.map_err(Stop::verdict);
        match &built {
            Ok(_) => tracing::info!(%drv, seconds = begun.elapsed().as_secs(), "built"),
            Err(verdict) => {
                let reason = verdict.reason.lines().next().unwrap_or_default();
                tracing::warn!(%drv, %reason, "not built");
            }
        }
        built
    }

    /// One connection for one build: its temporary roots hold the outputs until ours do, or they are adopted.
    async fn attempt(&self, drv: &StorePath) -> Result<Vec<StorePath>, Stop> {
        let mut daemon = self.pool.get().await?;
        // Before the build: its outputs must not be collected in the moment after it.
        for output in known_outputs(&mut daemon, drv).await? {
            daemon.add_temp_root(&output).await?;
        }
        let mut log = self.logs.create(drv);
        let target = BuildTarget::All { drv: drv.clone() };
        let built = daemon
            .build(&target, |event| match event {
                BuildEvent::LogLine { line, .. } => log.line(&line),
                BuildEvent::Message { text } => {
                    tracing::debug!(%drv, message = %text.trim_end(), "the daemon says");
                }
                _ => {}
            })
            .await;
        let result = match built {
            Ok(result) => result,
            Err(error) => {
                log.finish(Some(&Verdict::of_error(&error).reason));
                return Err(error.into());
            }
        };
        if let Some(verdict) = Verdict::of(&result) {
            log.finish(Some(&verdict.reason));
            return Err(Stop::Failed(verdict));
        }
        log.finish(None);
        let outputs = known_outputs(&mut daemon, drv).await?;
        self.roots.hold(&mut daemon, &outputs).await.map_err(|error| {
            tracing::error!(%drv, error = &error as &dyn std::error::Error, "built, but not held");
            Stop::Failed(Verdict::passing(
                "it was built, but could not be kept; the server's log has the details",
            ))
        })?;
        // A failure that was remembered is no longer true; that it stays a little longer harms nobody.
        let _ = self.index.forget_failure(drv.clone()).await;
        Ok(outputs)
    }

    /// Makes the outputs of a complete request served, and tells those who wait.
    async fn deliver(&self, id: RequestId, drv: StorePath) {
        match self.publish(&drv).await {
            Ok(()) => {
                tracing::info!(%drv, "delivered");
                let _ = self.index.forget_failure(drv).await;
                self.end(id, Ok(()));
            }
            Err(verdict) => {
                self.fail(id, &drv, Failed { cause: drv.clone(), verdict }).await;
            }
        }
    }

    async fn publish(&self, drv: &StorePath) -> Result<(), Verdict> {
        let outputs = async { known_outputs(&mut *self.pool.get().await?, drv).await }.await;
        let outputs = outputs.map_err(|error| Verdict::of_error(&error))?;
        self.adopter.adopt(&outputs).await.map_err(|error| {
            tracing::error!(%drv, error = &error as &dyn std::error::Error, "built, but not published");
            Verdict::passing(format!("it was built, but could not be published: {error}"))
        })
    }

    async fn fail(&self, id: RequestId, drv: &StorePath, failed: Failed) {
        let failure = self.remember(drv, failed).await;
        self.end(id, Err(Arc::new(failure)));
    }

    fn end(&self, id: RequestId, ending: Ending) {
        let waiters = {
            let mut state = self.builds.0.lock();
            for held in &mut state.held {
                held.needed_by.remove(&id);
            }
            for done in state.held.extract_if(.., |held| held.needed_by.is_empty()) {
                done.outputs.iter().for_each(|output| self.roots.release(output));
            }
            state.endings.remove(&id)
        };
        if let Some(waiters) = waiters {
            waiters.send_replace(Some(ending));
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

    /// Requests that nobody waits for leave the queue, unless something was built for them already.
    async fn drop_abandoned(&self) {
        let mut ticks = tokio::time::interval(LOOK_FOR_ABANDONED_EVERY);
        loop {
            ticks.tick().await;
            let now = self.builds.0.now();
            let mut state = self.builds.0.lock();
            // Nothing was built for them, so nothing is held.
            for id in state.queue.drop_abandoned(now) {
                state.endings.remove(&id);
            }
            drop(state);
            self.builds.0.work.notify_one();
        }
    }
}

/// Why an attempt ended early.
enum Stop {
    /// The daemon failed.
    Daemon(DaemonError),
    /// The build did.
    Failed(Verdict),
}

impl From<DaemonError> for Stop {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error)
    }
}

impl Stop {
    fn verdict(self) -> Verdict {
        match self {
            Self::Daemon(error) => Verdict::of_error(&error),
            Self::Failed(verdict) => verdict,
        }
    }
}

/// The outputs of a derivation whose paths are known: all of them once it is built.
async fn known_outputs(daemon: &mut Daemon, drv: &StorePath) -> Result<Vec<StorePath>, DaemonError> {
    Ok(daemon.query_derivation_output_map(drv).await?.into_values().flatten().collect())
}

/// Runs `attempt` until it succeeds, fails for good, or has lost the daemon [`ATTEMPTS_MAX`] times.
async fn again<T, E, F: Future<Output = Result<T, E>>>(
    drv: &StorePath,
    attempt: impl Fn() -> F,
    lost: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let mut attempts = 1;
    loop {
        match attempt().await {
            Err(error) if lost(&error) && attempts < ATTEMPTS_MAX => {
                tracing::warn!(%drv, attempts, "the Nix daemon went away; trying again");
                attempts += 1;
                tokio::time::sleep(ATTEMPT_PAUSE).await;
            }
            other => return other,
        }
    }
}
