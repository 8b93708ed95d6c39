//! Settings of other caches and of package sets.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::draft::SettingsDraft;
use crate::config::setting::{Bytes, DefaultValue, Setting, Tables, Text, Time};
use crate::config::{catalogue, upstream};
use crate::upstream::NetrcFile;

pub(super) const UPSTREAMS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "upstream",
        doc: "Other caches, which are asked for paths that this one lacks. In the file each is a table [[upstream]]; a \
              flag has `\"URL PUBLIC-KEY…\"`.",
        default: DefaultValue::Is(""),
        value: &Tables {
            within: upstream::WITHIN,
            placeholder: "URL KEY",
            expected: "a table with url and public-keys, or \"URL PUBLIC-KEY…\"",
            keys: upstream::KEYS,
            short: upstream::short,
            add: upstream::add,
        },
    },
    Setting {
        name: "upstream-lookup-timeout",
        doc: "Time in which upstreams must say whether they have a path. One that is slower is passed over.",
        default: DefaultValue::Is("2s"),
        value: &Time {
            accepted: Duration::from_millis(100)..=Duration::from_secs(60),
            set: |to: &mut SettingsDraft, time| to.settings.upstream.lookup_timeout = time,
        },
    },
    Setting {
        name: "negative-ttl",
        doc: "Time for which it is remembered that an upstream lacks a path (as Nix's `narinfo-cache-negative-ttl`).",
        default: DefaultValue::Is("5m"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.settings.upstream.negative_ttl = time,
        },
    },
    Setting {
        name: "netrc-file",
        doc: "Netrc file with logins for upstreams. It is an absolute path, or a name in `$CREDENTIALS_DIRECTORY`.",
        default: DefaultValue::Described("Nix's, where it can be read"),
        value: &Text {
            placeholder: "FILE",
            expected: "the path of a file",
            parse: |text| Some(PathBuf::from(text)),
            set: |to: &mut SettingsDraft, file| to.settings.upstream.netrc = NetrcFile::Named(file),
        },
    },
    Setting {
        name: "max-upstream-nar-bytes",
        doc: "Size up to which a NAR is downloaded from an upstream.",
        default: DefaultValue::Described("half of the free disk space"),
        value: &Bytes {
            min: 0,
            set: |to: &mut SettingsDraft, bytes| to.settings.nar_bytes_max = Some(bytes),
        },
    },
];

pub(super) const PACKAGE_SETS: &[Setting<SettingsDraft>] = &[Setting {
    name: "catalogue",
    doc: "Package sets, which are evaluated in the background, so that their paths are known before anyone requests \
          them. In the file each is a table [[catalogue]]; a flag has `\"NAME flake:REFERENCE\"`, `\"NAME \
          expression:/PATH\"` or `\"NAME directory:/PATH\"`.",
    default: DefaultValue::Is(""),
    value: &Tables {
        within: catalogue::WITHIN,
        placeholder: "NAME SOURCE",
        expected: "a table with name and source, or \"NAME SOURCE\"",
        keys: catalogue::KEYS,
        short: catalogue::short,
        add: catalogue::add,
    },
}];
