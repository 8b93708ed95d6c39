//! Adoption from the local Nix store: a valid path gets a GC root of ours before it is published.
//! Must never publish a path that the garbage collector could still take.

use std::collections::{BTreeMap, BTreeSet};

use narinfo::{StorePath, StorePathHash};

use super::{Adopter, CLOSURE_PATHS_MAX, Error, TRIES_MAX, adopted_under_another_name};
use crate::model::PathRow;
use crate::nix::{Daemon, ValidPath};

impl Adopter {
    /// Adopts `paths` and their closures, all or nothing.
    ///
    /// # Errors
    /// One of them is not valid, or the daemon, the index or the file system fails; nothing is published
    /// then.
    pub async fn adopt(&self, paths: &[StorePath]) -> Result<(), Error> {
        if self.are_served(paths).await? {
            return Ok(());
        }
        let mut daemon = self.pool.get().await?;
        let result = self.adopt_new(&mut daemon, paths).await;
        // Its temporary roots end with the connection; from here on our own roots hold the paths.
        daemon.discard();
        result
    }

    /// Adopts `paths` as [`Adopter::adopt`] does, through a connection whose temporary roots hold them for as
    /// long as it is open.
    ///
    /// # Errors
    /// As [`Adopter::adopt`].
    pub async fn adopt_through(&self, daemon: &mut Daemon, paths: &[StorePath]) -> Result<(), Error> {
        if self.are_served(paths).await? {
            return Ok(());
        }
        self.adopt_new(daemon, paths).await
    }

    /// True where all are served, as what other machines have built: their closures are, too, and no daemon
    /// need be started for them.
    async fn are_served(&self, paths: &[StorePath]) -> Result<bool, Error> {
        if paths.is_empty() {
            return Ok(true);
        }
        let served = self.index.served(paths.iter().map(StorePath::hash).collect()).await?;
        Ok(paths.iter().all(|path| served.get(&path.hash()) == Some(path)))
    }

    async fn adopt_new(&self, daemon: &mut Daemon, paths: &[StorePath]) -> Result<(), Error> {
        for path in paths {
            daemon.add_temp_root(path).await?;
        }
        self.adopt_held(daemon, paths).await
    }

    async fn adopt_held(&self, daemon: &mut Daemon, paths: &[StorePath]) -> Result<(), Error> {
        for _ in 0..TRIES_MAX {
            let new = self.new_in_closure(daemon, paths).await?;
            self.must_fit_into_nars(&new).await?;
            self.must_hold_no_key(&new).await?;
            let held: Vec<&StorePath> = new.values().map(|valid| &valid.info.path).collect();
            self.roots.hold(daemon, held).await?;
            if self.packer.packs_first() {
                self.packer.pack_first(new.values().map(|valid| self.row(valid)).collect()).await?;
            }
            if self.index.publish(new.values().map(|valid| self.row(valid)).collect()).await? {
                // Released only now: a NAR that is packed already may be evicted until a path has it.
                for ValidPath { info, .. } in new.values() {
                    if self.index.packed(info.nar_hash).await?.is_some() {
                        self.roots.release(&info.path);
                    }
                }
                self.packer.wake();
                return Ok(());
            }
        }
        Err(Error::Unsteady)
    }

    /// Paths in the closure of `paths` that are not served yet. The closure of a served path is served.
    async fn new_in_closure(
        &self,
        daemon: &mut Daemon,
        paths: &[StorePath],
    ) -> Result<BTreeMap<StorePathHash, ValidPath>, Error> {
        let mut new = BTreeMap::new();
        let mut level: BTreeSet<StorePath> = paths.iter().cloned().collect();
        while !level.is_empty() {
            let served = self.index.served(level.iter().map(StorePath::hash).collect()).await?;
            let mut next = BTreeSet::new();
            if let Some((path, served)) = adopted_under_another_name(&level, &served) {
                return Err(Error::OtherName { path, served });
            }
            for path in level.into_iter().filter(|path| !served.contains_key(&path.hash())) {
                let valid =
                    daemon.query_path_info(&path).await?.ok_or_else(|| Error::NotValid(path.clone()))?;
                if let Some(reason) = self.packer.why_unservable(valid.info.nar_hash) {
                    return Err(Error::Unservable { path, reason });
                }
                next.extend(valid.info.references.iter().cloned());
                new.insert(path.hash(), valid);
            }
            if new.len() > CLOSURE_PATHS_MAX {
                return Err(Error::TooLarge);
            }
            next.retain(|path| !new.contains_key(&path.hash()));
            level = next;
        }
        Ok(new)
    }

    /// Row of a path, with our signature beside those it has.
    fn row(&self, valid: &ValidPath) -> PathRow {
        let mut row = PathRow { info: valid.info.clone(), built: valid.ultimate };
        self.sign(&mut row);
        row
    }
}
