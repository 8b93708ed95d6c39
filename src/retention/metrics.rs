//! The NAR store and what goes from it, in numbers for Prometheus.

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::eviction::Gone;
use crate::room::Room;

/// The numbers of one server.
pub(super) struct Metrics {
    registry: Registry,
    bytes: Gauge,
    above_limit: Gauge,
    free: Gauge,
    min_free: Gauge,
    scrubbed_nars: Counter,
    scrubbed_bytes: Counter,
    damaged: Counter,
    pins: Gauge,
    evicted_nars: Counter,
    evicted_bytes: Counter,
}

impl Metrics {
    pub(super) fn new(max_bytes: Option<u64>) -> Self {
        let mut registry = Registry::with_prefix("ondine");
        let mut gauge = |name: &str, help: &str| {
            let gauge: Gauge = Gauge::default();
            registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
            gauge
        };
        let bytes = gauge("nar_store", "Files in the NAR store");
        let above_limit = gauge(
            "nar_store_above_limit",
            "What is above the limit of the NAR store, and stays for now because all is pinned or was used lately",
        );
        let free = gauge("nar_store_free", "Room on the file system of the NAR store");
        let min_free =
            gauge("nar_store_min_free", "Room that stays free there, where something can go for it");
        if let Some(max_bytes) = max_bytes {
            set(&gauge("nar_store_limit", "The limit of the NAR store"), max_bytes);
        }
        let (pins, evicted_nars, evicted_bytes): (Gauge, Counter, Counter) = Default::default();
        registry.register("pins", "Pins", pins.clone());
        registry.register("evicted_nars", "NARs that were evicted from the NAR store", evicted_nars.clone());
        let help = "Files of NARs that were evicted from the NAR store";
        registry.register_with_unit("evicted", help, Unit::Bytes, evicted_bytes.clone());
        let (scrubbed_nars, scrubbed_bytes, damaged): (Counter, Counter, Counter) = Default::default();
        registry.register(
            "scrubbed_nars",
            "NARs that were read and verified in the background",
            scrubbed_nars.clone(),
        );
        let help = "Files of NARs that were read and verified in the background";
        registry.register_with_unit("scrubbed", help, Unit::Bytes, scrubbed_bytes.clone());
        let help = "NARs whose files turned out damaged, and are not served any more";
        registry.register("damaged_nars", help, damaged.clone());
        Self {
            registry,
            bytes,
            above_limit,
            free,
            min_free,
            scrubbed_nars,
            scrubbed_bytes,
            damaged,
            pins,
            evicted_nars,
            evicted_bytes,
        }
    }

    pub(super) fn bytes(&self, bytes: u64) {
        set(&self.bytes, bytes);
    }

    pub(super) fn pins(&self, pins: u64) {
        set(&self.pins, pins);
    }

    pub(super) fn above_limit(&self, bytes: u64) {
        set(&self.above_limit, bytes);
    }

    pub(super) fn room(&self, room: &Room, min_free: u64) {
        set(&self.free, room.free_bytes);
        set(&self.min_free, min_free);
    }

    /// A file of so many bytes was read and verified.
    pub(super) fn scrubbed(&self, bytes: u64) {
        self.scrubbed_nars.inc();
        self.scrubbed_bytes.inc_by(bytes);
    }

    pub(super) fn damaged(&self) {
        self.damaged.inc();
    }

    pub(super) fn evicted(&self, gone: &[Gone]) {
        self.evicted_nars.inc_by(gone.len() as u64);
        self.evicted_bytes.inc_by(gone.iter().map(|gone| gone.bytes).sum());
    }

    /// All of it in the OpenMetrics text format, without its end.
    pub(super) fn write(&self, out: &mut String) {
        // Writing to a string does not fail.
        let _ = text::encode_registry(out, &self.registry);
    }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
