//! Adoption: a path that is valid in the local Nix store becomes one we serve, signed, with its whole closure, in one transaction.
//! Must never publish a path whose closure cannot be served, nor one that the garbage collector could still take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use narinfo::{SecretKey, StoreDir, StorePath, StorePathHash};

use crate::index::{self, Index, PathRow};
use crate::nix::{Daemon, DaemonError, PathInfo, Pool};
use crate::packer::Packer;
use crate::roots::{self, Roots};

/// Store paths in one closure at most; the largest NixOS systems have some 30,000.
const CLOSURE_PATHS_MAX: usize = 1_000_000;

/// Why a path was not adopted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not in the Nix store, or not any more.
    #[error("{0} is not valid in the Nix store")]
    NotValid(StorePath),
    /// Its contents are not those that Nix registered.
    #[error("{0} is damaged in the Nix store: run nix-store --verify --check-contents --repair")]
    Damaged(StorePath),
    /// Its closure is absurdly large.
    #[error("the closure has more than {CLOSURE_PATHS_MAX} store paths")]
    TooLarge,
    /// The daemon failed.
    #[error("the Nix daemon could not tell about the path")]
    Daemon(#[from] DaemonError),
    /// The index failed.
    #[error("the index could not take the path")]
    Index(#[from] index::Error),
    /// No GC root could be set.
    #[error("the path could not be kept from garbage collection")]
    Roots(#[from] roots::Error),
}

/// Adopts paths; clones share what it needs.
#[derive(Clone)]
pub struct Adopter {
    /// The connections to the daemon.
    pub pool: Pool,
    /// Where adopted paths are published.
    pub index: Index,
    /// What holds them until they are packed.
    pub roots: Roots,
    /// What packs them.
    pub packer: Packer,
    /// What signs them.
    pub key: Arc<SecretKey>,
    /// The store they are in.
    pub store_dir: StoreDir,
}

impl Adopter {
    /// Adopts `paths` and all that they refer to, each time all or nothing.
    ///
    /// # Errors
    /// When one of them is not valid, or the daemon, the index or the file system fails; nothing is published then.
    pub async fn adopt(&self, paths: &[StorePath]) -> Result<(), Error> {
        let mut daemon = self.pool.get().await?;
        for path in paths {
            daemon.add_temp_root(path).await?;
        }
        let result = self.adopt_held(&mut daemon, paths).await;
        // Its temporary roots end with the connection; from here on our own roots hold the paths.
        daemon.discard();
        result
    }

    async fn adopt_held(&self, daemon: &mut Daemon, paths: &[StorePath]) -> Result<(), Error> {
        let new = self.new_in_closure(daemon, paths).await?;
        let mut to_pack = Vec::new();
        for info in new.values() {
            if self.index.packed(info.nar_hash).await?.is_none() {
                to_pack.push(&info.path);
            }
        }
        self.roots.hold(daemon, to_pack).await?;
        self.index.publish(new.values().map(|info| self.signed(info)).collect()).await?;
        self.packer.wake();
        Ok(())
    }

    /// Everything in the closure of `paths` that is not served yet. What is served has its whole closure served.
    async fn new_in_closure(
        &self,
        daemon: &mut Daemon,
        paths: &[StorePath],
    ) -> Result<BTreeMap<StorePathHash, PathInfo>, Error> {
        let mut new = BTreeMap::new();
        let mut level: BTreeSet<StorePath> = paths.iter().cloned().collect();
        while !level.is_empty() {
            let served = self.index.served(level.iter().map(StorePath::hash).collect()).await?;
            let mut next = BTreeSet::new();
            for path in level.into_iter().filter(|path| !served.contains(&path.hash())) {
                let info =
                    daemon.query_path_info(&path).await?.ok_or_else(|| Error::NotValid(path.clone()))?;
                if self.packer.is_damaged(info.nar_hash) {
                    return Err(Error::Damaged(path));
                }
                next.extend(info.references.iter().cloned());
                new.insert(path.hash(), info);
            }
            if new.len() > CLOSURE_PATHS_MAX {
                return Err(Error::TooLarge);
            }
            next.retain(|path| !new.contains_key(&path.hash()));
            level = next;
        }
        Ok(new)
    }

    /// The row of a path, with our signature beside those it has.
    fn signed(&self, info: &PathInfo) -> PathRow {
        let fingerprint = narinfo::fingerprint(
            &self.store_dir,
            &info.path,
            &info.nar_hash,
            info.nar_size,
            &info.references,
        );
        let ours = self.key.sign(&fingerprint);
        let mut signatures = info.signatures.clone();
        if !signatures.contains(&ours) {
            signatures.push(ours);
        }
        PathRow {
            path: info.path.clone(),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.clone(),
            deriver: info.deriver.clone(),
            ca: info.ca.clone(),
            signatures,
        }
    }
}
