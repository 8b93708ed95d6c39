//! Requests for many builds at once, by people and programs that do not hold a connection open for each:
//! where every item is, and a place in the queue for those that are to be built. What may be built, and in
//! which order, is decided as for a request of a Nix client.

mod error;
mod owners;
mod target;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use narinfo::{StorePath, StorePathHash};
use tokio::task::JoinSet;

use crate::build::{Cancellation, Scheduler};
use crate::caller::{Action, Caller, CallerKey, QueuePlace, may, may_for};
use crate::catalogue::{NameResolver, NoSuchName};
use crate::model::FailureClass;
use crate::nix::Outputs;
use crate::substitute::{Located, Missing, OnMiss, Substitute, Surveyed};
pub use error::{NotOwner, NotStarted};
use owners::{Leaving, Owners, Stay};
pub use target::{OutputChoice, RequestTarget, TargetError};

/// Items of one request at most.
pub const ITEMS_MAX: usize = 10_000;
/// Searches for the items of one request at a time: each may ask upstreams.
const SEARCHES_MAX: usize = 16;

/// Settings of requests that no connection stands for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Time for which such a request stays without its owner asking for it.
    pub abandon_after: Duration,
}

/// State of one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemState {
    /// All outputs are served.
    Served,
    /// Something is being built for it.
    Building,
    /// The request waits in the queue.
    Queued,
    /// Buildable, and not to be started.
    Known,
    /// The build failed, and that is remembered.
    Failed,
    /// This server cannot or may not build it, or too many wait.
    Refused,
    /// Nobody knows it, or that cannot be told now.
    Unknown,
}

/// An output of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemOutput {
    /// Its name; none where only the hash of its path was asked for.
    pub name: Option<String>,
    /// Its path, where that is known.
    pub path: Option<StorePath>,
    /// True where it is served.
    pub served: bool,
}

/// Finding about one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestItem {
    /// State.
    pub state: ItemState,
    /// The derivation that makes it.
    pub drv: Option<StorePath>,
    /// Number of its request, while it is in the queue.
    pub request: Option<u64>,
    /// Place of that in the queue.
    pub place: Option<usize>,
    /// Reason of a state that is not what was wanted.
    pub reason: Option<String>,
    /// The outputs that are wanted.
    pub outputs: Vec<ItemOutput>,
}

impl RequestItem {
    /// An item that nobody knows, for this reason.
    #[must_use]
    pub fn unknown(reason: String) -> Self {
        ItemDraft::ended(ItemState::Unknown, None, reason).item
    }
}

/// Requests of those who do not wait on a connection; clones share what it needs.
#[derive(Clone)]
pub struct Requests {
    substitute: Arc<Substitute>,
    names: NameResolver,
    builds: Scheduler,
    owners: Owners,
}

/// An item on its way to its state.
struct ItemDraft {
    item: RequestItem,
    /// Hashes of the wanted outputs that are not served.
    lacks: Vec<StorePathHash>,
    /// True once nothing can be changed any more.
    decided: bool,
}

impl Requests {
    /// Requests that are decided by `substitute`.
    #[must_use]
    pub fn new(substitute: Arc<Substitute>, names: NameResolver, settings: Settings) -> Self {
        let builds = substitute.builds.clone();
        let owners = Owners::new(builds.clone(), settings.abandon_after);
        Self { substitute, names, builds, owners }
    }

    /// Gives up requests whose owner has not asked for them for too long, for as long as the server runs.
    pub async fn expire_owners(self) {
        self.owners.expire().await;
    }

