//! Errors of handlers, and the one place that turns them into answers. For a cache client everything is 404,
//! since Nix takes any other status for trouble with the whole cache (nix-protocol.md, section 1: it retries,
//! then fails the command); for the API the status is true, and the body is JSON. Internals are logged here,
//! once, and never shown.

use std::fmt::Display;
use std::sync::OnceLock;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderName, HeaderValue};

use super::answer::{self, Answer};
use super::api::{ErrorBody, ErrorReason, ServerStatus};
use super::traffic::RequestOutcome;
use crate::auth::TooFast;
use crate::build::NoBuilder;
use crate::caller::{Action, Refusal, Rejection};
use crate::catalogue::NoSuchName;
use crate::contents::{self, ResolveError};
use crate::import::UploadError;
use crate::index;
use crate::model::FailureClass;
use crate::nar_store::is_away;
use crate::packer;
use crate::substitute::Missing;

/// Text for a person who reads a 404: Nix's negative cache, and the option that bypasses it.
pub(super) const REMEMBERED: &str = "A Nix client remembers a 404 for an hour; with --option narinfo-cache-negative-ttl 0 it asks anew (of a \
     trusted user).";
/// Text of an error that the index caused.
pub(super) const INDEX_UNREADABLE: &str =
    "the index cannot be read; the server's log says why, and /readyz what to do";

/// Seconds after which a client does well to try again where the trouble may have passed.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("10");

/// Readers of an endpoint's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Clients of Nix: text, and 404 for everything that they cannot have.
    Cache,
    /// People and monitoring: text with a true status.
    Person,
    /// Programs: JSON with a true status.
    Api,
    /// Clients of Nix that upload: text with a true status. They print it, and try again after 408 and 503.
    Upload,
}

/// The reason that a request is not answered with what it asks for. Texts are for a person.
#[derive(Debug)]
pub(super) enum Error {
    NotFound(String),
    /// A store path that nobody knows: by far the most frequent error, which allocates nothing.
    Unknown,
    /// A store path that cannot be served for another reason.
    Missing(Box<Missing>),
    /// A build that failed, with the address of its log and the last lines of that.
    BuildFailed {
        missing: Box<Missing>,
        log: String,
        lines: Vec<String>,
    },
    BadRequest(String),
    Refused(Refusal),
    /// The token of the request is not valid.
    Rejected(Rejection),
    /// The address of the request has a token in it, which it never should.
    TokenInAddress,
    /// The request names several hosts, of which a proxy may have read another one than this server.
    TwoHosts,
    /// A path that is believed only of those who have the right to vouch.
    Unvouched(String),
    /// Nobody may have it.
    Forbidden(String),
    /// Something else came first.
    Conflict(String),
    /// Other methods are answered, named as in the header Allow.
    MethodNotAllowed(String),
    /// The request's body has more than so many bytes.
    TooLarge(usize),
    /// The request's body took too long.
    TooSlow,
    /// A range of a file that has so many bytes, and none of these.
    RangeNotSatisfiable(u64),
    /// The client asks more often than it may.
    TooFast(TooFast),
    /// Trouble that may pass.
    Unavailable(String),
    /// Trouble that was logged.
    Internal(String),
}

impl Error {
    pub(super) fn not_found(reason: impl Display) -> Self {
        Self::NotFound(reason.to_string())
    }

    pub(super) fn unavailable(reason: impl Display) -> Self {
        Self::Unavailable(reason.to_string())
    }

