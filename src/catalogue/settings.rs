//! Settings of package sets: their sources, and the limits of their evaluation.
//! Patterns and names are checked when they are made.

use std::path::PathBuf;
use std::time::Duration;

use super::attribute::AttributePath;
use super::sandbox::Isolation;
use crate::name_pattern::NamePattern;

/// The form of what is on record of a generation. Another one has all sets evaluated anew.
const FORM: u32 = 3;

/// All package sets.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Each with a name of its own.
    pub sets: Vec<SetSettings>,
    /// Requirement of isolated evaluators.
    pub isolation: Isolation,
}

/// One package set.
#[derive(Clone, Debug)]
pub struct SetSettings {
    /// Its name, which fits into the name of a store path.
    pub name: SetName,
    /// Where it comes from.
    pub origin: SetSource,
    /// The systems that it is evaluated for, at least one.
    pub systems: Vec<String>,
    /// Time of the evaluation of its attributes.
    pub indexing: Indexing,
    /// Age at which it is refreshed; `None` for refreshes on demand only.
    pub refresh: Option<Duration>,
    /// Attributes and names of what may be built.
    pub allow: Vec<NamePattern>,
    /// Attributes and names of what may not be built all the same.
    pub deny: Vec<NamePattern>,
    /// Attribute below which the statically linked packages are, under the same names.
    pub static_attributes: Option<AttributePath>,
    /// Time for which a replaced generation still answers.
    pub keep: Duration,
    /// Rights and limits of its evaluation.
    pub evaluation: Evaluation,
}

/// Time of the evaluation of a set's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Indexing {
    /// All of them for each generation, so that everything is known by hash.
    #[default]
    Full,
    /// Each when it is first asked for by its name; what is not is unknown by hash.
    Lazy,
}

/// Where a set comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetSource {
    /// The packages of a flake.
    Flake(String),
    /// A Nix file, or a folder with a default.nix.
    Expression {
        /// The file.
        file: PathBuf,
        /// The attributes that are walked; all, when there are none.
        attributes: Vec<AttributePath>,
    },
    /// A folder of Nix files and of links to derivations.
    Directory(PathBuf),
}

/// Rights and limits of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// Builds are allowed during evaluation.
    pub import_from_derivation: bool,
    /// Where else it may read, as NIX_PATH has it.
    pub nix_path: Vec<String>,
    /// Prefixes of addresses that it may fetch.
    pub allowed_uris: Vec<String>,
    /// Time limit of a refresh.
    pub time_max: Duration,
    /// Time limit of one attribute.
    pub attribute_time_max: Duration,
    /// Bytes of address space at most.
    pub memory_bytes_max: u64,
}

/// The name of a set: letters, digits, `_` and `-`, at most 64 of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetName(String);

impl SetName {
    /// `None` when it is no such name.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        (!text.is_empty() && text.len() <= 64 && text.chars().all(fits)).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for SetName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The verdict of a set's patterns on a derivation by one of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Allowed, unless another of its names is denied.
    Allowed,
    /// Allowed only if another of its names is.
    NotAllowed,
    /// Denied under all names.
    Denied,
}

impl SetSettings {
    /// The verdict on a derivation of these names for this attribute.
    #[must_use]
    pub fn verdict(&self, attribute: &AttributePath, names: &[&str]) -> Permission {
        // A pattern is written for either spelling.
        let (written, bare) = (attribute.to_string(), attribute.bare());
        let any = |patterns: &[NamePattern]| {
            let mut all = names.iter().copied().chain([&*written, &*bare]);
            all.any(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        };
        match (any(&self.deny), any(&self.allow)) {
            (true, _) => Permission::Denied,
            (false, true) => Permission::Allowed,
            (false, false) => Permission::NotAllowed,
        }
    }

    /// The settings that a generation depends on, besides its source. Another text makes another generation.
    #[must_use]
    pub fn made_by(&self) -> String {
        let Evaluation { import_from_derivation, nix_path, allowed_uris, .. } = &self.evaluation;
        format!(
            "{:?}",
            (
                FORM,
                &self.origin,
                self.indexing,
                &self.systems,
                &self.allow,
                &self.deny,
                import_from_derivation,
                nix_path,
                allowed_uris
            )
        )
    }
}

impl std::fmt::Display for SetSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flake(reference) => write!(formatter, "flake {reference}"),
            Self::Expression { file, .. } => write!(formatter, "expression {}", file.display()),
            Self::Directory(directory) => write!(formatter, "directory {}", directory.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_a_store_path() {
        for name in ["", "a b", "a/b", "ä", "a.b", &"a".repeat(65)] {
            assert_eq!(SetName::new(name), None, "{name}");
        }
        assert!(SetName::new("nixpkgs-24_05").is_some());
    }
}