    /// Finding about each of `targets`, in their order. Those that can be built are given a place in the
    /// queue, in the same order, where `starter` is given; they keep it as `owners.rs` says. Those of them
    /// that are built are built on `builder`, where one is named.
    ///
    /// # Errors
    /// The index or the Nix store cannot be asked.
    pub async fn ask(
        &self,
        targets: Vec<RequestTarget>,
        on_miss: OnMiss,
        starter: Option<&Caller>,
        builder: Option<&str>,
    ) -> Result<Vec<RequestItem>, Missing> {
        let mut drafts = self.resolve(targets).await?;
        self.survey(&mut drafts).await?;
        if let (Some(starter), true) = (starter, on_miss.builds()) {
            self.locate(&mut drafts, &on_miss).await;
            self.start(&mut drafts, starter, builder).await;
        }
        self.place(&mut drafts, builder.is_some());
        Ok(drafts.into_iter().map(|draft| draft.item).collect())
    }

    /// Notes that an owner has asked for one of its requests. One that nobody stands for any more, as after a
    /// restart of the server, is from then on that of `heir`, who may build.
    pub fn polled(&self, id: u64, owner: &CallerKey, heir: Option<&Caller>) {
        self.owners.polled(id, owner, heir);
    }

    /// A place in the queue for a derivation that `starter` keeps until the build has ended or it cancels it,
    /// whether or not it asks for it: the number of the request.
    ///
    /// # Errors
    /// The starter may not have it built, or too many wait.
    pub async fn keep(&self, drv: &StorePath, starter: &Caller) -> Result<u64, NotStarted> {
        may_for(starter, Action::Build, drv.name())?;
        let owner = &starter.key();
        let place = if self.is_owned(drv, owner) { None } else { starter.place(drv.name())? };
        let ticket = self.builds.join(drv, starter.address()).await?;
        let id = ticket.id();
        self.owners.hold(ticket, owner, place, Stay::ToTheEnd);
        Ok(id)
    }

    /// Gives up a request for its owner, or for all owners where an administrator says so, and ends it where
    /// nobody else waits. Whoever has only inherited it leaves it to the grace that abandoned requests have.
    /// `None` where no such request waits.
    ///
    /// # Errors
    /// The request is another client's.
    pub fn cancel(&self, id: u64, caller: &Caller) -> Result<Option<Cancellation>, NotOwner> {
        if self.builds.end_signal(id).is_none() {
            return Ok(None);
        }
        if may(caller, Action::Admin).is_ok() {
            self.owners.leave_all(id);
            return Ok(self.builds.cancel(id));
        }
        match self.owners.leave(id, &caller.key()) {
            Leaving::Owner => Ok(self.builds.cancel(id)),
            Leaving::Heir => Ok(Some(Cancellation::Left)),
            Leaving::Stranger => Err(NotOwner(id)),
        }
    }

    /// True where a request for the derivation is one of this owner's.
    fn is_owned(&self, drv: &StorePath, owner: &CallerKey) -> bool {
        self.builds.request_for(drv).is_some_and(|id| self.owners.has(id, owner))
    }

    async fn resolve(&self, targets: Vec<RequestTarget>) -> Result<Vec<ItemDraft>, Missing> {
        let drvs = targets.iter().filter_map(|target| match target {
            RequestTarget::Derivation { drv, .. } => Some(drv.clone()),
            RequestTarget::Hash(_) | RequestTarget::Attribute { .. } => None,
        });
        let drvs: Vec<StorePath> = drvs.collect();
        let known = if drvs.is_empty() { BTreeMap::new() } else { self.substitute.outputs_of(drvs).await? };
        let mut drafts = Vec::new();
        for target in targets {
            drafts.push(match target {
                RequestTarget::Hash(hash) => ItemDraft::new(
                    None,
                    vec![ItemOutput { name: None, path: None, served: false }],
                    vec![hash],
                ),
                RequestTarget::Derivation { drv, outputs } => match known.get(&drv) {
                    Some(known) => ItemDraft::of_derivation(drv, known, &outputs),
                    None => {
                        let reason =
                            "the server does not have this derivation: push it with `nix copy --derivation`";
                        ItemDraft::ended(ItemState::Unknown, Some(drv), reason.to_owned())
                    }
                },
                RequestTarget::Attribute { set, selection, system } => {
                    match self.names.select(&set, &selection, system.as_deref()).await {
                        Ok((named, _)) if named.denied => {
                            let denied = Missing::Denied { drv: named.drv.clone(), set: set.to_string() };
                            ItemDraft::ended(ItemState::Refused, Some(named.drv), denied.to_string())
                        }
                        Ok((named, output)) => {
                            let name = output.map(str::to_owned).or(named.own_output);
                            let choice =
                                name.map_or(OutputChoice::All, |name| OutputChoice::Named(vec![name]));
                            ItemDraft::of_derivation(named.drv, &named.outputs, &choice)
                        }
                        Err(reason) => ItemDraft::ended(state_of_name(&reason), None, reason.to_string()),
                    }
                }
            });
        }
        Ok(drafts)
    }