    /// An error of the server, which is logged here. `what` says what could not be done.
    pub(super) fn internal(error: &(dyn std::error::Error + 'static), what: &str) -> Self {
        tracing::error!(error, "{what}");
        Self::Internal(format!("{what}; the server's log has the details"))
    }

    /// An error of the index, which is logged here. `what` says what could not be done.
    pub(super) fn index(error: &index::Error, what: &str) -> Self {
        tracing::error!(error = error as &dyn std::error::Error, "{what}");
        Self::Internal(format!("{what}: {INDEX_UNREADABLE}"))
    }

    /// The answer for these readers.
    pub(super) fn answer(self, audience: Audience) -> Answer {
        let status = self.status(audience);
        let header = self
            .header()
            .filter(|(name, _)| *name != header::WWW_AUTHENTICATE || status == StatusCode::UNAUTHORIZED);
        let mut answer = match (audience, self) {
            (Audience::Cache | Audience::Person, Self::Unknown) => return unknown_path(),
            (Audience::Cache | Audience::Person, Self::Missing(missing))
                if status == StatusCode::NOT_FOUND =>
            {
                return missing_path(&missing);
            }
            (Audience::Api, error) => {
                let (reason, right) = (error.reason(), error.right());
                let (log, log_lines) = error.log();
                answer::of_json(status, &ErrorBody { error: error.text(), reason, right, log, log_lines })
            }
            (_, error @ Self::BuildFailed { .. }) => {
                let text = answer::text(status, format_args!("{}\n{REMEMBERED}", error.text()));
                return answer::noted(text, RequestOutcome::Failed);
            }
            (_, error) => answer::text(status, error.text()),
        };
        if let Some((name, value)) = header {
            answer::set_text(answer.headers_mut(), name, &value);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        answer
    }

    /// The answer for a person with a browser: the page that `render` makes of the text, and of true where a
    /// token would help.
    pub(super) fn page(self, render: impl FnOnce(&str, bool) -> String) -> Answer {
        let (status, lacks_right) = (self.status(Audience::Person), self.right().is_some());
        let lacks_right = lacks_right || matches!(self, Self::Rejected(_));
        answer::html(status, render(&self.text(), lacks_right))
    }

    fn status(&self, audience: Audience) -> StatusCode {
        match (self, audience) {
            (Self::MethodNotAllowed(_), _) => StatusCode::METHOD_NOT_ALLOWED,
            (Self::RangeNotSatisfiable(_), _) => StatusCode::RANGE_NOT_SATISFIABLE,
            (_, Audience::Cache) | (Self::NotFound(_) | Self::Unknown, _) => StatusCode::NOT_FOUND,
            // Who reads it asks for a download or for the server's health, and does well to try again.
            (Self::Unavailable(_), _) | (Self::Internal(_), Audience::Person | Audience::Upload) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            (Self::Missing(missing), _) if missing.is_unavailable() => StatusCode::SERVICE_UNAVAILABLE,
            (Self::Missing(_) | Self::BuildFailed { .. }, _) => StatusCode::NOT_FOUND,
            (Self::Internal(_), Audience::Api) => StatusCode::INTERNAL_SERVER_ERROR,
            (Self::BadRequest(_) | Self::TokenInAddress | Self::TwoHosts, _) => StatusCode::BAD_REQUEST,
            (Self::Refused(refusal), _) if !refusal.wants_token() => StatusCode::FORBIDDEN,
            (Self::Refused(_) | Self::Rejected(_), _) => StatusCode::UNAUTHORIZED,
            (Self::Unvouched(_) | Self::Forbidden(_), _) => StatusCode::FORBIDDEN,
            (Self::Conflict(_), _) => StatusCode::CONFLICT,
            (Self::TooLarge(_), _) => StatusCode::PAYLOAD_TOO_LARGE,
            (Self::TooSlow, _) => StatusCode::REQUEST_TIMEOUT,
            (Self::TooFast(_), _) => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    fn reason(&self) -> ErrorReason {
        match self {
            Self::Missing(missing) if missing.is_unavailable() => ErrorReason::Unavailable,
            Self::NotFound(_) | Self::Unknown | Self::Missing(_) | Self::BuildFailed { .. } => {
                ErrorReason::NotFound
            }
            Self::BadRequest(_) | Self::TokenInAddress | Self::TwoHosts | Self::RangeNotSatisfiable(_) => {
                ErrorReason::BadRequest
            }
            Self::Refused(refusal) if !refusal.wants_token() => ErrorReason::Refused,
            Self::Refused(_) | Self::Rejected(_) => ErrorReason::Unauthorized,
            Self::Unvouched(_) | Self::Forbidden(_) => ErrorReason::Refused,
            Self::Conflict(_) => ErrorReason::Conflict,
            Self::MethodNotAllowed(_) => ErrorReason::MethodNotAllowed,
            Self::TooLarge(_) => ErrorReason::TooLarge,
            Self::TooSlow => ErrorReason::TooSlow,
            Self::TooFast(_) => ErrorReason::TooFast,
            Self::Unavailable(_) => ErrorReason::Unavailable,
            Self::Internal(_) => ErrorReason::Internal,
        }
    }

    /// Address of the log of a build that failed, and its last lines.
    fn log(&self) -> (Option<String>, Vec<String>) {
        match self {
            Self::BuildFailed { log, lines, .. } => (Some(log.clone()), lines.clone()),
            _ => (None, Vec::new()),
        }
    }

    /// The right that was lacking.
    fn right(&self) -> Option<&'static str> {
        match self {
            Self::Refused(refusal) => Some(refusal.action().name()),
            Self::Unvouched(_) => Some(Action::Vouch.name()),
            _ => None,
        }
    }

    fn header(&self) -> Option<(HeaderName, String)> {
        match self {
            Self::MethodNotAllowed(allowed) => Some((header::ALLOW, allowed.clone())),
            Self::RangeNotSatisfiable(bytes) => Some((header::CONTENT_RANGE, format!("bytes */{bytes}"))),
            Self::Refused(refusal) if !refusal.wants_token() => None,
            Self::Refused(_) | Self::Rejected(_) => {
                Some((header::WWW_AUTHENTICATE, "Basic realm=\"ondine\"".to_owned()))
            }
            Self::TooFast(TooFast(wait)) => Some((header::RETRY_AFTER, (wait.as_secs() + 1).to_string())),
            // What is left of the body is not read.
            Self::TooLarge(_) | Self::TooSlow | Self::TwoHosts => {
                Some((header::CONNECTION, "close".to_owned()))
            }
            _ => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::NotFound(text)
            | Self::BadRequest(text)
            | Self::Unvouched(text)
            | Self::Forbidden(text)
            | Self::Conflict(text)
            | Self::Unavailable(text)
            | Self::Internal(text) => text,
            Self::Unknown => Missing::Unknown.to_string(),
            Self::Missing(missing) => missing.to_string(),
            Self::BuildFailed { missing, lines, .. } if lines.is_empty() => missing.to_string(),
            Self::BuildFailed { missing, lines, .. } => {
                format!("{missing}\nthe end of the log:\n    {}", lines.join("\n    "))
            }
            Self::Refused(refusal) => refusal.to_string(),
            Self::Rejected(rejection) => rejection.to_string(),
            Self::TokenInAddress => {
                "the address has a token in it, which proxies and shells may have recorded: \
                                     revoke it, and send another one in netrc or in the header Authorization"
                    .to_owned()
            }
            Self::TwoHosts => "the request has more than one header Host: send one alone".to_owned(),
            Self::TooFast(wait) => wait.to_string(),
            Self::MethodNotAllowed(allowed) => format!("only {allowed} are answered here"),
            Self::TooLarge(bytes_max) => format!("the body of the request has more than {bytes_max} bytes"),
            Self::TooSlow => "the body of the request did not arrive in time".to_owned(),
            Self::RangeNotSatisfiable(bytes) => format!("the file has {bytes} bytes"),
        }
    }
}

impl From<NoBuilder> for Error {
    fn from(error: NoBuilder) -> Self {
        match error {
            NoBuilder::Unknown { .. } => Self::BadRequest(error.to_string()),
            NoBuilder::Drained(_) => Self::Conflict(error.to_string()),
        }
    }
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Unknown => Self::Unknown,
            missing => Self::Missing(Box::new(missing)),
        }
    }
}

impl From<UploadError> for Error {
    fn from(error: UploadError) -> Self {
        let text = error.to_string();
        match error {
            UploadError::Invalid(_) => Self::BadRequest(text),
            UploadError::Conflict { .. } | UploadError::InNixStore(_) | UploadError::Realised { .. } => {
                Self::Conflict(text)
            }
            UploadError::Unvouched(_) => Self::Unvouched(text),
            UploadError::Refused(refusal) => Self::Refused(refusal),
            UploadError::TooLarge(bytes_max) => {
                Self::TooLarge(usize::try_from(bytes_max).unwrap_or(usize::MAX))
            }
            UploadError::Stalled => Self::TooSlow,
            UploadError::TooMany(_) | UploadError::NoRoom | UploadError::Unavailable => {
                Self::Unavailable(text)
            }
        }
    }
}

impl From<NoSuchName> for Error {
    fn from(reason: NoSuchName) -> Self {
        match reason {
            NoSuchName::Index => Self::Internal(reason.to_string()),
            _ if reason.may_pass() => Self::unavailable(reason),
            _ => Self::not_found(reason),
        }
    }
}

impl From<contents::Error> for Error {
    fn from(error: contents::Error) -> Self {
        match error {
            contents::Error::Index(error) => Self::index(&error, "contents cannot be looked up"),
            contents::Error::Packer(packer::Error::NotToBeHad(reason)) => {
                Self::unavailable(format_args!("not available at the moment: {reason}"))
            }
            contents::Error::Packer(error) => error.into(),
            contents::Error::TooLarge(_) | contents::Error::Unmeasured => Self::not_found(error),
            contents::Error::Evicted | contents::Error::Unreadable(_) | contents::Error::Busy => {
                Self::unavailable(error)
            }
        }
    }
}

impl From<ResolveError> for Error {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Contents(error) => error.into(),
            ResolveError::NotFound { .. } | ResolveError::NotDirectory(_) => Self::not_found(error),
            ResolveError::Leaves { .. } | ResolveError::TooManySymlinks => Self::Forbidden(error.to_string()),
        }
    }
}

