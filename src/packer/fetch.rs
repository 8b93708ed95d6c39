//! Fetching: a NAR that upstreams have, from the best that gives it, into the NAR store. Another one is tried only while no
//! reader has seen any of it; one that gave something else, or nothing, is not believed about it again for a while. What may
//! pass is tried again for a while; a promise that cannot be kept is taken back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use narinfo::{Addressed, NarHash};
use tokio::time::{Instant, sleep};

use super::Inner;
use super::bring::Kept;
use crate::causes::with_causes;
use crate::decode;
use crate::index::{PathRow, UpstreamNar};
use crate::nar_store::{Draft, Expected, NarStore, PackError, Packed};
use crate::upstream::{Asker, FetchError, Found, Lookup, NarOutcome};

/// The pause before a NAR is asked for again that nobody could give; each further one is twice as long, up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Why a NAR was not fetched from one upstream.
pub(super) struct NotFetched {
    /// What was written of it, if anything could be.
    pub(super) draft: Option<Draft>,
    pub(super) reason: String,
    pub(super) fault: Fault,
}

/// Who is to blame for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The upstream.
    Upstream(NarOutcome),
    /// Another connection, to which the file did not fit.
    Resumed,
    /// This machine: the file could not be written.
    Here,
    /// Nobody waits for it any more.
    Nobody,
}

/// Why nobody gave it.
struct Nowhere {
    draft: Option<Draft>,
    reasons: Vec<String>,
    /// Those that may give it later.
    troubled: Vec<String>,
    /// Whether somebody was not asked.
    untried: bool,
    /// No other attempt is to be made: the fault is here, or nobody waits.
    over: bool,
}

