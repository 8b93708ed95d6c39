//! Realisations: which path an output of a content-addressed derivation is. One is given only with all that
//! it leads to served.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use narinfo::{DrvOutput, Realisation};

use super::wait::Unanswered;
use super::{Missing, OnMiss, Resolution, Substitute, UNREADABLE, index_trouble, local_trouble, trouble};
use crate::adopt;
use crate::upstream::{Asker, Nothing};

/// Realisations that one may need in all.
const REALISATIONS_MAX: usize = 10_000;

impl Substitute {
    /// The realisation of an output of a content-addressed derivation, as the index, the local store or
    /// another cache has it, with all that it leads to; else a reason. Builds nothing.
    ///
    /// # Errors
    /// Nobody knows, or what it leads to is not to be had.
    pub async fn realisation(&self, id: &DrvOutput, asker: &Asker) -> Result<Realisation, Missing> {
        // The client waits without a word: for as long as other misses are held in silence.
        let patience = if asker.via.is_empty() { self.settings.report_retry } else { Duration::ZERO };
        self.retried(patience, || Box::pin(self.whole_realisation(id, asker))).await
    }

    async fn whole_realisation(&self, id: &DrvOutput, asker: &Asker) -> Result<Realisation, Unanswered> {
        if let Some(realisation) = self.realised(id).await? {
            return Ok(realisation);
        }
        // Clients ask for those that it needs, too: it is of use with all of them.
        let (mut found, mut wanted) = (BTreeMap::new(), BTreeSet::from([id.clone()]));
        while let Some(next) = wanted.pop_first() {
            let realisation = match self.realised(&next).await? {
                Some(realisation) => realisation,
                None => self.find_realisation(&next, asker).await?,
            };
            wanted.extend(realisation.dependencies().keys().filter(|id| !found.contains_key(*id)).cloned());
            found.insert(next.clone(), realisation);
            wanted.remove(&next);
            if found.len() > REALISATIONS_MAX {
                let reason = format!("it needs more than {REALISATIONS_MAX} realisations");
                return Err(incomplete(&found[id], reason).into());
            }
        }
        for realisation in found.values() {
            for (other, path) in realisation.dependencies() {
                if found[other].path() != path {
                    let reason =
                        format!("it needs {other} to be {path}, which is {} here", found[other].path());
                    return Err(incomplete(realisation, reason).into());
                }
            }
        }
        let published = self.adopter.publish_realisations(found.into_values().collect()).await;
        published.map_err(|error| match &error {
            adopt::Error::Index(error) => index_trouble(error, "the realisation could not be recorded"),
            error => trouble(error, "the realisation could not be recorded"),
        })?;
        let realised = self.realised(id).await?;
        realised.ok_or_else(|| Missing::Unavailable("the path was lost in this moment").into())
    }

    async fn realised(&self, id: &DrvOutput) -> Result<Option<Realisation>, Missing> {
        let realisation = self.index.realisation(id.clone()).await;
        let mut realisation = realisation.map_err(|e| index_trouble(&e, UNREADABLE))?;
        realisation.iter_mut().for_each(|realisation| self.adopter.keys.complete_realisation(realisation));
        Ok(realisation)
    }

    /// Realisation that the local store or another cache has, if the path can be served, which then is.
    async fn find_realisation(&self, id: &DrvOutput, asker: &Asker) -> Result<Realisation, Missing> {
        let mut no_daemon = None;
        match self.local.realisation(id).await.map_err(|error| local_trouble(&error)) {
            Ok(Some(realisation)) if self.serve(&realisation, asker).await.is_ok() => return Ok(realisation),
            Ok(_) => {}
            Err(reason @ Missing::NoDaemon(_)) => no_daemon = Some(reason),
            Err(reason) => return Err(reason),
        }
        match self.adopter.upstreams.find_realisation(id, asker).await {
            Ok(realisation) => self.serve(&realisation, asker).await.map(|()| realisation),
            Err(_) if let Some(reason) = no_daemon => Err(reason),
            Err(Nothing { reasons, troubled }) => {
                Err(Missing::Unrealised { id: id.clone(), reasons, troubled })
            }
        }
    }

    /// Serves the path that a realisation names from now on.
    async fn serve(&self, realisation: &Realisation, asker: &Asker) -> Result<(), Missing> {
        let path = realisation.path();
        // In a box, since it is large.
        match Box::pin(self.decide(path.hash(), &OnMiss::Relayed(asker.clone()))).await {
            Ok(Resolution::Ready(ready)) if ready.path == *path => Ok(()),
            Ok(Resolution::Ready(ready)) => {
                Err(incomplete(realisation, format!("that hash is {} here", ready.path)))
            }
            Ok(Resolution::Missing(missing)) | Err(Unanswered { missing, .. }) => {
                Err(incomplete(realisation, missing.to_string()))
            }
            Ok(Resolution::Wait(_)) => Err(incomplete(realisation, "it is not built yet".into())),
        }
    }
}

fn incomplete(realisation: &Realisation, reason: String) -> Missing {
    let (id, path) = (realisation.id().clone(), realisation.path().clone());
    Missing::Incomplete { id, path, reason }
}
