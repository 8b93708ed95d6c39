//! Keys of a [[catalogue]] table, and the short form of a flag.

use std::path::PathBuf;
use std::time::Duration;

use super::draft::SettingsDraft;
use super::error::{Location, Problem};
use super::raw::{RawContent, RawTable, RawValue};
use super::setting::{Bool, Bytes, DefaultValue, List, OneOf, Setting, Table, Text, Time, TimeOr};
use crate::catalogue::{AttributePath, Evaluation, Indexing, SetName, SetSettings, SetSource};
use crate::name_pattern::NamePattern;
use crate::nix;

pub(super) const WITHIN: &str = " in [[catalogue]]";
const WITHIN_SOURCE: &str = " in the source of a [[catalogue]]";
const EXPECTED_SOURCE: &str =
    "a table with one of `flake`, `expression` and `directory`, such as { flake = \"…\" }";

/// Keys of the table.
pub(super) const KEYS: &[Setting<RawCatalogue>] = &[
    Setting {
        name: "name",
        doc: "Name of the package set. Each set has its own.",
        default: DefaultValue::Required,
        value: &Text {
            placeholder: "NAME",
            expected: "1 to 64 letters, digits, `_` and `-`",
            parse: SetName::new,
            set: |to: &mut RawCatalogue, name| to.name = Some(name),
        },
    },
    Setting {
        name: "source",
        doc: "Source of the packages, with exactly one of the keys below (`attributes` goes with `expression`).",
        default: DefaultValue::Required,
        value: &Table {
            within: WITHIN_SOURCE,
            expected: EXPECTED_SOURCE,
            keys: SOURCE_KEYS,
            set: |to: &mut RawCatalogue, source| {
                to.origin = Some(origin(source)?);
                Some(())
            },
        },
    },
    Setting {
        name: "index",
        doc: "Time at which attributes are evaluated. With `\"full\"` all of them are evaluated for each generation; \
              with `\"lazy\"` each is evaluated when it is first requested by its name.",
        default: DefaultValue::Is("full"),
        value: &OneOf {
            placeholder: "INDEX",
            choices: &[("full", Indexing::Full), ("lazy", Indexing::Lazy)],
            set: |to: &mut RawCatalogue, indexing| to.indexing = indexing,
        },
    },
    Setting {
        name: "systems",
        doc: "Systems that the set is evaluated for, one after the other.",
        default: DefaultValue::Described("the machine's own"),
        value: &List {
            placeholder: "SYSTEM",
            expected: "a system such as x86_64-linux",
            parse: system,
            set: |to: &mut RawCatalogue, systems| to.systems = Some(systems),
        },
    },
    Setting {
        name: "refresh",
        doc: "Age at which the set is evaluated again. With `\"manual\"` it is evaluated only on `ondine refresh`, and \
              when its settings have changed.",
        default: DefaultValue::Is("6h"),
        value: &TimeOr {
            none: "manual",
            accepted: Duration::from_secs(10)..=Duration::from_secs(365 * 24 * 3600),
            set: |to: &mut RawCatalogue, time| to.refresh = time,
        },
    },
    Setting {
        name: "allow",
        doc: "Patterns of the attributes, or of the derivation names, that may be built. `*` stands for any text. Other \
              derivations are built only as a dependency.",
        default: DefaultValue::Is("*"),
        value: &List {
            placeholder: "PATTERN",
            expected: "a pattern such as python3*",
            parse: pattern,
            set: |to: &mut RawCatalogue, patterns| to.allow = patterns,
        },
    },
    Setting {
        name: "deny",
        doc: "Patterns of the attributes, or of the derivation names, that are not built, except as a dependency. A \
              derivation that is denied by one of its names is denied by all.",
        default: DefaultValue::Is(""),
        value: &List {
            placeholder: "PATTERN",
            expected: "a pattern such as python3*",
            parse: pattern,
            set: |to: &mut RawCatalogue, patterns| to.deny = patterns,
        },
    },
    Setting {
        name: "static-attributes",
        doc: "Attribute below which the set has its packages linked statically, such as `pkgsStatic` in nixpkgs. A program \
              that is requested by its name (`/bin/<program>`) is looked for there first.",
        default: DefaultValue::Described("none"),
        value: &Text {
            placeholder: "ATTRIBUTE",
            expected: "an attribute such as pkgsStatic",
            parse: AttributePath::parse,
            set: |to: &mut RawCatalogue, path| to.static_attributes = Some(path),
        },
    },
    Setting {
        name: "retain",
        doc: "Time for which a replaced generation still answers.",
        default: DefaultValue::Is("14d"),
        value: &Time {
            accepted: Duration::ZERO..=Duration::from_secs(3650 * 24 * 3600),
            set: |to: &mut RawCatalogue, time| to.retain = time,
        },
    },
    Setting {
        name: "import-from-derivation",
        doc: "Permission for the evaluation to build derivations.",
        default: DefaultValue::Is("false"),
        value: &Bool(|to: &mut RawCatalogue, allowed| to.import_from_derivation = allowed),
    },
    Setting {
        name: "nix-path",
        doc: "Paths that the evaluation may read besides its source, such as `\"nixpkgs=/srv/nixpkgs\"`, and the folder \
              of a flake's `path:` input.",
        default: DefaultValue::Is(""),
        value: &List {
            placeholder: "PATH",
            expected: "a path, or NAME=PATH",
            parse: |text| Some(text.to_owned()),
            set: |to: &mut RawCatalogue, paths| to.nix_path = paths,
        },
    },
    Setting {
        name: "allowed-uris",
        doc: "Addresses that the evaluation may fetch, as prefixes (Nix's setting of this name). A flake may also fetch \
              from the host of its own reference.",
        default: DefaultValue::Is(""),
        value: &List {
            placeholder: "URI",
            expected: "the beginning of an address",
            parse: |text| Some(text.to_owned()),
            set: |to: &mut RawCatalogue, uris| to.allowed_uris = uris,
        },
    },
    Setting {
        name: "timeout",
        doc: "Time that the evaluation of the whole set may take.",
        default: DefaultValue::Is("1h"),
        value: &Time {
            accepted: Duration::from_secs(1)..=Duration::from_secs(2 * 24 * 3600),
            set: |to: &mut RawCatalogue, time| to.timeout = time,
        },
    },
    Setting {
        name: "attribute-timeout",
        doc: "Time that the evaluation of one attribute may take; never more than `timeout`.",
        default: DefaultValue::Is("5m"),
        value: &Time {
            accepted: Duration::from_secs(1)..=Duration::from_secs(2 * 24 * 3600),
            set: |to: &mut RawCatalogue, time| to.attribute_timeout = time,
        },
    },
    Setting {
        name: "max-memory-bytes",
        doc: "Address space of the evaluator, or of all its workers together. A set that needs more is continued in a \
              fresh evaluator.",
        default: DefaultValue::Is("4GiB"),
        value: &Bytes {
            min: 256 * 1024 * 1024,
            set: |to: &mut RawCatalogue, bytes| to.max_memory_bytes = bytes,
        },
    },
];