/// Where the contents of what was found are.
#[must_use]
pub fn upstream_nar(found: &Found) -> UpstreamNar {
    let Found { info, upstream, redirect, .. } = found;
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
    /// Fetches the NAR of `row` from those that are known to have it, the best first, then from whoever else says so; again and
    /// again, within a bound, where that may help. What is to be had nowhere is taken from the Nix store, or not served any more.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        draft: Draft,
        row: PathRow,
        from: Vec<UpstreamNar>,
    ) -> Option<Packed> {
        let give_up_at = Instant::now() + self.upstreams.nar_patience();
        let (mut draft, mut from, mut pause) = (draft, from, PAUSE_MIN);
        loop {
            let Nowhere { draft: left, reasons, troubled, untried, over } =
                match self.round(draft, &row, from).await {
                    Ok(packed) => return Some(packed),
                    Err(nowhere) => nowhere,
                };
            let left = left?;
            if over || left.is_begun() {
                if !over && troubled.is_empty() && !untried {
                    // Not to be promised any longer: the next request for its narinfo looks anew.
                    self.forget(&row.path, row.nar_hash).await;
                }
                // What readers have seen stands: whoever asks again begins with those that were not tried.
                left.abandon(&reasons.join("; "));
                return None;
            }
            if troubled.is_empty() || Instant::now() + pause > give_up_at {
                for upstream in troubled {
                    self.upstreams.fetched(&upstream, row.nar_hash, NarOutcome::GivenUp);
                    self.forget_upstream(row.nar_hash, &upstream).await;
                }
                return self.pack_or(left, row, Some(reasons.join("; "))).await;
            }
            if !left.is_followed() {
                left.abandon(&reasons.join("; "));
                return None;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            draft = left;
            from = match self.upstreams_with(row.nar_hash).await {
                Ok(from) => from,
                Err(error) => {
                    tracing::error!(path = %row.path, error = &error as &dyn std::error::Error, "not fetched");
                    draft.abandon("the index cannot be read");
                    return None;
                }
            };
        }
    }

    /// Tries everyone once.
    async fn round(
        self: &Arc<Self>,
        draft: Draft,
        row: &PathRow,
        from: Vec<UpstreamNar>,
    ) -> Result<Packed, Nowhere> {
        let expected = Expected { hash: row.nar_hash, bytes: row.nar_size };
        let (mut untried, mut tried) = (VecDeque::from(from), Vec::new());
        let mut nowhere = Nowhere {
            draft: Some(draft),
            reasons: Vec::new(),
            troubled: Vec::new(),
            untried: false,
            over: false,
        };
        while !nowhere.over
            && nowhere.draft.as_ref().is_some_and(|draft| !draft.is_begun())
            && let Some(nar) = self.next(&mut untried, &tried, row).await
            && let Some(mut unread) = nowhere.draft.take()
        {
            let NotFetched { draft, reason, fault } = loop {
                match self.fetch_from(unread, &nar, expected, None).await {
                    Ok(packed) => return Ok(packed),
                    // Nobody is blamed before it has come over one connection.
                    Err(NotFetched { draft: Some(draft), fault: Fault::Resumed, .. })
                        if !draft.is_begun() =>
                    {
                        unread = draft;
                    }
                    Err(not_fetched) => break not_fetched,
                }
            };
            tracing::warn!(path = %row.path, reason, "a NAR was not fetched");
            match fault {
                Fault::Upstream(outcome) => {
                    self.upstreams.fetched(&nar.upstream, expected.hash, outcome);
                    if outcome == NarOutcome::Failed {
                        nowhere.troubled.push(nar.upstream.clone());
                    } else {
                        self.forget_upstream(expected.hash, &nar.upstream).await;
                    }
                }
                Fault::Resumed => nowhere.troubled.push(nar.upstream.clone()),
                Fault::Here | Fault::Nobody => nowhere.over = true,
            }
            nowhere.reasons.push(reason);
            tried.push(nar.upstream);
            nowhere.draft = draft;
        }
        nowhere.untried = !untried.is_empty();
        Err(nowhere)
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
        match self.upstreams.find_beside(row.path.hash(), &known, &Asker::default()).await {
            Lookup::Found(found) if found.info.nar_hash == row.nar_hash => Some(upstream_nar(&found)),
            // One that broke off a moment ago is better than none.
            _ => untried.pop_front(),
        }
    }

    /// Fetches it from one upstream; with the contents that its path is named by, if they are to be proven.
    pub(super) async fn fetch_from(
        self: &Arc<Self>,
        draft: Draft,
        nar: &UpstreamNar,
        expected: Expected,
        addressed: Option<Addressed>,
    ) -> Result<Packed, NotFetched> {
        let not_fetched = |draft, fault, why: &dyn std::fmt::Display| NotFetched {
            draft,
            fault,
            reason: format!("{}: {why}", nar.upstream),
        };
        let bytes_max = self.nar_bytes_max();
        if expected.bytes > bytes_max {
            let why = format!("it has {} bytes, and no more than {bytes_max} are fetched", expected.bytes);
            return Err(not_fetched(Some(draft), Fault::Here, &why));
        }
        let transfer = match self
            .upstreams
            .fetch(&nar.upstream, expected.hash, &nar.url, file_bytes_max(expected.bytes))
            .await
        {
            Ok(transfer) => transfer,
            Err(error) => {
                let outcome = match error {
                    FetchError::Gone(_) => NarOutcome::Missing,
                    FetchError::NotNow(_) => NarOutcome::Failed,
                };
                return Err(not_fetched(Some(draft), Fault::Upstream(outcome), &error));
            }
        };
        let (compression, encoding, broken) = (nar.compression, transfer.encoding, transfer.broken());
        let keep = if addressed.is_some() { Kept::IfMissing } else { Kept::Always };
        let receive = move |nars: &NarStore, draft: &Draft| {
            let input = decode::encoded(encoding, transfer).map_err(PackError::Sent)?;
            nars.receive(draft, input, compression, expected, addressed.as_ref())
        };
        let (draft, packed) = self.write(draft, expected.hash, keep, receive).await;
        let error = match packed {
            Ok(packed) => {
                self.upstreams.fetched(&nar.upstream, expected.hash, NarOutcome::Kept);
                return Ok(packed);
            }
            Err(error) => error,
        };
        let fault = match (&error, broken.reason()) {
            (PackError::Write(_), _) => Fault::Here,
            (PackError::Abandoned, _) => Fault::Nobody,
            // Whoever sent wrong bytes is to blame for them; not for those that did not all come, or came in parts.
            (PackError::Mismatch { .. } | PackError::Malformed(_), _) | (PackError::Sent(_), None) => {
                if broken.was_resumed() {
                    self.upstreams.resumed_wrongly(&nar.upstream, expected.hash);
                    Fault::Resumed
                } else {
                    Fault::Upstream(NarOutcome::Refused)
                }
            }
            _ => Fault::Upstream(NarOutcome::Failed),
        };
        let why = broken.reason().map_or_else(|| with_causes(&error), str::to_owned);
        Err(not_fetched(draft, fault, &why))
    }

    /// Bytes that a NAR may have to be fetched: those of the setting, else half of what is free.
    pub(super) fn nar_bytes_max(&self) -> u64 {
        self.nar_bytes_max.unwrap_or_else(|| self.nars.room().map_or(u64::MAX, |room| room.free_bytes / 2))
    }

    async fn forget_upstream(&self, nar: NarHash, upstream: &str) {
        if let Err(error) = self.index.forget_upstream_nar(nar, upstream.to_owned()).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(%nar, upstream, error, "it stays promised until the next request");
        }
    }
}
