//! Reads the files of another cache: over HTTP, or from a folder. The only place that knows how an upstream
//! says that it has no such file. Gives bytes as they come and trusts none of them.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use narinfo::Compression;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LOCATION,
    RANGE, RETRY_AFTER, VIA,
};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, Url};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::certificates::Authorities;
use super::credentials::Credentials;
use super::guard::{Guard, HOPS_MAX, TargetRefusal};
use super::proxies::Proxies;
use super::settings::CacheSettings;
use crate::causes::{causes, with_causes};
use crate::decode;
use crate::tail_file::CHUNK_BYTES;

/// Characters that mean something else in a URL than in the name of a file.
const NOT_IN_NAMES: &AsciiSet = &CONTROLS.add(b'?').add(b'#').add(b'%');
/// The longest time that an upstream is left alone because it says so.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// The header by which every answer of a cache of our kind tells that it builds what it is missing.
pub const BUILDS_HEADER: &str = "x-ondine";

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// There is no such file.
    #[error("it has no such file")]
    Absent,
    /// The answer is neither the file nor that there is none.
    #[error("it answered with status {code}{}", hint(*.code))]
    Status {
        /// Its code.
        code: u16,
        /// The pause that it asked for.
        retry_after: Option<Duration>,
    },
    /// The address leads where we do not go.
    #[error("its address is refused: {0}")]
    Refused(#[from] TargetRefusal),
    /// An https address, and nothing to verify it by.
    #[error("it cannot be verified: {0}")]
    Unverifiable(String),
    /// The answer is not one that can be used.
    #[error("its answer is refused: {0}")]
    Answer(&'static str),
    /// Nothing comes, or almost nothing.
    #[error("nothing came for {}", humantime::format_duration(*.0))]
    Stalled(Duration),
    /// No answer, or not all of it.
    #[error("it cannot be reached: {0}")]
    Broken(String),
    /// The folder cannot be read.
    #[error("its folder cannot be read: {0}")]
    Folder(#[from] std::io::Error),
}

/// Advice that goes with a status.
fn hint(status: u16) -> &'static str {
    match status {
        401 => ": it wants credentials, and gets none that it takes (credentials-file, netrc-file)",
        407 => ": the proxy wants credentials (http_proxy=http://USER:PASSWORD@HOST:PORT)",
        _ => "",
    }
}

impl Error {
    /// True if the file or we are at fault: another try would end the same. Of the statuses from 400 to 499 a
    /// few are about the moment (RFC 9110, 15.5.9; RFC 8470, 5.2; RFC 6585, 4).
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Absent | Self::Refused(_) | Self::Unverifiable(_) | Self::Answer(_) => true,
            Self::Status { code, .. } => (400..500).contains(code) && !matches!(code, 408 | 425 | 429),
            Self::Stalled(_) | Self::Broken(_) | Self::Folder(_) => false,
        }
    }

    /// The pause that the upstream asked for.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// True if a certificate does not verify: waiting changes nothing about it.
fn is_bad_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    // One I/O error is wrapped in another.
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(within) => is_bad_certificate(within),
        None => matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))),
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        let refusal = causes(&error).find_map(|cause| cause.downcast_ref::<TargetRefusal>()).cloned();
        let is_unverified = causes(&error).any(is_bad_certificate);
        match refusal {
            Some(refusal) => Self::Refused(refusal),
            None if is_unverified => Self::Unverifiable(with_causes(&error.without_url())),
            // reqwest's own sentence seldom says what was wrong; its URL may have a secret query.
            None => Self::Broken(with_causes(&error.without_url())),
        }
    }
}

/// A way to a cache's files.
#[derive(Debug)]
pub(super) enum Transport {
    /// Over HTTP.
    Http(Box<Http>),
    /// In a folder of this machine.
    Folder(PathBuf),
}

/// A way over HTTP.
#[derive(Debug)]
pub(super) struct Http {
    /// Where the cache is; ends with a slash.
    base: Url,
    credentials: Credentials,
    guard: Guard,
    /// Targets that an operator's proxy is asked for.
    proxies: Proxies,
    /// For the cache's own origin, wherever its name leads, and for what a proxy is asked for.
    direct: Client,
    /// For any other target: names are judged when they are looked up.
    guarded: Client,
    /// Reason for which no https address can be verified.
    unverifiable: Option<String>,
    builds: AtomicBool,
}

/// A part of a file that goes on from a byte, if it is still the same file.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResumePoint<'a> {
    pub(super) from: u64,
    pub(super) etag: Option<&'a HeaderValue>,
}