    /// Looks for all outputs at once, without upstreams.
    async fn survey(&self, drafts: &mut [ItemDraft]) -> Result<(), Missing> {
        let hashes = drafts.iter().flat_map(|draft| draft.lacks.iter().copied());
        let found = self.substitute.survey(hashes.collect::<Vec<_>>()).await?;
        drafts.iter_mut().filter(|draft| !draft.decided).for_each(|draft| draft.apply(&found));
        Ok(())
    }

    /// Looks further for what is not served, as for a request of a Nix client: in upstreams, too.
    async fn locate(&self, drafts: &mut [ItemDraft], on_miss: &OnMiss) {
        let mut searches = JoinSet::new();
        let mut open = (0..drafts.len()).filter(|at| drafts[*at].is_sought(&self.builds)).collect::<Vec<_>>();
        open.reverse();
        let mut ended: Vec<(usize, Vec<Result<Located, Missing>>)> = Vec::new();
        loop {
            while searches.len() < SEARCHES_MAX
                && let Some(at) = open.pop()
            {
                let (substitute, on_miss) = (Arc::clone(&self.substitute), on_miss.clone());
                let lacks = drafts[at].lacks.clone();
                searches.spawn(async move {
                    let mut found = Vec::new();
                    for hash in lacks {
                        found.push(substitute.locate(hash, &on_miss).await);
                    }
                    (at, found)
                });
            }
            match searches.join_next().await {
                Some(Ok(found)) => ended.push(found),
                // A bug that was logged as a panic: what it looked for stays as it was surveyed.
                Some(Err(_)) => {}
                None => break,
            }
        }
        for (at, found) in ended {
            drafts[at].located(found);
        }
    }

    /// Gives a place in the queue to each that can be built, in their order.
    async fn start(&self, drafts: &mut [ItemDraft], starter: &Caller, builder: Option<&str>) {
        let owner = &starter.key();
        let mut places: HashMap<StorePath, Option<QueuePlace>> = HashMap::new();
        let mut wanted: Vec<(usize, StorePath)> = Vec::new();
        for (at, ItemDraft { item, decided, .. }) in drafts.iter_mut().enumerate() {
            let (ItemState::Known, false, Some(drv)) = (item.state, *decided, item.drv.clone()) else {
                continue;
            };
            // Items of one derivation share a place, and so they do with an earlier request of this owner.
            let is_placed = places.contains_key(&drv) || self.is_owned(&drv, owner);
            let placed = may_for(starter, Action::Build, drv.name()).and_then(|()| {
                if !is_placed {
                    places.insert(drv.clone(), starter.place(drv.name())?);
                }
                Ok(())
            });
            match placed {
                Err(refusal) => {
                    (item.state, item.reason) = (ItemState::Refused, Some(refusal.to_string()));
                }
                Ok(()) => wanted.push((at, drv)),
            }
        }
        let drvs: Vec<StorePath> = wanted.iter().map(|(_, drv)| drv.clone()).collect();
        let tickets = self.builds.join_all(&drvs, starter.address(), builder).await;
        for ((at, drv), ticket) in wanted.into_iter().zip(tickets) {
            let item = &mut drafts[at].item;
            match ticket {
                Ok(ticket) => {
                    item.request = Some(ticket.id());
                    item.state = ItemState::Queued;
                    self.owners.hold(ticket, owner, places.remove(&drv).flatten(), Stay::WhileAsked);
                }
                Err(no) => (item.state, item.reason) = (ItemState::Refused, Some(no.to_string())),
            }
        }
    }

