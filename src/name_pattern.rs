//! Patterns of names: attributes and derivations of package sets, and names that tokens are bound to.

/// A pattern in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// Every text is one.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The pattern as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if all of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
        let mut last = None;
        for part in parts {
            // The one before is not the last, so the first place where it fits is the best.
            if let Some(part) = last.replace(part) {
                let Some((_, after)) = rest.split_once(part) else { return false };
                rest = after;
            }
        }
        last.map_or(rest.is_empty(), |last| rest.ends_with(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a.b"),
            ("a*", "a"),
            ("*a", "a"),
            ("a*a", "aa"),
            ("python3Packages.*", "python3Packages.numpy"),
            ("*-unfree-*", "x-unfree-1.0"),
            ("a*b*c", "a-b-b-c"),
            ("a**b", "ab"),
            ("exact", "exact"),
        ] {
            assert!(NamePattern::new(pattern).matches(text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", "ab"),
            ("a", "ba"),
            ("a*a", "a"),
            ("a*b*c", "a-c-b"),
            ("*ab*ab", "ab"),
            ("a.*", "a"),
        ] {
            assert!(!NamePattern::new(pattern).matches(text), "{pattern} {text}");
        }
    }
}
