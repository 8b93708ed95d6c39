//! Attributes of lazy sets: each is evaluated when it is first asked for by its name, one at a time and once for all who ask, and
//! what came of it is kept as long as the generation is. The machine's troubles are nobody's error, and are not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moka::sync::Cache;
use narinfo::StorePath;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::closure;
use super::error::RefreshError;
use super::evaluate::Step;
use super::holder;
use super::settings::SetSettings;
use super::source::{self, Place, Prepared, Run};
use super::walk::{self, Outcome, Task};
use super::{Catalogue, Tools};
use crate::causes::with_causes;
use crate::index::{AttributeName, AttributeRow, Attributed, OutputRow};
use crate::nix::PooledDaemon;

/// Attributes that may be evaluated or wait for that; more are refused.
const WAITING_MAX: usize = 64;
/// Names that are remembered to stand for nothing.
const MISSING_MAX: u64 = 10_000;
/// How often an attribute is evaluated whose generation is replaced meanwhile.
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
    flights: Mutex<BTreeMap<AttributeName, watch::Receiver<Option<Landed>>>>,
    /// What a generation turned out not to have.
    missing: Cache<(u64, AttributeName), ()>,
}

/// What came of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Landed {
    /// The index has the attribute, or its error.
    Recorded,
    /// There is no such attribute.
    Missing,
    /// It could not be found out.
    Failed,
    /// Too many wait.
    Busy,
}

impl Lazy {
    pub(super) fn new(catalogue: Catalogue, tools: Tools) -> Self {
        let missing = Cache::new(MISSING_MAX);
        Self(Arc::new(Shared {
            catalogue,
            tools,
            turn: Semaphore::new(1),
            flights: Mutex::default(),
            missing,
        }))
    }

