//! Metrics of package sets for Prometheus: written by refreshes, read on request.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::text;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::settings::SetName;
use crate::model::GenerationSize;

type SetLabel = [(&'static str, String); 1];
type RefreshLabels = [(&'static str, String); 2];
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Upper bounds of the times that are told apart, in seconds.
const SECONDS: [f64; 10] = [1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0];

/// Makes an empty histogram of [`SECONDS`].
#[derive(Clone)]
struct RefreshTimes;

impl MetricConstructor<Histogram> for RefreshTimes {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// The result of a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refreshed {
    /// There is a new generation.
    Changed,
    /// The current one is as good.
    Unchanged,
    /// An error.
    Failed,
}

/// The numbers of all sets.
pub(super) struct Metrics {
    registry: Registry,
    generation: Family<SetLabel, Gauge>,
    /// In the order of their fields in the size of a generation.
    sizes: [Family<SetLabel, Gauge>; 4],
    age: Family<SetLabel, Seconds>,
    refreshes: Family<RefreshLabels, Histogram, RefreshTimes>,
    /// The moment when each set was last known to be current.
    fresh_at: Mutex<BTreeMap<String, SystemTime>>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("ondine_catalogue");
        let mut gauge = |name: &str, help: &str| {
            let family: Family<SetLabel, Gauge> = Family::default();
            registry.register(name, help, family.clone());
            family
        };
        let generation = gauge("generation", "The number of the current generation of a package set");
        let sizes = [
            gauge("attributes", "Attributes of the current generation that give a derivation"),
            gauge("denied", "Those of them that may not be built"),
            gauge("errors", "Attributes of the current generation that cannot be evaluated"),
            gauge("derivations", "Derivations in the closure of what may be built of the current generation"),
        ];
        let age = Family::default();
        registry.register_with_unit(
            "age",
            "Since a package set was last refreshed with success, whether or not it had changed",
            Unit::Seconds,
            age.clone(),
        );
        let refreshes = Family::new_with_constructor(RefreshTimes);
        registry.register_with_unit(
            "refresh",
            "Refreshes of a package set: changed (there is a new generation), unchanged, or failed",
            Unit::Seconds,
            refreshes.clone(),
        );
        Self { registry, generation, sizes, age, refreshes, fresh_at: Mutex::default() }
    }

    /// The set has this generation, which was up to date then.
    pub(super) fn current(&self, set: &SetName, id: u64, size: GenerationSize, fresh_at: SystemTime) {
        let label: SetLabel = [("set", set.to_string())];
        self.generation.get_or_create(&label).set(i64::try_from(id).unwrap_or(i64::MAX));
        let GenerationSize { attributes, denied, errors, derivations } = size;
        for (family, value) in self.sizes.iter().zip([attributes, denied, errors, derivations]) {
            family.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.fresh_at.lock().unwrap_or_else(PoisonError::into_inner).insert(set.to_string(), fresh_at);
    }

    /// A refresh has ended.
    pub(super) fn refreshed(&self, set: &SetName, how: Refreshed, took: Duration) {
        let outcome = match how {
            Refreshed::Changed => "changed",
            Refreshed::Unchanged => "unchanged",
            Refreshed::Failed => "failed",
        };
        let label: RefreshLabels = [("set", set.to_string()), ("outcome", outcome.to_owned())];
        self.refreshes.get_or_create(&label).observe(took.as_secs_f64());
        if how == Refreshed::Unchanged {
            let mut fresh_at = self.fresh_at.lock().unwrap_or_else(PoisonError::into_inner);
            fresh_at.insert(set.to_string(), SystemTime::now());
        }
    }

    /// All of it in the OpenMetrics text format, without its end.
    pub(super) fn write(&self, out: &mut String) {
        for (set, at) in &*self.fresh_at.lock().unwrap_or_else(PoisonError::into_inner) {
            let age = at.elapsed().unwrap_or_default();
            self.age.get_or_create(&[("set", set.clone())]).set(age.as_secs_f64());
        }
        // Writing to a string does not fail.
        let _ = text::encode_registry(out, &self.registry);
    }
}
