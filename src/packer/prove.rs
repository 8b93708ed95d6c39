//! Proving: the contents of paths that are named by them and that nobody trusted has signed. They are fetched before anything
//! is said of such a path: neither its size nor, for most kinds of address, its NAR hash is known before.
//! Requests for the same path share one fetch, which ends soon after the last of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use narinfo::{Addressed, NarHash, StorePath};
use tokio::sync::watch;

use super::fetch::{Fault, NotFetched, upstream_nar};
use super::{Error, Inner, Packer};
use crate::index::NarRow;
use crate::nar_store::{Draft, Expected, Growing, Packed, Stored};
use crate::upstream::{Found, NarOutcome};

/// Why contents are not proven.
#[derive(Clone, Debug)]
pub enum NotProven {
    /// The upstream does not have what it says, and is not believed about it for a while.
    Refused(String),
    /// They did not come; they may, later.
    Failed(String),
}

/// What an upstream says, as far as it is to be proven.
type Claim = (String, StorePath, NarHash, u64);

/// The proofs under way.
pub(super) type Proofs = Mutex<HashMap<Claim, Proof>>;

/// A proof under way.
#[derive(Clone)]
pub(super) struct Proof {
    /// Whoever has it follows.
    _following: Growing,
    outcome: watch::Receiver<Option<Result<(), NotProven>>>,
}

impl Packer {
    /// Whether a NAR of so many bytes is ever fetched; else how many are.
    ///
    /// # Errors
    /// When it has more.
    pub fn fetches(&self, nar_bytes: u64) -> Result<(), u64> {
        let max = self.0.nar_bytes_max();
        if nar_bytes <= max { Ok(()) } else { Err(max) }
    }

    /// Fetches the contents of what was found and keeps them, if they have the size and the hash that was said of them and are
    /// those that the path is named by.
    ///
    /// # Errors
    /// When they are not, or do not come.
    pub async fn prove(&self, found: &Found) -> Result<(), NotProven> {
        let info = &found.info;
        let claim = (found.upstream.clone(), info.store_path.clone(), info.nar_hash, info.nar_size);
        let mut proof = self.proof(claim, found).map_err(|error| NotProven::Failed(error.to_string()))?;
        match proof.outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(outcome)) => outcome,
            _ => Err(NotProven::Failed("it was abandoned".into())),
        }
    }

    /// Joins the proof under way, or begins it.
    fn proof(&self, claim: Claim, found: &Found) -> std::io::Result<Proof> {
        let mut proofs = self.0.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(proof) = proofs.get(&claim) {
            return Ok(proof.clone());
        }
        let (draft, growing) = self.0.nars.draft()?;
        let (tell, outcome) = watch::channel(None);
        let proof = Proof { _following: growing, outcome };
        proofs.insert(claim.clone(), proof.clone());
        let (inner, found) = (Arc::clone(&self.0), found.clone());
        tokio::spawn(async move {
            let outcome = inner.prove(draft, &found).await;
            inner.proofs.lock().unwrap_or_else(PoisonError::into_inner).remove(&claim);
            tell.send_replace(Some(outcome));
        });
        Ok(proof)
    }
}

impl Inner {
    async fn prove(self: &Arc<Self>, mut draft: Draft, found: &Found) -> Result<(), NotProven> {
        let (info, nar) = (&found.info, upstream_nar(found));
        let expected = Expected { hash: info.nar_hash, bytes: info.nar_size };
        let refused = |reason: String| {
            tracing::warn!(path = %info.store_path, reason, "what nobody has signed is not what it was said to be");
            self.upstreams.fetched(&found.upstream, info.nar_hash, NarOutcome::Refused);
            Err(NotProven::Refused(reason))
        };
        let failed = |error: std::io::Error| NotProven::Failed(error.to_string());
        let Some(ca) = info.ca.clone() else { return refused("it has no content address".into()) };
        let addressed = Addressed::new(ca, &info.store_path, &info.references);
        let written = draft.as_stored().map_err(failed)?;
        loop {
            let NotFetched { draft: left, reason, fault } =
                match self.fetch_from(draft, &nar, expected, Some(addressed.clone())).await {
                    Ok(packed) => {
                        self.put_on_record(info.nar_hash, packed, &written).await;
                        return Ok(());
                    }
                    Err(not_fetched) => not_fetched,
                };
            match (fault, left) {
                (Fault::Resumed, Some(left)) => {
                    // Nobody has read any of it.
                    left.rewind().map_err(failed)?;
                    draft = left;
                }
                (Fault::Upstream(NarOutcome::Missing | NarOutcome::Refused), _) => return refused(reason),
                _ => return Err(NotProven::Failed(reason)),
            }
        }
    }

    /// Records what was proven, if it is the file that was kept. Where this fails it is fetched again when it is asked for.
    async fn put_on_record(&self, nar: NarHash, packed: Packed, written: &Stored) {
        let recorded = async {
            let _settling = self.settling.lock().await;
            let in_place = self.nars.get(nar).map_err(Error::Store)?;
            if in_place.is_some_and(|stored| stored.is(written).unwrap_or(false)) {
                let Packed { file_hash, file_size } = packed;
                self.index.record_packed(NarRow { nar_hash: nar, file_hash, file_size }).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = recorded.await {
            tracing::warn!(%nar, error = &error as &dyn std::error::Error, "a NAR that was proven was not recorded");
        }
    }

    /// Whether a draft may get its final name: there is no file of this NAR, nor another one on its way. From here on this one
    /// is.
    pub(super) fn claim(&self, nar: NarHash, draft: &Draft) -> bool {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = !under_way.contains_key(&nar) && matches!(self.nars.get(nar), Ok(None));
        let Some(growing) = is_free.then(|| draft.follow().ok()).flatten() else { return false };
        under_way.insert(nar, growing);
        true
    }

    /// The end of a claim.
    pub(super) fn unclaim(&self, nar: NarHash) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&nar);
    }
}