    /// Adds the place of what is in the queue, whoever asked for it. A refusal stands where a builder is
    /// named: what is in the queue may be built on another one.
    fn place(&self, drafts: &mut [ItemDraft], on_one_builder: bool) {
        let mut places: Option<HashMap<u64, (usize, bool)>> = None;
        for ItemDraft { item, .. } in drafts {
            let stands = item.state == ItemState::Refused && on_one_builder;
            let is_open = !stands && item.state != ItemState::Served;
            let Some(drv) = item.drv.as_ref().filter(|_| is_open) else { continue };
            let Some(id) = self.builds.request_for(drv) else { continue };
            let places = places.get_or_insert_with(|| self.builds.places());
            if let Some((place, is_building)) = places.get(&id) {
                item.state = if *is_building { ItemState::Building } else { ItemState::Queued };
                (item.request, item.place, item.reason) = (Some(id), Some(*place), None);
            }
        }
    }
}

impl ItemDraft {
    fn new(drv: Option<StorePath>, outputs: Vec<ItemOutput>, lacks: Vec<StorePathHash>) -> Self {
        let state = ItemState::Unknown;
        let item = RequestItem { state, drv, request: None, place: None, reason: None, outputs };
        Self { item, lacks, decided: false }
    }

    fn ended(state: ItemState, drv: Option<StorePath>, reason: String) -> Self {
        let item = RequestItem { state, reason: Some(reason), ..Self::new(drv, Vec::new(), Vec::new()).item };
        Self { item, lacks: Vec::new(), decided: true }
    }

    /// The wanted outputs of a derivation that the Nix store has.
    fn of_derivation(drv: StorePath, known: &Outputs, choice: &OutputChoice) -> Self {
        let output = |name: &str, path: Option<&StorePath>| ItemOutput {
            name: Some(name.to_owned()),
            path: path.cloned(),
            served: false,
        };
        let outputs: Vec<ItemOutput> = match choice {
            OutputChoice::All => known.iter().map(|(name, path)| output(name, path.as_ref())).collect(),
            OutputChoice::Named(names) => {
                // Outputs of a content-addressed derivation are not known before they are built.
                let unknown = names.iter().find(|name| !known.is_empty() && !known.contains_key(*name));
                if let Some(name) = unknown {
                    let outputs: Vec<&str> = known.keys().map(String::as_str).collect();
                    let reason = format!("it has no output {name}, but {}", outputs.join(", "));
                    return Self::ended(ItemState::Refused, Some(drv), reason);
                }
                names.iter().map(|name| output(name, known.get(name).and_then(Option::as_ref))).collect()
            }
        };
        let lacks = outputs.iter().filter_map(|output| output.path.as_ref().map(StorePath::hash)).collect();
        Self::new(Some(drv), outputs, lacks)
    }

