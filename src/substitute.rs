//! The decision: what happens when a hash is asked for. Read [`Substitute::ask`] from top to bottom.
//! Knows no HTTP; whatever goes wrong becomes a reason, never an error.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use narinfo::{DrvOutput, Realisation, StorePath, StorePathHash};

use crate::adopt::{self, Adopter, Elsewhere};
use crate::build::{Builds, Failures, Ticket};
use crate::index::{Failure, FailureClass, Hit, Index, Maker, Ready};
use crate::nix::{LocalStore, read_derivation};
use crate::upstream::Via;

/// Realisations that one may need in all.
const REALISATIONS_MAX: usize = 10_000;

/// Where derivations may come from to be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Any derivation in the local Nix store, save those that a package set denies.
    Store,
    /// The derivations of package sets, save those that they deny.
    Catalogue,
}

/// What may be built.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The sources whose derivations are built on demand; none means serve only.
    pub build_from: Vec<Source>,
}

/// What a miss may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnMiss {
    /// A build, for a client with this address; `None` for who may administer.
    Build(Option<IpAddr>),
    /// No build: only what is there, or in another cache, is of interest.
    Report,
    /// No build either: another cache of our kind asks, and the request has come this way.
    Relayed(Via),
}

/// What becomes of a hash.
pub enum Answer {
    /// It is served.
    Ready(Arc<Ready>),
    /// It is being built, or will be.
    Wait(Ticket),
    /// It is not to be had.
    Missing(Missing),
}

/// Why a path is not to be had. The text is for the person who asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Missing {
    /// Nobody knows the hash.
    #[error(
        "unknown: neither this cache nor its Nix store has a path or a derivation with this hash; put the derivation into the server's store and ask again"
    )]
    Unknown,
    /// Nobody knows the hash, but not every cache behind this one could tell.
    #[error("unknown: neither this cache nor its Nix store has a path or a derivation with this hash; of the caches behind it:\n{}", .0.join("\n"))]
    Unsure(Arc<[String]>),
    /// It could be built, but that was not asked for.
    #[error("not built yet: {0} makes it; ask with GET outside /cached/ to have it built")]
    NotBuilt(StorePath),
    /// It could be built, but this server builds nothing.
    #[error("not built: {0} makes it, but this server only serves (its setting build-from is empty)")]
    ServeOnly(StorePath),
    /// It could be built, but is in none of the sources that are built from.
    #[error(
        "not built: {0} makes it, which is in no package set, and this server builds nothing else (setting build-from)"
    )]
    NotInCatalogue(StorePath),
    /// It is in the store only where package sets alone may not be built.
    #[error(
        "not built: {0} makes it, which only a package set has, and this server does not build those (setting build-from)"
    )]
    OnlyInCatalogue(StorePath),
    /// A package set says no.
    #[error("refused: {drv} makes it, which the package set {set} denies")]
    Denied {
        /// What makes it.
        drv: StorePath,
        /// The set that denies it.
        set: String,
    },
    /// It was tried.
    #[error("{}", failure_text(.0))]
    Failed(Arc<Failure>),
    /// Too many wait.
    #[error("refused: {0}")]
    Refused(String),
    /// Nobody has a realisation of this output; what the caches behind this one said of it.
    #[error("unknown: neither this cache nor its Nix store has a realisation of {id}; {}", unrealised(.id, .reasons))]
    Unrealised {
        /// The output.
        id: DrvOutput,
        /// What they said.
        reasons: Vec<String>,
    },
    /// There is one, but not all that it leads to.
    #[error("not served: {id} is {path}, but {reason}")]
    Incomplete {
        /// The output.
        id: DrvOutput,
        /// Its path.
        path: StorePath,
        /// What is missing.
        reason: String,
    },
    /// The server cannot tell at the moment.
    #[error("unavailable: {0}; the server's log has the details")]
    Unavailable(&'static str),
}

fn unrealised(id: &DrvOutput, reasons: &[String]) -> String {
    let mut text = match id.drv() {
        None => "build the derivation on the server, and ask again".to_owned(),
        Some(_) => "by the path of a derivation only those are found here that need no other derivation (resolved ones) and \
                    are in the store where they were built"
            .to_owned(),
    };
    if !reasons.is_empty() {
        text.push_str("; of the caches behind it:\n");
        text.push_str(&reasons.join("\n"));
    }
    text
}