/// A file that has been opened.
#[derive(Debug)]
pub(super) struct Opened {
    body: OpenedBody,
    /// The first byte that comes.
    pub(super) from: u64,
    /// Bytes of all of it, where that is said.
    pub(super) length: Option<u64>,
    /// Its entity tag.
    pub(super) etag: Option<HeaderValue>,
    /// Its content encoding.
    pub(super) encoding: Compression,
}

#[derive(Debug)]
enum OpenedBody {
    Http(Response),
    File(File),
}

impl Transport {
    /// The way to the cache of these settings, which is at an address of http, https or file.
    pub(super) fn new(settings: &CacheSettings, authorities: &Authorities) -> Result<Self, Error> {
        let url = &settings.url;
        if url.scheme() == "file" {
            return url.to_file_path().map(Self::Folder).map_err(|()| Error::Answer("no path in its URL"));
        }
        let unverifiable = authorities.lacking().map(str::to_owned);
        if let ("https", Some(reason)) = (url.scheme(), &unverifiable) {
            return Err(Error::Unverifiable(reason.clone()));
        }
        let mut base = url.clone();
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let guard = Guard::new(base.clone(), settings.private_targets);
        let client = |with: fn(ClientBuilder, &Guard) -> ClientBuilder| {
            let common = Client::builder()
                .user_agent(concat!("ondine/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(settings.connect_timeout)
                .tls_certs_only(authorities.certificates())
                // Each hop is judged, and gets the credentials only where they belong.
                .redirect(Policy::none())
                .tcp_nodelay(true);
            with(common, &guard).build()
        };
        Ok(Self::Http(Box::new(Http {
            direct: client(|common, _| common)?,
            guarded: client(|common, guard| common.no_proxy().dns_resolver(Arc::new(guard.clone())))?,
            base,
            credentials: settings.credentials.clone(),
            guard,
            proxies: Proxies::from_env(),
            unverifiable,
            builds: AtomicBool::new(false),
        })))
    }

    /// True if its last answer was one of an Ondine, which builds requested paths.
    pub(super) fn builds(&self) -> bool {
        matches!(self, Self::Http(http) if http.builds.load(Ordering::Relaxed))
    }

    /// The address of the file at `url` for whoever asks; none in a folder, and none where it takes
    /// credentials.
    pub(super) fn address(&self, url: &str) -> Option<Url> {
        match self {
            Self::Http(http) if http.credentials.is_empty() => http.base.join(url).ok(),
            Self::Http(_) | Self::Folder(_) => None,
        }
    }

    /// All of the small file of this name; `None` where there is none. The request has come this way.
    pub(super) async fn read(
        &self,
        name: &str,
        bytes_max: usize,
        via: &str,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut headers = HeaderMap::new();
        headers.extend(HeaderValue::from_str(via).map(|via| (VIA, via)));
        let opened = match self {
            Self::Http(_) => {
                let url = utf8_percent_encode(name, NOT_IN_NAMES).to_string();
                self.request(&url, 0, headers).await
            }
            Self::Folder(folder) => open_file(&folder.join(name), 0).await,
        };
        let mut opened = match opened {
            Err(Error::Absent) => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = opened.next_chunk().await? {
            if bytes.len() + chunk.len() > bytes_max {
                return Err(Error::Answer("it is too large"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if opened.encoding == Compression::None {
            return Ok(Some(bytes));
        }
        decode::all(opened.encoding, &bytes, bytes_max)
            .map(Some)
            .map_err(|_| Error::Answer("it cannot be decoded"))
    }

    /// Opens the file at `url`, an absolute address or one from the cache on.
    pub(super) async fn open(&self, url: &str, rest: Option<ResumePoint<'_>>) -> Result<Opened, Error> {
        let mut headers = HeaderMap::new();
        if let Some(ResumePoint { from, etag }) = rest {
            headers.extend(HeaderValue::from_str(&format!("bytes={from}-")).map(|range| (RANGE, range)));
            headers.extend(etag.map(|etag| (IF_RANGE, etag.clone())));
        }
        self.request(url, rest.map_or(0, |rest| rest.from), headers).await
    }

    async fn request(&self, url: &str, from: u64, headers: HeaderMap) -> Result<Opened, Error> {
        match self {
            Self::Http(http) => http.request(url, headers).await,
            Self::Folder(folder) => {
                // In a folder there are no absolute addresses, and no queries.
                let name = url.split(['?', '#']).next().unwrap_or_default();
                if name.contains("://") {
                    return Err(Error::Answer("an address in it leads out of its folder"));
                }
                // As Nix does, which puts both together as text.
                open_file(&folder.join(name.trim_start_matches('/')), from).await
            }
        }
    }
}

impl Http {
    /// The answer to a request for `url`, which is absolute or one from the cache on, behind all redirects.
    async fn request(&self, url: &str, mut headers: HeaderMap) -> Result<Opened, Error> {
        let mut url = self.base.join(url).map_err(|_| Error::Answer("an address in it is no URL"))?;
        // A file that comes as it is can be resumed.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for _ in 0..=HOPS_MAX {
            let answer = self.ask(url.clone(), headers.clone()).await?;
            let Some(next) = redirect(&answer) else {
                self.builds.store(answer.headers().contains_key(BUILDS_HEADER), Ordering::Relaxed);
                return opened(answer);
            };
            url = url.join(next).map_err(|_| Error::Answer("it redirects to what is no URL"))?;
        }
        Err(TargetRefusal::Hops.into())
    }

    async fn ask(&self, url: Url, headers: HeaderMap) -> Result<Response, Error> {
        self.guard.check(&url).await?;
        if let ("https", Some(reason)) = (url.scheme(), &self.unverifiable) {
            return Err(Error::Unverifiable(reason.clone()));
        }
        if self.guard.is_own(&url) {
            let request = self.direct.get(self.credentials.extend(url)).headers(headers);
            return Ok(self.credentials.authorize(request).send().await?);
        }
        let client = if self.proxies.relay(&url) { &self.direct } else { &self.guarded };
        Ok(client.get(url).headers(headers).send().await?)
    }
}

/// The address that an answer sends to (RFC 9110, 15.4).
fn redirect(answer: &Response) -> Option<&str> {
    let sends = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    answer.headers().get(LOCATION).filter(|_| sends)?.to_str().ok()
}

async fn open_file(path: &Path, from: u64) -> Result<Opened, Error> {
    let mut file = match File::open(path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::Absent),
        other => other?,
    };
    let length = file.metadata().await?.len();
    file.seek(SeekFrom::Start(from)).await?;
    let encoding = Compression::None;
    Ok(Opened { body: OpenedBody::File(file), from, length: Some(length), etag: None, encoding })
}

fn opened(answer: Response) -> Result<Opened, Error> {
    let status = answer.status().as_u16();
    let headers = answer.headers();
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let encoding = decode::content_encoding(text(CONTENT_ENCODING).unwrap_or_default());
    let encoding = encoding.ok_or(Error::Answer("its Content-Encoding is unknown"))?;
    // A weak tag does not name the very bytes (RFC 9110, 13.1.5).
    let etag = headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\"")).cloned();
    let (from, length) = match (status, text(CONTENT_RANGE)) {
        (200, None) => (0, answer.content_length()),
        // Some servers send a part and call it the whole.
        (200 | 206, Some(part)) => range(part).ok_or(Error::Answer("its Content-Range is none"))?,
        (206, None) => return Err(Error::Answer("it sent a part and does not say which")),
        // Object stores say 403 for what they do not have to whom may not list.
        (403 | 404 | 410, _) => return Err(Error::Absent),
        (code, _) => return Err(Error::Status { code, retry_after: retry_after(headers) }),
    };
    Ok(Opened { body: OpenedBody::Http(answer), from, length, etag, encoding })
}

/// The time in a Retry-After header, which is a number of seconds or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let after = text.parse().map(Duration::from_secs).ok().or_else(|| {
        let until = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        until.duration_since(jiff::Timestamp::now()).try_into().ok()
    })?;
    Some(after.min(RETRY_AFTER_MAX))
}

/// The first byte and the length in `bytes FIRST-LAST/LENGTH` (RFC 9110, 14.4).
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, length) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, length.parse().ok()))
}

impl Opened {
    /// The next bytes; `None` at the end.
    pub(super) async fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.body {
            OpenedBody::Http(response) => Ok(response.chunk().await?),
            OpenedBody::File(file) => {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                let read = file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await?;
                Ok((read > 0).then(|| chunk.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_in_seconds_or_as_a_date_and_bounded() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("a value"));
            retry_after(&headers)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("100000"), Some(RETRY_AFTER_MAX));
        assert_eq!(of("Fri, 01 Jan 2100 00:00:00 GMT"), Some(RETRY_AFTER_MAX));
        for none in ["", "-1", "soon", "Sun, 06 Nov 1994 08:49:37 GMT"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn statuses_that_may_pass_are_told_from_those_that_stand() {
        for (code, is_final) in
            [(400, true), (401, true), (408, false), (425, false), (429, false), (500, false), (503, false)]
        {
            assert_eq!(Error::Status { code, retry_after: None }.is_final(), is_final, "{code}");
        }
    }
}
