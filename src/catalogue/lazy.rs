//! Attributes of lazy sets: each is evaluated when it is first asked for by its name, one at a time and once
//! for all who ask, and what came of it is kept as long as the generation is. The machine's troubles are
//! nobody's error, and are not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use narinfo::StorePath;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::attribute::{AttributePath, Evaluated};
use super::closure;
use super::denied;
use super::error::RefreshError;
use super::evaluate::EvaluatorEvent;
use super::gather::{not_there, unreadable};
use super::holder;
use super::settings::{Permission, SetName, SetSettings};
use super::setup::Setup;
use super::source::{self, AttributePlace, EvaluatorRun};
use super::trouble::{self, Class};
use super::walk;
use super::{Catalogue, Tools};
use crate::causes::with_causes;
use crate::model::{AttributeName, AttributeRow, Attributed, OutputRow};
use crate::nix::PooledDaemon;

/// Attributes that may be evaluated or wait for that; more are refused.
const WAITING_MAX: usize = 64;
/// Names that are remembered in memory: those of nothing, and those that are not recorded.
const REMEMBERED_MAX: u64 = 10_000;
/// Time for which a killed evaluator counts as the answer before another one tries.
const STARVED_FOR: Duration = Duration::from_secs(5 * 60);
/// Pauses before an evaluation is tried again that failed for what may pass: those who ask wait.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// Names of one generation that are recorded without bringing a new derivation: a set may have any number of
/// them.
const NAMES_MAX: u64 = 20_000;
/// Evaluations of an attribute whose generation is replaced at the same time.
const ATTEMPTS_MAX: usize = 3;

/// Evaluates attributes; clones share it.
#[derive(Clone)]
pub(super) struct Lazy(Arc<Shared>);

struct Shared {
    catalogue: Catalogue,
    tools: Tools,
    /// One evaluation at a time.
    turn: Semaphore,
    /// Those that are evaluated, or will be.
    flights: Mutex<BTreeMap<AttributeName, watch::Receiver<Option<LazyResult>>>>,
    /// Results of a generation for names that are not on record; `None` is nothing.
    remembered: Cache<(u64, AttributeName), Option<AttributeRow>>,
    /// Attributes at which an evaluator was killed or ran out of memory a while ago.
    starved: Cache<(u64, AttributeName), AttributeRow>,
    /// Attributes that cannot be evaluated, nor anything below them.
    blocked: Cache<(u64, AttributeName), AttributeRow>,
}

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LazyResult {
    /// The attribute, or its error, or that there is none.
    Known(Attributed),
    /// No result.
    Failed,
    /// Too many wait.
    Busy,
}

/// An attribute that is asked for.
#[derive(Clone)]
struct RequestedAttribute {
    path: AttributePath,
    name: AttributeName,
}

impl RequestedAttribute {
    /// The same of the attributes on the way to it.
    fn before(&self) -> impl Iterator<Item = AttributeName> {
        let paths = std::iter::successors(self.path.split_last().map(|(before, _)| before), |path| {
            path.split_last().map(|(before, _)| before)
        });
        paths.map(|path| AttributeName { attribute: path.to_string(), ..self.name.clone() })
    }
}

impl Lazy {
    pub(super) fn new(catalogue: Catalogue, tools: Tools) -> Self {
        Self(Arc::new(Shared {
            catalogue,
            tools,
            turn: Semaphore::new(1),
            flights: Mutex::default(),
            remembered: Cache::new(REMEMBERED_MAX),
            starved: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(STARVED_FOR).build(),
            blocked: Cache::new(REMEMBERED_MAX),
        }))
    }

