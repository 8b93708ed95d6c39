//! Settings of addresses and connections.

use std::time::Duration;

use crate::config::draft::SettingsDraft;
use crate::config::setting::{DefaultValue, List, Setting, Text, Time};
use crate::http::TrustedProxies;

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "listen",
        doc: "Address and port to listen on. Port 0 takes a free one.",
        default: DefaultValue::Is("127.0.0.1:8080"),
        value: &Text {
            placeholder: "ADDR:PORT",
            expected: "an address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"",
            parse: |text| text.parse().ok(),
            set: |to: &mut SettingsDraft, address| to.settings.listen = address,
        },
    },
    Setting {
        name: "public-url",
        doc: "Address of this cache as clients write it, with its scheme. It is printed at the start and shown on the \
              front page.",
        default: DefaultValue::Described("the address of listen"),
        value: &Text {
            placeholder: "URL",
            expected: "http://HOST… or https://HOST…, without a password or a query",
            parse: |text| text.parse().ok(),
            set: |to: &mut SettingsDraft, url| to.settings.http.public_url = Some(url),
        },
    },
    Setting {
        name: "trusted-proxies",
        doc: "Reverse proxies whose X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host are believed.",
        default: DefaultValue::Is(""),
        value: &List {
            placeholder: "NETWORK",
            expected: "an address or a network, such as 10.0.0.0/8",
            parse: TrustedProxies::parse_network,
            set: |to: &mut SettingsDraft, networks| {
                to.settings.http.trusted_proxies = TrustedProxies(networks)
            },
        },
    },
    Setting {
        name: "write-timeout",
        doc: "Time for which a client may accept no byte of its response, until the connection is closed.",
        default: DefaultValue::Is("1m"),
        value: &Time {
            accepted: Duration::from_secs(1)..=Duration::from_secs(3600),
            set: |to: &mut SettingsDraft, time| to.settings.http.write_timeout = time,
        },
    },
    Setting {
        name: "drain-timeout",
        doc: "Time that open responses have to end when the server stops.",
        default: DefaultValue::Is("30s"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::from_secs(3600),
            set: |to: &mut SettingsDraft, time| to.settings.http.drain = time,
        },
    },
];
