//! Adoption from upstreams: the narinfo of a path and those of its closure are published, each signed by a
//! trusted key or proven by its contents. Signed contents are fetched on request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narinfo::{NarHash, PathInfo, StorePath, StorePathHash};
use tokio::task::JoinSet;

use super::{Adopter, CLOSURE_PATHS_MAX, Error, TRIES_MAX, adopted_under_another_name};
use crate::causes::with_causes;
use crate::model::{PathRow, UpstreamNar};
use crate::packer::{NotProven, Packer, upstream_nar};
use crate::single_flight::{Joined, SingleFlight};
use crate::upstream::{Asker, FoundNarInfo, Lookup, Upstreams};

/// Contents that are proven at the same time for one path, with all that it refers to.
const PROVEN_AT_ONCE_MAX: usize = 4;
/// Searches for a path after an upstream was proven wrong, at most; each time another upstream is not
/// believed.
const LIES_MAX: usize = 16;

/// Result of a search for a path in upstreams.
#[derive(Clone, Debug)]
pub enum UpstreamResult {
    /// The path is served now.
    Published,
    /// No upstream has it, or none has all of its closure; with more reasons for the person who asked.
    NotFound(Arc<[String]>),
    /// A part of its closure is in the Nix store alone, and the daemon does not answer, for this reason.
    NoDaemon(Arc<str>),
    /// The index cannot be read or written, for this reason.
    IndexUnavailable(Arc<str>),
    /// Transient failure: not all upstreams could answer, or the path could not be adopted. With the reasons.
    Failed(Arc<[String]>),
}

/// Searches under way, each with its stage; clones share them.
#[derive(Clone, Default)]
pub struct Searches {
    flights: SingleFlight<StorePathHash, UpstreamResult>,
    stages: Stages,
}

/// Stages of the searches under way, in one line each for the clients that wait.
type Stages = Arc<Mutex<HashMap<StorePathHash, String>>>;

/// Stage of one search, as long as that is under way.
struct SearchStage<'a> {
    stages: &'a Stages,
    hash: StorePathHash,
}

impl SearchStage<'_> {
    fn tell(&self, stage: String) {
        lock(self.stages).insert(self.hash, stage);
    }
}

impl Drop for SearchStage<'_> {
    fn drop(&mut self) {
        lock(self.stages).remove(&self.hash);
    }
}

fn lock(stages: &Stages) -> MutexGuard<'_, HashMap<StorePathHash, String>> {
    stages.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closure of a path that an upstream has.
#[derive(Default)]
struct Closure {
    found: BTreeMap<StorePathHash, FoundNarInfo>,
    /// Paths that no upstream has, but the local store.
    local: Vec<StorePath>,
}

/// Paths that were proven in a search, with hash and size of their NARs.
type Proven = BTreeSet<(StorePathHash, NarHash, u64)>;

impl Adopter {
    /// Searches the upstreams for `hash`, and adopts the path and its closure, all or nothing. Equal requests
    /// share one search.
    pub async fn adopt_from_upstream(&self, hash: StorePathHash, asker: &Asker) -> UpstreamResult {
        if self.upstreams.is_empty() {
            return UpstreamResult::NotFound([].into());
        }
        match self.searches.flights.join(&hash).await {
            Joined::Follows(result) => result,
            // If this one leaves, another one who waits goes on.
            Joined::Leads(flight) => {
                let stage = SearchStage { stages: &self.searches.stages, hash };
                let result = self.search(hash, asker, &stage).await;
                flight.publish(result.clone());
                result
            }
        }
    }

    /// Stage of the search for `hash`, if there is one.
    #[must_use]
    pub fn search_stage(&self, hash: StorePathHash) -> Option<String> {
        lock(&self.searches.stages).get(&hash).cloned()
    }