/// Keys of a source.
const SOURCE_KEYS: &[Setting<RawSource>] = &[
    Setting {
        name: "flake",
        doc: "Flake reference. Its `packages` are evaluated, then its `legacyPackages`.",
        default: DefaultValue::Described("none"),
        value: &Text {
            placeholder: "REFERENCE",
            expected: "a flake reference such as github:NixOS/nixpkgs/nixos-unstable",
            parse: |text| (!text.is_empty()).then(|| text.to_owned()),
            set: |to: &mut RawSource, flake| to.flake = Some(flake),
        },
    },
    Setting {
        name: "expression",
        doc: "Absolute path of a Nix file, or of a folder with a default.nix. A function is called with `system` if it \
              takes that.",
        default: DefaultValue::Described("none"),
        value: &Text {
            placeholder: "PATH",
            expected: "an absolute path",
            parse: absolute,
            set: |to: &mut RawSource, path| to.expression = Some(path),
        },
    },
    Setting {
        name: "attributes",
        doc: "Attribute paths of an expression that are walked.",
        default: DefaultValue::Described("all"),
        value: &List {
            placeholder: "ATTRIBUTE",
            expected: "an attribute path such as python3Packages or a.\"b.c\"",
            parse: AttributePath::parse,
            set: |to: &mut RawSource, paths| to.attributes = Some(paths),
        },
    },
    Setting {
        name: "directory",
        doc: "Absolute path of a folder. Each `NAME.nix` and `NAME/default.nix` in it is an attribute, and so is each \
              link `NAME.drv` to a derivation in the store. A folder with a default.nix of its own is an expression.",
        default: DefaultValue::Described("none"),
        value: &Text {
            placeholder: "PATH",
            expected: "an absolute path",
            parse: absolute,
            set: |to: &mut RawSource, path| to.directory = Some(path),
        },
    },
];

