//! Packages as people name them in commands, with or without their set. One rule for every command: an
//! attribute that evaluates, else one that does not, else the attribute whose derivation has the name. What
//! several sets have has to be named with its set.

use super::Service;
use super::error::Error;
use crate::catalogue::{NoSuchName, Selection, SetName, SetSettings};
use crate::escape::Line;
use crate::model::Search;
use crate::requests::RequestTarget;
use crate::retry::has_name;

/// Attributes of a set that begin like a derivation's name and are looked at, at most.
const ALIKE_MAX: u32 = 1000;
/// Choices that an ambiguous name is answered with, at most.
const CHOICES_MAX: usize = 10;

/// An attribute, written with or without its set.
pub(super) struct PackageName {
    pub(super) set: Option<SetName>,
    selection: Selection,
}

/// The attribute that a name stands for, and the first system that has it.
#[derive(Debug)]
pub(super) struct FoundPackage {
    pub(super) set: SetName,
    pub(super) selection: Selection,
    system: String,
}

/// Why a name stands for no attribute.
pub(super) enum NoPackage {
    /// The names that it may stand for.
    Ambiguous(Vec<String>),
    /// A set cannot tell, or was never evaluated.
    Untold(NoSuchName),
    /// No set has it.
    Unknown,
}

impl PackageName {
    /// `<set>/<attribute>` where there is such a set; else all of it is the attribute.
    pub(super) fn parse(text: &str, is_set: impl Fn(&SetName) -> bool) -> Option<Self> {
        let (set, rest) = with_set(text, is_set);
        Some(Self { set, selection: Selection::parse(rest)? })
    }

    /// The canonical spelling.
    pub(super) fn written(&self) -> String {
        let attribute = attribute_of(&self.selection);
        self.set.as_ref().map_or(attribute.clone(), |set| format!("{set}/{attribute}"))
    }

    /// The attribute and the output, without the set.
    pub(super) fn attribute(&self) -> String {
        attribute_of(&self.selection)
    }
}

impl FoundPackage {
    /// The name with its set.
    pub(super) fn written(&self) -> String {
        format!("{}/{}", self.set, attribute_of(&self.selection))
    }

    /// The same as an item of a request.
    pub(super) fn target(&self) -> RequestTarget {
        let Self { set, selection, system } = self;
        let (set, selection, system) = (set.clone(), selection.clone(), Some(system.clone()));
        RequestTarget::Attribute { set, selection, system }
    }
}

fn with_set(text: &str, is_set: impl Fn(&SetName) -> bool) -> (Option<SetName>, &str) {
    let with_set =
        text.split_once('/').and_then(|(set, rest)| Some((SetName::new(set).filter(is_set)?, rest)));
    with_set.map_or((None, text), |(set, rest)| (Some(set), rest))
}

fn attribute_of(Selection { path, output, .. }: &Selection) -> String {
    output.as_ref().map_or(path.to_string(), |output| format!("{path}^{output}"))
}

/// The package sets that a name may be of: the one that it names, or all; and the rest of the name.
fn sets_for<'t>(service: &Service, text: &'t str) -> (Vec<SetSettings>, &'t str) {
    let mut sets: Vec<SetSettings> = service.state.catalogue.sets().map(|(set, _)| set.clone()).collect();
    let (named, rest) = with_set(text, |name| sets.iter().any(|set| set.name == *name));
    sets.retain(|set| named.as_ref().is_none_or(|name| set.name == *name));
    (sets, rest)
}

/// The attribute of this name.
pub(super) async fn find(service: &Service, text: &str) -> Result<FoundPackage, NoPackage> {
    let (sets, rest) = sets_for(service, text);
    let selection = Selection::parse(rest).ok_or(NoPackage::Unknown)?;
    let (mut found, mut broken, mut untold) = (Vec::new(), Vec::new(), None);
    for set in sets {
        let package = |system| FoundPackage { set: set.name.clone(), selection: selection.clone(), system };
        match first_system(service, &set, &selection).await {
            Ok(system) => found.push(package(system)),
            Err(NoSuchName::Broken { system, .. }) => broken.push(package(system)),
            Err(NoSuchName::Attribute { .. }) => {}
            Err(reason) => untold = Some(reason),
        }
    }
    match (one_of(if found.is_empty() { broken } else { found }), untold) {
        (Err(NoPackage::Unknown), Some(reason)) => Err(NoPackage::Untold(reason)),
        (found, _) => found,
    }
}

