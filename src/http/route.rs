//! Finds the endpoint that a request asks for. Paths are decoded once, here; a handler parses the values of
//! its placeholders into types that cannot be wrong.

use std::borrow::Cow;

use hyper::Method;
use percent_encoding::percent_decode_str;

use super::endpoint::{Endpoint, Verb};
use super::endpoints::ENDPOINTS;
use super::pattern::{PLACEHOLDERS_MAX, is_for_programs};

/// Bytes of a path at most; a store path's base name has at most 244.
const PATH_BYTES_MAX: usize = 1024;
/// The folder of the same cache without building.
const CACHED: &str = "/cached";

/// The beginning of the addresses of files, whose names are any bytes.
const FILES: &str = "/file/";

/// The address in a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address<'r> {
    decoded: Cow<'r, str>,
    /// Asked for below `/cached/`.
    pub(super) cached: bool,
    /// The path as it was sent, without `/cached`.
    pub(super) raw: &'r str,
}

/// The row of a method and a path.
pub(super) enum Match<'p> {
    Endpoint(&'static Endpoint, [&'p str; PLACEHOLDERS_MAX]),
    /// Other methods than this one are answered, as the header Allow names them.
    OtherMethod(String),
    Nothing,
}

impl<'r> Address<'r> {
    /// Decodes a path; `None` for one that is too long or no UTF-8. Names of files alone may be none: whoever
    /// needs those has [`Self::raw`].
    pub(super) fn parse(path: &'r str, query: Option<&str>) -> Option<Self> {
        let raw = without_cached(path);
        // Older clients ask for a log or a realisation with a bare question mark where the name of the
        // derivation or of its output has one.
        let is_path = |endpoint: &&Endpoint| {
            endpoint.question_mark_is_path && raw.starts_with(endpoint.pattern.prefix())
        };
        let whole = query.filter(|_| ENDPOINTS.iter().any(|endpoint| is_path(&endpoint)));
        let whole = whole.map(|query| format!("{path}?{query}"));
        if whole.as_deref().unwrap_or(path).len() > PATH_BYTES_MAX {
            return None;
        }
        let decoded = match whole {
            Some(whole) => decode(&whole)?.into_owned().into(),
            None if raw.starts_with(FILES) => percent_decode_str(path).decode_utf8_lossy(),
            None => decode(path)?,
        };
        let cached = without_cached(&decoded).len() < decoded.len();
        Some(Self { decoded, cached, raw })
    }

    /// The decoded path, without `/cached`.
    pub(super) fn path(&self) -> &str {
        without_cached(&self.decoded)
    }
}

/// The text without percent-encoding; `None` where that is no UTF-8. Nearly no path has any.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if memchr::memchr(b'%', text.as_bytes()).is_none() {
        return Some(Cow::Borrowed(text));
    }
    percent_decode_str(text).decode_utf8().ok()
}

/// The first endpoint that has this method and path.
pub(super) fn find<'p>(method: &Method, path: &'p str) -> Match<'p> {
    let verb = Verb::of(method);
    let mut others = Vec::new();
    for endpoint in ENDPOINTS {
        if let Some(arguments) = endpoint.pattern.matches(path) {
            if Some(endpoint.verb) == verb {
                return Match::Endpoint(endpoint, arguments);
            }
            others.push(endpoint.verb);
        }
    }
    match verb {
        // A client of a cache that finds nothing must hear just that, also where something may be uploaded.
        Some(Verb::Get) if others.iter().all(|other| *other == Verb::Put) => Match::Nothing,
        _ => Match::OtherMethod(allowed(&others)),
    }
}

/// The value of the header Allow. An address that nothing has takes what most addresses do.
fn allowed(verbs: &[Verb]) -> String {
    let names = |verb: &Verb| match verb {
        Verb::Get => "GET, HEAD",
        other => other.as_str(),
    };
    let names: Vec<&str> = verbs.iter().map(names).collect();
    if names.is_empty() { "GET, HEAD".to_owned() } else { names.join(", ") }
}

/// A path as it is outside the folder of the cache that builds nothing.
pub(super) fn without_cached(path: &str) -> &str {
    path.strip_prefix(CACHED).filter(|rest| rest.starts_with('/')).unwrap_or(path)
}

/// The beginning of the text for a client whose address nothing has.
pub const NO_ADDRESS: &str = "nothing has this address";

