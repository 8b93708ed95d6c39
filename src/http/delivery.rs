//! The wait of people without Nix for the contents of a path, in silence, so that an answer has its true
//! status; or, where they do not wait, the state of the build and the address at which it is told. A build
//! that failed is answered with the end of its log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::HeaderMap;
use narinfo::StorePathHash;
use tokio::time::timeout;

use super::Service;
use super::answer::{self, Answer};
use super::api::{BuildItem, BuildItemState};
use super::build_details::last_lines;
use super::call::Call;
use super::error::Error;
use super::traffic::RequestOutcome;
use crate::caller::Caller;
use crate::index::CachedNarInfo;
use crate::model::FailureClass;
use crate::requests::RequestTarget;
use crate::substitute::{Missing, OnMiss, WaitEnd};

/// Reason for a wait that the stop of the server ends.
const STOPS: &str = "the server stops while this is built; ask again, it keeps its place";
/// Longest wait that an address may name, as for `GET /api/v1/builds/<number>`.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(300);
/// Lines of the log of a failed build in an answer.
const LOG_LINES: usize = 20;
/// Time within which most requests are decided, for those who do not wait.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);

/// A request for contents, without the arguments of its address.
pub(super) struct DeliveryRequest {
    pub(super) service: Service,
    caller: Caller,
    /// Cost that a miss may have.
    pub(super) on_miss: OnMiss,
    pub(super) headers: HeaderMap,
    pub(super) head: bool,
    /// Longest wait for a build; `None` for no limit.
    wait: Option<Duration>,
    /// True once a build was waited for, and has made the path.
    built: AtomicBool,
}

/// Result of a wait.
pub(super) enum Delivery {
    /// The path is served.
    Ready(Arc<CachedNarInfo>),
    /// The time is over; the answer says where the state of the build is told.
    Pending(Answer),
}

impl DeliveryRequest {
    pub(super) fn of(call: Call<'_>) -> Self {
        let (service, on_miss) = (call.service.clone(), call.on_miss());
        let Call { caller, headers, head, .. } = call;
        Self { service, caller, on_miss, headers, head, wait: None, built: AtomicBool::new(false) }
    }

    /// The same with another limit of the wait.
    pub(super) fn waiting(mut self, wait: Option<Duration>) -> Self {
        self.wait = wait;
        self
    }

    /// The path of this hash, once it is served. `on_miss` is the cost that a miss of it may have.
    pub(super) async fn path(&self, hash: StorePathHash, on_miss: OnMiss) -> Result<Delivery, Error> {
        let mut waited = self.service.wait(hash, on_miss.clone());
        let end = match self.wait {
            None => Some(waited.ended().await),
            // An error is the end of the time.
            Some(limit) => match timeout(DECIDED_WITHIN.max(limit), waited.decided()).await {
                Ok(Some(end)) => Some(end),
                _ => timeout(limit, waited.ended()).await.ok(),
            },
        };
        match end {
            Some(WaitEnd::Ready(ready)) => {
                self.built.fetch_or(waited.ticket().is_some(), Ordering::Relaxed);
                Ok(Delivery::Ready(ready))
            }
            Some(WaitEnd::Missing(reason)) => Err(error_of(&self.service, reason).await),
            Some(WaitEnd::Stopped) => Err(Error::unavailable(STOPS)),
            None => self.pending(hash, on_miss).await,
        }
    }

    /// The answer with what was asked for, counted as one after a build where it is that.
    pub(super) fn counted(&self, answer: Answer) -> Answer {
        match self.built.load(Ordering::Relaxed) {
            true => answer::noted(answer, RequestOutcome::Built),
            false => answer,
        }
    }

    /// A place in the queue that no connection stands for, and its address.
    async fn pending(&self, hash: StorePathHash, on_miss: OnMiss) -> Result<Delivery, Error> {
        let state = &self.service.state;
        let items =
            state.requests.ask(vec![RequestTarget::Hash(hash)], on_miss, Some(&self.caller), None).await?;
        let item = items.into_iter().next().ok_or_else(|| Error::not_found(Missing::Unknown))?;
        let item = BuildItem::new(hash.to_string(), item, &state.store_dir);
        match (item.state, &item.reason) {
            (BuildItemState::Failed | BuildItemState::Refused | BuildItemState::Unknown, Some(reason)) => {
                Err(Error::not_found(reason))
            }
            _ => {
                let place = item.request.map(|request| format!("/api/v1/builds/{request}"));
                Ok(Delivery::Pending(answer::accepted(&item, place.as_deref())))
            }
        }
    }
}

/// The error for a path that is not to be had.
pub(super) async fn error_of(service: &Service, missing: Missing) -> Error {
    match &missing {
        Missing::Failed(failure) if failure.class != FailureClass::Refused => {
            let lines = last_lines(service, failure.cause.clone(), LOG_LINES).await;
            let log = format!("/log/{}", failure.cause);
            Error::BuildFailed { missing: Box::new(missing), log, lines }
        }
        _ => missing.into(),
    }
}

/// The wait that `?wait=<seconds>` names; else the range that it has.
pub(super) fn wait_of(seconds: &str) -> Result<Duration, String> {
    let wait = seconds.parse().ok().map(Duration::from_secs).filter(|wait| *wait <= WAIT_MAX);
    wait.ok_or_else(|| format!("wait is a number of seconds, 0 to {}", WAIT_MAX.as_secs()))
}