    fn apply(&mut self, found: &HashMap<StorePathHash, Surveyed>) {
        let mut lacks = Vec::new();
        let mut worst: Option<&Surveyed> = None;
        for hash in std::mem::take(&mut self.lacks) {
            match found.get(&hash) {
                Some(Surveyed::Served(path)) => self.serve(path),
                Some(finding) => {
                    lacks.push(hash);
                    worst = worst.filter(|worst| matches!(worst, Surveyed::Missing(..))).or(Some(finding));
                }
                None => lacks.push(hash),
            }
        }
        self.lacks = lacks;
        match worst {
            None if self.has_floating() => {}
            None if self.lacks.is_empty() => self.decide(ItemState::Served),
            None => {}
            Some(Surveyed::InStore(path)) => {
                self.item.state = ItemState::Known;
                for output in self.item.outputs.iter_mut().filter(|output| output.name.is_none()) {
                    output.path = Some(path.clone());
                }
            }
            Some(Surveyed::Buildable(drv)) => {
                self.item.state = ItemState::Known;
                self.item.drv.get_or_insert_with(|| drv.clone());
            }
            Some(Surveyed::Missing(drv, missing)) => {
                if self.item.drv.is_none() {
                    self.item.drv = drv.clone();
                }
                self.miss(missing);
            }
            Some(Surveyed::Served(_)) => {}
        }
        // Its outputs are known only once they are built.
        if self.has_floating() {
            self.item.state = ItemState::Known;
        }
    }

    fn located(&mut self, found: Vec<Result<Located, Missing>>) {
        let mut lacks = Vec::new();
        for (hash, found) in std::mem::take(&mut self.lacks).into_iter().zip(found) {
            match found {
                Ok(Located::Ready(ready)) => self.serve(&ready.path),
                Ok(Located::Derivation(drv)) => {
                    lacks.push(hash);
                    (self.item.state, self.item.drv, self.item.reason) = (ItemState::Known, Some(drv), None);
                }
                Err(missing) => {
                    lacks.push(hash);
                    self.miss(&missing);
                }
            }
        }
        self.lacks = lacks;
        if self.lacks.is_empty() && !self.has_floating() {
            self.item.reason = None;
            self.decide(ItemState::Served);
        }
    }

    /// True where it has to be looked for further before it is built.
    fn is_sought(&self, builds: &Scheduler) -> bool {
        let on_its_way = self.item.drv.as_ref().is_some_and(|drv| builds.contains(drv));
        let is_open = matches!(self.item.state, ItemState::Known | ItemState::Unknown);
        !self.decided && !on_its_way && is_open && !self.lacks.is_empty()
    }

    fn has_floating(&self) -> bool {
        let of_derivation = self.item.drv.is_some();
        let outputs = &self.item.outputs;
        of_derivation
            && (outputs.is_empty() || outputs.iter().any(|output| output.path.is_none()))
            && outputs.iter().all(|output| output.name.is_some())
    }

    fn serve(&mut self, path: &StorePath) {
        for output in &mut self.item.outputs {
            if output.name.is_none() || output.path.as_ref() == Some(path) {
                (output.path, output.served) = (Some(path.clone()), true);
            }
        }
    }

    fn miss(&mut self, missing: &Missing) {
        self.item.state = state_of(missing);
        self.item.reason = Some(missing.to_string());
    }

    fn decide(&mut self, state: ItemState) {
        (self.item.state, self.decided) = (state, true);
    }
}

/// State of an item that is missing for this reason.
#[must_use]
pub fn state_of(missing: &Missing) -> ItemState {
    match missing {
        Missing::NotBuilt(_) => ItemState::Known,
        Missing::Failed(failure) if failure.class != FailureClass::Refused => ItemState::Failed,
        Missing::Failed(_)
        | Missing::ServeOnly(_)
        | Missing::NotInCatalogue(_)
        | Missing::OnlyInCatalogue(_)
        | Missing::Denied { .. }
        | Missing::NeedsRight(_)
        | Missing::Unallowed(_)
        | Missing::Refused(_)
        | Missing::Unservable(_) => ItemState::Refused,
        Missing::Unknown
        | Missing::Unsure(_)
        | Missing::Unrealised { .. }
        | Missing::Incomplete { .. }
        | Missing::NoDaemon(_)
        | Missing::IndexUnavailable { .. }
        | Missing::Unavailable(_) => ItemState::Unknown,
    }
}

fn state_of_name(reason: &NoSuchName) -> ItemState {
    match reason {
        NoSuchName::Broken { .. } => ItemState::Failed,
        _ => ItemState::Unknown,
    }
}
