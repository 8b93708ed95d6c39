//! Metrics of requests to upstreams and of their answers, for Prometheus.

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::document::DocumentKind;
use super::view::UpstreamCounts;

type Upstream = [(&'static str, String); 1];
type OutcomeLabels = [(&'static str, String); 2];

/// The result of a request for a narinfo or a realisation.
#[derive(Clone, Copy, Debug)]
pub(super) enum LookupOutcome {
    /// Present and trusted.
    Found,
    /// Absent.
    Missing,
    /// Absent according to the negative cache.
    Remembered,
    /// Present, but not trusted or malformed.
    Refused,
    /// No answer in time, or none that tells.
    Failed,
    /// Not asked, after several failures.
    Rested,
}

/// The result of fetching a NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NarOutcome {
    /// Complete and verified.
    Kept,
    /// Absent.
    Missing,
    /// Complete, but not the promised one.
    Refused,
    /// Failed, or incomplete.
    Failed,
    /// Failed beyond the time after which its path is not served from there any more.
    GivenUp,
}

/// The counters of all upstreams.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    narinfos: Family<OutcomeLabels, Counter>,
    realisations: Family<OutcomeLabels, Counter>,
    nars: Family<OutcomeLabels, Counter>,
    bytes: Family<Upstream, Counter>,
    compared: Family<OutcomeLabels, Counter>,
    resting: Family<Upstream, Gauge>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("ondine_upstream");
        let (narinfos, realisations, nars) = (Family::default(), Family::default(), Family::default());
        registry.register(
            "narinfos",
            "Times that an upstream was to be asked for a narinfo: found, missing, remembered (as missing), refused (not \
             signed by a trusted key, or malformed), failed, or rested (it was left alone after failures)",
            Family::clone(&narinfos),
        );
        registry.register(
            "realisations",
            "Times that an upstream was to be asked for the realisation of an output of a content-addressed derivation, as \
             for narinfos",
            Family::clone(&realisations),
        );
        registry.register(
            "nars",
            "NARs that were to be fetched from an upstream: kept, missing, refused (another than promised), failed, or given-up \
             (failed for so long that the path is not served from there any more)",
            Family::clone(&nars),
        );
        let bytes = Family::default();
        registry.register_with_unit(
            "fetched",
            "Bytes of NARs that were fetched from an upstream, as they came",
            Unit::Bytes,
            Family::clone(&bytes),
        );
        let compared = Family::default();
        registry.register(
            "compared",
            "Own builds that an upstream turned out to have, too: same (it has the same contents) or different",
            Family::clone(&compared),
        );
        let resting = Family::default();
        registry.register(
            "resting",
            "Whether an upstream is left alone after failures: 1 or 0",
            Family::clone(&resting),
        );
        Self { registry, narinfos, realisations, nars, bytes, compared, resting }
    }

    pub(super) fn asked(&self, upstream: &str, kind: DocumentKind, what: LookupOutcome) {
        let outcome = match what {
            LookupOutcome::Found => "found",
            LookupOutcome::Missing => "missing",
            LookupOutcome::Remembered => "remembered",
            LookupOutcome::Refused => "refused",
            LookupOutcome::Failed => "failed",
            LookupOutcome::Rested => "rested",
        };
        let family = match kind {
            DocumentKind::Narinfo => &self.narinfos,
            DocumentKind::Realisation => &self.realisations,
        };
        family.get_or_create(&labels(upstream, outcome)).inc();
    }

    pub(super) fn fetched(&self, upstream: &str, what: NarOutcome) {
        let outcome = match what {
            NarOutcome::Kept => "kept",
            NarOutcome::Missing => "missing",
            NarOutcome::Refused => "refused",
            NarOutcome::Failed => "failed",
            NarOutcome::GivenUp => "given-up",
        };
        self.nars.get_or_create(&labels(upstream, outcome)).inc();
    }

    pub(super) fn compared(&self, upstream: &str, same: bool) {
        let outcome = if same { "same" } else { "different" };
        self.compared.get_or_create(&labels(upstream, outcome)).inc();
    }

    pub(super) fn came(&self, upstream: &str, bytes: u64) {
        self.bytes.get_or_create(&[("upstream", upstream.to_owned())]).inc_by(bytes);
    }

    /// Counts of one upstream.
    pub(super) fn counts(&self, upstream: &str) -> UpstreamCounts {
        // A counter that is only read is not made: metrics would show it from then on.
        let narinfos =
            |outcome| self.narinfos.get(&labels(upstream, outcome)).map_or(0, |counter| counter.get());
        let bytes = self.bytes.get(&[("upstream", upstream.to_owned())]);
        UpstreamCounts {
            found: narinfos("found"),
            missing: narinfos("missing"),
            refused: narinfos("refused"),
            failed: narinfos("failed"),
            fetched_bytes: bytes.map_or(0, |counter| counter.get()),
        }
    }

    /// All of it in the OpenMetrics text format, without its end; `resting` says which upstreams rest.
    pub(super) fn write<'a>(&self, resting: impl Iterator<Item = (&'a str, bool)>, out: &mut String) {
        for (upstream, rests) in resting {
            self.resting.get_or_create(&[("upstream", upstream.to_owned())]).set(i64::from(rests));
        }
        // Writing to a string does not fail.
        let _ = text::encode_registry(out, &self.registry);
    }
}

fn labels(upstream: &str, outcome: &str) -> OutcomeLabels {
    [("upstream", upstream.to_owned()), ("outcome", outcome.to_owned())]
}
