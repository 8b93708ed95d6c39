//! Package sets as they are written: tables of the file, or the short form of a flag, become settings.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use super::Error;
use super::bounds::{check, within, within_numbers, wrong};
use super::values::{duration, written_bytes, written_duration};
use crate::catalogue::{
    AttributePath, Evaluation, Indexing, Origin, Pattern, SetName, SetSettings, Settings,
};

/// How often a set is refreshed that does not say.
const REFRESH_DEFAULT: &str = "6h";
/// What is written for "never by itself".
const MANUAL: &str = "manual";
/// One day.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The address space of an evaluator that does not say.
const MEMORY_DEFAULT: u64 = 4 * 1024 * 1024 * 1024;

/// One set, none of it checked beyond its type.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, expecting = "a table with name and source")]
pub(super) struct WrittenSet {
    name: String,
    source: WrittenSource,
    systems: Option<Vec<String>>,
    index: Option<Indexing>,
    refresh: Option<String>,
    allow: Option<Vec<String>>,
    deny: Option<Vec<String>>,
    #[serde(default, deserialize_with = "written_duration")]
    retain: Option<Duration>,
    #[serde(alias = "import_from_derivation")]
    import_from_derivation: Option<bool>,
    #[serde(alias = "nix_path")]
    nix_path: Option<Vec<String>>,
    #[serde(alias = "allowed_uris")]
    allowed_uris: Option<Vec<String>>,
    #[serde(default, deserialize_with = "written_duration")]
    timeout: Option<Duration>,
    #[serde(alias = "attribute_timeout", default, deserialize_with = "written_duration")]
    attribute_timeout: Option<Duration>,
    #[serde(alias = "max_memory_bytes", default, deserialize_with = "written_bytes")]
    max_memory_bytes: Option<u64>,
}

/// Where a set comes from: one of the three.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, expecting = "a table such as { flake = \"…\" }")]
pub(super) struct WrittenSource {
    flake: Option<String>,
    expression: Option<PathBuf>,
    attributes: Option<Vec<String>>,
    directory: Option<PathBuf>,
}

impl std::fmt::Debug for WrittenSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { flake, expression, attributes, directory } = self;
        let path = expression.as_ref().or(directory.as_ref()).map(|path| path.display().to_string());
        write!(formatter, "{}", flake.clone().or(path).unwrap_or_default())?;
        formatter.debug_list().entries(attributes.iter().flatten()).finish()
    }
}

/// `NAME flake:REFERENCE`, `NAME expression:/path` or `NAME directory:/path`, as a flag has it.
impl FromStr for WrittenSet {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, source) = text.trim().split_once(' ').unwrap_or((text, ""));
        let (kind, place) = source.trim().split_once(':').unwrap_or_default();
        let mut written = WrittenSource::default();
        match kind {
            "flake" => written.flake = Some(place.to_owned()),
            "expression" => written.expression = Some(place.into()),
            "directory" => written.directory = Some(place.into()),
            _ => {}
        }
        Ok(Self { name: name.to_owned(), source: written, ..Self::default() })
    }
}

/// The settings of all sets, on a machine of this system.
pub(super) fn resolve(written: Vec<WrittenSet>, own_system: String) -> Result<Settings, Error> {
    let mut sets: Vec<SetSettings> = Vec::new();
    for written in written {
        let set = resolve_one(written, &own_system)?;
        let fresh = sets.iter().all(|other| other.name != set.name);
        check("catalogue name", &set.name, fresh, "each package set needs a name of its own")?;
        sets.push(set);
    }
    Ok(Settings { sets, ..Settings::default() })
}

fn resolve_one(written: WrittenSet, own_system: &str) -> Result<SetSettings, Error> {
    let seconds = Duration::from_secs;
    let expected = "letters, digits, _ and - are needed, at most 64 of them";
    let name = SetName::new(&written.name);
    let name = name.ok_or_else(|| wrong("catalogue name", &written.name, expected))?;
    let origin = origin(&written.source)?;
    let refresh = match written.refresh.as_deref().unwrap_or(REFRESH_DEFAULT) {
        MANUAL => None,
        text => {
            let every = duration(text).unwrap_or_default();
            let fits = (seconds(10)..=365 * DAY).contains(&every);
            check("catalogue refresh", text, fits, "a duration like \"6h\", 10s to 365d, or \"manual\"")?;
            Some(every)
        }
    };
    let keep = written.retain.unwrap_or(14 * DAY);
    within("catalogue retain", keep, Duration::ZERO, 3650 * DAY, "0s to 3650d")?;
    let time_max = written.timeout.unwrap_or(seconds(3600));
    within("catalogue timeout", time_max, seconds(1), 2 * DAY, "1s to 2d")?;
    let attribute_time_max = written.attribute_timeout.unwrap_or(seconds(300)).min(time_max);
    within("catalogue attribute-timeout", attribute_time_max, seconds(1), 2 * DAY, "1s to 2d")?;
    let memory_bytes_max = written.max_memory_bytes.unwrap_or(MEMORY_DEFAULT);
    let number = i64::try_from(memory_bytes_max).unwrap_or(i64::MAX);
    within_numbers("catalogue max-memory-bytes", number, 256 * 1024 * 1024, i64::MAX, "at least 268435456")?;
    let systems = written.systems.unwrap_or_else(|| vec![own_system.to_owned()]);
    let plain = |system: &String| {
        !system.is_empty() && system.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    let fits = !systems.is_empty() && systems.iter().all(plain);
    check("catalogue systems", systems.join(" "), fits, "at least one is needed, such as x86_64-linux")?;
    let patterns =
        |written: Option<Vec<String>>| written.unwrap_or_default().into_iter().map(Pattern::new).collect();
    Ok(SetSettings {
        name,
        origin,
        systems,
        indexing: written.index.unwrap_or_default(),
        refresh,
        allow: patterns(written.allow.or_else(|| Some(vec!["*".to_owned()]))),
        deny: patterns(written.deny),
        keep,
        evaluation: Evaluation {
            import_from_derivation: written.import_from_derivation.unwrap_or(false),
            nix_path: written.nix_path.unwrap_or_default(),
            allowed_uris: written.allowed_uris.unwrap_or_default(),
            time_max,
            attribute_time_max,
            memory_bytes_max,
        },
    })
}

fn origin(written: &WrittenSource) -> Result<Origin, Error> {
    let expected = "one of {flake = \"…\"}, {expression = \"/path\"} and {directory = \"/path\"} is needed";
    let no_source = || wrong("catalogue source", format!("{written:?}"), expected);
    let WrittenSource { flake, expression, attributes, directory } = written.clone();
    let path = expression.as_ref().or(directory.as_ref());
    if path.is_some_and(|path| !path.is_absolute()) || (attributes.is_some() && expression.is_none()) {
        return Err(no_source());
    }
    match (flake, expression, directory) {
        (Some(flake), None, None) if !flake.is_empty() => Ok(Origin::Flake(flake)),
        (None, Some(file), None) => {
            let path = |text: String| {
                let expected =
                    "an attribute path as Nix has it is needed, such as python3Packages or a.\"b.c\"";
                AttributePath::parse(&text)
                    .ok_or_else(|| wrong("catalogue source attributes", text, expected))
            };
            let attributes =
                attributes.unwrap_or_default().into_iter().map(path).collect::<Result<_, _>>()?;
            Ok(Origin::Expression { file, attributes })
        }
        (None, None, Some(directory)) => Ok(Origin::Directory(directory)),
        _ => Err(no_source()),
    }
}
