//! Fetching a NAR from the best upstream that gives it. Another one is tried only while no reader has seen
//! any byte; an upstream that sent other contents, or nothing, is not believed about them for a while.
//! Transient failures are retried for a while; a NAR without any source is not served any more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use narinfo::{Addressed, NarHash};
use tokio::time::{Instant, sleep};

use super::Inner;
use super::bring::Committed;
use crate::backoff::Backoff;
use crate::causes::with_causes;
use crate::decode;
use crate::model::{PathRow, UpstreamNar};
use crate::nar_store::{Draft, NarDigest, NarStore, PackError, Promise, file_bytes_max};
use crate::upstream::{Asker, FetchError, FoundNarInfo, Lookup, NarOutcome};

/// Shortest and longest pause before a retry.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Failure to fetch a NAR from one upstream.
pub(super) struct NotFetched {
    /// The draft, unless it was discarded.
    pub(super) draft: Option<Draft>,
    pub(super) reason: String,
    pub(super) fault: Blame,
}

/// Party to blame for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The upstream.
    Upstream(NarOutcome),
    /// A resumed transfer whose parts did not fit.
    Resumed,
    /// This machine, which could not write the file.
    Here,
    /// Nobody: all who waited have left.
    Nobody,
}

/// Failure of all upstreams to give a NAR.
struct FetchFailure {
    draft: Option<Draft>,
    reasons: Vec<String>,
    /// Upstreams that may give it later.
    troubled: Vec<String>,
    /// True if some upstream was not asked.
    untried: bool,
    /// True if no other attempt is to be made: the fault is local, or no reader is left.
    over: bool,
}

/// Location of the contents of a path that was found.
#[must_use]
pub fn upstream_nar(found: &FoundNarInfo) -> UpstreamNar {
    let FoundNarInfo { info, upstream, redirect, .. } = found;
    UpstreamNar {
        nar_hash: info.path_info.nar_hash,
        upstream: upstream.clone(),
        url: info.url.clone(),
        compression: info.compression,
        file_hash: info.file_hash,
        file_size: info.file_size,
        redirect: *redirect,
    }
}

