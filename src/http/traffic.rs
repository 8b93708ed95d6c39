//! Counts and logs requests. Each connection thread has counters of its own, summed when metrics are read: an
//! answer from memory, as nearly all are, costs two additions and no look at a clock.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::{Method, Request};
use tracing::Span;
use tracing::field::Empty;
use tracing::span::Entered;

use crate::auth::has_token;
use crate::telemetry::TRACE;

/// Upper bounds of the histogram's buckets, in seconds. Answers from memory count in the first.
const SECONDS: [f64; 9] = [0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, f64::INFINITY];
/// Time between two summary lines in the log.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);
/// Target of the access log, as ONDINE_LOG names it (`ondine::access=debug`).
const ACCESS: &str = "ondine::access";

/// The value of the metrics' label `route`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteLabel {
    NarInfo,
    Nar,
    Realisation,
    Log,
    Download,
    File,
    Upload,
    Page,
    Api,
    Monitoring,
    /// A change, which needs a right that clients without a token do not have.
    Change,
    Unknown,
}

const LABELS: [(RouteLabel, &str); 12] = [
    (RouteLabel::NarInfo, "narinfo"),
    (RouteLabel::Nar, "nar"),
    (RouteLabel::Realisation, "realisation"),
    (RouteLabel::Log, "log"),
    (RouteLabel::Download, "get"),
    (RouteLabel::File, "file"),
    (RouteLabel::Upload, "upload"),
    (RouteLabel::Page, "page"),
    (RouteLabel::Api, "api"),
    (RouteLabel::Monitoring, "monitoring"),
    (RouteLabel::Change, "change"),
    (RouteLabel::Unknown, "unknown"),
];

/// Outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestOutcome {
    /// Served from the cache.
    Hit,
    /// Served after a wait.
    Built,
    /// Not available.
    Miss,
    /// Its build failed, now or before.
    Failed,
    /// Not allowed, or beyond a limit.
    Refused,
    /// Redirected.
    Redirect,
    /// The client has it already.
    NotModified,
    /// Trouble that may pass.
    Unavailable,
    /// The client left, or the answer could not be completed.
    Cut,
}

const OUTCOMES: [(RequestOutcome, &str); 9] = [
    (RequestOutcome::Hit, "hit"),
    (RequestOutcome::Built, "built"),
    (RequestOutcome::Miss, "miss"),
    (RequestOutcome::Failed, "failed"),
    (RequestOutcome::Refused, "refused"),
    (RequestOutcome::Redirect, "redirect"),
    (RequestOutcome::NotModified, "not_modified"),
    (RequestOutcome::Unavailable, "unavailable"),
    (RequestOutcome::Cut, "cut"),
];

/// Counters of the requests of one label.
#[derive(Debug, Default)]
struct Counters {
    outcomes: [AtomicU64; OUTCOMES.len()],
    bytes: AtomicU64,
    /// Of those that were not answered from memory.
    seconds: [AtomicU64; SECONDS.len()],
    nanoseconds: AtomicU64,
}

/// Counters of one thread, on cache lines of their own (no false sharing).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard([Counters; LABELS.len()]);

/// All counters.
#[derive(Debug)]
pub(super) struct Traffic(Box<[Shard]>);

/// Numbers of requests for narinfos and downloads, by their end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestEnds {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) built: u64,
    pub(super) failed: u64,
}

/// Sums of the requests of one label.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    outcomes: [u64; OUTCOMES.len()],
    bytes: u64,
    seconds: [u64; SECONDS.len()],
    nanoseconds: u64,
}

impl Traffic {
    /// Counters for so many connection threads, and for the control socket.
    pub(super) fn new(threads: usize) -> Self {
        Self((0..=threads).map(|_| Shard::default()).collect())
    }

    fn counters(&self, shard: usize, label: RouteLabel) -> &Counters {
        &self.0[shard.min(self.0.len() - 1)].0[label as usize]
    }

