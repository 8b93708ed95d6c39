//! What another cache has is adopted from there: its narinfo and those of its closure, each signed by a key that is trusted
//! for it. The contents are fetched when somebody asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use narinfo::{StorePath, StorePathHash};
use tokio::task::JoinSet;

use super::{Adopter, CLOSURE_PATHS_MAX, Error, TRIES_MAX};
use crate::index::{PathRow, UpstreamNar};
use crate::packer::upstream_nar;
use crate::upstream::{Found, Lookup, Upstreams, Via};

/// What came of looking for a path in other caches.
#[derive(Clone, Debug)]
pub enum Elsewhere {
    /// It is served now.
    Published,
    /// Nobody has it, or nobody has all of its closure; what was said of it else, for the person who asked.
    Nowhere(Arc<[String]>),
    /// It could not be published; that was logged.
    Trouble,
    /// A part of its closure is in the Nix store alone, and the daemon does not answer; how it does not.
    NoDaemon(Arc<str>),
}

/// A closure as far as upstreams have it.
#[derive(Default)]
struct Closure {
    found: BTreeMap<StorePathHash, Found>,
    /// What no upstream has, but the local store.
    local: Vec<StorePath>,
}

impl Adopter {
    /// Looks for `hash` in the upstreams, and adopts it and all that it refers to, all or nothing. Equal requests share one
    /// search. The request has come this way.
    pub async fn adopt_from_upstream(&self, hash: StorePathHash, via: &Via) -> Elsewhere {
        if self.upstreams.is_empty() {
            return Elsewhere::Nowhere([].into());
        }
        let search = {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(asking.entry(hash).or_default())
        };
        // Where the one who began it leaves, another one of those who wait goes on.
        let elsewhere = search.get_or_init(|| self.search(hash, via)).await.clone();
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if asking.get(&hash).is_some_and(|current| Arc::ptr_eq(current, &search)) {
            asking.remove(&hash);
        }
        elsewhere
    }

    async fn search(&self, hash: StorePathHash, via: &Via) -> Elsewhere {
        match self.try_search(hash, via).await {
            Ok(elsewhere) => elsewhere,
            Err(error) if let Some(reason) = error.lost() => Elsewhere::NoDaemon(reason.into()),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%hash, error, "another cache has the path, but it could not be adopted");
                Elsewhere::Trouble
            }
        }
    }

    async fn try_search(&self, hash: StorePathHash, via: &Via) -> Result<Elsewhere, Error> {
        let top = match self.upstreams.find(hash, via).await {
            Lookup::Found(found) => *found,
            Lookup::Missing(reasons) => return Ok(Elsewhere::Nowhere(reasons.into())),
        };
        for _ in 0..TRIES_MAX {
            let Closure { found, local } = match self.closure_of(top.clone(), via).await? {
                Ok(closure) => closure,
                Err(reason) => return Ok(Elsewhere::Nowhere([reason].into())),
            };
            self.adopt(&local).await?;
            let rows = found.into_values().map(|found| self.rows(found)).collect();
            if self.index.publish_from_upstream(rows).await? {
                return Ok(Elsewhere::Published);
            }
        }
        Err(Error::Unsteady)
    }

    /// Everything in the closure of `top` that is not served yet, or why there is no such closure.
    async fn closure_of(&self, top: Found, via: &Via) -> Result<Result<Closure, String>, Error> {
        let top_path = top.info.store_path.clone();
        let mut closure = Closure::default();
        let (mut seen, mut level) = (BTreeSet::from([top_path.clone()]), top.info.references.clone());
        closure.found.insert(top_path.hash(), top);
        loop {
            level.retain(|path| seen.insert(path.clone()));
            let served = self.index.served(level.iter().map(StorePath::hash).collect()).await?;
            level.retain(|path| !served.contains(&path.hash()));
            if level.is_empty() {
                return Ok(Ok(closure));
            }
            let mut next = BTreeSet::new();
            for (path, lookup) in find_all(&self.upstreams, level, via).await {
                match lookup {
                    Lookup::Found(found) if found.info.store_path == path => {
                        next.extend(found.info.references.iter().cloned());
                        closure.found.insert(path.hash(), *found);
                    }
                    _ if self.local.valid_path(path.hash()).await?.as_ref() == Some(&path) => {
                        closure.local.push(path);
                    }
                    _ => {
                        return Ok(Err(format!(
                            "{top_path} is elsewhere, but {path}, which it needs, is not"
                        )));
                    }
                }
            }
            if closure.found.len() > CLOSURE_PATHS_MAX {
                return Err(Error::TooLarge);
            }
            level = next;
        }
    }

    /// The row of a path with our signature beside those it has, and that of its contents.
    fn rows(&self, found: Found) -> (PathRow, UpstreamNar) {
        let nar = upstream_nar(&found);
        let info = found.info;
        let mut row = PathRow {
            path: info.store_path,
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references,
            deriver: info.deriver,
            ca: info.ca,
            signatures: info.signatures,
            built: false,
        };
        self.sign(&mut row);
        (row, nar)
    }
}

/// Looks for many paths at once; an upstream takes as many at a time as it likes.
async fn find_all(upstreams: &Upstreams, paths: BTreeSet<StorePath>, via: &Via) -> Vec<(StorePath, Lookup)> {
    let mut searches = JoinSet::new();
    for path in paths {
        let (upstreams, via) = (upstreams.clone(), via.clone());
        searches.spawn(async move {
            let mut lookup = upstreams.find(path.hash(), &via).await;
            // One lost answer among very many must not lose the closure.
            if matches!(&lookup, Lookup::Missing(reasons) if !reasons.is_empty()) {
                lookup = upstreams.find(path.hash(), &via).await;
            }
            (path, lookup)
        });
    }
    searches.join_all().await
}
