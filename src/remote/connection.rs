//! Requests to an Ondine server, by its URL or over the control socket of its state directory: one HTTP
//! client for both. A redirect is not followed, since a token is for one server and no other.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Body, Client, Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Error;
use super::places::shown_file;
use crate::causes::{causes, with_causes};
use crate::escape::Lines;
use crate::http::NO_ADDRESS;
use crate::upstream::{Authorities, BUILDS_HEADER, Credentials};

/// Time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time until an answer begins, where the request says nothing else.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Time between probes of a silent connection: its server may be gone, or a build may say nothing.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The slowest upload that is waited for, in bytes in a second.
const UPLOAD_RATE_MIN: u64 = 16 * 1024;
/// Idle connections that are kept.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Bytes of an answer that is read as a whole, at most.
pub(super) const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Place of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// Its URL, without credentials.
    Url(Url),
    /// Its control socket, which makes the caller an administrator.
    Socket(PathBuf),
}

/// A server.
#[derive(Clone, Debug)]
pub struct Remote {
    client: Client,
    /// Ends with a slash.
    base: Url,
    credentials: Credentials,
    /// The place of the credentials, for messages.
    credentials_place: Option<String>,
    address: ServerAddress,
    shown: String,
}

/// The head of an answer that is no success.
struct ErrorHead {
    code: u16,
    location: String,
    is_ondine: bool,
}

impl ErrorHead {
    fn of(response: &Response) -> Self {
        let location = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
        Self {
            code: response.status().as_u16(),
            location: location.unwrap_or_default().to_owned(),
            is_ondine: response.headers().contains_key(BUILDS_HEADER),
        }
    }
}

/// A successful answer, whose body is still arriving.
#[derive(Debug)]
pub struct ServerReply {
    response: Response,
    server: String,
}

impl Remote {
    /// A client of the server; nothing is sent yet.
    ///
    /// # Errors
    /// The address cannot be spoken to.
    pub fn new(address: ServerAddress, credentials: Credentials) -> Result<Self, Error> {
        // Another part of the program may have chosen it already: it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wrong = |reason: String| Error::Settings(format!("{}: {reason}", address.shown()));
        let builder = Client::builder()
            .user_agent(concat!("ondine/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .redirect(Policy::none())
            .tcp_nodelay(true);
        let (builder, mut base) = match &address {
            ServerAddress::Socket(socket) => {
                let base = Url::parse("http://localhost/").map_err(|error| wrong(error.to_string()))?;
                (builder.unix_socket(socket.as_path()).tls_certs_only([]), base)
            }
            ServerAddress::Url(url) => {
                if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
                    return Err(wrong("expected an address such as https://cache.example.org".to_owned()));
                }
                // Only https needs authorities, and loading them takes time.
                let authorities =
                    if url.scheme() == "https" { Authorities::load() } else { Authorities::none() };
                if let ("https", Some(reason)) = (url.scheme(), authorities.lacking()) {
                    return Err(wrong(reason.to_owned()));
                }
                (builder.tls_certs_only(authorities.certificates()), url.clone())
            }
        };
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let client = builder.build().map_err(|error| wrong(with_causes(&error)))?;
        let shown = address.shown();
        Ok(Self { client, base, credentials, credentials_place: None, address, shown })
    }

    /// The same, with the place of its credentials for messages.
    pub(super) fn with_credentials_of(self, place: Option<String>) -> Self {
        Self { credentials_place: place, ..self }
    }

    /// The server's address, for messages.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The server's place.
    #[must_use]
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// The token and its user, where there are any.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The answer to `GET path`. The path has no slash at its beginning.
    ///
    /// # Errors
    /// There is no successful answer.
    pub async fn get(&self, path: &str) -> Result<ServerReply, Error> {
        self.send(self.request(Method::GET, path)?, ANSWER_TIMEOUT).await
    }

    /// The same, for an answer that may begin as late as this.
    ///
    /// # Errors
    /// There is no successful answer.
    pub async fn get_within(&self, path: &str, limit: Duration) -> Result<ServerReply, Error> {
        self.send(self.request(Method::GET, path)?, limit).await
    }

    /// The body of `GET path`, and the error that the server reports with it: a body may have a part of what
    /// was asked for all the same.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn body_of(&self, path: &str) -> Result<(String, Option<Error>), Error> {
        let response = self.answer(self.request(Method::GET, path)?, ANSWER_TIMEOUT).await?;
        let (is_success, head) = (response.status().is_success(), ErrorHead::of(&response));
        let text = ServerReply { response, server: self.shown.clone() }.text().await?;
        let error = (!is_success).then(|| self.error(head, &text));
        Ok((text, error))
    }

