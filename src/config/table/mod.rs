//! The table of settings: each is defined here, once, with the field that it is for. A new setting is an
//! entry here and that field; its flag, variable, key, `--help`, errors and documentation follow.

mod building;
mod monitoring;
mod network;
mod pushing;
mod retention;
mod scheduling;
mod security;
mod serving;
mod storage;
mod upstreams;

use super::draft::SettingsDraft;
use super::setting::Setting;

/// Settings that belong together, in `--help` and on the settings page.
pub(super) struct SettingGroup {
    pub(super) title: &'static str,
    pub(super) settings: &'static [Setting<SettingsDraft>],
}

/// All settings. Values are stored in this order: an upstream is compared with the address to listen on.
pub(super) const GROUPS: &[SettingGroup] = &[
    SettingGroup { title: "Network", settings: network::SETTINGS },
    SettingGroup { title: "Serving", settings: serving::SETTINGS },
    SettingGroup { title: "Building", settings: building::SETTINGS },
    SettingGroup { title: "Scheduling", settings: scheduling::SETTINGS },
    SettingGroup { title: "Upstreams", settings: upstreams::UPSTREAMS },
    SettingGroup { title: "Package sets", settings: upstreams::PACKAGE_SETS },
    SettingGroup { title: "Pushing", settings: pushing::SETTINGS },
    SettingGroup { title: "Storage", settings: storage::SETTINGS },
    SettingGroup { title: "Retention", settings: retention::SETTINGS },
    SettingGroup { title: "Security", settings: security::SETTINGS },
    SettingGroup { title: "Monitoring", settings: monitoring::SETTINGS },
];

/// All settings, in the order of their groups.
pub(super) fn settings() -> impl Iterator<Item = &'static Setting<SettingsDraft>> + Clone {
    GROUPS.iter().flat_map(|group| group.settings)
}
