//! The decision: what happens when a hash is asked for. Read `Substitute::decide` from top to bottom.
//! Knows no HTTP; whatever goes wrong becomes a reason, never an error.

mod missing;
mod realisation;
mod survey;
mod unknown;
mod wait;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use narinfo::{StorePath, StorePathHash};

use crate::adopt::{self, Adopter, UpstreamResult};
use crate::build::{Failures, NotQueued, Scheduler, Ticket};
use crate::caller::Grant;
use crate::causes::with_causes;
use crate::index::{self, CachedNarInfo, Index};
use crate::model::{Failure, FailureClass, Maker};
use crate::nix::{LocalStore, LocalStoreError, read_derivation};
use crate::upstream::Asker;
pub use missing::Missing;
pub use survey::Surveyed;
pub use unknown::UnknownWaits;
pub use wait::{Exhausted, Wait, WaitEnd};
use wait::{Obstacle, Unanswered};

/// Age of a decision to build at which the next request for the same hash repeats it.
const JOINED_FOR: Duration = Duration::from_secs(1);
/// Reasons for the person who asked.
const UNREADABLE: &str = "the index cannot be read";
const NOT_ADOPTED: &str = "the path was found but could not be adopted";
/// Hashes of which such a decision is kept at most.
const JOINED_MAX: u64 = 10_000;

/// Where derivations may come from to be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Any derivation in the local Nix store, save those that a package set denies.
    Store,
    /// The derivations of package sets, save those that they deny.
    Catalogue,
}

/// Sources and patience.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The sources whose derivations are built on demand; none means serve only.
    pub build_from: Vec<Source>,
    /// Time for which a lost Nix daemon, an unavailable index, or upstreams in trouble, are waited for.
    pub transient_retry: Duration,
    /// Time for which a client waits for an unknown path.
    pub unknown_wait: Duration,
    /// The same as `transient_retry` for who only asks what is there, of upstreams and the index.
    pub report_retry: Duration,
}

/// Cost that a miss may have.
#[derive(Clone, Debug)]
pub enum OnMiss {
    /// A build, for a client with this address; `None` for who may administer.
    Build(Option<IpAddr>),
    /// A build, for a client with this address and a token that is bound to names or to a number of requests.
    BuildAs(IpAddr, Arc<Grant>),
    /// No build: only what is there, or in another cache, is of interest to a client with this address.
    Report(Option<IpAddr>),
    /// No build, since the client with this address lacks the right to have one.
    Unentitled(Option<IpAddr>),
    /// No build either: another cache of our kind asks.
    Relayed(Asker),
}

impl OnMiss {
    /// The same for what may not be built.
    #[must_use]
    pub fn without_building(self) -> Self {
        match self {
            Self::Build(client) => Self::Report(client),
            Self::BuildAs(client, _) => Self::Report(Some(client)),
            other => other,
        }
    }

    /// True where a miss is built.
    #[must_use]
    pub fn builds(&self) -> bool {
        matches!(self, Self::Build(_) | Self::BuildAs(..))
    }

    /// For whom other caches are asked.
    fn asker(&self) -> Asker {
        match self {
            Self::Build(client) | Self::Report(client) | Self::Unentitled(client) => {
                Asker { client: *client, ..Asker::default() }
            }
            Self::BuildAs(client, _) => Asker { client: Some(*client), ..Asker::default() },
            Self::Relayed(asker) => asker.clone(),
        }
    }
}

/// Outcome for a hash.
pub enum Resolution {
    /// The path is served.
    Ready(Arc<CachedNarInfo>),
    /// The path is being built, or will be.
    Wait(Ticket),
    /// The path is missing.
    Missing(Missing),
}

/// Place of what was asked for.
pub enum Located {
    /// The path is served.
    Ready(Arc<CachedNarInfo>),
    /// This derivation makes it, and may be built.
    Derivation(StorePath),
}

/// Decisions to build of the last moment, by hash: a crowd that asks for one path at once is not looked for
/// one by one.
#[derive(Clone, Debug)]
pub struct RecentDecisions(moka::sync::Cache<StorePathHash, StorePath>);

