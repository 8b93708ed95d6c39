//! Adoption: a path that is valid in the local Nix store, or that another cache has, becomes one we serve, signed, with its
//! whole closure, in one transaction. Must never publish a path whose closure cannot be served.

mod depth;
mod local;
mod resign;
mod secret;
mod signatures;
mod upstream;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use narinfo::{Realisation, StoreDir, StorePath, StorePathHash};

use crate::index::{self, Hit, Index, PathRow};
use crate::key::Keys;
use crate::nix::{DaemonError, LocalStore, LocalStoreError, Pool};
use crate::packer::Packer;
use crate::roots::{self, Roots};
use crate::upstream::Upstreams;
pub use upstream::{Elsewhere, Search};

/// Store paths in one closure at most; the largest NixOS systems have some 30,000.
const CLOSURE_PATHS_MAX: usize = 1_000_000;

/// How often a closure is looked through at most. Once is enough unless a part of it stops being served meanwhile.
const TRIES_MAX: usize = 3;

/// Why a path was not adopted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not in the Nix store, or not any more.
    #[error("{0} is not valid in the Nix store")]
    NotValid(StorePath),
    /// Its contents are not those that Nix registered, or no NAR can be made of them that clients would take.
    #[error("{path} cannot be served: {reason}")]
    Unservable {
        /// The path.
        path: StorePath,
        /// Why.
        reason: String,
    },
    /// It would tell everybody the signing key.
    #[error(
        "{0} has the signing key of this cache in it, which must stay secret: delete it from the Nix store"
    )]
    Secret(StorePath),
    /// It, or something that it refers to, has a hash that is served under another name.
    #[error("{path} is in the closure, and its hash is that of {served} here")]
    OtherName {
        /// What is referred to.
        path: StorePath,
        /// What is served.
        served: StorePath,
    },
    /// Its closure is absurdly large.
    #[error("the closure has more than {CLOSURE_PATHS_MAX} store paths")]
    TooLarge,
    /// Again and again a part of its closure that was served is not any more.
    #[error("parts of the closure stop being served as fast as it is adopted")]
    Unsteady,
    /// The daemon failed.
    #[error("the Nix daemon could not tell about the path")]
    Daemon(#[from] DaemonError),
    /// Neither the daemon nor Nix's database tells.
    #[error("the Nix store could not be asked about its closure")]
    Local(#[from] LocalStoreError),
    /// The index failed.
    #[error("the index could not take the path")]
    Index(#[from] index::Error),
    /// No GC root could be set.
    #[error("the path could not be kept from garbage collection")]
    Roots(#[from] roots::Error),
}

impl Error {
    /// How the Nix daemon was lost, where that is why.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        match self {
            Self::Daemon(error) => error.lost(),
            Self::Roots(error) => error.lost(),
            Self::Local(error) => error.lost(),
            _ => None,
        }
    }
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
    /// Keys that sign them.
    pub keys: Arc<Keys>,
    /// The store they are in.
    pub store_dir: StoreDir,
    /// What Nix has on this machine.
    pub local: LocalStore,
    /// Other caches.
    pub upstreams: Upstreams,
    /// What is being looked for in other caches now: equal requests wait for the same answer.
    pub asking: Asking,
}

/// The searches in other caches that are under way.
pub type Asking = Arc<Mutex<HashMap<StorePathHash, Arc<Search>>>>;

/// Of `paths`, one whose hash another path has that is served.
fn adopted_under_another_name(
    paths: &BTreeSet<StorePath>,
    served: &BTreeMap<StorePathHash, StorePath>,
) -> Option<(StorePath, StorePath)> {
    let other = |path: &StorePath| served.get(&path.hash()).filter(|served| *served != path).cloned();
    paths.iter().find_map(|path| Some((path.clone(), other(path)?)))
}

impl Adopter {
    /// Publishes realisations that Nix has or that were verified, with our signature beside those they have: all or none.
    /// Whether they are: none is when one names a path that is not served.
    ///
    /// # Errors
    /// When the index fails; nothing is published then.
    pub async fn publish_realisations(&self, mut realisations: Vec<Realisation>) -> Result<bool, Error> {
        for realisation in &mut realisations {
            self.keys.sign_realisation(realisation);
        }
        Ok(self.index.publish_realisations(realisations).await?)
    }

    /// Narinfo of a served path, signed by every key, also by those that came after the path was published.
    #[must_use]
    pub fn narinfo(&self, hit: &Hit) -> String {
        let mut narinfo = hit.narinfo();
        self.keys.complete(&mut narinfo.path_info.signatures, || self.fingerprint(&hit.row));
        narinfo.render(&self.store_dir)
    }

    /// Adds a signature by each of our keys to those that the row has.
    fn sign(&self, row: &mut PathRow) {
        let fingerprint = self.fingerprint(row);
        self.keys.sign(&mut row.info.signatures, &fingerprint);
    }

    fn fingerprint(&self, row: &PathRow) -> String {
        row.info.fingerprint(&self.store_dir)
    }
}
