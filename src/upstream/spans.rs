//! Upstreams in traces: a span for each question and for each NAR, with the data that log lines have.

use std::fmt::Display;

use tracing::Span;
use tracing::field::{Empty, debug, display};

use super::metrics::LookupOutcome;
use crate::telemetry::TRACE;

/// A question to an upstream for a small file.
pub(super) fn lookup_span(upstream: &str, key: &impl Display) -> Span {
    tracing::info_span!(
        target: TRACE, "upstream lookup", otel.kind = "client", upstream, %key, outcome = Empty,
        otel.status_code = Empty,
    )
}

/// Notes the outcome of the question that the current span is about.
pub(super) fn note_lookup(outcome: LookupOutcome) {
    let span = Span::current();
    span.record("outcome", debug(outcome));
    if matches!(outcome, LookupOutcome::Failed) {
        span.record("otel.status_code", "error");
    }
}

/// A NAR on its way from an upstream.
pub(super) fn fetch_span(upstream: &str, url: &str) -> Span {
    tracing::info_span!(
        target: TRACE, "upstream fetch", otel.kind = "client", upstream, url, bytes = Empty, error = Empty,
        otel.status_code = Empty,
    )
}

/// Notes that a NAR did not come.
pub(super) fn note_failure(span: &Span, error: &impl Display) {
    span.record("error", display(error));
    span.record("otel.status_code", "error");
}
