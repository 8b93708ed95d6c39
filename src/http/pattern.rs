//! Patterns of addresses, and how a path is matched with one. Matching allocates nothing: it runs before
//! every answer.

/// Beginning of the addresses whose errors are JSON.
const API: &str = "/api";
/// Placeholders of a pattern at most.
pub(super) const PLACEHOLDERS_MAX: usize = 3;

/// The path of an endpoint: literal text with placeholders (`/api/v1/paths/<hash>`), taken apart when the
/// program is compiled.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressPattern {
    text: &'static str,
    /// Literal text before the first placeholder.
    prefix: &'static str,
    placeholders: [Placeholder; PLACEHOLDERS_MAX],
    /// Number of placeholders.
    count: usize,
    /// The last placeholder takes slashes, too.
    takes_slashes: bool,
}

#[derive(Clone, Copy, Debug)]
struct Placeholder {
    name: &'static str,
    /// Literal text from it to the next one, or to the end.
    literal: &'static str,
}

impl AddressPattern {
    pub(super) const fn new(text: &'static str) -> Self {
        let (prefix, mut rest) = split_before(text, b'<');
        let mut placeholders = [Placeholder { name: "", literal: "" }; PLACEHOLDERS_MAX];
        let mut count = 0;
        while !rest.is_empty() {
            let (name, after) = split_before(rest.split_at(1).1, b'>');
            let (literal, next) = split_before(after.split_at(1).1, b'<');
            placeholders[count] = Placeholder { name, literal };
            (count, rest) = (count + 1, next);
        }
        Self { text, prefix, placeholders, count, takes_slashes: false }
    }

    /// The same, whose last placeholder takes slashes, too.
    pub(super) const fn taking_slashes(self) -> Self {
        Self { takes_slashes: true, ..self }
    }

    pub(super) fn as_str(&self) -> &'static str {
        self.text
    }

    fn placeholders(&self) -> &[Placeholder] {
        &self.placeholders[..self.count]
    }

    /// Names of its placeholders.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.placeholders().iter().map(|placeholder| placeholder.name)
    }

    /// Values of the placeholders in a decoded path. A placeholder is never empty, and ends where the literal
    /// text after it is first found; the last one takes all that is before the end of the pattern.
    pub(super) fn matches<'p>(&self, path: &'p str) -> Option<[&'p str; PLACEHOLDERS_MAX]> {
        let mut path = path.strip_prefix(self.prefix)?;
        let mut found = [""; PLACEHOLDERS_MAX];
        for (at, (value, Placeholder { literal, .. })) in
            found.iter_mut().zip(self.placeholders()).enumerate()
        {
            let is_last = at + 1 == self.count;
            (*value, path) =
                if is_last { (path.strip_suffix(literal)?, "") } else { path.split_once(literal)? };
            let may_have_slashes = is_last && self.takes_slashes;
            if value.is_empty() || !(may_have_slashes || memchr::memchr(b'/', value.as_bytes()).is_none()) {
                return None;
            }
        }
        path.is_empty().then_some(found)
    }

    /// Literal text before the first placeholder.
    pub(super) fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// True for a path that looks as if it was meant to be of this form.
    pub(super) fn resembles(&self, path: &str) -> bool {
        let ending = self.placeholders().last().map_or("", |placeholder| placeholder.literal);
        match self.prefix {
            "/" => !ending.is_empty() && path.ends_with(ending),
            prefix => path.starts_with(prefix),
        }
    }
}

/// The text before the first such character, and all from it on.
const fn split_before(text: &'static str, character: u8) -> (&'static str, &'static str) {
    let mut end = 0;
    while end < text.len() && text.as_bytes()[end] != character {
        end += 1;
    }
    text.split_at(end)
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
            ("/", "/", Some(["", "", ""])),
            ("/", "/a", None),
            ("/healthz", "/healthz", Some(["", "", ""])),
            ("/healthz", "/healthz/", None),
            ("/<hash>.narinfo", "/a.narinfo", Some(["a", "", ""])),
            ("/<hash>.narinfo", "/.narinfo", None),
            ("/<hash>.narinfo", "/get/pkgs/a.narinfo", None),
            ("/nar/<hash>.nar", "/nar/a.nar", Some(["a", "", ""])),
            ("/nar/<hash>.nar", "/nar/a.nar.zst", None),
            ("/nar/<hash>.nar.<compression>", "/nar/a.nar.zst", Some(["a", "zst", ""])),
            ("/catalogue/<set>/", "/catalogue/pkgs/", Some(["pkgs", "", ""])),
            ("/catalogue/<set>/", "/catalogue/pkgs", None),
            ("/catalogue/<set>/", "/catalogue//", None),
            ("/catalogue/<set>", "/catalogue/pkgs/a", None),
            ("/bin/<set>/<attribute>/<program>", "/bin/pkgs/jq/jq", Some(["pkgs", "jq", "jq"])),
            ("/bin/<set>/<attribute>/<program>", "/bin/pkgs/jq", None),
        ] {
            assert_eq!(AddressPattern::new(pattern).matches(path), found, "{pattern} {path}");
        }
    }

    #[test]
    fn the_last_placeholder_alone_may_take_slashes() {
        let get = AddressPattern::new("/get/<set>/<attribute>").taking_slashes();
        assert_eq!(get.matches("/get/pkgs/a/b/c"), Some(["pkgs", "a/b/c", ""]));
        assert_eq!(get.matches("/get/pkgs/"), None);
        let retry = AddressPattern::new("/failures/<what>/retry").taking_slashes();
        assert_eq!(retry.matches("/failures/set/a/retry"), Some(["set/a", "", ""]));
        assert_eq!(retry.matches("/failures//retry"), None);
        assert_eq!(retry.names().collect::<Vec<_>>(), ["what"]);
        assert_eq!(get.names().collect::<Vec<_>>(), ["set", "attribute"]);
    }
}