    /// Counts an answer from memory.
    pub(super) fn count(&self, shard: usize, label: RouteLabel, outcome: RequestOutcome, bytes: u64) {
        let counters = self.counters(shard, label);
        counters.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sums(&self, label: RouteLabel) -> Sums {
        let mut sums = Sums::default();
        for Shard(labels) in &self.0 {
            let Counters { outcomes, bytes, seconds, nanoseconds } = &labels[label as usize];
            let add = |sum: &mut u64, counter: &AtomicU64| *sum += counter.load(Ordering::Relaxed);
            sums.outcomes.iter_mut().zip(outcomes).for_each(|(sum, counter)| add(sum, counter));
            sums.seconds.iter_mut().zip(seconds).for_each(|(sum, counter)| add(sum, counter));
            add(&mut sums.bytes, bytes);
            add(&mut sums.nanoseconds, nanoseconds);
        }
        sums
    }

    /// Ends of all requests for narinfos and downloads since the start.
    pub(super) fn ends(&self) -> RequestEnds {
        let mut ends = RequestEnds::default();
        for label in [RouteLabel::NarInfo, RouteLabel::Download, RouteLabel::File] {
            let sums = self.sums(label);
            ends.built += sums.outcomes[RequestOutcome::Built as usize];
            ends.failed += sums.outcomes[RequestOutcome::Failed as usize];
            // Files of what is served are no requests for a package.
            if label == RouteLabel::File {
                continue;
            }
            ends.hits += sums.outcomes[RequestOutcome::Hit as usize];
            ends.misses += sums.outcomes[RequestOutcome::Miss as usize];
        }
        ends
    }

    /// Writes all counters as OpenMetrics text.
    pub(super) fn write_metrics(&self, text: &mut String) {
        let sums = LABELS.map(|(label, name)| (name, self.sums(label)));
        // Writing to a string does not fail.
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            let _ = writeln!(text, "{arguments}");
        };
        line(format_args!("# HELP ondine_http_requests Requests by route and outcome."));
        line(format_args!("# TYPE ondine_http_requests counter"));
        for (route, sums) in &sums {
            for ((_, outcome), count) in OUTCOMES.iter().zip(sums.outcomes).filter(|(_, count)| *count > 0) {
                line(format_args!(
                    "ondine_http_requests_total{{route=\"{route}\",outcome=\"{outcome}\"}} {count}"
                ));
            }
        }
        line(format_args!("# HELP ondine_http_response_bytes Bytes of bodies sent to clients."));
        line(format_args!("# TYPE ondine_http_response_bytes counter"));
        line(format_args!("# UNIT ondine_http_response_bytes bytes"));
        for (route, sums) in &sums {
            line(format_args!("ondine_http_response_bytes_total{{route=\"{route}\"}} {}", sums.bytes));
        }
        line(format_args!(
            "# HELP ondine_http_request_seconds Time from a request to the end of its answer; 0 from memory."
        ));
        line(format_args!("# TYPE ondine_http_request_seconds histogram"));
        line(format_args!("# UNIT ondine_http_request_seconds seconds"));
        for (route, sums) in &sums {
            let (all, timed): (u64, u64) = (sums.outcomes.iter().sum(), sums.seconds.iter().sum());
            let mut below = all.saturating_sub(timed);
            for (bound, count) in SECONDS.iter().zip(sums.seconds) {
                below += count;
                let bound = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
                line(format_args!(
                    "ondine_http_request_seconds_bucket{{route=\"{route}\",le=\"{bound}\"}} {below}"
                ));
            }
            let seconds = Duration::from_nanos(sums.nanoseconds).as_secs_f64();
            line(format_args!("ondine_http_request_seconds_sum{{route=\"{route}\"}} {seconds}"));
            line(format_args!("ondine_http_request_seconds_count{{route=\"{route}\"}} {below}"));
        }
    }