impl Inner {
    /// Fetches the NAR of `row` from the upstreams that are known to have it, the best first, then from
    /// others that have it; retries transient failures within a bound. Packs the path if no upstream gives
    /// it.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        draft: Draft,
        row: PathRow,
        from: Vec<UpstreamNar>,
    ) -> Option<Committed> {
        let give_up_at = Instant::now() + self.upstreams.nar_patience();
        let (mut draft, mut from, mut backoff) = (draft, from, Backoff::new(PAUSE_MIN, PAUSE_MAX));
        loop {
            let FetchFailure { draft: left, reasons, troubled, untried, over } =
                match self.round(draft, &row, from).await {
                    Ok(committed) => return Some(committed),
                    Err(failure) => failure,
                };
            let left = left?;
            if over || left.is_begun() {
                if !over && troubled.is_empty() && !untried {
                    // Not promised any longer: the next request for its narinfo repeats the look-up.
                    self.forget(&row.info.path, row.info.nar_hash).await;
                }
                // Bytes that readers have seen stand: the next request begins with upstreams that were not
                // tried.
                left.abandon(&reasons.join("; "));
                return None;
            }
            let time_left = give_up_at.saturating_duration_since(Instant::now());
            let pause = if troubled.is_empty() { None } else { backoff.pause_within(time_left) };
            let Some(pause) = pause else {
                for upstream in troubled {
                    self.upstreams.fetched(&upstream, row.info.nar_hash, NarOutcome::GivenUp);
                    self.forget_upstream(row.info.nar_hash, &upstream).await;
                }
                return self.pack_or(left, row, Some(reasons.join("; "))).await;
            };
            if !left.is_followed() {
                left.abandon(&reasons.join("; "));
                return None;
            }
            sleep(pause).await;
            draft = left;
            from = match self.upstreams_with(row.info.nar_hash).await {
                Ok(from) => from,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(path = %row.info.path, error, "cannot fetch a NAR; the next request for it tries again");
                    draft.abandon("the index cannot be read");
                    return None;
                }
            };
        }
    }

    /// Tries each upstream once.
    async fn round(
        self: &Arc<Self>,
        draft: Draft,
        row: &PathRow,
        from: Vec<UpstreamNar>,
    ) -> Result<Committed, FetchFailure> {
        let promised = NarDigest { hash: row.info.nar_hash, bytes: row.info.nar_size };
        let (mut untried, mut tried) = (VecDeque::from(from), Vec::new());
        let mut failure = FetchFailure {
            draft: Some(draft),
            reasons: Vec::new(),
            troubled: Vec::new(),
            untried: false,
            over: false,
        };
        while !failure.over
            && failure.draft.as_ref().is_some_and(|draft| !draft.is_begun())
            && let Some(nar) = self.next(&mut untried, &tried, row).await
            && let Some(mut unread) = failure.draft.take()
        {
            let NotFetched { draft, reason, fault } = loop {
                match self.fetch_from(unread, &nar, promised, None).await {
                    Ok(committed) => return Ok(committed),
                    // Nobody is blamed before it has come over one connection.
                    Err(NotFetched { draft: Some(draft), fault: Blame::Resumed, .. })
                        if !draft.is_begun() =>
                    {
                        unread = draft;
                    }
                    Err(not_fetched) => break not_fetched,
                }
            };
            tracing::warn!(path = %row.info.path, reason, "cannot fetch a NAR; the next request for it tries again");
            match fault {
                Blame::Upstream(outcome) => {
                    self.upstreams.fetched(&nar.upstream, promised.hash, outcome);
                    if outcome == NarOutcome::Failed {
                        failure.troubled.push(nar.upstream.clone());
                    } else {
                        self.forget_upstream(promised.hash, &nar.upstream).await;
                    }
                }
                Blame::Resumed => failure.troubled.push(nar.upstream.clone()),
                Blame::Here | Blame::Nobody => failure.over = true,
            }
            failure.reasons.push(reason);
            tried.push(nar.upstream);
            failure.draft = draft;
        }
        failure.untried = !untried.is_empty();
        Err(failure)
    }

    async fn next(
        &self,
        untried: &mut VecDeque<UpstreamNar>,
        tried: &[String],
        row: &PathRow,
    ) -> Option<UpstreamNar> {
        let broke_off = |nar: &UpstreamNar| self.upstreams.broke_off(&nar.upstream, row.info.nar_hash);
        if let Some(nar) = untried.iter().position(|nar| !broke_off(nar)).and_then(|at| untried.remove(at)) {
            return Some(nar);
        }
        let known = tried.iter().chain(untried.iter().map(|nar| &nar.upstream)).cloned().collect::<Vec<_>>();
        match self.upstreams.find_beside(row.info.path.hash(), &known, &Asker::default()).await {
            Lookup::Found(found) if found.info.path_info.nar_hash == row.info.nar_hash => {
                Some(upstream_nar(&found))
            }
            // An upstream that broke off a moment ago is better than none.
            _ => untried.pop_front(),
        }
    }

    /// Fetches a NAR from one upstream; with `addressed`, its contents must be those that the path is named
    /// by.
    pub(super) async fn fetch_from(
        self: &Arc<Self>,
        draft: Draft,
        nar: &UpstreamNar,
        promised: NarDigest,
        addressed: Option<Addressed>,
    ) -> Result<Committed, NotFetched> {
        let not_fetched = |draft, fault, why: &dyn std::fmt::Display| NotFetched {
            draft,
            fault,
            reason: format!("{}: {why}", nar.upstream),
        };
        let bytes_max = self.nar_bytes_max();
        if promised.bytes > bytes_max {
            let why = format!("it has {} bytes, and no more than {bytes_max} are fetched", promised.bytes);
            return Err(not_fetched(Some(draft), Blame::Here, &why));
        }
        let transfer = match self
            .upstreams
            .fetch(&nar.upstream, promised.hash, &nar.url, file_bytes_max(promised.bytes))
            .await
        {
            Ok(transfer) => transfer,
            Err(error) => {
                let outcome = match error {
                    FetchError::Gone(_) => NarOutcome::Missing,
                    FetchError::NotNow(_) => NarOutcome::Failed,
                };
                return Err(not_fetched(Some(draft), Blame::Upstream(outcome), &error));
            }
        };
        let (compression, encoding, broken) = (nar.compression, transfer.encoding, transfer.broken());
        let receive = move |nars: &NarStore, draft: &Draft| {
            let input = decode::encoded(encoding, transfer).map_err(PackError::Sent)?;
            nars.receive(draft, input, compression, Promise::Exactly(promised), addressed.as_ref())
        };
        let (draft, written) = self.write(draft, receive).await;
        let error = match written {
            Ok(committed) => {
                self.upstreams.fetched(&nar.upstream, promised.hash, NarOutcome::Kept);
                return Ok(committed);
            }
            Err(error) => error,
        };
        let fault = match (&error, broken.reason()) {
            (PackError::Write(_), _) => Blame::Here,
            (PackError::Abandoned, _) => Blame::Nobody,
            // The sender of wrong bytes is to blame; not for bytes that did not all come, or came in parts.
            (PackError::Mismatch { .. } | PackError::Malformed(_), _) | (PackError::Sent(_), None) => {
                if broken.was_resumed() {
                    self.upstreams.resumed_wrongly(&nar.upstream, promised.hash);
                    Blame::Resumed
                } else {
                    Blame::Upstream(NarOutcome::Refused)
                }
            }
            _ => Blame::Upstream(NarOutcome::Failed),
        };
        let why = broken.reason().map_or_else(|| with_causes(&error), str::to_owned);
        Err(not_fetched(draft, fault, &why))
    }

    /// Bytes of a NAR that may be fetched, at most: the setting, else half of the free room.
    pub(super) fn nar_bytes_max(&self) -> u64 {
        self.nar_bytes_max.unwrap_or_else(|| self.nars.room().map_or(u64::MAX, |room| room.free_bytes / 2))
    }

    async fn forget_upstream(&self, nar: NarHash, upstream: &str) {
        if let Err(error) = self.index.forget_upstream_nar(nar, upstream.to_owned()).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(%nar, upstream, error, "cannot forget an upstream: the next request tries again");
        }
    }
}