impl Default for RecentDecisions {
    fn default() -> Self {
        Self(moka::sync::Cache::builder().max_capacity(JOINED_MAX).time_to_live(JOINED_FOR).build())
    }
}

/// A derivation that gives what was asked for.
#[derive(Clone)]
struct KnownDerivation {
    drv: StorePath,
    /// Why it may not be built.
    no: Option<Missing>,
}

/// The decision and all that it needs.
pub struct Substitute {
    /// Index of served paths.
    pub index: Index,
    /// The Nix store on this machine.
    pub local: LocalStore,
    /// Adopter of paths, which are served from then on.
    pub adopter: Adopter,
    /// The queue.
    pub builds: Scheduler,
    /// Failures that are remembered.
    pub failures: Failures,
    /// Decisions of the last moment.
    pub joined: RecentDecisions,
    /// Hashes whose trouble was waited out in vain a moment ago.
    pub exhausted: Exhausted,
    /// Requests that wait for an unknown path.
    pub unknown_waits: UnknownWaits,
    /// Sources and patience.
    pub settings: Settings,
}

impl Substitute {
    /// Outcome for `hash`, if memory has it: the path is served, or known to be missing.
    #[must_use]
    pub fn lookup_cached(&self, hash: StorePathHash, on_miss: &OnMiss) -> Option<Resolution> {
        let answer = self.in_memory(hash)?;
        if matches!(&answer, Resolution::Missing(missing) if self.waits_for(missing, on_miss)) {
            return None;
        }
        if let Resolution::Ready(ready) = &answer {
            self.note_demand(ready, on_miss);
        }
        Some(answer)
    }

    /// Stage of a search, in one line for the client that waits.
    #[must_use]
    pub fn describe(&self, hash: StorePathHash) -> String {
        match self.local.outage() {
            Some((away, reason)) => format!("waiting for the Nix daemon for {} s: {reason}", away.as_secs()),
            None => self.adopter.search_stage(hash).unwrap_or_else(|| "looking for it".to_owned()),
        }
    }

    /// True where a client waits for what is missing, since someone may push it soon.
    fn waits_for(&self, missing: &Missing, on_miss: &OnMiss) -> bool {
        let is_unknown = matches!(missing, Missing::Unknown | Missing::Unsure(_));
        is_unknown
            && !self.settings.unknown_wait.is_zero()
            && matches!(on_miss, OnMiss::Build(Some(_)) | OnMiss::BuildAs(..))
    }

    /// Notes that a client asked for a path: it may be wanted again once it has changed.
    fn note_demand(&self, ready: &CachedNarInfo, on_miss: &OnMiss) {
        if let (Some(deriver), true) = (&ready.deriver, on_miss.builds()) {
            self.builds.note_demand(deriver);
        }
    }

    /// One attempt at `hash`: in memory, served, in the local store, in an upstream, being built, failed
    /// before, or to be built; else a reason. Waits for nothing.
    async fn decide(&self, hash: StorePathHash, on_miss: &OnMiss) -> Result<Resolution, Unanswered> {
        if let Some(answer) = self.in_memory(hash) {
            return Ok(answer);
        }
        if on_miss.builds()
            && let Some(drv) = self.joined.0.get(&hash)
            && self.builds.contains(&drv)
        {
            return Ok(self.join(&drv, on_miss).await?);
        }
        if let Some(ready) = Box::pin(self.served(hash)).await? {
            return Ok(Resolution::Ready(ready));
        }
        // In a box, since very many may be at the question before.
        let mut trouble = Arc::from([]);
        let looked = Box::pin(async {
            match self.look(hash, on_miss, &mut trouble).await? {
                Located::Ready(ready) => Ok(Resolution::Ready(ready)),
                Located::Derivation(drv) => {
                    if on_miss.builds() {
                        self.joined.0.insert(hash, drv.clone());
                    }
                    self.join(&drv, on_miss).await
                }
            }
        });
        looked.await.map_err(|missing| match missing {
            missing @ (Missing::NoDaemon(_) | Missing::IndexUnavailable { .. }) => missing.into(),
            missing if trouble.is_empty() => missing.into(),
            missing => Unanswered { missing, trouble: Some(Obstacle::Upstreams(trouble)) },
        })
    }

