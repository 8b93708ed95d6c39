//! Failures that are remembered: their list as JSON, and what is done to retry one, told in lines of text.

use std::fmt::Write;
use std::time::SystemTime;

use super::Service;
use super::answer::{self, Answer, json};
use crate::escape::Lines;
use crate::index::Failure;
use crate::retry::{Failed, Retried, RetryError};

/// A failure in the list at `GET /api/v1/failures`.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub struct RememberedFailure {
    /// Base name of the derivation that is answered with it.
    pub derivation: String,
    /// `permanent`, `passing` or `refused`.
    pub class: String,
    /// Base name of the derivation whose build failed.
    pub cause: String,
    /// The daemon's words.
    pub reason: String,
    /// Address of the log of the cause.
    pub log: String,
    /// Unix seconds of the try.
    pub since: u64,
    /// Unix seconds from which the next request tries again.
    pub until: u64,
}

impl From<Failure> for RememberedFailure {
    fn from(failure: Failure) -> Self {
        let unix =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            derivation: failure.drv.to_string(),
            class: failure.class.as_str().to_owned(),
            log: format!("/log/{}", failure.cause),
            cause: failure.cause.to_string(),
            reason: failure.reason,
            since: unix(failure.failed_at),
            until: unix(failure.expires_at),
        }
    }
}

pub(super) async fn list(service: &Service) -> Answer {
    match service.parts.failures.list().await {
        Ok(failures) => json(&failures.into_iter().map(RememberedFailure::from).collect::<Vec<_>>()),
        Err(error) => unavailable(&error, "the failures cannot be listed"),
    }
}

/// Each failure that is forgotten, and each request that is made, in a line.
pub(super) async fn retry(service: &Service, what: Failed, forget_only: bool) -> Answer {
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
