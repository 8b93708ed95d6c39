//! Fetching: a NAR that upstreams have, from the best that gives it, into the NAR store. Another one is tried only while no
//! reader has seen any of it; one that gave something else, or nothing, is not believed about it again for a while.

use std::collections::VecDeque;
use std::sync::Arc;

use narinfo::NarHash;

use super::Inner;
use crate::decode;
use crate::index::{PathRow, UpstreamNar};
use crate::nar_store::{Draft, Expected, NarStore, PackError, Packed};
use crate::upstream::{FetchError, Found, Lookup, NarOutcome};

/// Why a NAR was not fetched from one upstream.
struct NotFetched {
    /// What was written of it, if anything could be.
    draft: Option<Draft>,
    reason: String,
    outcome: NarOutcome,
}

/// Where the contents of what was found are.
#[must_use]
pub fn upstream_nar(found: &Found) -> UpstreamNar {
    let Found { info, upstream, redirect } = found;
    UpstreamNar {
        nar_hash: info.nar_hash,
        upstream: upstream.clone(),
        url: info.url.clone(),
        compression: info.compression,
        file_hash: info.file_hash,
        file_size: info.file_size,
        redirect: *redirect,
    }
}

/// Bytes that a NAR of so many may have in any compression: what cannot be compressed grows a little.
fn file_bytes_max(nar_bytes: u64) -> u64 {
    nar_bytes.saturating_add(nar_bytes / 8).saturating_add(1024 * 1024)
}

impl Inner {
    /// Fetches the NAR of `row` from those that are known to have it, the best first, then from whoever else says so.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        draft: Draft,
        row: PathRow,
        from: Vec<UpstreamNar>,
    ) -> Option<Packed> {
        let expected = Expected { hash: row.nar_hash, bytes: row.nar_size };
        let (mut untried, mut tried) = (VecDeque::from(from), Vec::new());
        let (mut draft, mut reasons, mut gone) = (Some(draft), Vec::new(), true);
        while draft.as_ref().is_some_and(|draft| !draft.is_begun())
            && let Some(nar) = self.next(&mut untried, &tried, &row).await
            && let Some(unread) = draft.take()
        {
            let NotFetched { draft: left, reason, outcome } =
                match self.fetch_from(unread, &nar, expected).await {
                    Ok(packed) => return Some(packed),
                    Err(not_fetched) => not_fetched,
                };
            tracing::warn!(path = %row.path, reason, "a NAR was not fetched");
            self.upstreams.fetched(&nar.upstream, expected.hash, outcome);
            if outcome == NarOutcome::Failed {
                gone = false;
            } else {
                self.forget_upstream(expected.hash, &nar.upstream).await;
            }
            reasons.push(reason);
            tried.push(nar.upstream);
            draft = left;
        }
        // What readers have seen stands: whoever asks again begins with those that were not tried.
        if gone && untried.is_empty() {
            // Not to be promised any longer: the next request for its narinfo looks anew.
            self.forget(&row.path, row.nar_hash).await;
        }
        // Last: whoever hears of it and asks again at once must find what is true now.
        if let Some(draft) = draft {
            draft.abandon(&reasons.join("; "));
        }
        None
    }

    async fn next(
        &self,
        untried: &mut VecDeque<UpstreamNar>,
        tried: &[String],
        row: &PathRow,
    ) -> Option<UpstreamNar> {
        let broke_off = |nar: &UpstreamNar| self.upstreams.broke_off(&nar.upstream, row.nar_hash);
        if let Some(nar) = untried.iter().position(|nar| !broke_off(nar)).and_then(|at| untried.remove(at)) {
            return Some(nar);
        }
        let known = tried.iter().chain(untried.iter().map(|nar| &nar.upstream)).cloned().collect::<Vec<_>>();
        match self.upstreams.find_beside(row.path.hash(), &known).await {
            Lookup::Found(found) if found.info.nar_hash == row.nar_hash => Some(upstream_nar(&found)),
            // One that broke off a moment ago is better than none.
            _ => untried.pop_front(),
        }
    }

    async fn fetch_from(
        self: &Arc<Self>,
        draft: Draft,
        nar: &UpstreamNar,
        expected: Expected,
    ) -> Result<Packed, NotFetched> {
        let bytes_max = file_bytes_max(expected.bytes);
        let transfer = match self.upstreams.fetch(&nar.upstream, &nar.url, bytes_max).await {
            Ok(transfer) => transfer,
            Err(error) => {
                let outcome = match error {
                    FetchError::Gone(_) => NarOutcome::Missing,
                    FetchError::NotNow(_) => NarOutcome::Failed,
                };
                return Err(NotFetched { draft: Some(draft), reason: error.to_string(), outcome });
            }
        };
        let (compression, encoding, broken) = (nar.compression, transfer.encoding, transfer.broken());
        let receive = move |nars: &NarStore, draft: &Draft| {
            let input = decode::plain(encoding, transfer).map_err(PackError::Sent)?;
            nars.receive(draft, input, compression, expected)
        };
        let (draft, packed) = self.write(draft, expected.hash, receive).await;
        let error = match packed {
            Ok(packed) => {
                self.upstreams.fetched(&nar.upstream, expected.hash, NarOutcome::Kept);
                return Ok(packed);
            }
            Err(error) => error,
        };
        let outcome = match (&error, broken.reason()) {
            // Whoever sent wrong bytes is to blame for them; not for those that did not all come.
            (PackError::Mismatch { .. }, _) | (PackError::Sent(_), None) => NarOutcome::Refused,
            _ => NarOutcome::Failed,
        };
        let why = broken.reason().map_or_else(|| error.to_string(), str::to_owned);
        Err(NotFetched { draft, reason: format!("{}: {why}", nar.upstream), outcome })
    }

    async fn forget_upstream(&self, nar: NarHash, upstream: &str) {
        if let Err(error) = self.index.forget_upstream_nar(nar, upstream.to_owned()).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(%nar, upstream, error, "it stays promised until the next request");
        }
    }
}