/// A NAR that cannot be read is a miss to a client, which then goes on without it.
impl From<packer::Error> for Error {
    fn from(error: packer::Error) -> Self {
        match error {
            packer::Error::NotToBeHad(reason) => {
                Self::NotFound(format!("not available at the moment: {reason}"))
            }
            // It may be there: a client that is told of an error of the server would retry for a minute.
            packer::Error::Index(error) if error.is_transient() => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the index cannot be read, so a NAR is not served");
                Self::NotFound(format!("not available at the moment: {INDEX_UNREADABLE}"))
            }
            // A client that is told so asks again, where it would take a miss for an hour.
            packer::Error::Store(reason) if is_away(&reason) => {
                tracing::warn!(
                    error = &reason as &dyn std::error::Error,
                    "the storage of the NARs does not answer"
                );
                Self::unavailable("the storage of the NARs does not answer at the moment; ask again")
            }
            error => Self::internal(&error, "this NAR cannot be read at the moment"),
        }
    }
}

/// The status of a server whose index has trouble: all that is known, as an error.
pub(super) fn partly(status: &ServerStatus) -> Answer {
    answer::of_json(StatusCode::INTERNAL_SERVER_ERROR, status)
}

/// The answer for a path that nobody knows, whose text is made once.
fn unknown_path() -> Answer {
    static BODY: OnceLock<&'static str> = OnceLock::new();
    let body = BODY.get_or_init(|| format!("{}\n{REMEMBERED}\n", Missing::Unknown).leak());
    answer::with_status(
        StatusCode::NOT_FOUND,
        answer::TEXT,
        answer::full(Bytes::from_static(body.as_bytes())),
    )
}

