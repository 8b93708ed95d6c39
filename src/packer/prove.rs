//! Proving content-addressed paths that no trusted key has signed: their contents are fetched before such a
//! path is published, because neither its size nor, for most kinds of address, its NAR hash is known before.
//! Requests for the same path share one fetch, which ends soon after the last of them.

use std::sync::Arc;

use narinfo::{Addressed, NarHash, StorePath};
use tokio::sync::watch;

use super::bring::Committed;
use super::fetch::{Blame, NotFetched, upstream_nar};
use super::{Error, Inner, Packer};
use crate::model::{NarRow, NewNar};
use crate::nar_store::{Blob, Commit, Draft, Growing, NarDigest, Packed};
use crate::single_flight::{Joined, SingleFlight};
use crate::tail_file::reading;
use crate::upstream::{FoundNarInfo, NarOutcome};

/// Reasons why contents are not proven.
#[derive(Clone, Debug)]
pub enum NotProven {
    /// The upstream sent other contents than it said, and is not believed about them for a while.
    Refused(String),
    /// The contents did not come; they may, later.
    Failed(String),
}

/// Upstream, path, NAR hash and NAR size: a statement that is to be proven.
type Claim = (String, StorePath, NarHash, u64);

/// The proofs under way.
pub(super) type Proofs = SingleFlight<Claim, Proof>;

/// A proof under way.
#[derive(Clone)]
pub(super) struct Proof {
    /// Followed by all who hold the proof, so that the fetch goes on.
    _following: Growing,
    outcome: watch::Receiver<Option<Result<(), NotProven>>>,
}

impl Packer {
    /// Checks that a NAR of so many bytes may be fetched.
    ///
    /// # Errors
    /// With the limit, if it has more.
    pub fn fetches(&self, nar_bytes: u64) -> Result<(), u64> {
        let max = self.0.nar_bytes_max();
        if nar_bytes <= max { Ok(()) } else { Err(max) }
    }

    /// Fetches the contents of a path and keeps them, if they have the size and hash of its narinfo and are
    /// those that the path is named by.
    ///
    /// # Errors
    /// The contents are others, or do not come.
    pub async fn prove(&self, found: &FoundNarInfo) -> Result<(), NotProven> {
        let info = &found.info.path_info;
        let claim = (found.upstream.clone(), info.path.clone(), info.nar_hash, info.nar_size);
        let mut proof =
            self.proof(claim, found).await.map_err(|error| NotProven::Failed(error.to_string()))?;
        match proof.outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(outcome)) => outcome,
            _ => Err(NotProven::Failed("it was abandoned".into())),
        }
    }

    /// Joins the proof under way, or leads it.
    async fn proof(&self, claim: Claim, found: &FoundNarInfo) -> std::io::Result<Proof> {
        let flight = match self.0.proofs.join(&claim).await {
            Joined::Follows(proof) => return Ok(proof),
            Joined::Leads(flight) => flight,
        };
        let inner = Arc::clone(&self.0);
        let (draft, growing) = reading(move || inner.nars.draft()).await?;
        let (tell, outcome) = watch::channel(None);
        let proof = Proof { _following: growing, outcome };
        flight.publish(proof.clone());
        let (inner, found) = (Arc::clone(&self.0), found.clone());
        self.0.tasks.optional("nar-proof", async move {
            let outcome = inner.prove(draft, &found).await;
            // The next request starts again, if it was not proven.
            drop(flight);
            tell.send_replace(Some(outcome));
        });
        Ok(proof)
    }
}

impl Inner {
    async fn prove(self: &Arc<Self>, mut draft: Draft, found: &FoundNarInfo) -> Result<(), NotProven> {
        let (info, nar) = (&found.info.path_info, upstream_nar(found));
        let promised = NarDigest { hash: info.nar_hash, bytes: info.nar_size };
        let refused = |reason: String| {
            tracing::warn!(path = %info.path, reason, "rejected unsigned contents of an upstream");
            self.upstreams.fetched(&found.upstream, info.nar_hash, NarOutcome::Refused);
            Err(NotProven::Refused(reason))
        };
        let failed = |error: std::io::Error| NotProven::Failed(error.to_string());
        let Some(ca) = info.ca.clone() else { return refused("it has no content address".into()) };
        let addressed = Addressed::new(ca, &info.path, &info.references);
        let written = draft.as_blob();
        loop {
            let NotFetched { draft: left, reason, fault } =
                match self.fetch_from(draft, &nar, promised, Some(addressed.clone())).await {
                    Ok(committed) => {
                        self.put_on_record(committed, &written).await;
                        return Ok(());
                    }
                    Err(not_fetched) => not_fetched,
                };
            match (fault, left) {
                (Blame::Resumed, Some(left)) => {
                    // Nobody has read any of it.
                    left.rewind().map_err(failed)?;
                    draft = left;
                }
                (Blame::Upstream(NarOutcome::Missing | NarOutcome::Refused), _) => return refused(reason),
                _ => return Err(NotProven::Failed(reason)),
            }
        }
    }

    /// Records a proven NAR, if its file was kept. After a failure it is fetched again on request.
    async fn put_on_record(self: &Arc<Self>, committed: Committed, written: &Blob) {
        let Committed { received, commit, version, lease } = committed;
        let (nar, Packed { file_hash, file_size }) = (received.nar.hash, received.packed);
        let programs = received.programs;
        let recorded = async {
            let _lock = self.file_row_lock.lock().await;
            // What was put elsewhere is no file of this machine; the lease protects it.
            let is_there = self.nars.is_remote() || self.is_in_place(nar, Some(written)).await?;
            if commit == Commit::Won && is_there {
                let row = NarRow { nar_hash: nar, file_hash, file_size };
                self.index.record_packed(NewNar { row, programs }).await?;
            }
            Ok::<_, Error>(())
        };
        match recorded.await {
            // It has its row, or another file has.
            Ok(()) => {
                lease.recorded();
                self.confirm(nar, version).await;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%nar, error, "cannot record a proven NAR: it is fetched again on request");
            }
        }
    }
}