/// The attribute whose derivation has this name, with or without its version.
pub(super) async fn of_derivation(service: &Service, text: &str) -> Result<FoundPackage, NoPackage> {
    let (sets, rest) = sets_for(service, text);
    let name = rest.strip_suffix(".drv").unwrap_or(rest);
    let (mut found, mut seen) = (Vec::new(), Vec::new());
    for set in sets.iter().filter(|_| !name.is_empty() && !name.contains('*')) {
        for system in &set.systems {
            let like = Some(format!("{name}*"));
            let search = Search { like, after: String::new(), system: system.clone(), max: ALIKE_MAX };
            let listed = service.state.index.listed(set.name.to_string(), search).await;
            let unreadable = |error| {
                tracing::error!(error = &error as &dyn std::error::Error, "attributes cannot be listed");
                NoPackage::Untold(NoSuchName::Index)
            };
            let rows = listed.map_err(unreadable)?.into_iter().flat_map(|(_, rows)| rows);
            for row in rows {
                let Ok(drv) = row.outcome else { continue };
                let Some(selection) = Selection::parse(&row.attribute) else { continue };
                // Another attribute of the same derivation is no choice.
                if has_name(&drv, name) && !seen.contains(&drv) {
                    seen.push(drv);
                    found.push(FoundPackage { set: set.name.clone(), selection, system: system.clone() });
                }
            }
        }
    }
    // Systems of one attribute are no choice, either.
    found.dedup_by_key(|package| package.written());
    one_of(found)
}

fn one_of(mut found: Vec<FoundPackage>) -> Result<FoundPackage, NoPackage> {
    if found.len() > 1 {
        return Err(NoPackage::Ambiguous(found.iter().map(FoundPackage::written).collect()));
    }
    found.pop().ok_or(NoPackage::Unknown)
}

/// The first system of a set that an attribute is evaluated for. One that is broken, or cannot be told of,
/// says more than one that has no such attribute.
async fn first_system(
    service: &Service,
    set: &SetSettings,
    selection: &Selection,
) -> Result<String, NoSuchName> {
    let mut reason = None;
    for system in &set.systems {
        match service.state.names.select(&set.name, selection, Some(system)).await {
            Ok(_) => return Ok(system.clone()),
            Err(error @ NoSuchName::Attribute { .. }) => reason = reason.or(Some(error)),
            Err(error) => reason = Some(error),
        }
    }
    Err(reason.unwrap_or_else(|| NoSuchName::NoGeneration(set.name.clone())))
}

/// The error for a name that may be each of these.
pub(super) fn ambiguous(text: &str, choices: &[String]) -> Error {
    let more = choices.len().saturating_sub(CHOICES_MAX);
    let mut listed = choices.iter().take(CHOICES_MAX).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 {
        listed += &format!(" and {more} more");
    }
    Error::NotFound(format!("{} may be each of these; say which: {listed}", Line(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_its_set_before_a_slash_where_there_is_such_a_set() {
        let parse = |text: &str| PackageName::parse(text, |set| set.as_str() == "pkgs").expect("a name");
        for (text, set, written) in [
            ("hello", None, "hello"),
            ("pkgs/hello", Some("pkgs"), "pkgs/hello"),
            ("pkgs/a.\"b.c\"^dev", Some("pkgs"), "pkgs/a.\"b.c\"^dev"),
            ("other/hello", None, "\"other/hello\""),
            ("pkgs/slash/ed", Some("pkgs"), "pkgs/\"slash/ed\""),
        ] {
            let name = parse(text);
            assert_eq!((name.set.as_ref().map(SetName::as_str), &*name.written()), (set, written), "{text}");
        }
        assert!(PackageName::parse("a..b", |_| true).is_none());
    }

    #[test]
    fn an_ambiguous_name_is_answered_with_a_bounded_list_of_choices() {
        let choices: Vec<String> = (0..CHOICES_MAX + 2).map(|number| format!("pkgs/a{number}")).collect();
        let Error::NotFound(text) = ambiguous("a", &choices) else { panic!("another error") };
        assert!(
            text.contains("say which: pkgs/a0, pkgs/a1,") && text.ends_with("pkgs/a9 and 2 more"),
            "{text}"
        );
        let Error::NotFound(text) = ambiguous("a", &choices[..2]) else { panic!("another error") };
        assert!(text.ends_with("say which: pkgs/a0, pkgs/a1"), "{text}");
    }
}
