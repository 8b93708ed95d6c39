//! Settings of builds: where derivations come from, what the Nix daemon is asked for, and how long results
//! are remembered.

use std::time::Duration;

use crate::config::builder;
use crate::config::draft::SettingsDraft;
use crate::config::setting::{
    Bytes, DefaultValue, List, Number, Setting, SomeOf, Tables, Text, Time, TimeOr,
};
use crate::substitute::Source;

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "build-from",
        doc: "Sources of the derivations that may be built. `\"store\"` is the local Nix store, `\"catalogue\"` the \
              package sets. With an empty list nothing is built, only served.",
        default: DefaultValue::Is("store,catalogue"),
        value: &SomeOf {
            placeholder: "SOURCE",
            choices: &[("store", Source::Store), ("catalogue", Source::Catalogue)],
            set: |to: &mut SettingsDraft, sources| to.settings.substitute.build_from = sources,
        },
    },
    Setting {
        name: "build-cores",
        doc: "Processor cores that one build may use (Nix's `cores`). 0 is all.",
        default: DefaultValue::Is("0"),
        value: &Number {
            accepted: 0..=i64::MAX,
            set: |to: &mut SettingsDraft, cores| {
                to.settings.build.cores = cores;
                to.settings.daemon.build_cores = cores;
            },
        },
    },
    Setting {
        name: "build-systems",
        doc: "Systems that the daemon can build for, instead of those that are detected.",
        default: DefaultValue::Described("detected"),
        value: &List {
            placeholder: "SYSTEM",
            expected: "a system such as x86_64-linux",
            parse: word,
            set: |to: &mut SettingsDraft, systems| {
                to.settings.capabilities.systems = Some(systems.into_iter().collect());
            },
        },
    },
    Setting {
        name: "build-features",
        doc: "System features that the daemon offers to builds, such as kvm, instead of those that are detected.",
        default: DefaultValue::Described("detected"),
        value: &List {
            placeholder: "FEATURE",
            expected: "a system feature such as kvm",
            parse: word,
            set: |to: &mut SettingsDraft, features| {
                to.settings.capabilities.features = Some(features.into_iter().collect());
            },
        },
    },
    Setting {
        name: "builder",
        doc: "Remote machines that build, over ssh. In the file each is a table [[builder]]; a flag has `\"USER@HOST \
              SYSTEM…\"`.",
        default: DefaultValue::Is(""),
        value: &Tables {
            within: builder::WITHIN,
            placeholder: "USER@HOST",
            expected: "a table with ssh, or \"USER@HOST SYSTEM…\"",
            keys: builder::KEYS,
            short: builder::short,
            add: builder::add,
        },
    },
    Setting {
        name: "builders",
        doc: "More of them in the syntax of Nix's setting of this name, such as `@/etc/nix/machines`. Without this and \
              [[builder]] the Nix daemon uses the remote machines of its own settings.",
        default: DefaultValue::Described("none"),
        value: &Text {
            placeholder: "MACHINES",
            expected: "machines as Nix has them, such as @/etc/nix/machines",
            parse: |text| Some(text.to_owned()),
            set: |to: &mut SettingsDraft, machines| to.machines = Some(machines),
        },
    },
    Setting {
        name: "max-jobs",
        doc: "Builds that the daemon may run on this machine for each lane. 0 leaves them all to remote machines of its own \
              settings.",
        default: DefaultValue::Is("1"),
        value: &Number {
            accepted: 0..=i64::MAX,
            set: |to: &mut SettingsDraft, number| to.settings.daemon.jobs = number,
        },
    },
    Setting {
        name: "max-build-time",
        doc: "Time that one build may take. 0s is no limit.",
        default: DefaultValue::Is("10h"),
        value: &TimeOr {
            none: "0s",
            accepted: Duration::from_secs(1)..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.settings.build.build_max = time,
        },
    },
    Setting {
        name: "max-silent-time",
        doc: "Time for which a build may write nothing to its log. 0s is no limit.",
        default: DefaultValue::Is("2h"),
        value: &TimeOr {
            none: "0s",
            accepted: Duration::from_secs(1)..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.settings.build.silent_max = time,
        },
    },
    Setting {
        name: "max-build-log-bytes",
        doc: "Size that the log of one build may have. A build that writes more is stopped and has failed.",
        default: DefaultValue::Is("64MiB"),
        value: &Bytes {
            min: 1024,
            set: |to: &mut SettingsDraft, bytes| to.settings.logs.log_bytes_max = bytes,
        },
    },
    Setting {
        name: "max-total-log-bytes",
        doc: "Size of all logs together, at least max-build-log-bytes. The oldest are deleted when a build ends. Uploaded \
              logs may have as much again.",
        default: DefaultValue::Is("1GiB"),
        value: &Bytes {
            min: 1024,
            set: |to: &mut SettingsDraft, bytes| to.settings.logs.logs_bytes_max = bytes,
        },
    },
    Setting {
        name: "permanent-failure-ttl",
        doc: "Time for which the permanent failure of a build is remembered. Such a build is itself wrong: its builder \
              failed, or an output is not as it must be.",
        default: DefaultValue::Is("24h"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.settings.build.permanent_failure_ttl = time,
        },
    },
    Setting {
        name: "transient-failure-ttl",
        doc: "Time for which a transient failure, or a refusal to build, is remembered. A transient failure is one of \
              the machine, such as a full disk.",
        default: DefaultValue::Is("5m"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::MAX,
            set: |to: &mut SettingsDraft, time| to.settings.build.transient_failure_ttl = time,
        },
    },
];

fn word(text: &str) -> Option<String> {
    Some(text.to_owned())
}
