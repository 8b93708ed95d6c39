//! Survey of many hashes at once: what a request for each would find in memory, in the index and in Nix's
//! database, each asked once for all of them. Asks no upstream and no builder, adopts nothing and builds
//! nothing.

use std::collections::{BTreeMap, HashMap};

use narinfo::{StorePath, StorePathHash};

use super::{KnownDerivation, Missing, Substitute, UNREADABLE, local_trouble, trouble};
use crate::model::Failure;
use crate::nix::{Outputs, StoreKnowledge};

/// Finding about one hash.
#[derive(Clone, Debug)]
pub enum Surveyed {
    /// The path is served.
    Served(StorePath),
    /// The path is in the Nix store and will be served once it is asked for.
    InStore(StorePath),
    /// This derivation makes it, and may be built.
    Buildable(StorePath),
    /// The path is not to be had; with the derivation that would make it.
    Missing(Option<StorePath>, Missing),
}

impl Substitute {
    /// Finding about each of these hashes.
    ///
    /// # Errors
    /// The index or the Nix store cannot be asked.
    pub async fn survey(
        &self,
        hashes: impl IntoIterator<Item = StorePathHash>,
    ) -> Result<HashMap<StorePathHash, Surveyed>, Missing> {
        let mut found = HashMap::new();
        let mut open = Vec::new();
        for hash in hashes {
            if found.contains_key(&hash) {
                continue;
            }
            if let Some(ready) = self.index.lookup_cached(hash) {
                found.insert(hash, Surveyed::Served(ready.path.clone()));
                continue;
            }
            if !(self.index.definitely_absent(hash) && self.local.definitely_absent(hash)) {
                open.push(hash);
            }
            found.insert(hash, Surveyed::Missing(None, Missing::Unknown));
        }
        let unreadable = |error| trouble(&error, "the index cannot be read");
        let served = self.index.served(open.clone()).await.map_err(unreadable)?;
        open.retain(|hash| !served.contains_key(hash));
        found.extend(served.into_iter().map(|(hash, path)| (hash, Surveyed::Served(path))));
        if open.is_empty() {
            return Ok(found);
        }
        let mut listed = self.index.makers_of_all(open.clone()).await.map_err(unreadable)?;
        let stored = self.local.survey(open.clone()).await.map_err(|error| local_trouble(&error))?;
        let failures = self.failures.list().await.map_err(unreadable)?;
        let failures: BTreeMap<StorePath, Failure> =
            failures.into_iter().map(|failure| (failure.drv.clone(), failure)).collect();
        for (hash, StoreKnowledge { valid, derivers }) in open.into_iter().zip(stored) {
            let makers = self.makers_with_verdicts(listed.remove(&hash).unwrap_or_default(), derivers);
            let finding = match valid {
                Some(path) => Surveyed::InStore(path),
                None => self.choose(&makers, &failures),
            };
            found.insert(hash, finding);
        }
        Ok(found)
    }

    /// Outputs of those of `drvs` that this server has, as far as their paths are known before they are
    /// built.
    ///
    /// # Errors
    /// The Nix store cannot be asked.
    pub async fn outputs_of(&self, drvs: Vec<StorePath>) -> Result<BTreeMap<StorePath, Outputs>, Missing> {
        let pushed = self.index.pushed_outputs(drvs.clone()).await;
        let pushed = pushed.map_err(|error| trouble(&error, "the index cannot be read"))?;
        let mut found = self.local.outputs_of(drvs).await.map_err(|error| local_trouble(&error))?;
        for (drv, outputs) in pushed {
            let known = outputs.into_iter().map(|(output, path)| (output, Some(path)));
            found.entry(drv).or_insert_with(|| known.collect());
        }
        Ok(found)
    }

    /// The path with this hash that a derivation would make, where one is known.
    ///
    /// # Errors
    /// The index or the Nix store cannot be asked.
    pub async fn path_to_build(&self, hash: StorePathHash) -> Result<Option<StorePath>, Missing> {
        let listed = self.index.makers(hash).await.map_err(|error| trouble(&error, UNREADABLE))?;
        let mut makers: Vec<StorePath> = listed.into_iter().map(|maker| maker.drv).collect();
        makers.extend(self.local.derivers_of(hash).await.map_err(|error| local_trouble(&error))?);
        let known = self.outputs_of(makers).await?;
        let mut paths = known.into_values().flat_map(BTreeMap::into_values).flatten();
        Ok(paths.find(|path| path.hash() == hash))
    }

    /// A derivation other than `drv` that makes a path, where one is known.
    ///
    /// # Errors
    /// The index or the Nix store cannot be asked.
    pub async fn other_maker(&self, path: &StorePath, drv: &StorePath) -> Result<Option<StorePath>, Missing> {
        let listed = self.index.makers(path.hash()).await.map_err(|error| trouble(&error, UNREADABLE))?;
        let stored = self.local.derivers_of(path.hash()).await.map_err(|error| local_trouble(&error))?;
        let mut makers = listed.into_iter().map(|maker| maker.drv).chain(stored);
        Ok(makers.find(|maker| maker != drv))
    }

    /// The same choice as that of a request: one that is on its way, else one that has not failed, else the
    /// reason of the first.
    fn choose(&self, makers: &[KnownDerivation], failures: &BTreeMap<StorePath, Failure>) -> Surveyed {
        let allowed = || makers.iter().filter(|known| known.no.is_none()).map(|known| &known.drv);
        let chosen = allowed().find(|drv| self.builds.contains(drv));
        if let Some(drv) = chosen.or_else(|| allowed().find(|drv| !failures.contains_key(*drv))) {
            return Surveyed::Buildable(drv.clone());
        }
        let failed =
            |drv: &StorePath| failures.get(drv).cloned().map(|failure| Missing::Failed(failure.into()));
        match (allowed().next(), makers.first()) {
            (Some(drv), _) => Surveyed::Missing(Some(drv.clone()), failed(drv).unwrap_or(Missing::Unknown)),
            (None, Some(KnownDerivation { drv, no })) => {
                let reason = failed(drv).or_else(|| no.clone()).unwrap_or(Missing::Unknown);
                Surveyed::Missing(Some(drv.clone()), reason)
            }
            (None, None) => Surveyed::Missing(None, Missing::Unknown),
        }
    }
}