fn failure_text(failure: &Failure) -> String {
    let left = failure.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
    let left = humantime::format_duration(std::time::Duration::from_secs(left.as_secs()));
    let Failure { drv, cause, reason, .. } = failure;
    let class = failure.class.as_str();
    if failure.class == FailureClass::Refused {
        return format!(
            "refused: {drv} cannot be built here\nreason: {reason}\nlooked at again: on request, in {left}"
        );
    }
    format!(
        "failed ({class}): {drv}\ncause: {cause}\nreason: {reason}\nlog: /log/{cause}\ntried again: on request, in {left}"
    )
}

/// A derivation that gives what was asked for.
#[derive(Clone)]
struct Known {
    drv: StorePath,
    /// Why it may not be built.
    no: Option<Missing>,
}

/// Decides; clones share what it needs.
#[derive(Clone)]
pub struct Substitute {
    /// What is served.
    pub index: Index,
    /// What Nix has on this machine.
    pub local: LocalStore,
    /// What makes a local path a served one.
    pub adopter: Adopter,
    /// The queue.
    pub builds: Builds,
    /// Failures that are remembered.
    pub failures: Failures,
    /// What may be built.
    pub settings: Settings,
}

impl Substitute {
    /// What becomes of `hash`, if that can be said from memory: it is served, or nobody has it.
    #[must_use]
    pub fn at_hand(&self, hash: StorePathHash, on_miss: &OnMiss) -> Option<Answer> {
        let answer = self.settled(hash)?;
        self.note_demand(&answer, on_miss);
        Some(answer)
    }

    /// What becomes of `hash`: at hand, served, in the local store, in another cache, being built, failed before, or to be built; else
    /// a reason.
    pub async fn ask(&self, hash: StorePathHash, on_miss: OnMiss) -> Answer {
        let answer = self.decide(hash, on_miss.clone()).await.unwrap_or_else(Answer::Missing);
        self.note_demand(&answer, &on_miss);
        answer
    }

    /// What a client asks for may be wanted again once it has changed.
    fn note_demand(&self, answer: &Answer, on_miss: &OnMiss) {
        if let (Answer::Ready(ready), OnMiss::Build(_)) = (answer, on_miss)
            && let Some(deriver) = &ready.deriver
        {
            self.builds.note(deriver);
        }
    }

    async fn decide(&self, hash: StorePathHash, on_miss: OnMiss) -> Result<Answer, Missing> {
        if let Some(answer) = self.settled(hash) {
            return Ok(answer);
        }
        if let Some(ready) = self.served(hash).await? {
            return Ok(Answer::Ready(ready));
        }
        if let Some(path) =
            self.local.valid_path(hash).await.map_err(|e| trouble(&e, "the Nix store cannot be asked"))?
            && let Some(ready) = Box::pin(self.adopt(&path)).await?
        {
            return Ok(Answer::Ready(ready));
        }
        let via = if let OnMiss::Relayed(via) = &on_miss { via.clone() } else { Via::default() };
        let elsewhere = match Box::pin(self.adopter.adopt_from_upstream(hash, &via)).await {
            Elsewhere::Published => match self.served(hash).await? {
                Some(ready) => return Ok(Answer::Ready(ready)),
                None => [].into(),
            },
            Elsewhere::Nowhere(reasons) => reasons,
            Elsewhere::Trouble => {
                ["what was found could not be taken; the server's log has the details".into()].into()
            }
        };
        let drv = match Box::pin(self.derivation_for(hash)).await? {
            Some(Known { drv, no: None }) => drv,
            Some(Known { drv, no: Some(no) }) => {
                // What is known to fail is told first: it is so wherever it may be built.
                return Err(Box::pin(self.failure(&drv))
                    .await?
                    .map_or(no, |failure| Missing::Failed(Arc::new(failure))));
            }
            None if elsewhere.is_empty() => return Err(Missing::Unknown),
            None => return Err(Missing::Unsure(elsewhere)),
        };
        if !self.builds.contains(&drv)
            && let Some(failure) = self.failure(&drv).await?
        {
            return Err(Missing::Failed(Arc::new(failure)));
        }
        let OnMiss::Build(client) = on_miss else { return Err(Missing::NotBuilt(drv)) };
        let ticket = self.builds.ask(&drv, client).await;
        ticket.map(Answer::Wait).map_err(|full| Missing::Refused(full.to_string()))
    }

