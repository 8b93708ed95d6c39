//! Worker: plans each request, has runners build one derivation after the other in the order of the
//! scheduler, and what nobody has asked for yet while nobody waits. A request always ends, whatever the
//! daemon does.

mod follow_up;
mod inputs;
mod prebuilding;
mod record;
mod repeat;
mod roots;
mod run;
#[cfg(test)]
pub(crate) mod simulated;

use std::time::Duration;

use narinfo::StorePath;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::failures::Failures;
use super::plan::{self, Needs, PlanRules, Planned};
use super::queue::RequestId;
use super::runner::{LocalRunner, MachineRunner, NotBuilt, RemoteRunner, Runner};
use super::scheduler::{Finished, Lane, Scheduler};
use super::verdict::{Verdict, logged};
use super::{Logs, Settings};
use crate::adopt::Adopter;
use crate::import::Importer;
use crate::index::Index;
use crate::model::{Failure, FailureClass, Term};
use crate::nix::Detected;
use crate::roots::Roots;

/// Interval at which requests whose clients have left are looked for.
const LOOK_FOR_ABANDONED_EVERY: Duration = Duration::from_secs(1);

/// Time for which connections to other machines are kept when there is nothing to build. They hold paths
/// there.
const KEEP_REMOTE_FOR: Duration = Duration::from_secs(300);
/// The same for the local Nix daemon.
const REST_AFTER: Duration = Duration::from_millis(200);
/// Time within which a question for a refusal is answered, or not at all.
const REFUSAL_WITHIN: Duration = Duration::from_secs(5);
/// Time after which a local daemon that did not tell its release is asked again.
const DESCRIBE_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The worker of one server, with all that it needs.
#[derive(Clone)]
pub struct Worker {
    /// The queue.
    pub scheduler: Scheduler,
    /// The Nix daemon that builds, and that is asked while requests are planned and outputs published.
    pub runner: LocalRunner,
    /// The machines that build, in the order of the farm.
    pub machines: Vec<MachineRunner>,
    /// A daemon of less weight beside that; only with [`Policy::Background`](super::Policy::Background).
    pub background: Option<LocalRunner>,
    /// Logs of builds.
    pub logs: Logs,
    /// Publisher of outputs.
    pub adopter: Adopter,
    /// Bringer of pushed derivations into the Nix store.
    pub importer: Importer,
    /// GC roots of the derivations of requests.
    pub requested: Roots,
    /// Record of the queue.
    pub index: Index,
    /// Failures that are remembered.
    pub failures: Failures,
    /// Number of generations of package sets: each brings something new to pre-build.
    pub bumps: watch::Receiver<u64>,
    /// Capabilities of the daemon; nothing is planned before they are known.
    pub capabilities: Detected,
    /// Bounds and lifetimes.
    pub settings: Settings,
}

impl Worker {
    /// The same, which records all that it does for a term of this server as the leader.
    #[must_use]
    pub fn for_term(&self, term: &Term) -> Self {
        let index = self.index.fenced(term);
        let adopter = Adopter { index: index.clone(), ..self.adopter.clone() };
        let importer = self.importer.for_adopter(&adopter);
        let machines = self.machines.iter().cloned().map(|machine| match machine {
            MachineRunner::Remote(runner) => {
                MachineRunner::Remote(RemoteRunner { importer: importer.clone(), ..runner })
            }
            MachineRunner::Local(runner) => MachineRunner::Local(runner),
        });
        Self {
            machines: machines.collect(),
            adopter,
            importer,
            failures: self.failures.in_index(index.clone()),
            index,
            ..self.clone()
        }
    }

    /// Works for as long as the server runs. Dropping this future ends the running builds.
    pub async fn run(self) {
        self.restore_held();
        tokio::join!(
            self.hold_derivations(),
            self.runner.connections.pool.open_ahead(),
            self.plan_all(),
            self.build_all(),
            self.drop_abandoned(),
            self.probe_machines(),
            self.plan_prebuilds(),
            self.recorder().record_all()
        );
    }

    /// Notes what the local daemon can build, once that is detected, and its release of Nix.
    pub async fn describe_local(self) {
        let Some(local) = self.machines.iter().find(|one| matches!(one, MachineRunner::Local(_))) else {
            return;
        };
        let machine = self.capabilities.known().await.summary();
        self.scheduler.describe_local(&machine, None);
        loop {
            match local.probe().await {
                Ok(version) => return self.scheduler.describe_local(&machine, Some(&version)),
                // The outage is logged where the daemon is needed.
                Err(_) => tokio::time::sleep(DESCRIBE_AGAIN_AFTER).await,
            }
        }
    }

    /// Plans requests in the order of their arrival.
    async fn plan_all(&self) {
        loop {
            let (id, drv) = self.scheduler.next_unplanned().await;
            self.plan(id, drv).await;
        }
    }