    /// Logs a summary once a minute, if there were requests.
    pub(super) async fn log_summaries(&self) {
        let counted =
            || [RouteLabel::NarInfo, RouteLabel::Nar, RouteLabel::Download].map(|label| self.sums(label));
        let mut before = counted();
        loop {
            tokio::time::sleep(SUMMARY_EVERY).await;
            let now = counted();
            let since = |label: usize, outcome: RequestOutcome| {
                now[label].outcomes[outcome as usize] - before[label].outcomes[outcome as usize]
            };
            let both = |outcome| since(0, outcome) + since(2, outcome);
            let bytes: u64 = now.iter().zip(&before).map(|(now, before)| now.bytes - before.bytes).sum();
            let all = |sums: &[Sums]| sums.iter().flat_map(|sums| sums.outcomes).sum::<u64>();
            if all(&now) > all(&before) {
                tracing::info!(
                    hits = both(RequestOutcome::Hit),
                    misses = both(RequestOutcome::Miss),
                    built = both(RequestOutcome::Built),
                    failed = both(RequestOutcome::Failed),
                    refused = both(RequestOutcome::Refused),
                    left = both(RequestOutcome::Cut),
                    nars = since(1, RequestOutcome::Hit),
                    bytes,
                    "requests answered in the last minute"
                );
            }
            before = now;
        }
    }
}

/// A request under way: counted and logged on drop, when its answer has ended or the client has left.
#[derive(Debug)]
pub(super) struct Tally {
    traffic: Arc<Traffic>,
    shard: usize,
    label: RouteLabel,
    began: Instant,
    line: Option<Box<AccessLine>>,
    /// The request in a trace; none where there are no traces.
    span: Span,
    status: u16,
    /// Outcome if all of the answer is sent.
    outcome: RequestOutcome,
    /// Bytes of the body, where they are known.
    length: Option<u64>,
    bytes: u64,
    complete: bool,
}

impl Tally {
    pub(super) fn new(
        traffic: &Arc<Traffic>,
        shard: usize,
        label: RouteLabel,
        line: Option<Box<AccessLine>>,
    ) -> Box<Self> {
        let span = line.as_ref().map_or_else(Span::none, |line| line.span(label));
        Box::new(Self {
            traffic: Arc::clone(traffic),
            shard,
            label,
            began: Instant::now(),
            line,
            span,
            status: 0,
            outcome: RequestOutcome::Cut,
            length: None,
            bytes: 0,
            complete: false,
        })
    }

    /// Makes all that is done until this is dropped a part of the request, in a trace.
    pub(super) fn enter(&self) -> Entered<'_> {
        self.span.enter()
    }

    /// Notes the head of the answer.
    pub(super) fn begun(&mut self, status: u16, outcome: RequestOutcome, length: Option<u64>) {
        (self.status, self.outcome, self.length) = (status, outcome, length);
    }

    /// Notes bytes of the body that were sent.
    pub(super) fn gave(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Notes that all of the body was sent.
    pub(super) fn ended(mut self) {
        self.complete = true;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        // hyper does not poll a body of known length for its end.
        let outcome =
            if self.complete || self.length == Some(self.bytes) { self.outcome } else { RequestOutcome::Cut };
        let counters = self.traffic.counters(self.shard, self.label);
        let bucket = SECONDS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(0);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        counters.seconds[bucket].fetch_add(1, Ordering::Relaxed);
        counters.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.traffic.count(self.shard, self.label, outcome, self.bytes);
        if let Some(line) = &self.line {
            line.log(self.status, outcome, self.bytes, took);
        }
        if !self.span.is_disabled() {
            self.span.record("status", self.status);
            self.span.record("outcome", OUTCOMES[outcome as usize].1);
            self.span.record("bytes", self.bytes);
            if matches!(outcome, RequestOutcome::Unavailable | RequestOutcome::Cut) {
                self.span.record("otel.status_code", "error");
            }
        }
    }
}

/// A request as the access log and traces show it.
#[derive(Debug)]
pub(super) struct AccessLine {
    method: Method,
    path: String,
    client: Option<IpAddr>,
    is_logged: bool,
}

