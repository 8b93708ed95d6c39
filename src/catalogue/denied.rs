//! Denial of a derivation of a lazy set under a name other than the requested one. Such a set was never
//! walked: the attributes of its patterns are evaluated, as far as the patterns name them.

use narinfo::StorePath;
use tokio::time::Instant;

use super::Tools;
use super::attribute::AttributePath;
use super::error::RefreshError;
use super::settings::{Permission, SetSettings};
use super::setup::Setup;
use super::source::{self, Target};
use super::walk::{Task, Walk};
use crate::name_pattern::NamePattern;

/// Attributes that are evaluated for one pattern; where it stands for more, it denies by name alone.
const TARGETS_MAX: usize = 200;

/// True if one of the attributes that a set denies is this derivation, which was reached by `path`. The `*`
/// of a pattern may stand for dots, too, and so for more than is evaluated: it is held against the ends of
/// the path that have a dot.
///
/// If the set cannot be evaluated. When the set cannot be evaluated.
pub(super) async fn has(
    tools: &Tools,
    set: &SetSettings,
    system: &str,
    path: &AttributePath,
    drv: &StorePath,
) -> Result<bool, RefreshError> {
    if set.deny.is_empty() {
        return Ok(false);
    }
    if set.deny.iter().any(|pattern| is_like_an_end(pattern, path)) {
        return Ok(true);
    }
    for (attribute, target) in source::links(&set.origin).map_err(RefreshError::Source)? {
        if target.ends_with(drv.to_string()) && set.verdict(&attribute, &[]) == Permission::Denied {
            return Ok(true);
        }
    }
    let targets: Vec<Target> = set.deny.iter().filter_map(|pattern| Target::of(pattern.as_str())).collect();
    if targets.is_empty() {
        return Ok(false);
    }
    let setup = Setup::new(tools, set).await?;
    let source = &setup.source.of_targets(&targets, TARGETS_MAX);
    let deadline = Instant::now() + set.evaluation.attribute_time_max;
    let mut walk = Walk::new(Task { source, ..setup.task(tools, set, system, deadline) });
    while let Some(attribute) = walk.next().await? {
        if attribute.outcome.is_ok_and(|found| found.drv == *drv) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_like_an_end(pattern: &NamePattern, path: &AttributePath) -> bool {
    let last = path.names().len().saturating_sub(1);
    let mut ends = (1..last).filter_map(|from| AttributePath::new(path.names()[from..].to_vec()));
    pattern.as_str().contains('*')
        && ends.any(|end| pattern.matches(&end.to_string()) || pattern.matches(&end.bare()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_may_be_meant_anywhere_is_held_against_the_ends_of_a_path() {
        let path = |text: &str| AttributePath::parse(text).expect("a path");
        for pattern in ["python*.secret", "python*"].map(NamePattern::new) {
            assert!(is_like_an_end(&pattern, &path("pkgs.pkgs.python3Packages.secret")));
            assert!(!is_like_an_end(&pattern, &path("pkgs.secret")));
            // That is another one.
            assert!(!is_like_an_end(&pattern, &path("other.python-like")));
        }
        assert!(Target::of("python*.secret").is_none() && Target::of("*").is_none());
        assert!(Target::of("a.b*").is_some() && Target::of("secret").is_some());
    }
}