    async fn plan(&self, id: RequestId, drv: StorePath) {
        let planned = match self.lacking(id, &drv).await {
            Ok(planned) => match self.remembered(&planned.needs).await {
                Some(failure) => Err(failure),
                None => Ok(planned),
            },
            Err(plan::Error::Collected) => return self.leave_out(id, &drv),
            Err(plan::Error::Unfit(reason)) => {
                self.scheduler.withdraw(id);
                return self.give_up(id, &drv, FailureClass::Refused, reason);
            }
            Err(plan::Error::Impossible(verdict)) => Err(self.failures.note(&drv, verdict)),
            Err(plan::Error::Daemon(error)) => Err(self.failures.note(&drv, Verdict::of_error(&error))),
        };
        match planned {
            Ok(planned) => {
                tracing::info!(request = id.0, %drv, derivations = planned.needs.len(), "request planned");
                if self.scheduler.planned(id, planned) {
                    self.deliver(id, drv).await;
                } else {
                    // While this one is built, for the next request.
                    self.runner.connections.pool.expect_more();
                }
            }
            Err(failure) => {
                let reason = logged(&failure.reason);
                tracing::info!(request = id.0, %drv, %reason, "request rejected");
                self.scheduler.withdraw(id);
                self.fail(id, &drv, failure).await;
            }
        }
    }

    /// Conditions of plans, once the capabilities of the daemon are known.
    async fn plan_rules(&self) -> PlanRules {
        PlanRules {
            derivations_max: self.settings.derivations_max,
            capabilities: self.capabilities.known().await,
            farm: self.scheduler.farm(),
            index: self.index.clone(),
            only: None,
        }
    }

    async fn lacking(&self, id: RequestId, drv: &StorePath) -> Result<Planned, plan::Error> {
        let mut rules = self.plan_rules().await;
        if let Some(name) = self.scheduler.builder_of(id) {
            let gone = || plan::Error::Unfit(format!("the builder {name} is not configured any more"));
            rules.only = Some(rules.farm.find(&name).ok_or_else(gone)?);
        }
        let attempt = || async {
            self.runner.use_upstreams().await;
            let mut daemon = self.runner.connections.pool.get().await?;
            self.scheduler.daemon_answers();
            if let Some(sent) = self.adopter.local.sent().find(drv) {
                return plan::plan_sent(&mut daemon, &sent, &rules).await;
            }
            let planned = plan::plan(&mut daemon, drv, &rules).await?;
            if self.bring_inputs(&mut daemon, drv, &planned).await? {
                return plan::plan(&mut daemon, drv, &rules).await;
            }
            Ok(planned)
        };
        let lost = |error: &plan::Error| match error {
            plan::Error::Daemon(error) => error.lost(),
            plan::Error::Impossible(_) | plan::Error::Unfit(_) | plan::Error::Collected => None,
        };
        self.scheduler.patiently(drv, attempt, lost).await
    }

    /// Reason for which a derivation would be refused if it was requested now. `None` where it would be
    /// built, or where that cannot be told soon.
    pub async fn refusal(&self, drv: &StorePath) -> Option<String> {
        if !self.capabilities.is_known() {
            return None;
        }
        let planned = tokio::time::timeout(REFUSAL_WITHIN, async {
            let rules = self.plan_rules().await;
            self.runner.use_upstreams().await;
            let mut daemon = self.runner.connections.pool.get().await?;
            match self.adopter.local.sent().find(drv) {
                Some(sent) => plan::plan_sent(&mut daemon, &sent, &rules).await,
                None => plan::plan(&mut daemon, drv, &rules).await,
            }
        });
        match planned.await {
            Ok(Err(plan::Error::Impossible(verdict))) if verdict.class == FailureClass::Refused => {
                Some(verdict.reason)
            }
            _ => None,
        }
    }

