//! Keys of a [[builder]] table, and the short form of a flag.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::draft::SettingsDraft;
use super::error::{Location, Problem};
use super::machines::{OPERATION_TIMEOUT, REMOTE_PROGRAM, host_of};
use super::raw::{RawContent, RawTable};
use super::setting::{DefaultValue, List, Number, Setting, Text, TimeOr};
use crate::build::{BuilderSettings, LOCAL};
use crate::http::PublicUrl;
use crate::nix::{self, Machine, SshMachine, SshTarget};

pub(super) const WITHIN: &str = " in [[builder]]";

/// Keys of the table.
pub(super) const KEYS: &[Setting<RawBuilder>] = &[
    Setting {
        name: "name",
        doc: "Name of the builder in messages, commands and metrics.",
        default: DefaultValue::Described("the host"),
        value: &Text {
            placeholder: "NAME",
            expected: "letters, digits, dots, _ and -",
            parse: name,
            set: |to: &mut RawBuilder, name| to.name = Some(name),
        },
    },
    Setting {
        name: "ssh",
        doc: "Login on the builder. The system's ssh connects, with its own configuration and agent, and never asks \
              for a password.",
        default: DefaultValue::Required,
        value: &Text {
            placeholder: "USER@HOST",
            expected: "[USER@]HOST[:PORT]",
            parse: |text| text.parse::<SshTarget>().ok(),
            set: |to: &mut RawBuilder, target| to.target = Some(target),
        },
    },
    Setting {
        name: "key-file",
        doc: "Private key for the login, without a passphrase.",
        default: DefaultValue::Described("ssh's own"),
        value: &Text {
            placeholder: "FILE",
            expected: "the path of a file",
            parse: |text| Some(PathBuf::from(text)),
            set: |to: &mut RawBuilder, file| to.key_file = Some(file),
        },
    },
    Setting {
        name: "known-hosts",
        doc: "File with the public keys that the builder may have. A builder with another one is refused.",
        default: DefaultValue::Described("ssh's own"),
        value: &Text {
            placeholder: "FILE",
            expected: "the path of a file",
            parse: |text| Some(PathBuf::from(text)),
            set: |to: &mut RawBuilder, file| to.known_hosts = Some(file),
        },
    },
    Setting {
        name: "remote-program",
        doc: "Program on the builder that speaks Nix's protocol when it is called with `--stdio`.",
        default: DefaultValue::Is(REMOTE_PROGRAM),
        value: &Text {
            placeholder: "PROGRAM",
            expected: "a program",
            parse: |text| (!text.trim().is_empty()).then(|| text.to_owned()),
            set: |to: &mut RawBuilder, program| to.remote_program = program,
        },
    },
    Setting {
        name: "systems",
        doc: "Systems that it builds for.",
        default: DefaultValue::Described("this machine's"),
        value: &List {
            placeholder: "SYSTEM",
            expected: "a system such as x86_64-linux",
            parse: word,
            set: |to: &mut RawBuilder, systems| to.systems = systems,
        },
    },
    Setting {
        name: "features",
        doc: "System features that it offers to builds, such as kvm.",
        default: DefaultValue::Is(""),
        value: &List {
            placeholder: "FEATURE",
            expected: "a system feature such as kvm",
            parse: word,
            set: |to: &mut RawBuilder, features| to.features = features,
        },
    },
    Setting {
        name: "mandatory-features",
        doc: "Features that it offers, too, and without which nothing is built there.",
        default: DefaultValue::Is(""),
        value: &List {
            placeholder: "FEATURE",
            expected: "a system feature such as benchmark",
            parse: word,
            set: |to: &mut RawBuilder, features| to.mandatory = features,
        },
    },
    Setting {
        name: "slots",
        doc: "Builds at a time.",
        default: DefaultValue::Is("1"),
        value: &Number { accepted: 1..=64, set: |to: &mut RawBuilder, slots: usize| to.slots = slots },
    },
    Setting {
        name: "speed",
        doc: "Speed in comparison with other builders: a builder of speed 2 gets twice as many builds at a time as one of \
              speed 1, as far as its slots go.",
        default: DefaultValue::Is("1"),
        value: &Number { accepted: 1..=1000, set: |to: &mut RawBuilder, speed: u16| to.speed = speed.into() },
    },
    Setting {
        name: "weight",
        doc: "Preference among builders. As long as a builder of a higher weight is free, nothing that it can build is \
              started on one of a lower weight. The local Nix daemon has weight 1.",
        default: DefaultValue::Is("1"),
        value: &Number { accepted: 0..=1000, set: |to: &mut RawBuilder, weight: u32| to.weight = weight },
    },
    Setting {
        name: "max-silent",
        doc: "Time for which a build may write nothing there until the builder counts as lost, and the derivation is \
              built elsewhere. 0s is no limit. A builder whose connection breaks is noticed within 15 s all the same.",
        default: DefaultValue::Is("0s"),
        value: &TimeOr {
            none: "0s",
            accepted: Duration::from_secs(1)..=Duration::MAX,
            set: |to: &mut RawBuilder, time| to.silent_max = time,
        },
    },
    Setting {
        name: "cache-url",
        doc: "Address at which the builder reaches this server. Its Nix fetches large inputs from there, where it may and \
              can; else they are copied over ssh.",
        default: DefaultValue::Described("public-url"),
        value: &Text {
            placeholder: "URL",
            expected: "http://HOST… or https://HOST…, without a password or a query",
            parse: |text| text.parse::<PublicUrl>().ok(),
            set: |to: &mut RawBuilder, url| to.cache_url = Some(url.to_string()),
        },
    },
];