    async fn search(&self, hash: StorePathHash, asker: &Asker, stage: &SearchStage<'_>) -> UpstreamResult {
        match self.try_search(hash, asker, stage).await {
            Ok(result) => result,
            Err(error) if let Some(reason) = error.lost() => UpstreamResult::NoDaemon(reason.into()),
            Err(Error::Index(error)) if error.is_transient() => {
                UpstreamResult::IndexUnavailable(with_causes(&error).into())
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%hash, error, "cannot adopt a path that an upstream has");
                let reason = "what was found could not be taken; the server's log has the details";
                UpstreamResult::Failed([reason.into()].into())
            }
        }
    }

    async fn try_search(
        &self,
        hash: StorePathHash,
        asker: &Asker,
        stage: &SearchStage<'_>,
    ) -> Result<UpstreamResult, Error> {
        // The caller looked at the index before this search was listed: one that ended between the two has
        // published the path.
        if self.index.served(vec![hash]).await?.contains_key(&hash) {
            return Ok(UpstreamResult::Published);
        }
        let (mut proven, mut tries, mut lies) = (Proven::new(), 0, Vec::new());
        while tries < TRIES_MAX && lies.len() < LIES_MAX {
            stage.tell("looking for it in other caches".into());
            let Closure { found, local } = match self.closure_of(hash, asker, stage).await? {
                Ok(closure) => closure,
                Err(result) => return Ok(result.after(lies)),
            };
            match self.prove(&found, &mut proven, stage).await {
                Ok(()) => {}
                // Another upstream may have the right contents.
                Err(NotProven::Refused(reason)) => {
                    lies.push(reason);
                    continue;
                }
                Err(NotProven::Failed(reason)) => return Ok(UpstreamResult::Failed([reason].into())),
            }
            self.adopt(&local).await?;
            let rows = found.into_values().map(|found| self.rows(found)).collect();
            if self.index.publish_from_upstream(rows).await? {
                return Ok(UpstreamResult::Published);
            }
            tries += 1;
        }
        if tries < TRIES_MAX { Ok(UpstreamResult::NotFound(lies.into())) } else { Err(Error::Unsteady) }
    }

    /// Finds the path and everything in its closure that is not served yet.
    async fn closure_of(
        &self,
        hash: StorePathHash,
        asker: &Asker,
        stage: &SearchStage<'_>,
    ) -> Result<Result<Closure, UpstreamResult>, Error> {
        let top = match find(&self.upstreams, &self.packer, hash, asker).await {
            Lookup::Found(found) => *found,
            Lookup::Missing(reasons) => return Ok(Err(UpstreamResult::NotFound(reasons.into()))),
            Lookup::Troubled(reasons) => return Ok(Err(UpstreamResult::Failed(reasons.into()))),
        };
        let top_path = top.info.path_info.path.clone();
        let mut closure = Closure::default();
        let (mut seen, mut level) =
            (BTreeSet::from([top_path.clone()]), top.info.path_info.references.clone());
        closure.found.insert(top_path.hash(), top);
        loop {
            level.retain(|path| seen.insert(path.clone()));
            let served = self.index.served(level.iter().map(StorePath::hash).collect()).await?;
            if let Some((path, served)) = adopted_under_another_name(&level, &served) {
                let reason = Error::OtherName { path, served }.to_string();
                return Ok(Err(UpstreamResult::NotFound([reason].into())));
            }
            level.retain(|path| !served.contains_key(&path.hash()));
            if level.is_empty() {
                return Ok(Ok(closure));
            }
            let mut next = BTreeSet::new();
            let (before, all) = (closure.found.len(), closure.found.len() + level.len());
            let mut lookups = self.find_all(level, asker);
            let mut looked_up = before;
            while let Some(lookup) = lookups.join_next().await {
                // Only a panic ends one early.
                let Ok((path, lookup)) = lookup else { return Err(Error::Unsteady) };
                looked_up += 1;
                stage.tell(format!(
                    "looking in other caches for what it refers to: {looked_up} of at least {all}"
                ));
                match lookup {
                    Lookup::Found(found) if found.info.path_info.path == path => {
                        next.extend(found.info.path_info.references.iter().cloned());
                        closure.found.insert(path.hash(), *found);
                    }
                    _ if self.local.valid_path(path.hash()).await?.as_ref() == Some(&path) => {
                        closure.local.push(path);
                    }
                    Lookup::Troubled(reasons) => {
                        let reason = format!("{top_path} needs {path}: {}", reasons.join("; "));
                        return Ok(Err(UpstreamResult::Failed([reason].into())));
                    }
                    Lookup::Found(_) | Lookup::Missing(_) => {
                        let reason =
                            format!("an upstream has {top_path}, but none has {path}, which it needs");
                        return Ok(Err(UpstreamResult::NotFound([reason].into())));
                    }
                }
            }
            if closure.found.len() > CLOSURE_PATHS_MAX {
                return Err(Error::TooLarge);
            }
            level = next;
        }
    }

    /// Searches for many paths at once; each upstream bounds the requests that it takes at a time.
    fn find_all(&self, paths: BTreeSet<StorePath>, asker: &Asker) -> JoinSet<(StorePath, Lookup)> {
        let mut searches = JoinSet::new();
        for path in paths {
            let (upstreams, packer, asker) = (self.upstreams.clone(), self.packer.clone(), asker.clone());
            searches.spawn(async move {
                let mut lookup = find(&upstreams, &packer, path.hash(), &asker).await;
                // One lost answer among very many must not fail the closure.
                if matches!(lookup, Lookup::Troubled(_)) {
                    lookup = find(&upstreams, &packer, path.hash(), &asker).await;
                }
                (path, lookup)
            });
        }
        searches
    }

    /// Fetches the contents of all paths that no trusted key has signed, except those that were proven
    /// before.
    async fn prove(
        &self,
        found: &BTreeMap<StorePathHash, FoundNarInfo>,
        proven: &mut Proven,
        stage: &SearchStage<'_>,
    ) -> Result<(), NotProven> {
        let claim = |found: &FoundNarInfo| {
            let PathInfo { path, nar_hash, nar_size, .. } = &found.info.path_info;
            (path.hash(), *nar_hash, *nar_size)
        };
        let mut unproven = found.values().filter(|found| !found.signed && !proven.contains(&claim(found)));
        let unproven: Vec<FoundNarInfo> = unproven.by_ref().cloned().collect();
        let all = unproven.len();
        let (mut proofs, mut unproven) = (JoinSet::new(), unproven.into_iter());
        let mut left = all;
        while left > 0 {
            while proofs.len() < PROVEN_AT_ONCE_MAX
                && let Some(found) = unproven.next()
            {
                let packer = self.packer.clone();
                proofs.spawn(async move { (claim(&found), packer.prove(&found).await) });
            }
            stage.tell(format!("fetching what is not signed, to verify it: {left} of {all} paths are left"));
            match proofs.join_next().await {
                Some(Ok((claim, outcome))) => {
                    outcome?;
                    proven.insert(claim);
                }
                _ => return Err(NotProven::Failed("it was abandoned".into())),
            }
            left -= 1;
        }
        Ok(())
    }

    /// Row of a path, with our signature beside those it has, and location of its contents.
    fn rows(&self, found: FoundNarInfo) -> (PathRow, UpstreamNar) {
        let nar = upstream_nar(&found);
        let mut row = PathRow { info: found.info.path_info, built: false };
        self.sign(&mut row);
        (row, nar)
    }
}