    /// What the index says of `hash`, once a build has ended.
    ///
    /// # Errors
    /// When it is not served after all.
    pub async fn after_build(&self, hash: StorePathHash) -> Result<Arc<Ready>, Missing> {
        if let Some(ready) = self.remembered(hash) {
            return Ok(ready);
        }
        // In a box: of very many who have waited for it, nearly all find it remembered.
        let ready = Box::pin(self.served(hash)).await?;
        ready.ok_or(Missing::Unavailable("the build ended without this output"))
    }

    /// What an output of a content-addressed derivation is, as the index, the local store or another cache has it, with
    /// all that it leads to; else a reason. Builds nothing. The request has come this way.
    ///
    /// # Errors
    /// When nobody knows, or what it leads to is not to be had.
    pub async fn realisation(&self, id: &DrvOutput, via: &Via) -> Result<Realisation, Missing> {
        if let Some(realisation) = self.realised(id).await? {
            return Ok(realisation);
        }
        // Clients ask for those that it needs, too: it is of use with all of them.
        let (mut found, mut wanted) = (BTreeMap::new(), BTreeSet::from([id.clone()]));
        while let Some(next) = wanted.pop_first() {
            let realisation = match self.realised(&next).await? {
                Some(realisation) => realisation,
                None => self.find_realisation(&next, via).await?,
            };
            wanted.extend(realisation.dependencies().keys().filter(|id| !found.contains_key(*id)).cloned());
            found.insert(next.clone(), realisation);
            wanted.remove(&next);
            if found.len() > REALISATIONS_MAX {
                let reason = format!("it needs more than {REALISATIONS_MAX} realisations");
                return Err(incomplete(&found[id], reason));
            }
        }
        for realisation in found.values() {
            for (other, path) in realisation.dependencies() {
                if found[other].path() != path {
                    let reason =
                        format!("it needs {other} to be {path}, which is {} here", found[other].path());
                    return Err(incomplete(realisation, reason));
                }
            }
        }
        let published = self.adopter.publish_realisations(found.into_values().collect()).await;
        published.map_err(|error| trouble(&error, "the realisation could not be taken"))?;
        self.realised(id).await?.ok_or(Missing::Unavailable("the path was lost in this moment"))
    }

    async fn realised(&self, id: &DrvOutput) -> Result<Option<Realisation>, Missing> {
        let realisation = self.index.realisation(id.clone()).await;
        let mut realisation = realisation.map_err(|e| trouble(&e, "the index cannot be read"))?;
        realisation.iter_mut().for_each(|realisation| self.adopter.keys.complete_realisation(realisation));
        Ok(realisation)
    }

    /// What the local store or another cache says, if the path can be served, which then is.
    async fn find_realisation(&self, id: &DrvOutput, via: &Via) -> Result<Realisation, Missing> {
        let local = self.local.realisation(id).await;
        if let Some(realisation) = local.map_err(|e| trouble(&e, "the Nix store cannot be asked"))?
            && self.serve(&realisation, via).await.is_ok()
        {
            return Ok(realisation);
        }
        match self.adopter.upstreams.find_realisation(id, via).await {
            Ok(realisation) => self.serve(&realisation, via).await.map(|()| realisation),
            Err(reasons) => Err(Missing::Unrealised { id: id.clone(), reasons }),
        }
    }

    /// Has the path that a realisation names served.
    async fn serve(&self, realisation: &Realisation, via: &Via) -> Result<(), Missing> {
        let path = realisation.path();
        // In a box, since it is large.
        match Box::pin(self.ask(path.hash(), OnMiss::Relayed(via.clone()))).await {
            Answer::Ready(ready) if ready.path == *path => Ok(()),
            Answer::Ready(ready) => Err(incomplete(realisation, format!("that hash is {} here", ready.path))),
            Answer::Missing(reason) => Err(incomplete(realisation, reason.to_string())),
            Answer::Wait(_) => Err(incomplete(realisation, "it is not built yet".into())),
        }
    }

    async fn served(&self, hash: StorePathHash) -> Result<Option<Arc<Ready>>, Missing> {
        let render = |hit: &Hit| self.adopter.narinfo(hit).into();
        let ready = self.index.find_ready(hash, render).await;
        let ready = ready.map_err(|e| trouble(&e, "the index cannot be read"))?;
        // Whoever is told of a path will ask for its contents: they are not to go meanwhile.
        ready.iter().for_each(|ready| self.index.note_use(ready));
        Ok(ready)
    }