    /// One attempt at `hash`, like that of a request for its narinfo, but nothing is joined.
    ///
    /// # Errors
    /// The path is missing, or its state cannot be determined now.
    pub async fn locate(&self, hash: StorePathHash, on_miss: &OnMiss) -> Result<Located, Missing> {
        match self.in_memory(hash) {
            Some(Resolution::Ready(ready)) => return Ok(Located::Ready(ready)),
            Some(Resolution::Missing(missing)) => return Err(missing),
            Some(Resolution::Wait(_)) | None => {}
        }
        match self.served(hash).await? {
            Some(ready) => Ok(Located::Ready(ready)),
            None => self.look(hash, on_miss, &mut Arc::from([])).await,
        }
    }

    /// Looks beyond the index; what kept other caches from telling, which may pass, goes into `troubled`.
    async fn look(
        &self,
        hash: StorePathHash,
        on_miss: &OnMiss,
        troubled: &mut Arc<[String]>,
    ) -> Result<Located, Missing> {
        // What another cache has, or is known already, needs no daemon.
        let no_daemon = match Box::pin(self.in_local_store(hash)).await {
            Ok(Some(ready)) => return Ok(Located::Ready(ready)),
            Ok(None) => None,
            Err(reason @ Missing::NoDaemon(_)) => Some(reason),
            Err(reason) => return Err(reason),
        };
        let troubles = match Box::pin(self.adopter.adopt_from_upstream(hash, &on_miss.asker())).await {
            UpstreamResult::Published => match Box::pin(self.served(hash)).await? {
                Some(ready) => return Ok(Located::Ready(ready)),
                None => [].into(),
            },
            UpstreamResult::NotFound(reasons) => reasons,
            UpstreamResult::Failed(reasons) => {
                *troubled = Arc::clone(&reasons);
                reasons
            }
            UpstreamResult::NoDaemon(reason) => return Err(Missing::NoDaemon(reason.to_string())),
            UpstreamResult::IndexUnavailable(cause) => {
                return Err(Missing::IndexUnavailable { reason: NOT_ADOPTED, cause });
            }
        };
        let drv = match Box::pin(self.derivation_for(hash)).await? {
            Some(KnownDerivation { drv, no: None }) => drv,
            Some(KnownDerivation { drv, no: Some(no) }) => {
                // A remembered failure is answered first: it holds on every machine.
                return Err(Box::pin(self.failure(&drv))
                    .await?
                    .map_or(no, |failure| Missing::Failed(Arc::new(failure))));
            }
            None if no_daemon.is_some() => return Err(no_daemon.unwrap_or(Missing::Unknown)),
            None if troubles.is_empty() => return Err(Missing::Unknown),
            None => return Err(Missing::Unsure(troubles)),
        };
        if !self.builds.contains(&drv)
            && let Some(failure) = Box::pin(self.failure(&drv)).await?
        {
            return Err(Missing::Failed(Arc::new(failure)));
        }
        match (on_miss, no_daemon) {
            (OnMiss::Unentitled(_), _) => Err(Missing::NeedsRight(drv)),
            (OnMiss::Report(_) | OnMiss::Relayed(_), Some(no_daemon)) => Err(no_daemon),
            _ => Ok(Located::Derivation(drv)),
        }
    }

    /// Joins the build of a derivation, or has it queued, where that may be done.
    async fn join(&self, drv: &StorePath, on_miss: &OnMiss) -> Result<Resolution, Missing> {
        let (client, place) = match on_miss {
            OnMiss::Build(client) => (*client, None),
            OnMiss::BuildAs(client, grant) => {
                let place =
                    grant.place(drv.name()).map_err(|refusal| Missing::Unallowed(refusal.to_string()))?;
                (Some(*client), Some(place))
            }
            OnMiss::Report(_) | OnMiss::Unentitled(_) | OnMiss::Relayed(_) => {
                return Err(Missing::NotBuilt(drv.clone()));
            }
        };
        match Box::pin(self.builds.join(drv, client)).await {
            Ok(ticket) => Ok(Resolution::Wait(ticket.with_place(place))),
            Err(NotQueued::Unrecorded(cause)) => {
                Err(Missing::IndexUnavailable { reason: "the queue cannot be written", cause })
            }
            Err(full) => Err(Missing::Refused(full.to_string())),
        }
    }