    /// Evaluates an attribute of the current generation, which is this one, or joins those who have it evaluated. It goes on
    /// when the last of them leaves.
    pub(super) async fn evaluated(&self, name: &AttributeName, generation: u64) -> Landed {
        if self.0.missing.contains_key(&(generation, name.clone())) {
            return Landed::Missing;
        }
        let mut flight = {
            let mut flights = self.flights();
            match flights.get(name) {
                Some(flight) => flight.clone(),
                None if flights.len() >= WAITING_MAX => return Landed::Busy,
                None => {
                    let (sender, flight) = watch::channel(None);
                    flights.insert(name.clone(), flight.clone());
                    tokio::spawn(self.clone().fly(name.clone(), sender));
                    flight
                }
            }
        };
        match flight.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or(Landed::Failed),
            Err(_) => {
                // It ended in a bug.
                self.flights().remove(name);
                Landed::Failed
            }
        }
    }

    async fn fly(self, name: AttributeName, sender: watch::Sender<Option<Landed>>) {
        let landed = self.evaluate(&name).await.unwrap_or_else(|error| {
            let AttributeName { set, attribute, .. } = &name;
            tracing::warn!(%set, %attribute, error = with_causes(&error), "not evaluated");
            Landed::Failed
        });
        self.flights().remove(&name);
        sender.send_replace(Some(landed));
    }

    async fn evaluate(&self, name: &AttributeName) -> Result<Landed, RefreshError> {
        let Shared { catalogue, tools, turn, missing, .. } = &*self.0;
        // It is never closed.
        let _turn = turn.acquire().await;
        let Some(set) = catalogue.settings_of(&name.set) else { return Ok(Landed::Missing) };
        for _ in 0..ATTEMPTS_MAX {
            let AttributeName { set: set_name, attribute, system } = name.clone();
            let found = tools.index.attribute(set_name, attribute, system).await?;
            let Some(Attributed { generation, row: None }) = found else { return Ok(Landed::Recorded) };
            let mut daemon = tools.pool.get().await?;
            let Some(outcome) = self.look_for(set, name, &mut daemon).await? else {
                missing.insert((generation, name.clone()), ());
                return Ok(Landed::Missing);
            };
            if self.record(set, name, generation, outcome, &mut daemon).await? {
                return Ok(Landed::Recorded);
            }
        }
        Ok(Landed::Failed)
    }

    /// The attribute, or `None` where there is none of this name. Its derivation is held as long as the connection lives.
    async fn look_for(
        &self,
        set: &SetSettings,
        name: &AttributeName,
        daemon: &mut PooledDaemon,
    ) -> Result<Option<Outcome>, RefreshError> {
        let Tools { nix, home, .. } = &self.0.tools;
        let mut links = source::links(&set.origin).map_err(RefreshError::Source)?.into_iter();
        if let Some((_, target)) = links.find(|(attribute, _)| *attribute == name.attribute) {
            return Ok(Some(source::linked(&nix.store_dir, &target, daemon).await?));
        }
        let source = source::prepare(&set.origin, &set.evaluation).map_err(RefreshError::Source)?;
        std::fs::create_dir_all(home).map_err(RefreshError::Source)?;
        for place in source.places(&walk::path(&name.attribute)) {
            let outcome = self.look_at(set, &name.system, &source, place, daemon).await?;
            if outcome.is_some() {
                return Ok(outcome);
            }
        }
        Ok(None)
    }

    async fn look_at(
        &self,
        set: &SetSettings,
        system: &str,
        source: &Prepared,
        place: Place,
        daemon: &mut PooledDaemon,
    ) -> Result<Option<Outcome>, RefreshError> {
        let Tools { nix, home, .. } = &self.0.tools;
        let limit = set.evaluation.attribute_time_max;
        let variables = source::variables(nix, home);
        let deadline = Instant::now() + limit;
        let task = Task { set, system, source, store_dir: &nix.store_dir, variables: &variables, deadline };
        let mut evaluator = task.start(&Run::Only(place))?;
        match evaluator.step().await.map_err(walk::WalkError::from)? {
            Step::Told(json) => {
                let event = walk::event(&json)?;
                if event.missing.is_some() {
                    return Ok(None);
                }
                let outcome = walk::derivation(&nix.store_dir, event.drv, event.name);
                if let Ok((drv, _)) = &outcome {
                    // While the evaluator holds it.
                    daemon.add_temp_root(drv).await?;
                }
                Ok(Some(outcome))
            }
            Step::Ended(ending) => {
                walk::trouble(&ending)?;
                Ok(Some(Err(walk::blame(ending, limit))))
            }
        }
    }

    /// False when the generation is not the current one any more.
    async fn record(
        &self,
        set: &SetSettings,
        name: &AttributeName,
        generation: u64,
        outcome: Outcome,
        daemon: &mut PooledDaemon,
    ) -> Result<bool, RefreshError> {
        let Shared { catalogue, tools, .. } = &*self.0;
        let denied = outcome.as_ref().is_ok_and(|(_, drv_name)| !set.allows(&name.attribute, drv_name));
        let outcome = outcome.map(|(drv, _)| drv);
        let outputs = match &outcome {
            Ok(drv) => outputs(tools, drv.clone(), denied).await?,
            Err(_) => Vec::new(),
        };
        // So that nobody lets go of what is not on record yet.
        let _holding = catalogue.0.holding.lock().await;
        let row = tools.index.set(name.set.clone()).await?;
        let Some(current) = row.generations.into_iter().next().filter(|current| current.id == generation)
        else {
            return Ok(false);
        };
        let holder = match &outcome {
            Ok(drv) if !denied => {
                let mut held = tools.index.allowed_derivations(name.set.clone()).await?;
                held.insert(drv.clone());
                let which = format!("generation {generation}");
                holder::hold(tools, daemon, &set.name, &which, &held).await?
            }
            _ => current.holder.clone(),
        };
        let (attribute, system) = (name.attribute.clone(), name.system.clone());
        let row = AttributeRow { attribute, system, outcome, denied };
        let recorded = tools.index.add_evaluated(generation, row, outputs, holder.clone()).await?;
        if recorded && holder != current.holder {
            tools.roots.release(&current.holder);
        }
        Ok(recorded)
    }

    fn flights(&self) -> MutexGuard<'_, BTreeMap<AttributeName, watch::Receiver<Option<Landed>>>> {
        self.0.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a derivation and all that it needs give; only itself where it is denied.
async fn outputs(tools: &Tools, drv: StorePath, denied: bool) -> Result<Vec<OutputRow>, RefreshError> {
    let (alone, none) = (BTreeSet::from([drv]), BTreeSet::new());
    let (allowed, denied) = if denied { (none, alone) } else { (alone, none) };
    closure::read(&tools.nix.store_dir, allowed, denied).await
}