    /// The answer to `GET path` as server-sent events.
    ///
    /// # Errors
    /// There is no successful answer.
    pub(super) async fn get_events(&self, path: &str) -> Result<ServerReply, Error> {
        let request = self.request(Method::GET, path)?.header(ACCEPT, "text/event-stream");
        self.send(request, ANSWER_TIMEOUT).await
    }

    /// The answer to `DELETE path`.
    ///
    /// # Errors
    /// There is no successful answer.
    pub async fn delete(&self, path: &str) -> Result<ServerReply, Error> {
        self.send(self.request(Method::DELETE, path)?, ANSWER_TIMEOUT).await
    }

    /// The answer to `POST path` with no body, which may begin late.
    ///
    /// # Errors
    /// There is no successful answer.
    pub async fn post_nothing(&self, path: &str) -> Result<ServerReply, Error> {
        self.send(self.request(Method::POST, path)?.header(CONTENT_LENGTH, 0), ANSWER_TIMEOUT).await
    }

    /// The answer to `POST path` with a JSON body.
    ///
    /// # Errors
    /// There is no successful answer.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<ServerReply, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Settings(error.to_string()))?;
        let request = self.request(Method::POST, path)?.header(CONTENT_TYPE, "application/json").body(body);
        self.send(request, ANSWER_TIMEOUT).await
    }

    /// Uploads a body of so many bytes to `path`.
    ///
    /// # Errors
    /// There is no successful answer.
    pub async fn put(
        &self,
        path: &str,
        media_type: &str,
        body: impl Into<Body>,
        bytes: u64,
    ) -> Result<ServerReply, Error> {
        let request = self.request(Method::PUT, path)?.header(CONTENT_TYPE, media_type);
        let request = request.header(CONTENT_LENGTH, bytes).body(body);
        self.send(request, ANSWER_TIMEOUT + Duration::from_secs(bytes / UPLOAD_RATE_MIN)).await
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, Error> {
        let url = self.base.join(path).map_err(|error| Error::Settings(format!("{path}: {error}")))?;
        Ok(self.credentials.authorize(self.client.request(method, self.credentials.extend(url))))
    }

    async fn send(&self, request: RequestBuilder, limit: Duration) -> Result<ServerReply, Error> {
        let response = self.answer(request, limit).await?;
        if response.status().is_success() {
            return Ok(ServerReply { response, server: self.shown.clone() });
        }
        let head = ErrorHead::of(&response);
        let reply = ServerReply { response, server: self.shown.clone() };
        Err(self.error(head, &reply.text().await.unwrap_or_default()))
    }

    /// The answer, whatever its status.
    async fn answer(&self, request: RequestBuilder, limit: Duration) -> Result<Response, Error> {
        let sent = tokio::time::timeout(limit, request.send()).await;
        let response = sent.map_err(|_| Error::Unreachable {
            server: self.shown.clone(),
            reason: format!("no answer came within {}", humantime::format_duration(limit)),
        })?;
        response.map_err(|error| self.unreachable(&error))
    }

    /// The error for an answer that is no success.
    fn error(&self, head: ErrorHead, text: &str) -> Error {
        let server = self.shown.clone();
        let ErrorHead { code, location, is_ondine } = head;
        if (300..400).contains(&code) {
            let to = crate::upstream::without_secrets(&location);
            let reason = format!("it redirects to {}; give that address", Lines(to));
            return Error::Unreachable { server, reason };
        }
        let reason = reason(text);
        // The words before it say so already.
        let refused = || reason.strip_prefix("refused: ").unwrap_or(&reason).to_owned();
        match code {
            401 | 407 => Error::Unauthorized { server, reason: refused(), advice: self.login_advice() },
            403 => Error::Refused { server, reason: refused() },
            _ if !is_ondine => Error::NotOndine {
                server,
                reason: format!("another program answers there, with status {code}"),
            },
            404 if reason.starts_with(NO_ADDRESS) && self.base.path() != "/" => {
                let path = self.base.path().trim_end_matches('/');
                let reason = format!("nothing of one is below {path}; give the address without it");
                Error::NotOndine { server, reason }
            }
            404 | 410 => Error::NotFound(reason),
            408 | 425 | 429 | 502..=504 => Error::Unavailable { server, reason },
            _ => Error::Answer(reason),
        }
    }

    /// The way out for a caller that the server does not know.
    fn login_advice(&self) -> String {
        let ask = "ask its administrator for a token (`ondine token new` prints one)";
        let places = "in the variable ONDINE_TOKEN, with --token-file, in a netrc file, or as `token` in";
        match &self.credentials_place {
            Some(place) => format!("The token is the one of {place}: correct it there, or {ask}"),
            None => format!("No token was sent: {ask}, and give it {places} {}", shown_file()),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let kind = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        let server = self.shown.clone();
        if let ServerAddress::Socket(socket) = &self.address {
            let state_dir = socket.parent().unwrap_or(Path::new("/"));
            let reason = match kind {
                Some(io::ErrorKind::PermissionDenied) => {
                    "this user may not use the server's control socket: run the command as the user that runs the \
                     server, or as root, or name the server with --server URL"
                        .to_owned()
                }
                _ if !state_dir.exists() => "no server answers here: there is no such state directory; correct \
                                             --state-dir, or name the server with --server URL"
                    .to_owned(),
                _ => format!(
                    "no server answers here: the server with the state directory {} is not running; start it, or name \
                     another one with --server URL",
                    state_dir.display()
                ),
            };
            return Error::Unreachable { server, reason };
        }
        let reason = match kind {
            Some(io::ErrorKind::ConnectionRefused) => {
                "nothing listens at this address: is the server running, and is the port the right one?"
                    .to_owned()
            }
            // The error would say the URL again, whose query may be secret.
            _ if server.starts_with("https:") => format!(
                "it cannot be reached: {}; the address of a server without TLS begins with http://",
                deepest(error)
            ),
            _ => format!("it cannot be reached: {}", deepest(error)),
        };
        Error::Unreachable { server, reason }
    }
}

/// The innermost cause, which says what failed.
fn deepest(error: &reqwest::Error) -> String {
    let mut texts = causes(error).map(ToString::to_string).collect::<Vec<_>>();
    let last = texts.pop().unwrap_or_default();
    if texts.is_empty() { "the request failed".to_owned() } else { last }
}

impl ServerReply {
    /// True if the server has said how many bytes there are: then the body is complete already.
    #[must_use]
    pub fn is_measured(&self) -> bool {
        self.response.content_length().is_some()
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection ends before the body does.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.response
            .chunk()
            .await
            .map_err(|error| Error::Cut { server: self.server.clone(), reason: deepest(&error) })
    }

    /// The whole body.
    ///
    /// # Errors
    /// The body is too large, or the connection ends before it does.
    pub async fn text(mut self) -> Result<String, Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.next_chunk().await? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Error::OtherVersion(format!("it has more than {ANSWER_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The whole body as JSON.
    ///
    /// # Errors
    /// The body is not what is expected.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let is_ondine = self.response.headers().contains_key(BUILDS_HEADER);
        let server = self.server.clone();
        let text = self.text().await?;
        narinfo::json::from_str(&text).map_err(|error| match is_ondine {
            true => Error::OtherVersion(error.to_string()),
            false => Error::NotOndine { server, reason: "another program answers there".to_owned() },
        })
    }
}

impl ServerAddress {
    /// The control socket of a state directory.
    #[must_use]
    pub fn of_state_dir(state_dir: &Path) -> Self {
        Self::Socket(state_dir.join(crate::serve::CONTROL_SOCKET))
    }

    /// The address, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Url(url) => url.as_str().trim_end_matches('/').to_owned(),
            Self::Socket(socket) => socket.display().to_string(),
        }
    }
}

/// A part of a path, with nothing that has a meaning in it.
#[must_use]
pub fn path_part(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The server's words, from a body that reports an error.
#[must_use]
pub fn reason(text: &str) -> String {
    #[derive(serde::Deserialize)]
    struct ErrorText {
        error: String,
    }
    let error = narinfo::json::from_str(text).map(|ErrorText { error }| error);
    Lines(error.unwrap_or_else(|_| text.trim_end().to_owned())).to_string()
}
