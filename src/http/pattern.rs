//! Patterns of addresses, and how a path is matched with one. Matching allocates nothing: it runs before
//! every answer.

/// Beginning of the addresses whose errors are JSON.
const API: &str = "/api";
/// Placeholders of a pattern at most.
pub(super) const PLACEHOLDERS_MAX: usize = 2;

/// The path of an endpoint: literal text with placeholders (`/api/v1/paths/<hash>`).
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressPattern {
    text: &'static str,
    /// Literal text before the first placeholder.
    prefix: &'static str,
    /// All from the first placeholder on.
    rest: &'static str,
    /// The last placeholder takes slashes, too.
    takes_slashes: bool,
}

impl AddressPattern {
    pub(super) const fn new(text: &'static str) -> Self {
        let mut end = 0;
        while end < text.len() && text.as_bytes()[end] != b'<' {
            end += 1;
        }
        let (prefix, rest) = text.split_at(end);
        Self { text, prefix, rest, takes_slashes: false }
    }

    /// The same, whose last placeholder takes slashes, too.
    pub(super) const fn taking_slashes(self) -> Self {
        Self { takes_slashes: true, ..self }
    }

    pub(super) fn as_str(&self) -> &'static str {
        self.text
    }

    /// Names of its placeholders.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.rest.split('<').skip(1).filter_map(|part| part.split('>').next())
    }

    /// Values of the placeholders in a decoded path. A placeholder is never empty, and ends where the literal
    /// text after it is first found; the last one takes all that is before the end of the pattern.
    pub(super) fn matches<'p>(&self, path: &'p str) -> Option<[&'p str; PLACEHOLDERS_MAX]> {
        let (mut path, mut rest) = (path.strip_prefix(self.prefix)?, self.rest);
        let mut found = [""; PLACEHOLDERS_MAX];
        for value in &mut found {
            let Some((_, after)) = rest.split_once('>') else { break };
            let (literal, next) = after.split_at(after.find('<').unwrap_or(after.len()));
            let is_last = next.is_empty();
            (*value, path) =
                if is_last { (path.strip_suffix(literal)?, "") } else { path.split_once(literal)? };
            if value.is_empty() || (value.contains('/') && !(is_last && self.takes_slashes)) {
                return None;
            }
            rest = next;
        }
        path.is_empty().then_some(found)
    }

    /// Literal text before the first placeholder.
    pub(super) fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// True for a path that looks as if it was meant to be of this form.
    pub(super) fn resembles(&self, path: &str) -> bool {
        let ending = self.rest.rsplit('>').next().unwrap_or_default();
        match self.prefix {
            "/" => !ending.is_empty() && path.ends_with(ending),
            prefix => path.starts_with(prefix),
        }
    }
}

/// True for an address whose errors are read by programs.
pub(super) fn is_for_programs(path: &str) -> bool {
    path.strip_prefix(API).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_paths_and_gives_what_they_have_for_each_placeholder() {
        for (pattern, path, found) in [
            ("/", "/", Some(["", ""])),
            ("/", "/a", None),
            ("/healthz", "/healthz", Some(["", ""])),
            ("/healthz", "/healthz/", None),
            ("/<hash>.narinfo", "/a.narinfo", Some(["a", ""])),
            ("/<hash>.narinfo", "/.narinfo", None),
            ("/<hash>.narinfo", "/get/pkgs/a.narinfo", None),
            ("/nar/<hash>.nar", "/nar/a.nar", Some(["a", ""])),
            ("/nar/<hash>.nar", "/nar/a.nar.zst", None),
            ("/nar/<hash>.nar.<compression>", "/nar/a.nar.zst", Some(["a", "zst"])),
            ("/catalogue/<set>/", "/catalogue/pkgs/", Some(["pkgs", ""])),
            ("/catalogue/<set>/", "/catalogue/pkgs", None),
            ("/catalogue/<set>/", "/catalogue//", None),
            ("/catalogue/<set>", "/catalogue/pkgs/a", None),
        ] {
            assert_eq!(AddressPattern::new(pattern).matches(path), found, "{pattern} {path}");
        }
    }

    #[test]
    fn the_last_placeholder_alone_may_take_slashes() {
        let get = AddressPattern::new("/get/<set>/<attribute>").taking_slashes();
        assert_eq!(get.matches("/get/pkgs/a/b/c"), Some(["pkgs", "a/b/c"]));
        assert_eq!(get.matches("/get/pkgs/"), None);
        let retry = AddressPattern::new("/failures/<what>/retry").taking_slashes();
        assert_eq!(retry.matches("/failures/set/a/retry"), Some(["set/a", ""]));
        assert_eq!(retry.matches("/failures//retry"), None);
        assert_eq!(retry.names().collect::<Vec<_>>(), ["what"]);
        assert_eq!(get.names().collect::<Vec<_>>(), ["set", "attribute"]);
    }
}