/// The keys of one table, read.
#[derive(Default)]
pub(super) struct RawCatalogue {
    name: Option<SetName>,
    origin: Option<SetSource>,
    systems: Option<Vec<String>>,
    indexing: Indexing,
    refresh: Option<Duration>,
    allow: Vec<NamePattern>,
    deny: Vec<NamePattern>,
    static_attributes: Option<AttributePath>,
    retain: Duration,
    import_from_derivation: bool,
    nix_path: Vec<String>,
    allowed_uris: Vec<String>,
    timeout: Duration,
    attribute_timeout: Duration,
    max_memory_bytes: u64,
}

/// The keys of a source, read.
#[derive(Default)]
struct RawSource {
    flake: Option<String>,
    expression: Option<PathBuf>,
    attributes: Option<Vec<AttributePath>>,
    directory: Option<PathBuf>,
}

/// Reads `NAME flake:REFERENCE`, `NAME expression:/path` or `NAME directory:/path`, as a flag has it.
pub(super) fn short(text: &str, location: &Location) -> Vec<(&'static str, RawContent)> {
    let (name, source) = text.trim().split_once(' ').unwrap_or((text, ""));
    let (kind, whereabouts) = source.trim().split_once(':').unwrap_or_default();
    let key = SOURCE_KEYS.iter().map(|setting| setting.name).find(|key| *key == kind && kind != "attributes");
    let value = RawValue { content: RawContent::Text(whereabouts.to_owned()), location: location.clone() };
    let source = match key {
        Some(key) => RawContent::Table(RawTable::new(location.clone(), [(key, value)])),
        None => RawContent::Text(source.trim().to_owned()),
    };
    vec![("name", RawContent::Text(name.to_owned())), ("source", source)]
}

/// Adds a package set to the settings.
///
/// # Errors
/// Another set has its name, or it has no system.
pub(super) fn add(to: &mut SettingsDraft, read: RawCatalogue, table: &RawTable) -> Result<(), Problem> {
    let refuse = |key, reason: &str| Err(table.refuse(key, WITHIN, reason));
    let RawCatalogue { name: Some(name), origin: Some(origin), .. } = read else {
        return refuse("source", EXPECTED_SOURCE);
    };
    let sets = &mut to.settings.catalogue.sets;
    if sets.iter().any(|other| other.name == name) {
        return refuse("name", "expected a name of its own for each package set");
    }
    let systems = read.systems.unwrap_or_else(|| vec![nix::own_system()]);
    if systems.is_empty() {
        return refuse("systems", "expected at least one system, such as x86_64-linux");
    }
    sets.push(SetSettings {
        name,
        origin,
        systems,
        indexing: read.indexing,
        refresh: read.refresh,
        allow: read.allow,
        deny: read.deny,
        static_attributes: read.static_attributes,
        keep: read.retain,
        evaluation: Evaluation {
            import_from_derivation: read.import_from_derivation,
            nix_path: read.nix_path,
            allowed_uris: read.allowed_uris,
            time_max: read.timeout,
            attribute_time_max: read.attribute_timeout.min(read.timeout),
            memory_bytes_max: read.max_memory_bytes,
        },
    });
    Ok(())
}

fn origin(source: RawSource) -> Option<SetSource> {
    let RawSource { flake, expression, attributes, directory } = source;
    match (flake, expression, attributes, directory) {
        (Some(flake), None, None, None) => Some(SetSource::Flake(flake)),
        (None, Some(file), attributes, None) => {
            Some(SetSource::Expression { file, attributes: attributes.unwrap_or_default() })
        }
        (None, None, None, Some(directory)) => Some(SetSource::Directory(directory)),
        _ => None,
    }
}

fn absolute(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    path.is_absolute().then_some(path)
}

fn system(text: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (!text.is_empty() && text.chars().all(fits)).then(|| text.to_owned())
}

fn pattern(text: &str) -> Option<NamePattern> {
    Some(NamePattern::new(text.to_owned()))
}
