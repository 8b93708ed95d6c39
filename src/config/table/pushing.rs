//! Settings of what clients push.

use std::time::Duration;

use narinfo::PublicKey;

use crate::config::draft::SettingsDraft;
use crate::config::setting::{DefaultValue, List, Setting, Time};

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "trusted-keys",
        doc: "Public keys whose signatures make pushed paths believed that are not named by their contents, beside the \
              keys of this cache and of its upstreams.",
        default: DefaultValue::Is(""),
        value: &List {
            placeholder: "KEY",
            expected: "a public key as NAME:BASE64",
            parse: |text| text.parse::<PublicKey>().ok(),
            set: |to: &mut SettingsDraft, keys| to.settings.import.trusted_keys = keys,
        },
    },
    Setting {
        name: "keep-pushed",
        doc: "Time for which a pushed derivation is not evicted, and built on request, after its last use.",
        default: DefaultValue::Is("30d"),
        value: &Time {
            accepted: Duration::from_secs(1)..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.settings.retention.keep_pushed = time,
        },
    },
];
