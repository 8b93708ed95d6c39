//! Publication in numbers for Prometheus.

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The numbers of one server.
pub(super) struct Metrics {
    registry: Registry,
    pub(super) published: Counter,
    pub(super) withdrawn: Counter,
    pub(super) failures: Counter,
    waiting: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("ondine");
        let (published, withdrawn, failures): (Counter, Counter, Counter) = Default::default();
        let waiting = Gauge::default();
        registry.register("published_narinfos", "Narinfos that were put into the bucket", published.clone());
        registry.register(
            "withdrawn_narinfos",
            "Narinfos that were deleted from the bucket",
            withdrawn.clone(),
        );
        registry.register(
            "publication_failures",
            "Failures to publish or withdraw narinfos, each of which is tried again",
            failures.clone(),
        );
        registry.register(
            "publication_waiting",
            "Paths whose narinfos are not in the bucket as they are now, on the server that publishes",
            waiting.clone(),
        );
        Self { registry, published, withdrawn, failures, waiting }
    }

    pub(super) fn waiting(&self, paths: usize) {
        self.waiting.set(i64::try_from(paths).unwrap_or(i64::MAX));
    }

    /// All of it in the OpenMetrics text format, without its end.
    pub(super) fn write(&self, out: &mut String) {
        // Writing to a string does not fail.
        let _ = text::encode_registry(out, &self.registry);
    }
}