    /// A failure that stands in the way of one of these: better said at once than after building the others.
    async fn remembered(&self, needs: &Needs) -> Option<Failure> {
        for drv in needs.keys() {
            if let Ok(Some(failure)) = self.failures.of(drv).await
                // A derivation that was refused for its whole closure may be built as a part of this one.
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
        let mut repeats = JoinSet::new();
        loop {
            while deliveries.try_join_next().is_some() {}
            while let Some((drv, machine)) = self.scheduler.next(Lane::Main) {
                let others = self.scheduler.may_have_built(&drv);
                let others = others.into_iter().map(|id| self.machines[id.0].clone()).collect();
                lanes.spawn(self.build_apart(&self.machines[machine.0], drv, others));
            }
            if let Some(runner) = &self.background
                && background.is_empty()
                && let Some((drv, _)) = self.scheduler.next(Lane::Background)
            {
                background.spawn(self.build_apart(runner, drv, Vec::new()));
            }
            if let Some((drv, machine)) = self.scheduler.next_prebuild() {
                lanes.spawn(self.build_apart(&self.machines[machine.0], drv, Vec::new()));
            }
            while let Some((repeat, machine)) = self.scheduler.next_repeat() {
                repeats.spawn(self.clone().repeat(repeat, machine));
            }
            let (lane, ended) = tokio::select! {
                Some(_) = repeats.join_next() => continue,
                Some(ended) = lanes.join_next() => (Lane::Main, ended),
                Some(ended) = background.join_next() => (Lane::Background, ended),
                () = self.scheduler.work() => continue,
                () = tokio::time::sleep(REST_AFTER), if lanes.is_empty() && background.is_empty() => {
                    self.rest().await;
                    continue;
                }
            };
            // A lane does not panic: what it builds is built apart.
            let Ok((drv, built)) = ended else { continue };
            if built.is_ok() {
                let (failures, drv) = (self.failures.clone(), drv.clone());
                deliveries.spawn(async move { failures.built(&drv).await });
            }
            let finished = self.finished(&drv, built);
            for follow_up in self.scheduler.finished(&drv, finished, lane) {
                deliveries.spawn(self.clone().follow_up(follow_up));
            }
        }
    }

    /// Outcome of a build for the queue.
    fn finished(&self, drv: &StorePath, built: run::RunEnd) -> Finished {
        match built {
            Ok(built) => Finished::Built(built),
            // Before it leaves the queue: whoever is planned from then on finds it remembered.
            Err(run::Unbuilt { why: NotBuilt::Failed(verdict), .. }) => {
                Finished::Failed(self.failures.note(drv, verdict))
            }
            Err(run::Unbuilt { why: NotBuilt::Lost(loss), started }) => {
                if self.scheduler.lose_machine(drv, &loss, started) {
                    Finished::Failed(self.failures.note(drv, loss.verdict))
                } else {
                    Finished::Stopped
                }
            }
            Err(run::Unbuilt { why: NotBuilt::Stopped, .. }) => Finished::Stopped,
        }
    }

    /// Closes the connections that are kept from one build to the next, until something is to be built: at
    /// once where they are made in a moment, those to other machines after a while.
    async fn rest(&self) {
        let (local, remote): (Vec<_>, Vec<_>) =
            self.machines.iter().partition(|machine| matches!(machine, MachineRunner::Local(_)));
        local.iter().for_each(|machine| machine.connections().close());
        if let Some(background) = &self.background {
            background.connections.close();
        }
        tokio::select! {
            () = self.scheduler.work() => return,
            () = tokio::time::sleep(KEEP_REMOTE_FOR) => {}
        }
        remote.iter().for_each(|machine| machine.connections().close());
        self.scheduler.work().await;
    }

    /// Builds in a task of its own, so that a bug in it ends this build and not the worker. What one of the
    /// `others` has built is taken from there.
    fn build_apart<R: Runner>(
        &self,
        runner: &R,
        drv: StorePath,
        others: Vec<MachineRunner>,
    ) -> impl Future<Output = (StorePath, run::RunEnd)> + Send + use<R> {
        let (scheduler, runner, logs) = (self.scheduler.clone(), runner.clone(), self.logs.clone());
        async move {
            let mut task = JoinSet::new();
            let wanted = drv.clone();
            task.spawn(async move {
                match run::found_elsewhere(&wanted, &others).await {
                    Some(built) => Ok(built),
                    None => run::run(&scheduler, &runner, &logs, &wanted).await,
                }
            });
            let ended = match task.join_next().await {
                Some(Ok(ended)) => ended,
                _ => {
                    tracing::error!(%drv, "the build was given up because of a bug in this server");
                    let verdict = Verdict::transient("a bug in this server; its log has the details");
                    Err(run::Unbuilt { why: verdict.into(), started: true })
                }
            };
            (drv, ended)
        }
    }

    async fn drop_abandoned(&self) {
        let mut ticks = tokio::time::interval(LOOK_FOR_ABANDONED_EVERY);
        loop {
            ticks.tick().await;
            match self.scheduler.is_shared() {
                true => self.recorder().drop_unheld().await,
                false => self.scheduler.drop_abandoned(),
            }
            // Of requests that were cancelled after something was built for them.
            self.scheduler.take_unneeded().iter().for_each(|output| self.runner.roots.release(output));
            self.fail_hopeless().await;
            self.adopter.local.sent().expire(|drv| self.scheduler.awaits(drv));
        }
    }

    /// Fails what every machine for it was away for too long for.
    async fn fail_hopeless(&self) {
        for (drv, reason) in self.scheduler.hopeless() {
            tracing::warn!(%drv, %reason, "nothing can build a derivation");
            let failure = self.failures.note(&drv, Verdict::transient(reason));
            for follow_up in self.scheduler.finished(&drv, Finished::Failed(failure), Lane::Main) {
                self.clone().follow_up(follow_up).await;
            }
        }
    }

    /// Connects to the machines that are lost, for as long as the server runs.
    async fn probe_machines(&self) {
        let farm = self.scheduler.farm();
        if farm.is_local() {
            return;
        }
        let mut probes = JoinSet::new();
        for ((id, _), runner) in farm.machines().zip(self.machines.clone()) {
            let scheduler = self.scheduler.clone();
            probes.spawn(async move {
                loop {
                    scheduler.probe_due(id).await;
                    scheduler.probed(id, runner.probe().await);
                }
            });
        }
        // None of them ends.
        while probes.join_next().await.is_some() {}
    }
}
