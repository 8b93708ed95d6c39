//! Answers that are no errors, with their headers. `error.rs` has the others; these two files alone know
//! status codes.

use std::sync::LazyLock;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::body::Body;
use super::traffic::RequestOutcome;
use crate::build::Outlook;
use crate::encode::Encoding;
use crate::escape::{self, Lines};
use crate::upstream::BUILDS_HEADER;

/// An answer.
pub type Answer = Response<Body>;

/// Contents named by their hash never change.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// Contents that a name leads to, which may lead to others later: caches ask anew, by their tag.
const REVALIDATE: HeaderValue = HeaderValue::from_static("public, no-cache");
/// Files of builds are strangers' pages: without scripts, forms and cookies of this server, and nothing is
/// loaded from elsewhere.
const SANDBOX: HeaderValue = HeaderValue::from_static(
    "sandbox; default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'",
);
/// Contents that may be different the next time.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// The media type of a narinfo.
pub const NARINFO: HeaderValue = HeaderValue::from_static("text/x-nix-narinfo");
/// The media type of a plain NAR.
pub const NAR: HeaderValue = HeaderValue::from_static("application/x-nix-nar");
/// The media type of a zstd file.
pub const ZSTD: HeaderValue = HeaderValue::from_static("application/zstd");
/// Tar files.
pub const TAR: HeaderValue = HeaderValue::from_static("application/x-tar");
/// Plain text for people.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// Server-sent events: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
pub const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
/// Pages for people.
pub const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
/// Files of which nothing else is known.
pub const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// JSON.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The media type of metrics: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
pub const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
/// The media type of nix-cache-info.
pub const CACHE_INFO: HeaderValue = HeaderValue::from_static("text/x-nix-cache-info");
/// Policy of pages: they load and send nothing beyond this server, and run the files of scripts alone.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);
/// Header by which a cache of our kind is known to others.
const BUILDS: HeaderName = HeaderName::from_static(BUILDS_HEADER);
/// Has reverse proxies pass each chunk on at once.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Headers of every answer, with the media type to be replaced. A copy costs less than half of the
/// instructions that adding them one by one does, and every hit needs them.
static COMMON: LazyLock<HeaderMap> = LazyLock::new(|| {
    let common = [
        (header::CONTENT_TYPE, TEXT),
        (header::CACHE_CONTROL, NO_STORE),
        // A build's log and a reason may hold anything: never to be taken for a page.
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (BUILDS, HeaderValue::from_static("1")),
    ];
    common.into_iter().collect()
});

/// 200 with a body in memory.
pub fn ready(media_type: HeaderValue, body: impl Into<Bytes>) -> Answer {
    with_status(StatusCode::OK, media_type, full(body))
}

/// 200 with a page.
pub fn page(text: String) -> Answer {
    html(StatusCode::OK, text)
}

/// 200 with a part of the pages, whose address changes with its contents.
pub fn asset(media_type: HeaderValue, body: &'static [u8]) -> Answer {
    let mut answer = with_status(StatusCode::OK, media_type, full(Bytes::from_static(body)));
    answer.headers_mut().insert(header::CACHE_CONTROL, IMMUTABLE);
    answer
}

/// The same answer, which has a browser keep a cookie.
pub fn with_cookie(mut answer: Answer, cookie: &str) -> Answer {
    set_text(answer.headers_mut(), header::SET_COOKIE, cookie);
    answer
}

/// 200 with a streamed body.
pub fn streamed(media_type: HeaderValue, body: Body) -> Answer {
    let mut answer = with_status(StatusCode::OK, media_type, body);
    answer.headers_mut().insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    answer
}

/// 200 for a client that waits for a build, with the number of its request, its position, and the forecast of
/// its delivery.
pub fn waiting(body: Body, request: u64, outlook: Option<&Outlook>) -> Answer {
    let mut answer = streamed(NARINFO, body);
    let headers = answer.headers_mut();
    // Very many may wait, and hyper keeps the headers' memory, which doubles with the seventh. No browser
    // sniffs this media type anyway.
    headers.remove(header::X_CONTENT_TYPE_OPTIONS);
    set_number(headers, HeaderName::from_static("x-ondine-build"), Some(request));
    let position = outlook.map(|outlook| outlook.position as u64);
    set_number(headers, HeaderName::from_static("x-ondine-position"), position);
    if let Some((earliest, latest)) = outlook.and_then(|outlook| outlook.eta_seconds) {
        set_text(headers, HeaderName::from_static("x-ondine-eta-seconds"), &format!("{earliest}-{latest}"));
    }
    answer
}

