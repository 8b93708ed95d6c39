//! Adoption: a path of the local Nix store or of an upstream is signed and published with its whole closure,
//! in one transaction. Must never publish a path whose closure cannot be served.

mod depth;
mod local;
mod lost;
mod resign;
mod secret;
mod signatures;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use narinfo::{Realisation, StoreDir, StorePath, StorePathHash};

use crate::index::{self, Index};
use crate::key::Keys;
use crate::model::{Hit, PathRow, RealisationOutcome};
use crate::nix::{DaemonError, LocalStore, LocalStoreError, Pool};
use crate::packer::{self, Packer};
use crate::roots::{self, Roots};
use crate::upstream::Upstreams;
pub use upstream::{Searches, UpstreamResult};

/// Store paths in one closure at most; the largest NixOS systems have some 30,000.
const CLOSURE_PATHS_MAX: usize = 1_000_000;

/// Passes over a closure, at most. One is enough unless a part of it stops being served in between.
const TRIES_MAX: usize = 3;

/// Reasons why a path was not adopted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is not in the Nix store, or not any more.
    #[error("{0} is not valid in the Nix store")]
    NotValid(StorePath),
    /// Its contents are not those that Nix registered, or clients could not unpack their NAR.
    #[error("{path} cannot be served: {reason}")]
    Unservable {
        /// The path.
        path: StorePath,
        /// The reason, for the person who asked.
        reason: String,
    },
    /// The path would publish the signing key.
    #[error(
        "{0} has the signing key of this cache in it, which must stay secret: delete it from the Nix store"
    )]
    Secret(StorePath),
    /// A path in the closure has a hash that is served under another name.
    #[error("{path} is in the closure, and its hash is that of {served} here")]
    OtherName {
        /// The path in the closure.
        path: StorePath,
        /// The path that is served.
        served: StorePath,
    },
    /// Its closure is too large.
    #[error("the closure has more than {CLOSURE_PATHS_MAX} store paths")]
    TooLarge,
    /// Parts of its closure stopped being served during each pass.
    #[error("parts of the closure stop being served while it is adopted: ask again")]
    Unsteady,
    /// The daemon failed.
    #[error("the Nix daemon could not be asked about the path")]
    Daemon(#[from] DaemonError),
    /// Neither the daemon nor Nix's database could be asked.
    #[error("the Nix store could not be asked about its closure")]
    Local(#[from] LocalStoreError),
    /// The index failed.
    #[error("the index could not take the path")]
    Index(#[from] index::Error),
    /// A NAR could not be stored, without which other servers could not serve the path.
    #[error("the path could not be stored")]
    Pack(#[source] packer::Error),
    /// No GC root could be set.
    #[error("the path could not be kept from garbage collection")]
    Roots(#[from] roots::Error),
}

impl From<packer::Error> for Error {
    fn from(error: packer::Error) -> Self {
        match error {
            packer::Error::Index(error) => Self::Index(error),
            error => Self::Pack(error),
        }
    }
}

impl Error {
    /// The loss of the Nix daemon, if that is the reason.
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

/// The adopter; clones share its parts.
#[derive(Clone)]
pub struct Adopter {
    /// The connections to the daemon.
    pub pool: Pool,
    /// Index in which paths are published.
    pub index: Index,
    /// GC roots that hold paths until they are packed.
    pub roots: Roots,
    /// Packer of their NARs.
    pub packer: Packer,
    /// Keys that sign paths.
    pub keys: Arc<Keys>,
    /// The store directory.
    pub store_dir: StoreDir,
    /// The local Nix store.
    pub local: LocalStore,
    /// Other caches.
    pub upstreams: Upstreams,
    /// Searches under way: equal requests wait for the same answer.
    pub searches: Searches,
}

/// One of `paths` whose hash is served under another name, and that name.
fn adopted_under_another_name(
    paths: &BTreeSet<StorePath>,
    served: &BTreeMap<StorePathHash, StorePath>,
) -> Option<(StorePath, StorePath)> {
    let other = |path: &StorePath| served.get(&path.hash()).filter(|served| *served != path).cloned();
    paths.iter().find_map(|path| Some((path.clone(), other(path)?)))
}

impl Adopter {
    /// Publishes realisations of Nix or of upstreams, with our signature beside those they have, all or none.
    ///
    /// # Errors
    /// The index fails; nothing is published then.
    pub async fn publish_realisations(
        &self,
        mut realisations: Vec<Realisation>,
    ) -> Result<RealisationOutcome, Error> {
        for realisation in &mut realisations {
            self.keys.sign_realisation(realisation);
        }
        Ok(self.index.publish_realisations(realisations).await?)
    }

    /// Narinfo of a served path, signed by every key, also by keys that came after it was published.
    #[must_use]
    pub fn narinfo(&self, hit: &Hit) -> String {
        self.keys.narinfo(hit, &self.store_dir)
    }

    /// Adds a signature by each of our keys to those that the row has.
    pub(crate) fn sign(&self, row: &mut PathRow) {
        let fingerprint = self.fingerprint(row);
        self.keys.sign(&mut row.info.signatures, &fingerprint);
    }

    fn fingerprint(&self, row: &PathRow) -> String {
        row.info.fingerprint(&self.store_dir)
    }
}