    fn remembered(&self, hash: StorePathHash) -> Option<Arc<Ready>> {
        let ready = self.index.remembered(hash)?;
        self.index.note_use(&ready);
        Some(ready)
    }

    /// What memory says.
    fn settled(&self, hash: StorePathHash) -> Option<Answer> {
        if let Some(ready) = self.remembered(hash) {
            return Some(Answer::Ready(ready));
        }
        let nowhere = self.index.surely_lacks(hash)
            && self.local.surely_lacks(hash)
            && self.adopter.upstreams.surely_lack(hash);
        nowhere.then_some(Answer::Missing(Missing::Unknown))
    }

    /// `None` when the path was collected in this very moment: then it is as if it had not been there.
    async fn adopt(&self, path: &StorePath) -> Result<Option<Arc<Ready>>, Missing> {
        match self.adopter.adopt(std::slice::from_ref(path)).await {
            Ok(()) => self.served(path.hash()).await,
            Err(adopt::Error::NotValid(_)) => Ok(None),
            Err(adopt::Error::Damaged(_)) => Err(Missing::Unavailable(
                "a store path in its closure is damaged on the server (nix-store --verify --check-contents --repair)",
            )),
            Err(adopt::Error::Secret(_)) => Err(Missing::Unavailable(
                "a store path in its closure has the signing key of this cache in it, and is never served",
            )),
            Err(error) => Err(trouble(&error, "the path is in the Nix store but could not be adopted")),
        }
    }

    /// The derivation to build for `hash`, or one that may not be built and why. Several may give the same output: one that is on
    /// its way already, else one that has not failed, else the first; those of current package sets come first.
    async fn derivation_for(&self, hash: StorePathHash) -> Result<Option<Known>, Missing> {
        let stored =
            self.local.derivers_of(hash).await.map_err(|e| trouble(&e, "the Nix store cannot be asked"))?;
        let listed = self.index.makers(hash).await.map_err(|e| trouble(&e, "the index cannot be read"))?;
        let listed_drvs: Vec<StorePath> = listed.iter().map(|maker| maker.drv.clone()).collect();
        let makers = listed
            .into_iter()
            .map(|Maker { drv, denied_by }| {
                let no = denied_by.map(|set| Missing::Denied { drv: drv.clone(), set });
                (drv, no, true)
            })
            .chain(stored.into_iter().filter(|drv| !listed_drvs.contains(drv)).map(|drv| (drv, None, false)));
        let from = |source| self.settings.build_from.contains(&source);
        let makers: Vec<Known> = makers
            .map(|(drv, denied, listed)| {
                let no = denied.or_else(|| match listed {
                    _ if from(Source::Store) || (listed && from(Source::Catalogue)) => None,
                    _ if self.settings.build_from.is_empty() => Some(Missing::ServeOnly(drv.clone())),
                    true => Some(Missing::OnlyInCatalogue(drv.clone())),
                    false => Some(Missing::NotInCatalogue(drv.clone())),
                });
                Known { drv, no }
            })
            .collect();
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

    async fn failure(&self, drv: &StorePath) -> Result<Option<Failure>, Missing> {
        let unreadable = |error| trouble(&error, "the index cannot be read");
        let Some(failure) = self.failures.of(drv).await.map_err(unreadable)? else { return Ok(None) };
        if failure.class != FailureClass::Refused && self.is_built(&failure.cause).await {
            // By hand, since nothing is built here that is remembered to fail.
            self.failures.forget(&failure.cause).await.map_err(unreadable)?;
            return Ok(None);
        }
        Ok(Some(failure))
    }

    /// Whether all outputs of a derivation are in the Nix store; false where that cannot be told.
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

fn incomplete(realisation: &Realisation, reason: String) -> Missing {
    let (id, path) = (realisation.id().clone(), realisation.path().clone());
    Missing::Incomplete { id, path, reason }
}

/// Logged once, here; the client gets the stable reason.
fn trouble(error: &(dyn std::error::Error + 'static), reason: &'static str) -> Missing {
    tracing::error!(error, "{reason}");
    Missing::Unavailable(reason)
}
