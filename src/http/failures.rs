//! Remembered failures: their list as JSON, and the retry of one, reported in lines of text.

use std::fmt::Write;

use super::Service;
use super::answer::{self, json};
use super::api::{RememberedFailure, RetryRequest};
use super::call::Call;
use super::error::{Error, REMEMBERED};
use super::request_body;
use super::response_future::ResponseFuture;
use crate::caller::Caller;
use crate::escape::Lines;
use crate::retry::{Failed, Retried, RetryError};

pub(super) fn list(call: Call<'_>) -> Option<ResponseFuture> {
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { Ok(json(&remembered(&service).await?)) }))
}

/// Failures that are remembered, the latest first.
pub(super) async fn remembered(service: &Service) -> Result<Vec<RememberedFailure>, Error> {
    let failures = service.state.failures.list().await;
    let failures = failures.map_err(|error| Error::index(&error, "the failures cannot be listed"))?;
    Ok(failures.into_iter().map(RememberedFailure::from).collect())
}

/// Reports each forgotten failure and each new request in a line.
pub(super) fn retry(call: Call<'_>) -> Option<ResponseFuture> {
    let what = Failed::parse(call.arguments[0])?;
    let (service, caller, body) = (call.service.clone(), call.caller, call.body);
    Some(ResponseFuture::pending(async move {
        let RetryRequest { forget_only } = request_body::json(body).await?;
        let done = retried(&service, what, forget_only, &caller).await?;
        Ok(answer::ready(answer::TEXT, Lines(lines(&done)).to_string()))
    }))
}

/// Takes back a failure, and has it built again unless it is only to be forgotten.
pub(super) async fn retried(
    service: &Service,
    what: Failed,
    forget_only: bool,
    caller: &Caller,
) -> Result<Vec<Retried>, Error> {
    service.state.retry.retry(what, forget_only, caller).await.map_err(|error| match error {
        RetryError::NotRemembered(_) => Error::not_found(error),
        RetryError::Refused(refusal) => Error::Refused(refusal),
        error => Error::internal(&error, "the failure cannot be forgotten"),
    })
}

fn lines(done: &[Retried]) -> String {
    let mut text = String::new();
    for Retried { drv, forgotten, request } in done {
        for forgotten in forgotten {
            // Writing to a string does not fail.
            let _ = writeln!(text, "forgotten: {forgotten}");
        }
        let _ = match request {
            None => Ok(()),
            Some(Ok(id)) => writeln!(text, "queued: {drv}, request {id}. {REMEMBERED}"),
            Some(Err(reason)) => writeln!(text, "failed: {drv} is forgotten, but not queued: {reason}"),
        };
    }
    text
}
