//! What another cache has is adopted from there: its narinfo and those of its closure, each signed by a key that is trusted
//! for it, or of a path whose contents have proven it. Signed contents are fetched when somebody asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use narinfo::{NarHash, PathInfo, StorePath, StorePathHash};
use tokio::task::JoinSet;

use super::{Adopter, Asking, CLOSURE_PATHS_MAX, Error, TRIES_MAX, adopted_under_another_name};
use crate::index::{PathRow, UpstreamNar};
use crate::packer::{NotProven, Packer, upstream_nar};
use crate::upstream::{Asker, FoundNarInfo, Lookup, Upstreams};

/// Contents that are proven at the same time for one path, with all that it refers to.
const PROVEN_AT_ONCE_MAX: usize = 4;
/// How often a path is looked for anew because what was found did not prove true; each time another upstream is disbelieved.
const LIES_MAX: usize = 16;

/// What came of looking for a path in other caches.
#[derive(Clone, Debug)]
pub enum Elsewhere {
    /// It is served now.
    Published,
    /// Nobody has it, or nobody has all of its closure; what was said of it else, for the person who asked.
    Nowhere(Arc<[String]>),
    /// A part of its closure is in the Nix store alone, and the daemon does not answer; how it does not.
    NoDaemon(Arc<str>),
    /// Somebody may have it: not all could tell, or it could not be taken, which may pass. Why.
    Troubled(Arc<[String]>),
}

/// A search under way, and how far it is.
#[derive(Debug, Default)]
pub struct Search {
    outcome: tokio::sync::OnceCell<Elsewhere>,
    stage: std::sync::Mutex<String>,
}

impl Search {
    fn tell(&self, stage: String) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }
}

/// One who waits for a search. The last one takes it off the list.
struct Waiting<'a> {
    asking: &'a Asking,
    hash: StorePathHash,
    search: Arc<Search>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let is_listed = asking.get(&self.hash).is_some_and(|listed| Arc::ptr_eq(listed, &self.search));
        // The list has one, and this is another.
        if is_listed && (self.search.outcome.initialized() || Arc::strong_count(&self.search) <= 2) {
            asking.remove(&self.hash);
        }
    }
}

/// A closure as far as upstreams have it.
#[derive(Default)]
struct Closure {
    found: BTreeMap<StorePathHash, FoundNarInfo>,
    /// What no upstream has, but the local store.
    local: Vec<StorePath>,
}

/// What was proven in a search: a path, and what was said of its contents.
type Proven = BTreeSet<(StorePathHash, NarHash, u64)>;

impl Adopter {
    /// Looks for `hash` in the upstreams, and adopts it and all that it refers to, all or nothing. Equal requests share one
    /// search.
    pub async fn adopt_from_upstream(&self, hash: StorePathHash, asker: &Asker) -> Elsewhere {
        if self.upstreams.is_empty() {
            return Elsewhere::Nowhere([].into());
        }
        let search = {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(asking.entry(hash).or_default())
        };
        let waiting = Waiting { asking: &self.asking, hash, search };
        // Where the one who began it leaves, another one of those who wait goes on.
        let search = &waiting.search;
        search.outcome.get_or_init(|| self.search(hash, asker, search)).await.clone()
    }

    /// How far the search for `hash` is, if there is one.
    #[must_use]
    pub fn search_stage(&self, hash: StorePathHash) -> Option<String> {
        let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let stage = asking.get(&hash)?.stage.lock().unwrap_or_else(PoisonError::into_inner);
        Some(stage.clone()).filter(|stage| !stage.is_empty())
    }