/// The keys of one table, read.
#[derive(Default)]
pub(super) struct RawBuilder {
    name: Option<String>,
    target: Option<SshTarget>,
    key_file: Option<PathBuf>,
    known_hosts: Option<PathBuf>,
    remote_program: String,
    systems: Vec<String>,
    features: Vec<String>,
    mandatory: Vec<String>,
    slots: usize,
    speed: f64,
    weight: u32,
    silent_max: Option<Duration>,
    cache_url: Option<String>,
}

fn word(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn name(text: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_name = !text.is_empty() && !text.starts_with(['.', '-']) && text.chars().all(fits);
    is_name.then(|| text.to_owned())
}

/// Reads `USER@HOST SYSTEM…`, as a flag has it.
pub(super) fn short(text: &str, location: &Location) -> Vec<(&'static str, RawContent)> {
    let mut words = text.split_whitespace();
    let mut entries = vec![("ssh", RawContent::Text(words.next().unwrap_or_default().to_owned()))];
    let systems: Vec<&str> = words.collect();
    if !systems.is_empty() {
        entries.push(("systems", RawContent::list(systems.into_iter(), location)));
    }
    entries
}

/// Adds a builder to the settings.
///
/// # Errors
/// Another builder has its name, or the local daemon.
pub(super) fn add(to: &mut SettingsDraft, read: RawBuilder, table: &RawTable) -> Result<(), Problem> {
    let Some(target) = read.target else { return Err(table.refuse("ssh", WITHIN, "expected a login")) };
    let systems = if read.systems.is_empty() { vec![nix::own_system()] } else { read.systems };
    let set = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>();
    let name = read.name.unwrap_or_else(|| host_of(&target));
    if name == LOCAL {
        let reason = format!("{LOCAL} is the Nix daemon of this machine; give the builder another name");
        return Err(table.refuse("name", WITHIN, reason));
    }
    if to.settings.farm.builders.iter().any(|builder| builder.name == name) {
        return Err(table.refuse(
            "name",
            WITHIN,
            format!("another builder is called {name}; give each a name"),
        ));
    }
    let builder = BuilderSettings {
        name,
        ssh: SshMachine {
            target,
            key_file: read.key_file,
            known_hosts: read.known_hosts,
            remote_program: read.remote_program,
            store_dir: to.settings.nix.store_dir.clone(),
            operation_timeout: OPERATION_TIMEOUT,
        },
        host_key: None,
        machine: Machine {
            systems: set(systems),
            features: set(read.features),
            mandatory: set(read.mandatory),
        },
        slots: NonZeroUsize::new(read.slots).unwrap_or(NonZeroUsize::MIN),
        speed: read.speed,
        weight: read.weight,
        silent_max: read.silent_max,
        cache_url: read.cache_url,
    };
    to.settings.farm.builders.push(builder);
    Ok(())
}
