//! Metrics of the queue for Prometheus: counted where it happens, read where they are asked for.

use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// One label: the outcome.
type Outcome = [(&'static str, &'static str); 1];

/// Upper bounds of the times that are told apart, in seconds.
const SECONDS: [f64; 16] = [
    0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 36000.0,
];

/// Makes an empty histogram of [`SECONDS`].
#[derive(Clone)]
struct DurationBuckets;

impl MetricConstructor<Histogram> for DurationBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// Way in which a client joins the queue, or does not.
#[derive(Clone, Copy, Debug)]
pub(super) enum JoinOutcome {
    /// A new request.
    New,
    /// A request that others wait for already.
    Shared,
    /// Rejected: too many wait.
    Refused,
}

/// End of a request or a build.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    /// Well.
    Well,
    /// Ended by a failure.
    Failed,
    /// A build was stopped for older requests; a request was dropped because nobody waited any more.
    Early,
}

/// End of a pre-build, as far as it was nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prebuilt {
    /// Well.
    Built,
    /// Ended by a failure.
    Failed,
    /// Someone needed something else, or its time was over.
    Stopped,
    /// Someone needed it.
    TakenOver,
}

/// State of the queue when the metrics are read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gauges {
    pub(super) requests: usize,
    pub(super) derivations: usize,
    pub(super) clients: usize,
    pub(super) running: usize,
    pub(super) oldest: Duration,
    pub(super) prebuilt_today: Duration,
}

/// The counters of one server.
pub(super) struct Metrics {
    registry: Registry,
    asked: Family<Outcome, Counter>,
    requests: Family<Outcome, Histogram, DurationBuckets>,
    starts: Histogram,
    builds: Family<Outcome, Histogram, DurationBuckets>,
    prebuilds: Family<Outcome, Histogram, DurationBuckets>,
    now: [Gauge; 4],
    oldest: Gauge<f64, std::sync::atomic::AtomicU64>,
    prebuilt_today: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("ondine");
        let asked = Family::default();
        registry.register(
            "queue_asked",
            "Times that something was asked for which has to be built: new, joined a request that waits, or refused",
            asked.clone(),
        );
        let requests = Family::new_with_constructor(DurationBuckets);
        registry.register_with_unit(
            "request",
            "From the first ask for a missing path until it was served, had failed, or was dropped because nobody waited",
            Unit::Seconds,
            requests.clone(),
        );
        let starts = Histogram::new(SECONDS);
        registry.register_with_unit(
            "queue_wait",
            "From the first ask until the first build for that request",
            Unit::Seconds,
            starts.clone(),
        );
        let builds = Family::new_with_constructor(DurationBuckets);
        registry.register_with_unit(
            "build",
            "Builds: built, failed, or stopped because older requests go first",
            Unit::Seconds,
            builds.clone(),
        );
        let prebuilds = Family::new_with_constructor(DurationBuckets);
        registry.register_with_unit(
            "prebuild",
            "What was built before anyone asked: built, failed, stopped (someone asked for something else, or its time was \
             over), or taken_over (someone asked for it; counted until then)",
            Unit::Seconds,
            prebuilds.clone(),
        );
        let mut gauge = |name: &str, help: &str| {
            let gauge: Gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let now = [
            gauge("queue_requests", "Requests that wait now"),
            gauge("queue_derivations", "Derivations that wait to be built now, those being built included"),
            gauge("queue_clients", "Clients that wait for an answer now"),
            gauge("builds_running", "Builds that run now"),
        ];
        let oldest = Gauge::default();
        registry.register_with_unit(
            "queue_oldest",
            "How long the oldest request has waited; 0 when none waits",
            Unit::Seconds,
            oldest.clone(),
        );
        let prebuilt_today = Gauge::default();
        registry.register_with_unit(
            "prebuilt_today",
            "How long was pre-built since midnight, of what prebuild-time-per-day allows",
            Unit::Seconds,
            prebuilt_today.clone(),
        );
        Self { registry, asked, requests, starts, builds, prebuilds, now, oldest, prebuilt_today }
    }

    pub(super) fn joined(&self, how: JoinOutcome) {
        let outcome = match how {
            JoinOutcome::New => "new",
            JoinOutcome::Shared => "joined",
            JoinOutcome::Refused => "refused",
        };
        self.asked.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn first_build_after(&self, wait: Duration) {
        self.starts.observe(wait.as_secs_f64());
    }

    pub(super) fn request_ended(&self, how: Ended, after: Duration) {
        let outcome = match how {
            Ended::Well => "served",
            Ended::Failed => "failed",
            Ended::Early => "dropped",
        };
        self.requests.get_or_create(&[("outcome", outcome)]).observe(after.as_secs_f64());
    }

    pub(super) fn build_ended(&self, how: Ended, after: Duration) {
        let outcome = match how {
            Ended::Well => "built",
            Ended::Failed => "failed",
            Ended::Early => "stopped",
        };
        self.builds.get_or_create(&[("outcome", outcome)]).observe(after.as_secs_f64());
    }

    pub(super) fn prebuild_ended(&self, how: Prebuilt, after: Duration) {
        let outcome = match how {
            Prebuilt::Built => "built",
            Prebuilt::Failed => "failed",
            Prebuilt::Stopped => "stopped",
            Prebuilt::TakenOver => "taken_over",
        };
        self.prebuilds.get_or_create(&[("outcome", outcome)]).observe(after.as_secs_f64());
    }

    /// All of it in the OpenMetrics text format, without its end.
    pub(super) fn write(&self, gauges: &Gauges, out: &mut String) {
        let now = [gauges.requests, gauges.derivations, gauges.clients, gauges.running];
        for (gauge, value) in self.now.iter().zip(now) {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.oldest.set(gauges.oldest.as_secs_f64());
        self.prebuilt_today.set(gauges.prebuilt_today.as_secs_f64());
        // Writing to a string does not fail.
        let _ = text::encode_registry(out, &self.registry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented_and_counts() {
        let metrics = Metrics::new();
        metrics.joined(JoinOutcome::New);
        metrics.joined(JoinOutcome::Shared);
        metrics.joined(JoinOutcome::Shared);
        metrics.first_build_after(Duration::from_secs(3));
        metrics.request_ended(Ended::Well, Duration::from_secs(61));
        metrics.build_ended(Ended::Failed, Duration::from_millis(1500));
        metrics.prebuild_ended(Prebuilt::TakenOver, Duration::from_secs(2));
        let gauges = Gauges { requests: 2, oldest: Duration::from_secs(7), ..Gauges::default() };
        let mut text = String::new();
        metrics.write(&gauges, &mut text);
        for line in [
            "ondine_queue_asked_total{outcome=\"joined\"} 2",
            "ondine_queue_wait_seconds_bucket{le=\"5.0\"} 1",
            "ondine_request_seconds_sum{outcome=\"served\"} 61.0",
            "ondine_build_seconds_count{outcome=\"failed\"} 1",
            "ondine_prebuild_seconds_sum{outcome=\"taken_over\"} 2.0",
            "ondine_prebuilt_today_seconds 0.0",
            "ondine_queue_requests 2",
            "ondine_queue_clients 0",
            "ondine_queue_oldest_seconds 7.0",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in:\n{text}");
        }
        let types = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(types, text.lines().filter(|line| line.starts_with("# HELP")).count());
    }
}
