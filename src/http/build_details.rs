//! One request for a build as JSON, with the end of its log.

use narinfo::StorePath;

use super::Service;
use super::api::RequestDetails;
use super::error::Error;
use crate::build::{RequestState, RequestView};

/// Lines of a log in an answer.
const LOG_LINES: usize = 20;

pub(super) fn no_such_request(id: u64) -> Error {
    Error::NotFound(format!(
        "no request has the number {id}, or it ended long ago; `ondine queue` lists those that wait"
    ))
}

/// A request that cannot be cancelled any more: it has ended, or there is none.
pub(super) fn not_cancelled(id: u64, request: Option<&RequestView>) -> Error {
    let end = request.and_then(|request| match &request.state {
        RequestState::Served => Some("served"),
        RequestState::Failed { .. } => Some("failed"),
        RequestState::Refused { .. } => Some("refused"),
        RequestState::Dropped => Some("dropped, since nobody waited for it"),
        RequestState::Cancelled => Some("cancelled"),
        RequestState::Waiting | RequestState::Building { .. } | RequestState::Delivering => None,
    });
    match end {
        Some(end) => Error::Conflict(format!("request {id} has ended: {end}")),
        None => no_such_request(id),
    }
}

/// A request with the end of its log.
pub(super) async fn details(service: &Service, request: RequestView) -> RequestDetails {
    let drv = match &request.state {
        RequestState::Building { building } => building,
        RequestState::Failed { cause, .. } => cause,
        _ => &request.derivation,
    };
    let log = match StorePath::parse(drv) {
        Ok(drv) => last_lines(service, drv, LOG_LINES).await,
        Err(_) => Vec::new(),
    };
    RequestDetails { request: request.into(), log }
}

/// A log that cannot be read has no lines.
pub(super) async fn last_lines(service: &Service, drv: StorePath, max: usize) -> Vec<String> {
    let logs = service.state.logs.clone();
    let lines = tokio::task::spawn_blocking(move || logs.last_lines(&drv, max)).await;
    lines.ok().and_then(Result::ok).unwrap_or_default()
}