impl AccessLine {
    /// The line, if an access log is written or there are traces. Queries stay out of it: they may hold
    /// secrets.
    pub(super) fn of<B>(request: &Request<B>, client: Option<IpAddr>) -> Option<Box<Self>> {
        let is_logged = tracing::enabled!(target: ACCESS, tracing::Level::DEBUG);
        let is_traced = || tracing::span_enabled!(target: TRACE, tracing::Level::INFO);
        let line = || {
            let path = request.uri().path();
            let path = if has_token(path) { "(a token)" } else { path }.to_owned();
            Self { method: request.method().clone(), path, client, is_logged }
        };
        (is_logged || is_traced()).then(|| Box::new(line()))
    }

    /// True if answers from memory have a line, too.
    pub(super) fn is_logged(&self) -> bool {
        self.is_logged
    }

    fn client(&self) -> String {
        self.client.map_or_else(|| "control socket".to_owned(), |client| client.to_string())
    }

    /// The span of a request. Answers from memory have none: they take microseconds.
    fn span(&self, label: RouteLabel) -> Span {
        tracing::info_span!(
            target: TRACE,
            parent: None,
            "http request",
            otel.kind = "server",
            method = %self.method,
            path = self.path,
            route = LABELS[label as usize].1,
            client = self.client(),
            // The number in the queue, where a build is waited for.
            request = Empty,
            status = Empty,
            outcome = Empty,
            bytes = Empty,
            otel.status_code = Empty,
        )
    }

    fn log(&self, status: u16, outcome: RequestOutcome, bytes: u64, took: Duration) {
        if !self.is_logged {
            return;
        }
        let (Self { method, path, .. }, client) = (self, self.client());
        let outcome = OUTCOMES[outcome as usize].1;
        let milliseconds = took.as_millis();
        tracing::debug!(target: ACCESS, %method, path, status, outcome, bytes, milliseconds, client, "request");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_stands_under_its_own_name() {
        assert!(LABELS.iter().enumerate().all(|(number, (label, _))| *label as usize == number));
        assert!(OUTCOMES.iter().enumerate().all(|(number, (outcome, _))| *outcome as usize == number));
    }

    #[test]
    fn the_page_on_metrics_names_each_value_of_the_labels() {
        let page = include_str!("../../docs/operations.md");
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        let list = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            let (last, others) = words.split_last().expect("a label has values");
            format!("{} or {last}", others.join(", "))
        };
        for (label, words) in [
            ("route", list(&LABELS.map(|(_, word)| word))),
            ("outcome", list(&OUTCOMES.map(|(_, word)| word))),
        ] {
            assert!(page.contains(&format!("`{label}` is {words}")), "{label} is {words}");
        }
    }

    #[test]
    fn the_counters_of_all_threads_are_summed_up_and_answers_from_memory_took_no_time() {
        let traffic = Arc::new(Traffic::new(2));
        for shard in 0..3 {
            traffic.count(shard, RouteLabel::NarInfo, RequestOutcome::Hit, 10);
        }
        let mut tally = Tally::new(&traffic, 1, RouteLabel::NarInfo, None);
        tally.begun(404, RequestOutcome::Miss, None);
        tally.gave(5);
        tally.ended();
        drop(Tally::new(&traffic, 0, RouteLabel::NarInfo, None));
        let mut text = String::new();
        traffic.write_metrics(&mut text);
        for line in [
            "ondine_http_requests_total{route=\"narinfo\",outcome=\"hit\"} 3",
            "ondine_http_requests_total{route=\"narinfo\",outcome=\"miss\"} 1",
            "ondine_http_requests_total{route=\"narinfo\",outcome=\"cut\"} 1",
            "ondine_http_response_bytes_total{route=\"narinfo\"} 35",
            "ondine_http_request_seconds_bucket{route=\"narinfo\",le=\"0.001\"} 5",
            "ondine_http_request_seconds_bucket{route=\"narinfo\",le=\"+Inf\"} 5",
            "ondine_http_request_seconds_count{route=\"narinfo\"} 5",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line:?} in {text}");
        }
    }
}