    async fn search(&self, hash: StorePathHash, asker: &Asker, search: &Search) -> Elsewhere {
        match self.try_search(hash, asker, search).await {
            Ok(elsewhere) => elsewhere,
            Err(error) if let Some(reason) = error.lost() => Elsewhere::NoDaemon(reason.into()),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%hash, error, "another cache has the path, but it could not be adopted");
                let reason = "what was found could not be taken; the server's log has the details";
                Elsewhere::Troubled([reason.into()].into())
            }
        }
    }

    async fn try_search(
        &self,
        hash: StorePathHash,
        asker: &Asker,
        search: &Search,
    ) -> Result<Elsewhere, Error> {
        let (mut proven, mut tries, mut lies) = (Proven::new(), 0, Vec::new());
        while tries < TRIES_MAX && lies.len() < LIES_MAX {
            search.tell("looking for it in other caches".into());
            let Closure { found, local } = match self.closure_of(hash, asker, search).await? {
                Ok(closure) => closure,
                Err(elsewhere) => return Ok(elsewhere.after(lies)),
            };
            match self.prove(&found, &mut proven, search).await {
                Ok(()) => {}
                // Another upstream may have it.
                Err(NotProven::Refused(reason)) => {
                    lies.push(reason);
                    continue;
                }
                Err(NotProven::Failed(reason)) => return Ok(Elsewhere::Troubled([reason].into())),
            }
            self.adopt(&local).await?;
            let rows = found.into_values().map(|found| self.rows(found)).collect();
            if self.index.publish_from_upstream(rows).await? {
                return Ok(Elsewhere::Published);
            }
            tries += 1;
        }
        if tries < TRIES_MAX { Ok(Elsewhere::Nowhere(lies.into())) } else { Err(Error::Unsteady) }
    }

    /// The path and everything in its closure that is not served yet, or what came of looking for it else.
    async fn closure_of(
        &self,
        hash: StorePathHash,
        asker: &Asker,
        search: &Search,
    ) -> Result<Result<Closure, Elsewhere>, Error> {
        let top = match find(&self.upstreams, &self.packer, hash, asker).await {
            Lookup::Found(found) => *found,
            Lookup::Missing(reasons) => return Ok(Err(Elsewhere::Nowhere(reasons.into()))),
            Lookup::Troubled(reasons) => return Ok(Err(Elsewhere::Troubled(reasons.into()))),
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
                return Ok(Err(Elsewhere::Nowhere([reason].into())));
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
                // Only a bug ends one early; then it is as if nobody had it.
                let Ok((path, lookup)) = lookup else { return Err(Error::Unsteady) };
                looked_up += 1;
                search.tell(format!(
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
                        return Ok(Err(Elsewhere::Troubled([reason].into())));
                    }
                    Lookup::Found(_) | Lookup::Missing(_) => {
                        let reason = format!("{top_path} is elsewhere, but {path}, which it needs, is not");
                        return Ok(Err(Elsewhere::Nowhere([reason].into())));
                    }
                }
            }
            if closure.found.len() > CLOSURE_PATHS_MAX {
                return Err(Error::TooLarge);
            }
            level = next;
        }
    }

    /// Looks for many paths at once; an upstream takes as many at a time as it likes.
    fn find_all(&self, paths: BTreeSet<StorePath>, asker: &Asker) -> JoinSet<(StorePath, Lookup)> {
        let mut searches = JoinSet::new();
        for path in paths {
            let (upstreams, packer, asker) = (self.upstreams.clone(), self.packer.clone(), asker.clone());
            searches.spawn(async move {
                let mut lookup = find(&upstreams, &packer, path.hash(), &asker).await;
                // One lost answer among very many must not lose the closure.
                if matches!(lookup, Lookup::Troubled(_)) {
                    lookup = find(&upstreams, &packer, path.hash(), &asker).await;
                }
                (path, lookup)
            });
        }
        searches
    }

    /// Fetches the contents of all that nobody trusted has signed, but what was proven before.
    async fn prove(
        &self,
        found: &BTreeMap<StorePathHash, FoundNarInfo>,
        proven: &mut Proven,
        search: &Search,
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
            search.tell(format!("fetching what is not signed, to verify it: {left} of {all} paths are left"));
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

    /// The row of a path with our signature beside those it has, and that of its contents.
    fn rows(&self, found: FoundNarInfo) -> (PathRow, UpstreamNar) {
        let nar = upstream_nar(&found);
        let mut row = PathRow { info: found.info.path_info, built: false };
        self.sign(&mut row);
        (row, nar)
    }
}

impl Elsewhere {
    /// The same after these upstreams turned out to be wrong.
    fn after(self, lies: Vec<String>) -> Self {
        let all = |reasons: Arc<[String]>| lies.iter().chain(&*reasons).cloned().collect();
        match self {
            Self::Published | Self::NoDaemon(_) => self,
            Self::Nowhere(reasons) => Self::Nowhere(all(reasons)),
            Self::Troubled(reasons) => Self::Troubled(all(reasons)),
        }
    }
}

/// What upstreams say of a path; those count for nothing that say it is larger than what is fetched.
async fn find(upstreams: &Upstreams, packer: &Packer, hash: StorePathHash, asker: &Asker) -> Lookup {
    let (mut passed_over, mut too_large) = (Vec::new(), Vec::new());
    loop {
        let found = match upstreams.find_beside(hash, &passed_over, asker).await {
            Lookup::Found(found) => found,
            Lookup::Missing(reasons) => return Lookup::Missing([too_large, reasons].concat()),
            Lookup::Troubled(reasons) => return Lookup::Troubled([too_large, reasons].concat()),
        };
        // Where clients are sent there, nothing is fetched.
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
