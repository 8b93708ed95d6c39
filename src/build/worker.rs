//! The worker: plans each request, has the daemon build one derivation after the other in the order of the queue, and
//! what nobody has asked for yet while nobody waits. A request always ends, whatever the daemon does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use narinfo::StorePath;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::builder::{Builder, Built, NotBuilt};
use super::failures::Failures;
use super::metrics::{Ended, Prebuilt};
use super::outcome::After;
use super::plan::{self, Needs, Planned};
use super::queue::RequestId;
use super::verdict::{Verdict, logged};
use super::{Builds, Held, RequestState, Settings, State};
use crate::adopt::Adopter;
use crate::index::{Failure, FailureClass, Index};
use crate::nix::Detected;
use crate::roots::Roots;

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
    /// What holds the derivations of requests.
    pub requested: Roots,
    /// Where the queue is recorded.
    pub index: Index,
    /// Failures that are remembered.
    pub failures: Failures,
    /// How many generations of package sets there were: each brings something new to pre-build.
    pub bumps: watch::Receiver<u64>,
    /// What the daemon can build; nothing is planned before that is known.
    pub capabilities: Detected,
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

impl Worker {
    /// Works for as long as the server runs. Dropping this future ends the running build.
    pub async fn run(self) {
        self.builds.keep_held(&self.builder.roots);
        let recording = self.builds.record_all(&self.index);
        tokio::join!(
            self.hold_all(),
            self.plan_all(),
            self.build_all(),
            self.drop_abandoned(),
            self.foresee(),
            recording
        );
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
                Some(failure) => Err(failure),
                None => Ok(planned),
            },
            Err(plan::Error::Collected) => return self.leave_out(id, &drv),
            Err(plan::Error::Impossible(verdict)) => Err(self.failures.note(&drv, verdict)),
            Err(plan::Error::Daemon(error)) => Err(self.failures.note(&drv, Verdict::of_error(&error))),
        };
        match planned {
            Ok(planned) => {
                tracing::info!(%drv, derivations = planned.needs.len(), "asked for");
                if self.enqueue(id, planned) {
                    self.deliver(id, drv).await;
                }
            }
            Err(failure) => {
                let reason = logged(&failure.reason);
                tracing::info!(%drv, %reason, "not begun");
                self.builds.0.lock().queue.remove(id);
                self.fail(id, &drv, failure).await;
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
        if let Some(before) = state.take_over_prebuild() {
            self.builds.0.metrics.prebuild_ended(Prebuilt::TakenOver, before);
            self.builds.0.noted.notify_one();
        }
        state.tell(id, self.settings.lanes);
        drop(state);
        self.builds.0.planned.send_modify(|planned| *planned += 1);
        complete
    }

    async fn lacking(&self, drv: &StorePath) -> Result<Planned, plan::Error> {
        let capabilities = self.capabilities.known().await;
        let attempt = || async {
            self.builder.heed_upstreams().await;
            let mut daemon = self.builder.connections.pool.get().await?;
            self.builds.note_daemon();
            plan::plan(&mut daemon, drv, self.settings.derivations_max, &capabilities).await
        };
        let lost = |error: &plan::Error| match error {
            plan::Error::Daemon(error) => error.lost(),
            plan::Error::Impossible(_) | plan::Error::Collected => None,
        };
        self.builds.patiently(drv, attempt, lost).await
    }

    /// A failure that stands in the way of one of these: better said at once than after building the others.
    pub(super) async fn remembered(&self, needs: &Needs) -> Option<Failure> {
        for drv in needs.keys() {
            if let Ok(Some(failure)) = self.failures.of(drv).await
                // What was refused for its whole closure may be built as a part of this one.
                && failure.class != FailureClass::Refused
            {
                return Some(failure);
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
            if let Some(drv) = self.start_prebuild() {
                lanes.spawn(build_apart(self.builder.clone(), drv));
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
                deliveries.spawn(async move { worker.failures.built(&drv).await });
            }
            for after in self.ended_by(&drv, built, lane) {
                deliveries.spawn(self.clone().follow(after));
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

    /// What nobody has asked for yet, if nobody waits for anything.
    fn start_prebuild(&self) -> Option<StorePath> {
        let now = self.builds.0.now();
        self.builds.0.lock().start_prebuild(now, self.settings.cores)
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
        if let Some(waiting) = owner.and_then(|owner| state.waiting.get_mut(owner))
            && !std::mem::replace(&mut waiting.begun, true)
        {
            self.builds.0.metrics.first_build_after(waiting.asked_at.elapsed().unwrap_or_default());
        }
        drop(state);
        self.builds.0.changed.notify_one();
        Some(next)
    }

    /// Tells the queue how a build has ended. Gives what follows: for the requests that have ended by it, and for what nobody
    /// has asked for yet.
    fn ended_by(&self, drv: &StorePath, built: Result<Built, NotBuilt>, lane: Lane) -> Vec<After> {
        let now = self.builds.0.now();
        let mut state = self.builds.0.lock();
        let since = state.running.remove(drv);
        let (how, prebuilt) = match &built {
            Ok(_) => (Ended::Well, Prebuilt::Built),
            Err(NotBuilt::Failed(_)) => (Ended::Failed, Prebuilt::Failed),
            Err(NotBuilt::Stopped) => (Ended::Early, Prebuilt::Stopped),
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
        let nobodys = state.end_prebuild(drv, prebuilt);
        let mut after = Vec::new();
        let wanted = |id: RequestId| Some((id, needed_by.get(&id)?.clone()));
        match built {
            Ok(Built { outputs, .. }) => {
                match &nobodys {
                    Some(done) if done.expected => after.push(After::Serve(drv.clone(), outputs)),
                    Some(_) => state.hold_prebuilt(outputs),
                    None => state.held.push(Held { outputs, needed_by: needed_by.keys().copied().collect() }),
                }
                let complete = state.queue.built(drv, now);
                after
                    .extend(complete.into_iter().filter_map(wanted).map(|(id, drv)| After::Deliver(id, drv)));
            }
            Err(NotBuilt::Failed(verdict)) => {
                // Before it leaves the queue: whoever is planned from then on finds it remembered.
                let failure = self.failures.note(drv, verdict);
                let ended = state.queue.failed(drv, now);
                state.forget_kinds();
                let fail = |(id, drv)| After::Fail(id, drv, failure.clone());
                after.extend(ended.into_iter().filter_map(wanted).map(fail));
                if after.is_empty() {
                    after.push(After::Remember(failure));
                }
            }
            Err(NotBuilt::Stopped) => state.queue.stopped(drv, now),
        }
        drop(state);
        if let Some(done) = nobodys {
            self.builds.0.metrics.prebuild_ended(prebuilt, done.took);
            self.builds.0.noted.notify_one();
        }
        self.builds.0.changed.notify_one();
        after
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
            self.builds.0.to_hold.notify_one();
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
