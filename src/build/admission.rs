//! Admission: what is refused before anything is built for it, and in which words. A refusal is for the
//! person who asked: it names what is missing and what to do, and is bounded whatever derivations say.

use narinfo::StorePath;

use super::verdict::Verdict;
use crate::nix::Lack;

/// Derivations that a refusal names at most.
const NAMED_MAX: usize = 20;
/// Characters of what one derivation lacks, at most: a derivation may require anything, of any length.
const LACK_CHARS_MAX: usize = 400;

/// The refusal of a closure of which `count` derivations would be built, if that is more than `max`.
pub(super) fn too_many(count: usize, max: usize) -> Option<Verdict> {
    (count > max).then(|| {
        Verdict::refused(format!(
            "{} derivations would be built, more than max-derivations-per-request = {}\n\
             what to do: ask for parts of its closure first, let the server take inputs from a cache (upstream), or raise max-derivations-per-request",
            grouped(count),
            grouped(max)
        ))
    })
}

/// The refusal of a closure of `count` derivations because of what some of them lack, if any does.
pub(super) fn lacking(lacks: &[(StorePath, Lack)], count: usize) -> Option<Verdict> {
    if lacks.is_empty() {
        return None;
    }
    let verb = if lacks.len() == 1 { "needs" } else { "need" };
    let mut reason = format!(
        "{} of its {} derivations {verb} what this server lacks:\n",
        grouped(lacks.len()),
        grouped(count)
    );
    for (drv, lack) in lacks.iter().take(NAMED_MAX) {
        reason += &format!("  {drv}: {}\n", printable(&lack.to_string()));
    }
    if lacks.len() > NAMED_MAX {
        reason += &format!("  and {} more\n", grouped(lacks.len() - NAMED_MAX));
    }
    reason += "what to do: build it elsewhere, or give the server a builder that can (its setting [[builder]], or builders in \
               nix.conf); where its daemon can build this after all, say so in build-systems and build-features";
    Some(Verdict::refused(reason))
}

/// One line, and not a long one.
fn printable(text: &str) -> String {
    let mut printable: String =
        text.chars().take(LACK_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(LACK_CHARS_MAX).is_some() {
        printable.push('…');
    }
    printable
}

/// A number with a comma between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::FailureClass;

    fn lacks(count: usize, needed: &str) -> Vec<(StorePath, Lack)> {
        let drv = StorePath::parse("0123456789abcdfghijklmnpqrsvwxyz-p.drv").expect("a name");
        let lack = Lack::System { needed: needed.to_owned(), here: BTreeSet::from(["b-linux".to_owned()]) };
        vec![(drv, lack); count]
    }

    #[test]
    fn as_many_as_are_allowed_are_no_reason() {
        assert_eq!(too_many(500, 500), None);
        let verdict = too_many(1234, 500).expect("a refusal");
        let expected =
            "1,234 derivations would be built, more than max-derivations-per-request = 500\nwhat to do: ";
        assert!(verdict.reason.starts_with(expected), "{}", verdict.reason);
        assert_eq!(verdict.class, FailureClass::Refused);
    }

    #[test]
    fn what_is_lacking_is_named_derivation_by_derivation() {
        assert_eq!(lacking(&[], 3), None);
        let reason = lacking(&lacks(1, "a-linux"), 40).expect("a refusal").reason;
        let expected = "1 of its 40 derivations needs what this server lacks:\n  \
                        0123456789abcdfghijklmnpqrsvwxyz-p.drv: system a-linux (here: b-linux)\nwhat to do: ";
        assert!(reason.starts_with(expected), "{reason}");
    }

    #[test]
    fn a_refusal_is_bounded_and_has_no_lines_but_ours() {
        let reason = lacking(&lacks(1020, &"\u{1b}[31m\r\n é".repeat(1000)), 2000).expect("a refusal").reason;
        assert!(reason.contains("  and 1,000 more\n"), "{reason}");
        assert_eq!((reason.lines().count(), reason.contains('\u{1b}')), (1 + NAMED_MAX + 1 + 1, false));
        assert!(reason.lines().all(|line| line.chars().count() < LACK_CHARS_MAX + 100), "{reason}");
    }

    #[test]
    fn thousands_are_grouped() {
        for (number, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), expected);
        }
    }
}
