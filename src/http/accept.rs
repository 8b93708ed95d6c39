//! Content negotiation: the form in which a client reads what is for people and for programs alike
//! (RFC 9110, 12.5.1).

use hyper::{HeaderMap, header};

use crate::encode::Encoding;

/// Form of an answer that a client prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preference {
    /// A page, as browsers do.
    Html,
    /// JSON.
    Json,
    /// Neither is named.
    Unnamed,
}

/// The form that the header Accept names.
pub(super) fn preference(headers: &HeaderMap) -> Preference {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (html, json) = (quality(accept, "text/html"), quality(accept, "application/json"));
    match (html > 0.0, json > 0.0) {
        (true, _) if html >= json => Preference::Html,
        (_, true) => Preference::Json,
        _ => Preference::Unnamed,
    }
}

/// The Content-Encoding that a client accepts, where there is one that is made here.
pub(super) fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    Encoding::accepted(headers.get(header::ACCEPT_ENCODING)?.to_str().ok()?)
}

/// Weight of a media type that is named; 0 for one that is not.
fn quality(accept: &str, media_type: &str) -> f32 {
    let weights = accept.split(',').filter_map(|one| {
        let mut parts = one.split(';').map(str::trim);
        if !parts.next()?.eq_ignore_ascii_case(media_type) {
            return None;
        }
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        Some(weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)))
    });
    weights.fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_form_that_it_names_with_the_greater_weight() {
        for (accept, expected) in [
            ("*/*", Preference::Unnamed),
            ("application/json", Preference::Json),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Preference::Html),
            ("text/html;q=0.5, Application/JSON", Preference::Json),
            ("application/json;q=0", Preference::Unnamed),
            ("application/json-seq", Preference::Unnamed),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().expect("a value"))]);
            assert_eq!(preference(&headers), expected, "{accept}");
        }
        assert_eq!(preference(&HeaderMap::new()), Preference::Unnamed);
    }
}
