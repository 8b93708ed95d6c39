//! Conditions and ranges of a request for a file (RFC 9110, 13 and 14).

use http_range_header::parse_range_header;
use hyper::HeaderMap;
use hyper::header::{self, HeaderName};

use super::answer::Part;

/// The Range header, unless an If-Range says that it was meant for other bytes.
pub(super) fn wanted_range<'h>(headers: &'h HeaderMap, etag: Option<&str>) -> Option<&'h str> {
    let range = text(headers, header::RANGE)?;
    match headers.get(header::IF_RANGE) {
        Some(condition) if Some(condition.as_bytes()) != etag.map(str::as_bytes) => None,
        _ => Some(range),
    }
}

/// The part of a file of this length that a range names; `None` when it names no byte of it. All of it while
/// the length is unknown.
pub(super) fn part(range: Option<&str>, length: Option<u64>) -> Option<Part> {
    match (range, length) {
        (Some(range), Some(length)) => slice(range, length),
        _ => Some(Part::Whole(length)),
    }
}

/// The part that a Range header names; `None` when it names no byte of the file. Several ranges, or what is
/// no range of bytes, count as no range (RFC 9110, 14.2).
fn slice(range: &str, length: u64) -> Option<Part> {
    // A suffix longer than the file is all of it (RFC 9110, 14.1.2), which the crate refuses.
    let suffix = range.strip_prefix("bytes=-").and_then(|digits| digits.parse::<u64>().ok());
    if suffix.is_some_and(|bytes| bytes > length) && length > 0 {
        return Some(Part::Slice { start: 0, end: length, of: length });
    }
    let Ok(parsed) = parse_range_header(range) else {
        return Some(Part::Whole(Some(length)));
    };
    if parsed.ranges.len() > 1 {
        return Some(Part::Whole(Some(length)));
    }
    let valid = parsed.validate(length).ok()?;
    let first = valid.first()?;
    Some(Part::Slice { start: *first.start(), end: first.end() + 1, of: length })
}

/// True where If-None-Match names the tag (RFC 9110, 13.1.2: compared weakly).
pub(super) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let same = |tag: &str| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag;
    text(headers, header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').map(str::trim).any(same))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