/// 200 for a client that waits before its request is decided.
pub fn undecided(body: Body) -> Answer {
    streamed(NARINFO, body)
}

/// 200 with a streamed body of known length.
pub fn measured(media_type: HeaderValue, bytes: u64, body: Body) -> Answer {
    let mut answer = with_status(StatusCode::OK, media_type, body);
    set_number(answer.headers_mut(), header::CONTENT_LENGTH, Some(bytes));
    answer
}

/// 200 with JSON.
pub fn json(value: &impl serde::Serialize) -> Answer {
    of_json(StatusCode::OK, value)
}

/// The part of a file that is sent.
pub enum Part {
    /// All of it; its length where it is known already.
    Whole(Option<u64>),
    /// These bytes, of so many.
    Slice {
        /// The first byte.
        start: u64,
        /// One past the last.
        end: u64,
        /// Bytes of the whole file.
        of: u64,
    },
}

/// 200 or 206 with (a part of) a file that never changes.
pub fn file(media_type: HeaderValue, etag: Option<&str>, part: &Part, body: Body) -> Answer {
    let mut answer = part_of_file(media_type, part, body);
    immutable(answer.headers_mut(), etag);
    answer
}

/// 200 or 206 with (a part of) a file of a build, under a name that may stand for another one later.
pub fn contents(media_type: HeaderValue, etag: &str, part: &Part, body: Body) -> Answer {
    let mut answer = part_of_file(media_type, part, body);
    let headers = answer.headers_mut();
    revalidated(headers, etag);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_SECURITY_POLICY, SANDBOX);
    answer
}

/// 200 with a body that is made anew for each request and is always the same, such as a listing, encoded for
/// the way where the client accepts that.
pub fn derived(media_type: HeaderValue, etag: &str, encoding: Option<Encoding>, body: Body) -> Answer {
    let mut answer = with_status(StatusCode::OK, media_type, body);
    let headers = answer.headers_mut();
    revalidated(headers, etag);
    headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    if let Some(encoding) = encoding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
    }
    answer
}

fn part_of_file(media_type: HeaderValue, part: &Part, body: Body) -> Answer {
    let status = if matches!(part, Part::Whole(_)) { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    let mut answer = with_status(status, media_type, body);
    let headers = answer.headers_mut();
    match *part {
        Part::Whole(length) => set_number(headers, header::CONTENT_LENGTH, length),
        Part::Slice { start, end, of } => {
            set_number(headers, header::CONTENT_LENGTH, Some(end - start));
            set_text(headers, header::CONTENT_RANGE, &format!("bytes {start}-{}/{of}", end - 1));
        }
    }
    answer
}

/// 302 to an address.
pub fn redirect(address: &str) -> Answer {
    let mut answer = text(StatusCode::FOUND, format_args!("it is at {address}"));
    set_text(answer.headers_mut(), header::LOCATION, address);
    answer
}

/// 304: the client has it already.
pub fn not_modified(etag: &str) -> Answer {
    let mut answer = Response::new(empty());
    *answer.status_mut() = StatusCode::NOT_MODIFIED;
    immutable(answer.headers_mut(), Some(etag));
    answer
}

/// 304 for what [`contents`] or [`derived`] answered before.
pub fn still_the_same(etag: &str) -> Answer {
    let mut answer = Response::new(empty());
    *answer.status_mut() = StatusCode::NOT_MODIFIED;
    revalidated(answer.headers_mut(), etag);
    answer
}

/// 200 with a page that loads nothing.
pub fn plain_page(html: String) -> Answer {
    let mut answer = with_status(StatusCode::OK, HTML, full(html));
    let policy =
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; form-action 'self'");
    answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    answer
}

/// The answer as a file that is saved under this name.
pub fn saved_as(mut answer: Answer, name: &str) -> Answer {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '/' | ';' | '%');
    let simple: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    let mut value = format!("attachment; filename=\"{simple}\"");
    if simple != name {
        // RFC 6266 and RFC 8187.
        let encoded = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
        value.push_str(&format!("; filename*=UTF-8''{encoded}"));
    }
    set_text(answer.headers_mut(), header::CONTENT_DISPOSITION, &value);
    answer
}

/// The answer with the SHA-256 of the whole file, in base64 (RFC 9530).
pub fn with_digest(mut answer: Answer, sha256: &str) -> Answer {
    set_text(answer.headers_mut(), HeaderName::from_static("repr-digest"), &format!("sha-256=:{sha256}:"));
    answer
}

