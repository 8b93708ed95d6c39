//! Settings of the order of builds, and of the bounds of the queue.

use std::time::Duration;

use crate::config::draft::SettingsDraft;
use crate::config::setting::{DefaultValue, Number, Setting, Text, Time};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "lanes",
        doc: "Builds at a time on the local Nix daemon. More than one is for a daemon with remote machines of its own. 0 \
              leaves them all to builders.",
        default: DefaultValue::Is("1"),
        value: &Number { accepted: 0..=32, set: |to: &mut SettingsDraft, number| to.lanes = number },
    },
    Setting {
        name: "overtake-budget",
        doc: "Delay that a request may suffer because shorter ones are built first. 0s is strict FIFO. Only with one \
              lane.",
        default: DefaultValue::Is("0s"),
        value: &Time {
            accepted: Duration::ZERO..=WEEK,
            set: |to: &mut SettingsDraft, time| to.overtaking.budget = time,
        },
    },
    Setting {
        name: "overtake-share",
        doc: "Percentage of the work that a request must wait for anyway, which is added to overtake-budget.",
        default: DefaultValue::Is("0"),
        value: &Number {
            accepted: 0..=100,
            set: |to: &mut SettingsDraft, percent| to.overtaking.share_percent = percent,
        },
    },
    Setting {
        name: "background-daemon",
        doc: "Socket of a second Nix daemon of the same store, in a service with less CPUWeight. It builds short \
              requests beside a long build. Only with one lane and without overtake-budget.",
        default: DefaultValue::Described("none"),
        value: &Text {
            placeholder: "PATH",
            expected: "the path of a socket",
            parse: |text| Some(text.into()),
            set: |to: &mut SettingsDraft, socket| to.background_daemon = Some(socket),
        },
    },
    Setting {
        name: "prebuild",
        doc: "Hours of local time in which updates of requested packages are built before they are requested again.",
        default: DefaultValue::Is("never"),
        value: &Text {
            placeholder: "HOURS",
            expected: "hours such as \"22:00-06:00\", \"always\" or \"never\"",
            parse: |text| if text == "never" { Some(None) } else { text.parse().ok().map(Some) },
            set: |to: &mut SettingsDraft, hours| to.prebuild_hours = hours,
        },
    },
    Setting {
        name: "prebuild-time-per-day",
        doc: "Build time that prebuild may use in a day. Most of what is built so is never requested.",
        default: DefaultValue::Is("2h"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.prebuild_time_per_day = time,
        },
    },
    Setting {
        name: "max-derivations-per-request",
        doc: "Derivations that may have to be built for one request. A request that needs more is refused. To build \
              nothing at all, leave build-from empty.",
        default: DefaultValue::Is("500"),
        value: &Number {
            accepted: 1..=i64::MAX,
            set: |to: &mut SettingsDraft, number| to.settings.build.derivations_max = number,
        },
    },
    Setting {
        name: "max-queued",
        doc: "Requests that may wait for builds. Further ones are refused.",
        default: DefaultValue::Is("10000"),
        value: &Number {
            accepted: 0..=i64::MAX,
            set: |to: &mut SettingsDraft, number| to.settings.build.queued_max = number,
        },
    },
    Setting {
        name: "max-queued-per-client",
        doc: "Requests that one client may have waiting for builds. A client is an IPv4 address or an IPv6 network \
              (/64).",
        default: DefaultValue::Is("1000"),
        value: &Number {
            accepted: 0..=i64::MAX,
            set: |to: &mut SettingsDraft, number| to.settings.build.queued_per_client_max = number,
        },
    },
    Setting {
        name: "repeat",
        doc: "Builds of each derivation. With 2, another builder builds it again when it has nothing else to do, and the \
              outputs are compared. The first ones are served.",
        default: DefaultValue::Is("1"),
        value: &Number {
            accepted: 1..=2,
            set: |to: &mut SettingsDraft, number: u8| to.settings.build.repeat = number > 1,
        },
    },
    Setting {
        name: "abandon-after",
        doc: "Time for which a request keeps its place in the queue after its last client has disconnected. Only where \
              nothing of it is being built.",
        default: DefaultValue::Is("1m"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.settings.build.abandon_after = time,
        },
    },
    Setting {
        name: "abandon-asked-after",
        doc: "Time for which a request that was made through the HTTP API stays in the queue without its owner asking \
              for it again. Afterwards it counts as one whose last client has disconnected.",
        default: DefaultValue::Is("1h"),
        value: &Time {
            accepted: Duration::from_secs(1)..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.settings.requests.abandon_after = time,
        },
    },
];
