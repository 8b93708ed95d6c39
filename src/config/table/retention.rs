//! Settings of how much is stored, and of its verification.

use std::time::Duration;

use crate::config::draft::SettingsDraft;
use crate::config::setting::{Bytes, DefaultValue, Setting, Time, TimeOr};

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "max-nar-store-bytes",
        doc: "Size of all stored NARs together. Those that were used least recently are evicted, and downloaded or \
              built again on the next request. 0 is no limit.",
        default: DefaultValue::Is("0"),
        value: &Bytes {
            min: 0,
            set: |to: &mut SettingsDraft, bytes| {
                to.settings.retention.max_bytes = Some(bytes).filter(|bytes| *bytes > 0)
            },
        },
    },
    Setting {
        name: "min-free-bytes",
        doc: "Space that stays free on the disk of the NARs. Those that were used least recently are evicted for it. 0 \
              is none.",
        default: DefaultValue::Described("a twentieth of the disk, at most 4GiB; with max-nar-store-bytes 0"),
        value: &Bytes { min: 0, set: |to: &mut SettingsDraft, bytes| to.min_free_bytes = Some(bytes) },
    },
    Setting {
        name: "eviction-grace",
        doc: "Time after its last use in which a path is never evicted, whatever the limit. A client that has received \
              a narinfo needs time to download the closure.",
        default: DefaultValue::Is("10m"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::from_secs(7 * 24 * 3600),
            set: |to: &mut SettingsDraft, time| to.settings.retention.keep_used = time,
        },
    },
    Setting {
        name: "scrub-interval",
        doc: "Time in which each stored NAR is read and verified once in the background. 0s is never. Data decays \
              slowly, and reading wears the disk.",
        default: DefaultValue::Is("30d"),
        value: &TimeOr {
            none: "0s",
            accepted: Duration::from_secs(1)..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.settings.retention.scrub_every = time,
        },
    },
];
