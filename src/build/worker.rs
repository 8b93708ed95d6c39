//! The worker: plans each request, has the daemon build one derivation after the other in the order of the queue, and
//! delivers each request the moment its closure is complete. A request always ends, whatever the daemon does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use narinfo::StorePath;
use tokio::task::JoinSet;

use super::builder::{Builder, Built, NotBuilt, known_outputs};
use super::metrics::Ended;
use super::plan::{self, Needs, Planned};
use super::queue::RequestId;
use super::retry::again;
use super::verdict::Verdict;
use super::{Builds, Ending, Held, RequestState, Settings, State};
use crate::adopt::Adopter;
use crate::index::{Failure, FailureClass, Index};
use crate::nix::Capabilities;

/// How often requests are looked at whose clients have left.
const LOOK_FOR_ABANDONED_EVERY: Duration = Duration::from_secs(1);

/// How long connections are kept when there is nothing to build.
const REST_AFTER: Duration = Duration::from_millis(200);

/// What the worker works with.
#[derive(Clone)]
pub struct Worker {
    /// The queue.
    pub builds: Builds,
    /// What has the daemon build.
    pub builder: Builder,
    /// What has a daemon of less weight build beside that; only with [`Policy::Background`](super::Policy::Background).
    pub background: Option<Builder>,
    /// What makes outputs into served paths.
    pub adopter: Adopter,
    /// Where failures are remembered.
    pub index: Index,
    /// What the daemon can build.
    pub capabilities: Arc<Capabilities>,
    /// How many builds run, and how long failures are remembered.
    pub settings: Settings,
}

/// Where something is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// In the order of the queue.
    Main,
    /// Beside that, with less weight.
    Background,
}

/// What did not succeed, and what it means.
#[derive(Clone)]
struct Failed {
    cause: StorePath,
    verdict: Verdict,
}

