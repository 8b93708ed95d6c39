//! The columns of the table of endpoints (`endpoints.rs`).

use hyper::Method;
use schemars::{Schema, SchemaGenerator};

use super::call::Call;
use super::error::Audience;
use super::pattern::AddressPattern;
use super::response_future::ResponseFuture;
use super::traffic::RouteLabel;
use crate::caller::Action;

/// An endpoint.
pub(super) struct Endpoint {
    pub(super) verb: Verb,
    pub(super) pattern: AddressPattern,
    /// The right that a caller needs.
    pub(super) action: Action,
    /// True where no right is needed: it tells nothing of what is in the cache.
    pub(super) open: bool,
    /// Readers of its errors.
    pub(super) audience: Audience,
    /// Label of its requests in the metrics.
    pub(super) label: RouteLabel,
    pub(super) handler: Handler,
    pub(super) answer: Content,
    /// One line for a person.
    pub(super) summary: &'static str,
    /// Names and meanings of the parameters in the query.
    pub(super) query: &'static [(&'static str, &'static str)],
    /// JSON type of the request's body, which may be left out.
    pub(super) body: Option<SchemaOf>,
    /// A bare question mark in the address belongs to the path: older clients leave it unencoded.
    pub(super) question_mark_is_path: bool,
    /// A page: its visitor may be known by a cookie, and it checks their right itself, so that a refusal is a
    /// page, too.
    pub(super) is_page: bool,
    /// Explanation of the pattern, for a client whose address has almost its form.
    pub(super) form: Option<&'static str>,
}

/// The method of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// GET, and HEAD, whose answer is the same without its body.
    Get,
    Put,
    Post,
    Delete,
}

/// Makes the answer; `None` where the arguments have not the form that they must have, so that nothing has
/// this address.
pub(super) type Handler = fn(Call<'_>) -> Option<ResponseFuture>;

/// The schema of a JSON type.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The body of an answer.
pub(super) enum Content {
    /// Bytes or text of a media type.
    Media(&'static str),
    Json(SchemaOf),
    /// Text that grows line by line while something is done; a line that opens with `failed:` tells of a
    /// failure.
    Lines,
    /// No body but the address where the contents are.
    Redirect,
}

/// Parameters that several endpoints have.
pub(super) const SYSTEM: (&str, &str) =
    ("system", "system of the package; default: the first one of the set");
pub(super) const WAIT_QUERY: (&str, &str) = (
    "wait",
    "longest wait for a build in seconds, at most 300; then 202 with its state; default: to its end",
);
pub(super) const RUN_QUERY: &[(&str, &str)] =
    &[SYSTEM, ("program", "the program; default: the one with the name of the attribute, or the only one")];
const SYSTEM_QUERY: &[(&str, &str)] = &[SYSTEM];
pub(super) const PROGRAM_QUERY: &[(&str, &str)] = &[SYSTEM, WAIT_QUERY];

pub(super) const ATTRIBUTES_QUERY: &[(&str, &str)] = &[
    (
        "q",
        "a part of the attribute or of its derivation's name; with `*`, which stands for anything, all of it",
    ),
    ("system", "system of the attributes; default: the first one of the set"),
    ("after", "`next` of the page before"),
    ("limit", "attributes in a page, 1 to 1000; default: 100"),
];

impl Endpoint {
    /// An endpoint of the cache protocol.
    pub(super) const fn cache(pattern: &'static str, handler: Handler) -> Self {
        Self::new(Audience::Cache, Verb::Get, pattern, Action::Read, handler)
    }

    /// An endpoint for people or for monitoring.
    pub(super) const fn page(pattern: &'static str, handler: Handler) -> Self {
        Self::new(Audience::Person, Verb::Get, pattern, Action::Read, handler)
    }

    /// A page for people with a browser.
    pub(super) const fn html(verb: Verb, pattern: &'static str, action: Action, handler: Handler) -> Self {
        let endpoint = Self::new(Audience::Person, verb, pattern, action, handler);
        Self { label: RouteLabel::Page, answer: Content::Media("text/html"), is_page: true, ..endpoint }
    }

    /// An endpoint for people that gives a file of this media type.
    pub(super) const fn file(media_type: &'static str, pattern: &'static str, handler: Handler) -> Self {
        let endpoint = Self::page(pattern, handler);
        Self { label: RouteLabel::File, answer: Content::Media(media_type), ..endpoint }
    }

    /// A file that is the same of an attribute as the row before is of a hash.
    pub(super) const fn of_attribute(
        media_type: &'static str,
        pattern: &'static str,
        handler: Handler,
    ) -> Self {
        let endpoint = Self::file(media_type, pattern, handler);
        let summary = "the same of an attribute, which is built first where need be";
        Self { summary, query: SYSTEM_QUERY, ..endpoint }.taking_slashes()
    }

    /// The address of the row before without its slash, which leads there.
    pub(super) const fn without_slash(pattern: &'static str, handler: Handler) -> Self {
        let endpoint = Self::page(pattern, handler);
        let summary = "the same, without the slash";
        Self { label: RouteLabel::Download, answer: Content::Redirect, summary, ..endpoint }
    }

    /// An upload.
    pub(super) const fn upload(pattern: &'static str, handler: Handler) -> Self {
        let endpoint = Self::new(Audience::Upload, Verb::Put, pattern, Action::Push, handler);
        Self { label: RouteLabel::Upload, ..endpoint }
    }

    /// An endpoint of the API.
    pub(super) const fn api(verb: Verb, pattern: &'static str, action: Action, handler: Handler) -> Self {
        Self::new(Audience::Api, verb, pattern, action, handler)
    }

    /// An endpoint of the API that changes something, and tells of it line by line.
    pub(super) const fn change(verb: Verb, pattern: &'static str, action: Action, handler: Handler) -> Self {
        let endpoint = Self::api(verb, pattern, action, handler);
        Self { label: RouteLabel::Change, answer: Content::Lines, ..endpoint }
    }

    const fn new(
        audience: Audience,
        verb: Verb,
        pattern: &'static str,
        action: Action,
        handler: Handler,
    ) -> Self {
        Self {
            verb,
            pattern: AddressPattern::new(pattern),
            action,
            open: false,
            audience,
            label: RouteLabel::Api,
            handler,
            answer: Content::Media("text/plain"),
            summary: "",
            query: &[],
            body: None,
            question_mark_is_path: false,
            is_page: false,
            form: None,
        }
    }

    /// The same, whose pattern's last placeholder takes slashes, too.
    pub(super) const fn taking_slashes(mut self) -> Self {
        self.pattern = self.pattern.taking_slashes();
        self
    }
}

impl Verb {
    pub(super) fn of(method: &Method) -> Option<Self> {
        match *method {
            Method::GET | Method::HEAD => Some(Self::Get),
            Method::PUT => Some(Self::Put),
            Method::POST => Some(Self::Post),
            Method::DELETE => Some(Self::Delete),
            _ => None,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}