    /// One attempt at the path with this hash, once its build has ended.
    async fn after_build(&self, hash: StorePathHash) -> Result<Resolution, Unanswered> {
        let ready = self.served(hash).await?;
        Ok(Resolution::Ready(ready.ok_or(Missing::Unavailable("the build ended without this output"))?))
    }

    /// The derivations that make a path, as far as they are known: the one that made what is served first.
    ///
    /// # Errors
    /// The index or the Nix store cannot be asked.
    pub async fn makers_of(&self, path: &StorePath) -> Result<Vec<StorePath>, Missing> {
        let hash = path.hash();
        let served = self.index.find(hash).await.map_err(|e| trouble(&e, UNREADABLE))?;
        let mut makers: Vec<StorePath> = served.and_then(|hit| hit.row.info.deriver).into_iter().collect();
        let listed = self.index.makers(hash).await.map_err(|e| trouble(&e, UNREADABLE))?;
        makers.extend(listed.into_iter().map(|maker| maker.drv));
        makers.extend(self.local.derivers_of(hash).await.map_err(|error| local_trouble(&error))?);
        Ok(makers)
    }

    async fn served(&self, hash: StorePathHash) -> Result<Option<Arc<CachedNarInfo>>, Missing> {
        let found = self.adopter.lookup(hash).await.map_err(|e| index_trouble(&e, UNREADABLE))?;
        let Some(found) = found else { return Ok(None) };
        let narinfo = self.adopter.narinfo(&found.hit).into();
        let ready = self.index.cache(found, narinfo);
        // A client that has the narinfo asks for the NAR next, which must not be evicted until then.
        self.index.note_use(&ready);
        Ok(Some(ready))
    }

    fn cached_narinfo(&self, hash: StorePathHash) -> Option<Arc<CachedNarInfo>> {
        let ready = self.index.lookup_cached(hash)?;
        self.index.note_use(&ready);
        Some(ready)
    }

    /// Outcome that memory has.
    fn in_memory(&self, hash: StorePathHash) -> Option<Resolution> {
        if let Some(ready) = self.cached_narinfo(hash) {
            return Some(Resolution::Ready(ready));
        }
        let nowhere = self.index.definitely_absent(hash)
            && self.local.definitely_absent(hash)
            && self.adopter.upstreams.definitely_absent(hash);
        nowhere.then_some(Resolution::Missing(Missing::Unknown))
    }

    /// The path in the local Nix store, which is served from then on.
    async fn in_local_store(&self, hash: StorePathHash) -> Result<Option<Arc<CachedNarInfo>>, Missing> {
        match self.local.valid_path(hash).await.map_err(|error| local_trouble(&error))? {
            Some(path) => self.adopt(&path).await,
            None => Ok(None),
        }
    }

    /// `None` when the path was collected in this very moment: then it is as if it had not been there.
    async fn adopt(&self, path: &StorePath) -> Result<Option<Arc<CachedNarInfo>>, Missing> {
        match self.adopter.adopt(std::slice::from_ref(path)).await {
            Ok(()) => self.served(path.hash()).await,
            Err(adopt::Error::NotValid(_)) => Ok(None),
            Err(error @ (adopt::Error::Unservable { .. } | adopt::Error::OtherName { .. })) => {
                Err(Missing::Unservable(error.to_string()))
            }
            Err(adopt::Error::Secret(_)) => Err(Missing::Unavailable(
                "a store path in its closure has the signing key of this cache in it, and is never served",
            )),
            Err(adopt::Error::Index(error)) => Err(index_trouble(&error, NOT_ADOPTED)),
            // As storage that is away: whoever waits for the index waits for it, too.
            Err(error @ adopt::Error::Pack(_)) => {
                Err(Missing::IndexUnavailable { reason: NOT_ADOPTED, cause: with_causes(&error).into() })
            }
            Err(error) => Err(match error.lost() {
                Some(reason) => Missing::NoDaemon(reason),
                None => trouble(&error, NOT_ADOPTED),
            }),
        }
    }