impl UpstreamResult {
    /// Adds the reasons of upstreams that were proven wrong before.
    fn after(self, lies: Vec<String>) -> Self {
        let all = |reasons: Arc<[String]>| lies.iter().chain(&*reasons).cloned().collect();
        match self {
            Self::Published | Self::NoDaemon(_) | Self::IndexUnavailable(_) => self,
            Self::NotFound(reasons) => Self::NotFound(all(reasons)),
            Self::Failed(reasons) => Self::Failed(all(reasons)),
        }
    }
}

/// Looks a path up in the upstreams, passing over those whose NAR is too large to be fetched.
async fn find(upstreams: &Upstreams, packer: &Packer, hash: StorePathHash, asker: &Asker) -> Lookup {
    let (mut passed_over, mut too_large) = (Vec::new(), Vec::new());
    loop {
        let found = match upstreams.find_beside(hash, &passed_over, asker).await {
            Lookup::Found(found) => found,
            Lookup::Missing(reasons) => return Lookup::Missing([too_large, reasons].concat()),
            Lookup::Troubled(reasons) => return Lookup::Troubled([too_large, reasons].concat()),
        };
        // Nothing is fetched of an upstream that clients are redirected to.
        let is_fetched = !found.redirect || !found.signed;
        let Some(max) = packer.fetches(found.info.path_info.nar_size).err().filter(|_| is_fetched) else {
            return Lookup::Found(found);
        };
        too_large.push(format!(
            "{}: {} has {} bytes, and no more than {max} are fetched (setting max-upstream-nar-bytes)",
            found.upstream, found.info.path_info.path, found.info.path_info.nar_size
        ));
        passed_over.push(found.upstream);
    }
}