impl Worker {
    /// Works for as long as the server runs. Dropping this future ends the running build.
    pub async fn run(self) {
        self.builds.keep_held(&self.builder.roots);
        let recording = self.builds.record_all(&self.index);
        tokio::join!(self.plan_all(), self.build_all(), self.drop_abandoned(), recording);
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
            Ok(planned) => match self.remembered(&planned.needs).await {
                Some(failed) => Err(failed),
                None => Ok(planned),
            },
            Err(verdict) => Err(Failed { cause: drv.clone(), verdict }),
        };
        match planned {
            Ok(planned) => {
                tracing::info!(%drv, derivations = planned.needs.len(), "asked for");
                if self.enqueue(id, planned) {
                    self.deliver(id, drv).await;
                }
            }
            Err(failed) => {
                let reason = failed.verdict.reason.lines().next().unwrap_or_default();
                tracing::info!(%drv, %reason, "not begun");
                self.builds.0.lock().queue.remove(id);
                self.fail(id, &drv, failed).await;
            }
        }
        self.builds.0.work.notify_one();
    }

    /// True when the request is complete already.
    fn enqueue(&self, id: RequestId, planned: Planned) -> bool {
        let Planned { needs, systems } = planned;
        let now = self.builds.0.now();
        let mut state = self.builds.0.lock();
        for (drv, system) in systems {
            state.foresight.expect(drv, &system, self.settings.cores);
        }
        let complete = state.queue.plan(id, needs, now);
        state.tell(id, self.settings.lanes);
        complete
    }

    async fn lacking(&self, drv: &StorePath) -> Result<Planned, Verdict> {
        let attempt = || async {
            self.builder.heed_upstreams().await;
            let mut daemon = self.builder.connections.pool.get().await?;
            plan::plan(&mut daemon, drv, self.settings.derivations_max, &self.capabilities).await
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
            if let Ok(Some(failure)) = self.index.failure(drv.clone(), SystemTime::now()).await
                // What was refused for its whole closure may be built as a part of this one.
                && failure.class != FailureClass::Refused
            {
                let verdict = Verdict { class: failure.class, reason: failure.reason };
                return Some(Failed { cause: failure.cause, verdict });
            }
        }
        None
    }

    /// Keeps the lanes full in the order of the queue; deliveries go on beside the builds.
    async fn build_all(&self) {
        let (mut lanes, mut background, mut deliveries) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        loop {
            while deliveries.try_join_next().is_some() {}
            while lanes.len() < self.settings.lanes.get()
                && let Some(drv) = self.start_next(Lane::Main)
            {
                lanes.spawn(build_apart(self.builder.clone(), drv));
            }
            if let Some(builder) = &self.background
                && background.is_empty()
                && let Some(drv) = self.start_next(Lane::Background)
            {
                background.spawn(build_apart(builder.clone(), drv));
            }
            let (lane, ended) = tokio::select! {
                Some(ended) = lanes.join_next() => (Lane::Main, ended),
                Some(ended) = background.join_next() => (Lane::Background, ended),
                () = self.builds.0.work.notified() => continue,
                () = tokio::time::sleep(REST_AFTER), if lanes.is_empty() && background.is_empty() => {
                    self.rest();
                    self.builds.0.work.notified().await;
                    continue;
                }
            };
            // A lane does not panic: what it builds is built apart.
            let Ok((drv, built)) = ended else { continue };
            if built.is_ok() {
                let (worker, drv) = (self.clone(), drv.clone());
                deliveries.spawn(async move { worker.forget_failure(drv).await });
            }
            for (id, wanted, failed) in self.ended_by(&drv, built, lane) {
                let worker = self.clone();
                deliveries.spawn(async move {
                    match failed {
                        None => worker.deliver(id, wanted).await,
                        Some(failed) => worker.fail(id, &wanted, failed).await,
                    }
                });
            }
        }
    }

    /// Nothing is to be built for now.
    fn rest(&self) {
        self.builder.connections.close();
        if let Some(background) = &self.background {
            background.connections.close();
        }
    }

    fn start_next(&self, lane: Lane) -> Option<StorePath> {
        let mut state = self.builds.0.lock();
        let State { queue, foresight, .. } = &mut *state;
        let guess = |drvs: &BTreeSet<StorePath>| foresight.guess(drvs);
        let next = match lane {
            Lane::Main => queue.start(self.builds.0.now(), guess)?,
            Lane::Background => queue.start_in_background(self.builds.0.now(), guess)?,
        };
        state.running.insert(next.clone(), Instant::now());
        let owner = state.queue.needed_by(&next).next();
        if let Some(waiting) = owner.and_then(|owner| state.waiting.get_mut(&owner))
            && !std::mem::replace(&mut waiting.begun, true)
        {
            self.builds.0.metrics.first_build_after(waiting.asked_at.elapsed().unwrap_or_default());
        }
        drop(state);
        self.builds.0.changed.notify_one();
        Some(next)
    }

    /// Tells the queue how a build has ended. Gives the requests that have ended by it, with what they wanted and, where
    /// that cannot be had, why.
    fn ended_by(
        &self,
        drv: &StorePath,
        built: Result<Built, NotBuilt>,
        lane: Lane,
    ) -> Vec<(RequestId, StorePath, Option<Failed>)> {
        let now = self.builds.0.now();
        let mut state = self.builds.0.lock();
        let since = state.running.remove(drv);
        let how = match &built {
            Ok(_) => Ended::Well,
            Err(NotBuilt::Failed(_)) => Ended::Failed,
            Err(NotBuilt::Stopped) => Ended::Early,
        };
        let took = since.map(|since| since.elapsed()).unwrap_or_default();
        self.builds.0.metrics.build_ended(how, took);
        // What the daemon had, or fetched, tells nothing about building it; nor does a slow lane.
        if lane == Lane::Main && built.as_ref().map_or(true, |built| built.worked) {
            let learned = state.foresight.learn(drv, took, built.is_ok());
            state.learned.extend(learned);
        }
        let needed_by: BTreeMap<RequestId, StorePath> =
            state.queue.needed_by(drv).filter_map(|id| Some((id, state.queue.wanted(id)?.clone()))).collect();
        let (ended, failed) = match built {
            Ok(Built { outputs, .. }) => {
                state.held.push(Held { outputs, needed_by: needed_by.keys().copied().collect() });
                (state.queue.built(drv, now), None)
            }
            Err(NotBuilt::Failed(verdict)) => {
                let ended = state.queue.failed(drv, now);
                state.forget_kinds();
                (ended, Some(Failed { cause: drv.clone(), verdict }))
            }
            Err(NotBuilt::Stopped) => {
                state.queue.stopped(drv, now);
                (Vec::new(), None)
            }
        };
        drop(state);
        self.builds.0.changed.notify_one();
        let wanted = |id: RequestId| Some((id, needed_by.get(&id)?.clone(), failed.clone()));
        ended.into_iter().filter_map(wanted).collect()
    }

    /// Makes the outputs of a complete request served, and tells those who wait.
    async fn deliver(&self, id: RequestId, drv: StorePath) {
        match self.publish(&drv).await {
            Ok(()) => {
                tracing::info!(%drv, "delivered");
                self.forget_failure(drv).await;
                self.end(id, Ok(()));
            }
            Err(verdict) => {
                self.fail(id, &drv, Failed { cause: drv.clone(), verdict }).await;
            }
        }
    }

    /// A failure that was remembered is no longer true; that it stays a little longer harms nobody.
    async fn forget_failure(&self, drv: StorePath) {
        if let Ok(Some(_)) = self.index.failure(drv.clone(), SystemTime::now()).await {
            let _ = self.index.forget_failure(drv).await;
        }
    }

    async fn publish(&self, drv: &StorePath) -> Result<(), Verdict> {
        let outputs =
            async { known_outputs(&mut *self.builder.connections.pool.get().await?, drv).await }.await;
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
        let waiting = {
            let mut state = self.builds.0.lock();
            for held in &mut state.held {
                held.needed_by.remove(&id);
            }
            for done in state.held.extract_if(.., |held| held.needed_by.is_empty()) {
                done.outputs.iter().for_each(|output| self.builder.roots.release(output));
            }
            let past = match &ending {
                Ok(()) => RequestState::Served,
                Err(failure) => failure.as_ref().into(),
            };
            state.forget(id, past, &self.builds.0.metrics)
        };
        self.builds.0.changed.notify_one();
        if let Some(waiting) = waiting {
            waiting.ending.send_replace(Some(ending));
        }
    }

    /// Remembers the failure, for the derivation that failed as for the one that needed it.
    async fn remember(&self, drv: &StorePath, failed: Failed) -> Failure {
        let Failed { cause, verdict } = failed;
        let memory = match verdict.class {
            FailureClass::Permanent => self.settings.remember_permanent,
            FailureClass::Passing | FailureClass::Refused => self.settings.remember_passing,
        };
        let now = SystemTime::now();
        let failure = Failure {
            drv: drv.clone(),
            class: verdict.class,
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
            let dropped = state.queue.drop_abandoned(now, self.settings.abandon_after);
            if dropped.is_empty() {
                continue;
            }
            for id in dropped {
                state.forget(id, RequestState::Dropped, &self.builds.0.metrics);
            }
            state.forget_kinds();
            drop(state);
            self.builds.0.changed.notify_one();
            self.builds.0.work.notify_one();
        }
    }
}

/// Builds in a task of its own, so that a bug in it ends this build and not the worker.
async fn build_apart(builder: Builder, drv: StorePath) -> (StorePath, Result<Built, NotBuilt>) {
    let mut task = JoinSet::new();
    let wanted = drv.clone();
    task.spawn(async move { builder.build(&wanted).await });
    let built = match task.join_next().await {
        Some(Ok(built)) => built,
        _ => {
            tracing::error!(%drv, "the build was given up because of a bug in this server");
            Err(NotBuilt::Failed(Verdict::passing("a bug in this server; its log has the details")))
        }
    };
    (drv, built)
}