    /// The derivation to build for `hash`, or one that may not be built and why. Several may give the same
    /// output: one that is on its way already, else one that has not failed, else the first; those of current
    /// package sets come first.
    async fn derivation_for(&self, hash: StorePathHash) -> Result<Option<KnownDerivation>, Missing> {
        let stored = self.local.derivers_of(hash).await.map_err(|error| local_trouble(&error))?;
        let listed = self.index.makers(hash).await.map_err(|e| index_trouble(&e, UNREADABLE))?;
        let makers = self.makers_with_verdicts(listed, stored);
        let allowed = || makers.iter().filter(|known| known.no.is_none());
        if let Some(known) = allowed().find(|known| self.builds.contains(&known.drv)) {
            return Ok(Some(known.clone()));
        }
        for known in allowed() {
            if self.failure(&known.drv).await?.is_none() {
                return Ok(Some(known.clone()));
            }
        }
        Ok(allowed().next().or(makers.first()).cloned())
    }

    /// The derivations that package sets, and then those that the Nix store alone has for an output, each
    /// with the reason where it may not be built.
    fn makers_with_verdicts(&self, listed: Vec<Maker>, stored: Vec<StorePath>) -> Vec<KnownDerivation> {
        let listed_drvs: Vec<StorePath> = listed.iter().map(|maker| maker.drv.clone()).collect();
        let makers = listed
            .into_iter()
            .map(|Maker { drv, denied_by }| {
                let no = denied_by.map(|set| Missing::Denied { drv: drv.clone(), set });
                (drv, no, true)
            })
            .chain(stored.into_iter().filter(|drv| !listed_drvs.contains(drv)).map(|drv| (drv, None, false)));
        let from = |source| self.settings.build_from.contains(&source);
        makers
            .map(|(drv, denied, listed)| {
                let no = denied.or_else(|| match listed {
                    _ if from(Source::Store) || (listed && from(Source::Catalogue)) => None,
                    _ if self.settings.build_from.is_empty() => Some(Missing::ServeOnly(drv.clone())),
                    true => Some(Missing::OnlyInCatalogue(drv.clone())),
                    false => Some(Missing::NotInCatalogue(drv.clone())),
                });
                KnownDerivation { drv, no }
            })
            .collect()
    }

    async fn failure(&self, drv: &StorePath) -> Result<Option<Failure>, Missing> {
        let unreadable = |error| index_trouble(&error, UNREADABLE);
        let Some(failure) = self.failures.of(drv).await.map_err(unreadable)? else { return Ok(None) };
        if failure.class != FailureClass::Refused && self.is_built(&failure.cause).await {
            // By hand, since nothing is built here that is remembered to fail.
            self.failures.forget(&failure.cause).await.map_err(unreadable)?;
            return Ok(None);
        }
        Ok(Some(failure))
    }

    /// True when all outputs of a derivation are in the Nix store; false where that cannot be determined.
    async fn is_built(&self, drv: &StorePath) -> bool {
        let (store_dir, of) = (self.adopter.store_dir.clone(), drv.clone());
        let read = tokio::task::spawn_blocking(move || read_derivation(&store_dir, &of)).await;
        let Ok(Ok(derivation)) = read else { return false };
        for path in derivation.outputs.into_values() {
            let Some(path) = path else { return false };
            if !matches!(self.local.valid_path(path.hash()).await, Ok(Some(_))) {
                return false;
            }
        }
        true
    }
}

fn local_trouble(error: &LocalStoreError) -> Missing {
    match error.lost() {
        // Logged where the connection was attempted.
        Some(reason) => Missing::NoDaemon(reason),
        None => trouble(error, "the Nix store cannot be asked"),
    }
}

/// Trouble of the index. What may pass is logged by the wait for it.
fn index_trouble(error: &index::Error, reason: &'static str) -> Missing {
    if error.is_transient() {
        return Missing::IndexUnavailable { reason, cause: with_causes(error).into() };
    }
    trouble(error, reason)
}

/// Logged once, here; the client gets the stable reason.
fn trouble(error: &(dyn std::error::Error + 'static), reason: &'static str) -> Missing {
    tracing::error!(error, "{reason}");
    Missing::Unavailable(reason)
}