/// The answer for a path that cannot be served, counted as what the reason is.
fn missing_path(missing: &Missing) -> Answer {
    let outcome = match missing {
        Missing::Failed(failure) if failure.class != FailureClass::Refused => RequestOutcome::Failed,
        Missing::Failed(_)
        | Missing::Refused(_)
        | Missing::NeedsRight(_)
        | Missing::Unallowed(_)
        | Missing::Denied { .. } => RequestOutcome::Refused,
        _ => RequestOutcome::Miss,
    };
    let answer = answer::text(StatusCode::NOT_FOUND, format_args!("{missing}\n{REMEMBERED}"));
    // A miss is what a 404 counts as anyway.
    if outcome == RequestOutcome::Miss { answer } else { answer::noted(answer, outcome) }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::caller::Rights;

    async fn text(answer: Answer) -> String {
        let body = answer.into_body().collect().await.expect("a body in memory").to_bytes();
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    #[test]
    fn a_cache_client_gets_404_for_everything_that_it_cannot_have_and_others_a_true_status() {
        let refused = || Error::Refused(Refusal::Lacking(Action::Pin, "ci".to_owned(), Rights::default()));
        let no_token = || Error::Refused(Refusal::NoToken(Action::Pin, None, Rights::default()));
        for (error, cache, person, api) in [
            (&(|| Error::not_found("x")) as &dyn Fn() -> Error, 404, 404, 404),
            (&|| Missing::Unknown.into(), 404, 404, 404),
            (&|| Missing::Unavailable("x").into(), 404, 503, 503),
            (&|| Missing::NoDaemon("x".to_owned()).into(), 404, 503, 503),
            (&|| Missing::IndexUnavailable { reason: "x", cause: "y".into() }.into(), 404, 503, 503),
            (&|| Error::unavailable("x"), 404, 503, 503),
            (&|| Error::Internal("x".to_owned()), 404, 503, 500),
            (&|| Error::BadRequest("x".to_owned()), 404, 400, 400),
            (&refused, 404, 403, 403),
            (&no_token, 404, 401, 401),
            (&|| Error::Rejected(Rejection::Unknown), 404, 401, 401),
            (&|| Error::TooLarge(1), 404, 413, 413),
            (&|| Error::TooSlow, 404, 408, 408),
            (&|| Error::MethodNotAllowed("GET, HEAD".to_owned()), 405, 405, 405),
            (&|| Error::RangeNotSatisfiable(1), 416, 416, 416),
        ] {
            for (audience, status) in
                [(Audience::Cache, cache), (Audience::Person, person), (Audience::Api, api)]
            {
                assert_eq!(error().answer(audience).status().as_u16(), status, "{:?} {audience:?}", error());
            }
        }
    }

    #[tokio::test]
    async fn an_error_is_text_for_people_and_json_with_a_word_for_programs() {
        let told = text(Error::Unknown.answer(Audience::Cache)).await;
        assert!(told.starts_with("unknown: ") && told.ends_with(&format!("{REMEMBERED}\n")), "{told}");
        let refused = Refusal::Lacking(Action::Pin, "ci".to_owned(), Rights::default());
        let told = text(Error::Refused(refused).answer(Audience::Api)).await;
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!((told["reason"].as_str(), told["right"].as_str()), (Some("refused"), Some("pin")));
        assert!(told["error"].as_str().is_some_and(|text| text.contains("token ci lacks")), "{told}");
        let told = text(Error::from(Missing::NoDaemon("x".to_owned())).answer(Audience::Api)).await;
        assert!(told.contains("\"unavailable\""), "{told}");
        let told = text(Error::not_found("no such set").answer(Audience::Api)).await;
        assert!(!told.contains("right") && told.contains("\"not-found\""), "{told}");
    }

    #[test]
    fn a_missing_path_is_counted_by_its_reason() {
        let denied = Missing::Refused("too many wait".to_owned());
        for (missing, outcome) in
            [(Missing::Unknown, RequestOutcome::Miss), (denied, RequestOutcome::Refused)]
        {
            let answer = Error::from(missing).answer(Audience::Cache);
            assert_eq!(answer::outcome(&answer), outcome);
        }
    }
}
