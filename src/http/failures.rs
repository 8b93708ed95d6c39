//! Failures that are remembered: their list as JSON, and what is done to retry one, told in lines of text.

use std::fmt::Write;

use super::Service;
use super::answer::{self, Answer, json};
use super::api::types::RememberedFailure;
use super::call::{Call, is_given};
use super::response_future::ResponseFuture;
use crate::escape::Lines;
use crate::retry::{Failed, Retried, RetryError};

pub(super) fn list(call: Call<'_>) -> Option<ResponseFuture> {
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move {
        match service.parts.failures.list().await {
            Ok(failures) => json(&failures.into_iter().map(RememberedFailure::from).collect::<Vec<_>>()),
            Err(error) => unavailable(&error, "the failures cannot be listed"),
        }
    }))
}

/// Tells of each failure that is forgotten, and of each request that is made, in a line.
pub(super) fn retry(call: Call<'_>) -> Option<ResponseFuture> {
    let what = Failed::parse(call.arguments[0])?;
    let (service, forget_only) = (call.service.clone(), is_given(call.query, "forget-only"));
    Some(ResponseFuture::pending(async move { retried(&service, what, forget_only).await }))
}

async fn retried(service: &Service, what: Failed, forget_only: bool) -> Answer {
    match service.parts.retry.retry(what, forget_only).await {
        Ok(done) => answer::ready(answer::TEXT, Lines(lines(&done)).to_string()),
        Err(reason @ RetryError::NotRemembered(_)) => answer::no_such(reason),
        Err(error) => unavailable(&error, "the failure cannot be forgotten"),
    }
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
            Some(Ok(id)) => writeln!(text, "queued: {drv}, request {id}"),
            Some(Err(reason)) => writeln!(text, "failed: {drv} is forgotten, but not queued: {reason}"),
        };
    }
    text
}

fn unavailable(error: &(dyn std::error::Error + 'static), what: &'static str) -> Answer {
    tracing::error!(error, "{what}");
    answer::failed(format_args!("{what}; the server's log has the details"))
}