/// 202 for what is not there yet, with its state and the address at which that is told.
pub fn accepted(state: &impl serde::Serialize, address: Option<&str>) -> Answer {
    let mut answer = of_json(StatusCode::ACCEPTED, state);
    if let Some(address) = address {
        set_text(answer.headers_mut(), header::LOCATION, address);
    }
    noted(answer, RequestOutcome::Miss)
}

/// 200 with a body that is made while it is sent, and that has no ranges.
pub fn made_anew(media_type: HeaderValue, etag: &str, body: Body) -> Answer {
    let mut answer = streamed(media_type, body);
    let headers = answer.headers_mut();
    revalidated(headers, etag);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
    answer
}

/// Forbids caches that several share to keep the answer: reading needs a token, and they would give it to
/// whoever asks (RFC 9111, section 3.5).
pub fn make_private(answer: &mut Answer) {
    let Some(value) = answer.headers_mut().get_mut(header::CACHE_CONTROL) else { return };
    let rest = value.to_str().ok().and_then(|value| value.strip_prefix("public"));
    if let Some(private) = rest.and_then(|rest| HeaderValue::from_str(&format!("private{rest}")).ok()) {
        *value = private;
    }
}

/// The answer without its body, for HEAD; the length stays.
pub fn without_body(answer: Answer) -> Answer {
    let (mut parts, body) = answer.into_parts();
    if !parts.headers.contains_key(header::CONTENT_LENGTH) {
        // The empty body of a HEAD request has no length of the contents.
        let length = hyper::body::Body::size_hint(&body).exact().filter(|bytes| *bytes > 0);
        set_number(&mut parts.headers, header::CONTENT_LENGTH, length);
    }
    Response::from_parts(parts, empty())
}

/// Outcome of a request with this answer: the noted one, else by its status.
pub fn outcome(answer: &Answer) -> RequestOutcome {
    if let Some(noted) = answer.extensions().get::<RequestOutcome>() {
        return *noted;
    }
    match answer.status() {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => RequestOutcome::Hit,
        StatusCode::NOT_FOUND => RequestOutcome::Miss,
        StatusCode::NOT_MODIFIED => RequestOutcome::NotModified,
        StatusCode::FOUND => RequestOutcome::Redirect,
        status if status.is_server_error() => RequestOutcome::Unavailable,
        _ => RequestOutcome::Refused,
    }
}

/// The answer with its outcome noted, where the status does not tell.
pub fn noted(mut answer: Answer, outcome: RequestOutcome) -> Answer {
    answer.extensions_mut().insert(outcome);
    answer
}

/// Content-Length.
pub fn length(answer: &Answer) -> Option<u64> {
    answer.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// An empty body.
pub fn empty() -> Body {
    Body::default()
}

/// A body in memory.
pub fn full(body: impl Into<Bytes>) -> Body {
    Body::from(body.into())
}

/// Text for a person.
pub(super) fn text(status: StatusCode, text: impl std::fmt::Display) -> Answer {
    with_status(status, TEXT, full(format!("{}\n", Lines(text))))
}

/// A page.
pub(super) fn html(status: StatusCode, text: String) -> Answer {
    let mut answer = with_status(status, HTML, full(text));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, PAGE_POLICY);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    answer
}

/// JSON, with escapes for all that acts on a terminal.
pub(super) fn of_json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    // Strings, numbers and nothing else: there is nothing in it that JSON could refuse.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    with_status(status, JSON, full(escape::json(text) + "\n"))
}

/// An answer that no cache keeps.
pub(super) fn with_status(status: StatusCode, media_type: HeaderValue, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.clone_from(&COMMON);
    headers.insert(header::CONTENT_TYPE, media_type);
    answer
}

fn immutable(headers: &mut HeaderMap, etag: Option<&str>) {
    headers.insert(header::CACHE_CONTROL, IMMUTABLE);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(etag) = etag {
        set_text(headers, header::ETAG, etag);
    }
}

fn revalidated(headers: &mut HeaderMap, etag: &str) {
    headers.insert(header::CACHE_CONTROL, REVALIDATE);
    set_text(headers, header::ETAG, etag);
}

fn set_number(headers: &mut HeaderMap, name: HeaderName, value: Option<u64>) {
    if let Some(value) = value {
        headers.insert(name, HeaderValue::from(value));
    }
}

/// `value` is made of hashes, numbers and addresses, which every header takes.
pub(super) fn set_text(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