/// Text for a client whose address nothing has: the form of the address that it resembles.
pub(super) fn hint(path: &str) -> String {
    let form = ENDPOINTS.iter().filter(|endpoint| endpoint.pattern.resembles(path)).find_map(|row| row.form);
    if let Some(form) = form {
        return format!("{NO_ADDRESS}: {form}");
    }
    if !is_for_programs(path) {
        return format!("{NO_ADDRESS}: / tells what there is");
    }
    let rows = ENDPOINTS.iter().filter(|row| row.verb == Verb::Get && is_for_programs(row.pattern.as_str()));
    let patterns: Vec<&str> = rows.map(|row| row.pattern.as_str()).collect();
    format!("{NO_ADDRESS}: there are {}", patterns.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    /// The pattern that a GET of this address is answered by, and the values of its placeholders.
    fn found<'a>(address: &'a Address<'_>) -> Option<(&'static str, [&'a str; PLACEHOLDERS_MAX])> {
        match find(&Method::GET, address.path()) {
            Match::Endpoint(endpoint, arguments) => Some((endpoint.pattern.as_str(), arguments)),
            _ => None,
        }
    }

    #[test]
    fn addresses_are_decoded_once_and_found_with_and_without_cached() {
        let narinfo = format!("{HASH}.narinfo");
        for (path, pattern, arguments) in [
            ("", "/", ["", "", ""]),
            ("nix-cache-info", "/nix-cache-info", ["", "", ""]),
            (&narinfo, "/<hash>.narinfo", [HASH, "", ""]),
            ("nar/x.nar.zst", "/nar/<NarHash>.nar.<compression>", ["x", "zst", ""]),
            ("nar/x.nar", "/nar/<NarHash>.nar", ["x", "", ""]),
            ("realisations/a%21b.doi", "/realisations/<id>.doi", ["a!b", "", ""]),
            (
                "build-trace-v2/a%3Fb.drv/out.doi",
                "/build-trace-v2/<derivation>/<output>.doi",
                ["a?b.drv", "out", ""],
            ),
            ("log/a%2Bb%3Fc.drv", "/log/<derivation>", ["a+b?c.drv", "", ""]),
            ("get/pkgs/a.narinfo", "/get/<set>/<attribute>", ["pkgs", "a.narinfo", ""]),
            ("get/pkgs/a%2Fb", "/get/<set>/<attribute>", ["pkgs", "a/b", ""]),
            ("api/v1/builds/7", "/api/v1/builds/<number>", ["7", "", ""]),
            ("api/v1/catalogue/a-b", "/api/v1/catalogue/<set>", ["a-b", "", ""]),
            ("api/v1/catalogue/a-b/", "/api/v1/catalogue/<set>/", ["a-b", "", ""]),
            ("api/v1/catalogue/a-b/c.doi", "/api/v1/catalogue/<set>/<attribute>", ["a-b", "c.doi", ""]),
        ] {
            for (prefix, cached) in [("/", false), ("/cached/", true)] {
                let path = format!("{prefix}{path}");
                let address = Address::parse(&path, None).expect("an address");
                assert_eq!((found(&address), address.cached), (Some((pattern, arguments)), cached), "{path}");
            }
        }
        for path in ["/cached/cached/nix-cache-info", "/cachednix-cache-info", "nix-cache-info", "*", ""] {
            assert_eq!(
                Address::parse(path, None).and_then(|address| found(&address).map(|_| ())),
                None,
                "{path}"
            );
        }
        assert_eq!(Address::parse("/%ff", None), None);
        let any_bytes = format!("/cached/file/{HASH}/a%ff/%25");
        let address = Address::parse(&any_bytes, None).expect("an address");
        let arguments = [HASH, "a\u{fffd}/%", ""];
        assert_eq!(found(&address), Some(("/file/<hash>/<path>", arguments)));
        assert_eq!(Address::parse(&format!("/{}", "a".repeat(64 * 1024)), None), None);
    }

    #[test]
    fn a_bare_question_mark_belongs_to_the_name_of_a_log_or_a_realisation_and_to_nothing_else() {
        for (path, query, value) in [
            ("/log/x-a", "b.drv", Some("x-a?b.drv")),
            ("/cached/log/x-a", "b.drv", Some("x-a?b.drv")),
            ("/realisations/x!a", "b.doi", Some("x!a?b")),
            ("/nar/x.nar", "hash=y", Some("x")),
        ] {
            let address = Address::parse(path, Some(query)).expect("an address");
            assert_eq!(found(&address).map(|(_, arguments)| arguments[0]), value, "{path}?{query}");
        }
        assert_eq!(Address::parse("/log/x-a", Some(&"a".repeat(64 * 1024))), None);
    }

    #[test]
    fn an_address_with_other_methods_names_them() {
        for (method, path, allowed) in [
            (Method::POST, "/nix-cache-info", "GET, HEAD, PUT"),
            (Method::POST, "/0123456789abcdfghijklmnpqrsvwxyz.ls", "GET, HEAD, PUT"),
            (Method::PUT, "/nobody-has-this", "GET, HEAD"),
            (Method::GET, "/api/v1/pins/a", "POST, DELETE"),
            (Method::DELETE, "/api/v1/catalogue", "GET, HEAD, POST"),
        ] {
            let Match::OtherMethod(others) = find(&method, path) else {
                panic!("{method} {path} is answered")
            };
            assert_eq!(others, allowed, "{method} {path}");
        }
        assert!(matches!(find(&Method::HEAD, "/nobody-has-this"), Match::Nothing));
        assert!(matches!(find(&Method::POST, "/debuginfo/00"), Match::OtherMethod(_)));
        assert!(matches!(find(&Method::HEAD, "/metrics"), Match::Endpoint(..)));
    }

    #[test]
    fn an_address_that_nothing_has_is_told_of_the_form_that_it_resembles() {
        for (path, words) in [
            ("/0123.narinfo", "/<hash>.narinfo"),
            ("/nar/x", "/nar/<NarHash>.nar.zst"),
            ("/get/x", "/get/<set>/<attribute>"),
            ("/log/x", "/log/<hash>-<name>.drv"),
            ("/realisations/x", "/realisations/sha256:"),
            ("/build-trace-v2/x", "/build-trace-v2/<derivation>/"),
            ("/api/v2/status", "/api/v1/status"),
            ("/api", "/api/v1/catalogue/<set>/<attribute>"),
            ("/favicon.ico", "/ tells what there is"),
        ] {
            assert!(hint(path).contains(words), "{path}: {}", hint(path));
            assert!(words.ends_with("narinfo") || !hint(path).contains("a narinfo is at"), "{path}");
        }
        assert!(is_for_programs("/api/x") && !is_for_programs("/get/api/x") && !is_for_programs("/apis"));
    }
}
