//! Settings of responses: what clients see of a wait, and what is held in memory for them.

use std::time::Duration;

use crate::config::draft::SettingsDraft;
use crate::config::setting::{Bool, Bytes, DefaultValue, Number, Setting, Time};

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "hold",
        doc: "Time for which a narinfo response is held back while its path is built. Nothing is sent until then, so \
              the response keeps its true status; afterwards it is 200, with lines about the wait. Clients give up \
              after 300 s of silence.",
        default: DefaultValue::Is("20s"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::from_secs(250),
            set: |to: &mut SettingsDraft, time| to.settings.http.hold = time,
        },
    },
    Setting {
        name: "keep-alive-interval",
        doc: "Time between two lines about the wait. They keep clients and proxies from giving up.",
        default: DefaultValue::Is("10s"),
        value: &Time {
            accepted: Duration::from_secs(1)..=Duration::from_secs(120),
            set: |to: &mut SettingsDraft, time| to.settings.http.keep_alive = time,
        },
    },
    Setting {
        name: "transient-retry",
        doc: "Time for which a transient failure is waited out while clients are held. A Nix daemon that restarts is \
              one, and so are an upstream that does not answer and an index on a full disk.",
        default: DefaultValue::Is("10m"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::from_secs(24 * 3600),
            set: |to: &mut SettingsDraft, time| to.set_transient_retry(time),
        },
    },
    Setting {
        name: "unknown-wait",
        doc: "Time for which a client waits for a path that nobody knows yet, until someone pushes it or its derivation. \
              For caches that clients ask for what a CI pushes a little later. 0s answers 404 at once; with any other \
              time, each path that only other caches have takes as long, too.",
        default: DefaultValue::Is("0s"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::from_secs(3600),
            set: |to: &mut SettingsDraft, time| to.settings.substitute.unknown_wait = time,
        },
    },
    Setting {
        name: "priority",
        doc: "Priority among a client's substituters (`Priority` in nix-cache-info). Clients ask lower values first; \
              cache.nixos.org has 40.",
        default: DefaultValue::Is("50"),
        value: &Number {
            accepted: 0..=u32::MAX as i64,
            set: |to: &mut SettingsDraft, number| to.settings.http.priority = number,
        },
    },
    Setting {
        name: "want-mass-query",
        doc: "Permission for clients to query paths in bulk (`WantMassQuery` in nix-cache-info). Each query for an \
              unknown path may start a build.",
        default: DefaultValue::Is("false"),
        value: &Bool(|to: &mut SettingsDraft, wanted| to.settings.http.want_mass_query = wanted),
    },
    Setting {
        name: "narinfo-memory-bytes",
        doc: "Memory for narinfos that are requested often, ready to be sent. 0 is none.",
        default: DefaultValue::Is("8MiB"),
        value: &Bytes {
            min: 0,
            set: |to: &mut SettingsDraft, bytes| to.settings.narinfo_memory_bytes = bytes,
        },
    },
    Setting {
        name: "nar-memory-bytes",
        doc: "Memory for small NARs that are requested often. 0 is none.",
        default: DefaultValue::Is("16MiB"),
        value: &Bytes {
            min: 0,
            set: |to: &mut SettingsDraft, bytes| to.settings.nar_store.memory_bytes_max = bytes,
        },
    },
    Setting {
        name: "plain-nar-cache-bytes",
        doc: "Disk space for decompressed copies of NARs that are requested without compression. 0 is none.",
        default: DefaultValue::Is("4GiB"),
        value: &Bytes {
            min: 0,
            set: |to: &mut SettingsDraft, bytes| to.settings.nar_store.plain_bytes_max = bytes,
        },
    },
];