    /// Evaluates an attribute of the current generation, which is this one, or joins those who have it
    /// evaluated. It goes on when the last of them leaves.
    pub(super) async fn evaluated(
        &self,
        set: &SetName,
        path: &AttributePath,
        system: &str,
        generation: u64,
    ) -> LazyResult {
        let (set, attribute, system) = (set.to_string(), path.to_string(), system.to_owned());
        let wanted =
            RequestedAttribute { path: path.clone(), name: AttributeName { set, attribute, system } };
        if let Some(row) = self.recall(&wanted, generation) {
            return LazyResult::Known(Attributed { generation, row });
        }
        let mut flight = {
            let mut flights = self.flights();
            match flights.get(&wanted.name) {
                Some(flight) => flight.clone(),
                None if flights.len() >= WAITING_MAX => return LazyResult::Busy,
                None => {
                    let (sender, flight) = watch::channel(None);
                    flights.insert(wanted.name.clone(), flight.clone());
                    let evaluation = self.clone().run(wanted.clone(), sender);
                    self.0.tools.tasks.optional("lazy-attribute", evaluation);
                    flight
                }
            }
        };
        match flight.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(LazyResult::Failed),
            Err(_) => {
                // A panic, or the server stops.
                self.flights().remove(&wanted.name);
                LazyResult::Failed
            }
        }
    }

    /// The result in memory for the attribute, or for one on the way to it.
    fn recall(&self, wanted: &RequestedAttribute, generation: u64) -> Option<Option<AttributeRow>> {
        let Shared { remembered, starved, blocked, .. } = &*self.0;
        let name = (generation, wanted.name.clone());
        remembered
            .get(&name)
            .or_else(|| starved.get(&name).map(Some))
            .or_else(|| wanted.before().find_map(|name| blocked.get(&(generation, name))).map(Some))
    }

    async fn run(self, wanted: RequestedAttribute, sender: watch::Sender<Option<LazyResult>>) {
        let mut result = self.evaluate(&wanted).await;
        for pause in RETRY_PAUSES {
            if !result.as_ref().is_err_and(RefreshError::may_pass) {
                break;
            }
            // Others have their turn meanwhile.
            tokio::time::sleep(pause).await;
            result = self.evaluate(&wanted).await;
        }
        let result = result.unwrap_or_else(|error| {
            let AttributeName { set, attribute, .. } = &wanted.name;
            tracing::warn!(%set, %attribute, error = with_causes(&error), "evaluation of a lazy attribute failed");
            LazyResult::Failed
        });
        self.flights().remove(&wanted.name);
        sender.send_replace(Some(result));
    }

    async fn evaluate(&self, wanted: &RequestedAttribute) -> Result<LazyResult, RefreshError> {
        let Shared { catalogue, tools, turn, remembered, starved, blocked, .. } = &*self.0;
        // It is never closed.
        let _turn = turn.acquire().await;
        let Some(set) = catalogue.settings_of(&wanted.name.set) else { return Ok(LazyResult::Failed) };
        for _ in 0..ATTEMPTS_MAX {
            let Some(found) = self.on_record(&wanted.name).await? else { return Ok(LazyResult::Failed) };
            let generation = found.generation;
            if found.row.is_some() {
                return Ok(LazyResult::Known(found));
            }
            if let Some(row) = self.recall(wanted, generation) {
                return Ok(LazyResult::Known(Attributed { generation, row }));
            }
            let mut daemon = tools.pool.get().await?;
            let Some(looked) = self.look_for(set, wanted, &mut daemon).await? else {
                remembered.insert((generation, wanted.name.clone()), None);
                return Ok(LazyResult::Known(Attributed { generation, row: None }));
            };
            let name = AttributeName { attribute: looked.path.to_string(), ..wanted.name.clone() };
            let is_before = looked.path != wanted.path;
            let is_whole = looked.is_whole;
            if let Err(error) = &looked.outcome
                && trouble::class(error) == Class::Transient
            {
                return Err(walk::WalkError::Failed(error.clone()).into());
            }
            let is_starved = looked.outcome.as_ref().is_err_and(|error| trouble::is_killed(error));
            let (row, outputs) = self.row(set, &name, looked, &mut daemon).await?;
            let attributed = Attributed { generation, row: Some(row.clone()) };
            if is_whole {
                return Ok(LazyResult::Known(attributed));
            }
            if is_starved {
                // The machine may have more of it in a while.
                starved.insert((generation, wanted.name.clone()), row);
                return Ok(LazyResult::Known(attributed));
            }
            if is_before {
                blocked.insert((generation, name.clone()), row.clone());
            }
            if self.record(set, &name, generation, (row, outputs), &mut daemon).await? {
                return Ok(LazyResult::Known(attributed));
            }
        }
        Ok(LazyResult::Failed)
    }

    /// The words of an attribute that throws, evaluated alone; as they are found they are kept, as long as
    /// the generation is. `None` where the set is not known, or the index or the evaluation is in trouble.
    pub(super) async fn words(
        &self,
        set: &SetName,
        name: AttributeName,
        path: &AttributePath,
    ) -> Option<String> {
        let Shared { catalogue, tools, turn, .. } = &*self.0;
        // It is never closed.
        let _turn = turn.acquire().await;
        let settings = catalogue.settings_of(set.as_str())?;
        let found = self.on_record(&name).await.ok().flatten()?;
        let error = found.row?.outcome.err()?;
        if error != walk::THROWN {
            // Someone else has asked in the meantime.
            return Some(error);
        }
        let mut daemon = tools.pool.get().await.ok()?;
        let wanted = RequestedAttribute { path: path.clone(), name: name.clone() };
        let words = match self.look_for(settings, &wanted, &mut daemon).await {
            Ok(Some(Looked { outcome: Err(error), .. })) => walk::shortened(error),
            Ok(_) => "it threw an error when the set was evaluated, and does so no more: refresh the set"
                .to_owned(),
            Err(error) => {
                tracing::warn!(%set, attribute = name.attribute, error = with_causes(&error), "evaluation of an error's text failed");
                return None;
            }
        };
        if trouble::class(&words) == Class::Final
            && let Err(error) = tools.index.explain_attribute(found.generation, name, words.clone()).await
        {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot record the text of an error");
        }
        Some(words)
    }

    async fn on_record(&self, name: &AttributeName) -> Result<Option<Attributed>, RefreshError> {
        let AttributeName { set, attribute, system } = name.clone();
        Ok(self.0.tools.index.attribute(set, attribute, system).await?)
    }

    /// The attribute, or `None` where there is none of this name. Its derivation is held as long as the
    /// connection lives.
    async fn look_for(
        &self,
        set: &SetSettings,
        wanted: &RequestedAttribute,
        daemon: &mut PooledDaemon,
    ) -> Result<Option<Looked>, RefreshError> {
        let Tools { nix, .. } = &self.0.tools;
        let (path, system) = (&wanted.path, &wanted.name.system);
        let mut links = source::links(&set.origin).map_err(RefreshError::Source)?.into_iter();
        if let Some((_, target)) = links.find(|(attribute, _)| attribute == path) {
            let outcome = source::linked(&nix.store_dir, &target, daemon).await?;
            return Ok(Some(Looked { path: path.clone(), is_whole: false, outcome }));
        }
        let setup = Setup::new(&self.0.tools, set).await?;
        if let Some(pinned) = &setup.pinned {
            daemon.add_temp_root(pinned).await?;
        }
        for place in setup.source.places(path.names()) {
            let looked = self.look_at(set, system, &setup, place, daemon).await?;
            if looked.is_some() {
                return Ok(looked);
            }
        }
        if *path == AttributePath::of_the_whole() {
            for place in setup.source.places(&[]) {
                let looked = self.look_at(set, system, &setup, place, daemon).await?;
                if looked.as_ref().is_some_and(|looked| looked.outcome.is_ok()) {
                    return Ok(looked);
                }
            }
        }
        Ok(None)
    }

    async fn look_at(
        &self,
        set: &SetSettings,
        system: &str,
        setup: &Setup,
        place: AttributePlace,
        daemon: &mut PooledDaemon,
    ) -> Result<Option<Looked>, RefreshError> {
        let Tools { nix, .. } = &self.0.tools;
        let limit = set.evaluation.attribute_time_max;
        let task = setup.task(&self.0.tools, set, system, Instant::now() + limit);
        let looked = |place: &AttributePlace, outcome| {
            Some(Looked { path: task.path(place), is_whole: task.is_whole(place), outcome })
        };
        let mut at = place.clone();
        let mut evaluator = task.start(&EvaluatorRun::Only(place.clone()))?;
        loop {
            match evaluator.step().await.map_err(walk::WalkError::from)? {
                EvaluatorEvent::Line(json) => {
                    let event = walk::event(&json)?;
                    if event.missing.is_some() {
                        return Ok(None);
                    }
                    if let Some(path) = event.begun {
                        at.path = path;
                        continue;
                    }
                    let outcome = walk::derivation(&nix.store_dir, event.drv, event.names);
                    if let Ok(found) = &outcome {
                        // While the evaluator holds it.
                        daemon.add_temp_root(&found.drv).await?;
                    }
                    return Ok(looked(&place, outcome).map(|looked| Looked { is_whole: false, ..looked }));
                }
                EvaluatorEvent::Ended(ending) => {
                    walk::trouble(&ending)?;
                    return Ok(looked(&at, Err(walk::blame(ending, limit))));
                }
            }
        }
    }

    /// The row of an attribute, which is recorded with the outputs of its closure.
    async fn row(
        &self,
        set: &SetSettings,
        name: &AttributeName,
        looked: Looked,
        daemon: &mut PooledDaemon,
    ) -> Result<(AttributeRow, Vec<OutputRow>), RefreshError> {
        let (attribute, system) = (name.attribute.clone(), name.system.clone());
        let failed = |error| {
            let (attribute, system) = (name.attribute.clone(), name.system.clone());
            let (outcome, output, program) = (Err(error), None, None);
            (AttributeRow { attribute, system, outcome, output, program, denied: false }, Vec::new())
        };
        let found = match looked.outcome {
            Ok(found) => found,
            Err(error) => return Ok(failed(error)),
        };
        if !daemon.is_valid_path(&found.drv).await? {
            return Ok(failed(not_there(&found.drv)));
        }
        let denied = set.verdict(&looked.path, &found.names()) != Permission::Allowed
            || denied::has(&self.0.tools, set, &system, &looked.path, &found.drv).await?;
        match outputs(&self.0.tools, found.drv.clone(), denied).await? {
            Ok(outputs) => {
                let (outcome, output, program) = (Ok(found.drv), found.output, found.program);
                Ok((AttributeRow { attribute, system, outcome, output, program, denied }, outputs))
            }
            Err(reason) => Ok(failed(unreadable(&found.drv, &reason))),
        }
    }

    /// False when the generation is not the current one any more.
    async fn record(
        &self,
        set: &SetSettings,
        name: &AttributeName,
        generation: u64,
        (row, outputs): (AttributeRow, Vec<OutputRow>),
        daemon: &mut PooledDaemon,
    ) -> Result<bool, RefreshError> {
        let Shared { catalogue, tools, remembered, .. } = &*self.0;
        // So that nobody lets go of what is not on record yet.
        let _holding = catalogue.0.holding.lock().await;
        let known = tools.index.set(name.set.clone()).await?;
        let Some(current) = known.generations.into_iter().next().filter(|current| current.id == generation)
        else {
            return Ok(false);
        };
        if self.on_record(name).await?.is_some_and(|found| found.row.is_some()) {
            return Ok(true);
        }
        let is_new = match &row.outcome {
            Ok(drv) => !tools.index.has_derivation(name.set.clone(), drv.clone()).await?,
            Err(_) => false,
        };
        if !is_new && current.size.attributes + current.size.errors >= NAMES_MAX {
            remembered.insert((generation, name.clone()), Some(row));
            return Ok(true);
        }
        let holder = match &row.outcome {
            Ok(drv) if !row.denied => {
                let mut held = tools.index.allowed_derivations(name.set.clone()).await?;
                held.insert(drv.clone());
                let which = format!("generation {generation}");
                holder::hold(tools, daemon, &set.name, &which, &held).await?
            }
            _ => current.holder.clone(),
        };
        let recorded = tools.index.add_evaluated(generation, row, outputs, holder.clone()).await?;
        if recorded && holder != current.holder {
            tools.roots.release(&current.holder);
        }
        Ok(recorded)
    }

    fn flights(&self) -> MutexGuard<'_, BTreeMap<AttributeName, watch::Receiver<Option<LazyResult>>>> {
        self.0.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result of an evaluation.
struct Looked {
    /// The requested attribute, or the one on the way to it that cannot be evaluated.
    path: AttributePath,
    /// All of the source cannot be evaluated.
    is_whole: bool,
    outcome: Evaluated,
}

/// Outputs of a derivation and its closure; only its own if it is denied.
async fn outputs(
    tools: &Tools,
    drv: StorePath,
    denied: bool,
) -> Result<Result<Vec<OutputRow>, String>, RefreshError> {
    let (alone, none) = (BTreeSet::from([drv]), BTreeSet::new());
    let (allowed, denied) = if denied { (none, alone) } else { (alone, none) };
    closure::read(&tools.nix.store_dir, allowed, denied).await
}
