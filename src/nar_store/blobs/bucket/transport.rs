//! The HTTP client of a bucket: its connections and time limits, and what the services need in their requests
//! and answers beyond what the crate sends and reads. Completions of uploads in parts are made conditional
//! here, as the crate makes single puts, but not these.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::signer::{HeaderValue, Method};
use object_store::{ClientOptions, HeaderMap};

use crate::upstream::Authorities;

/// Time that a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which a download may receive nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Time that a request with a body may take, which is one part of an upload at most.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// The key of an Azure storage account, which signs requests with all their conditions.
pub(super) struct SharedKey {
    account: String,
    credential: AzureCredential,
}

impl SharedKey {
    /// # Errors
    /// The key is not base64.
    pub(super) fn new(account: String, key: &str) -> object_store::Result<Self> {
        Ok(Self { account, credential: AzureCredential::AccessKey(AzureAccessKey::try_new(key)?) })
    }

    /// Signs a request again, which has changed since it was signed.
    fn sign(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        request.headers_mut().remove(AUTHORIZATION);
        AzureAuthorizer::new(&self.credential, &self.account).try_authorize(request)
    }
}

/// Without the key.
impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKey").field("account", &self.account).finish_non_exhaustive()
    }
}

const AUTHORIZATION: &str = "authorization";

/// Requests and answers of one service that are amended.
#[derive(Clone, Debug)]
pub(super) enum Amendments {
    /// S3: completions.
    S3,
    /// Google: none, since it refuses conditional completions.
    Google,
    /// Azure: completions, and lists; with the key that signs requests, if that is how they are authorized.
    Azure(Option<Arc<SharedKey>>),
}

impl Amendments {
    fn amend(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        let method = match self {
            Self::S3 => Method::POST,
            Self::Azure(_) => Method::PUT,
            Self::Google => return Ok(()),
        };
        let completes = |(name, value): (&str, &str)| match self {
            Self::Azure(_) => (name, value) == ("comp", "blocklist"),
            Self::S3 | Self::Google => name == "uploadId",
        };
        if *request.method() != method || !parameters(request).any(completes) {
            return Ok(());
        }
        request.headers_mut().insert("if-none-match", HeaderValue::from_static("*"));
        match self {
            // Of the ways to authorize, this one alone covers conditions.
            Self::Azure(Some(key)) if is_signed(request.headers()) => key.sign(request),
            _ => Ok(()),
        }
    }

    /// True if the answer is a list of a folder of which the hashes are read.
    fn reads_hashes(&self, request: &HttpRequest) -> bool {
        let has = |wanted: &str| parameters(request).any(|(name, _)| name == wanted);
        matches!(self, Self::Azure(_))
            && parameters(request).any(|parameter| parameter == ("comp", "list"))
            && has("delimiter")
    }
}

fn is_signed(headers: &HeaderMap) -> bool {
    headers.get(AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"SharedKey "))
}

/// The parameters of a request, as they are encoded.
fn parameters(request: &HttpRequest) -> impl Iterator<Item = (&str, &str)> {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
}

/// MD5 hashes of the objects of a list, in base64 and by their names. Azure has them beside ETags that say
/// nothing about the contents; the crate does not read them.
#[derive(Clone, Debug, Default)]
pub(super) struct ListedHashes(HashMap<String, String>);

impl ListedHashes {
    fn of(list: &str) -> Self {
        let of_blob = |blob: &str| {
            Some((between(blob, "<Name>", "</Name>")?, between(blob, "<Content-MD5>", "</Content-MD5>")?))
        };
        Self(list.split("<Blob>").skip(1).filter_map(of_blob).collect())
    }

    /// The hash of the object of this key.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

fn between(text: &str, start: &str, end: &str) -> Option<String> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(found, _)| found.to_owned()).filter(|found| !found.is_empty())
}

/// Maker of clients, which share their connections.
#[derive(Clone, Debug)]
pub(super) struct BucketConnector {
    downloads: reqwest::Client,
    uploads: reqwest::Client,
    amendments: Amendments,
}

impl BucketConnector {
    pub(super) fn new(amendments: Amendments) -> reqwest::Result<Self> {
        // Another part of the program may have chosen it already: it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = Authorities::load().certificates();
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("ondine/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .redirect(reqwest::redirect::Policy::none())
                .tls_certs_only(authorities.clone())
        };
        let downloads = builder().read_timeout(STALL_TIMEOUT).build()?;
        Ok(Self { downloads, uploads: builder().timeout(UPLOAD_TIMEOUT).build()?, amendments })
    }
}

impl HttpConnector for BucketConnector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

type Answered<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for BucketConnector {
    fn call<'s, 'a>(&'s self, mut request: HttpRequest) -> Answered<'a>
    where
        's: 'a,
        Self: 'a,
    {
        if let Err(error) = self.amendments.amend(&mut request) {
            return Box::pin(async { Err(HttpError::new(HttpErrorKind::Unknown, error)) });
        }
        let reads_hashes = self.amendments.reads_hashes(&request);
        let answered = match [Method::GET, Method::HEAD, Method::DELETE].contains(request.method()) {
            true => self.downloads.call(request),
            false => self.uploads.call(request),
        };
        match reads_hashes {
            true => Box::pin(async { with_hashes(answered.await?).await }),
            false => answered,
        }
    }
}

async fn with_hashes(answer: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (mut parts, body) = answer.into_parts();
    let body = body.bytes().await?;
    parts.extensions.insert(ListedHashes::of(&String::from_utf8_lossy(&body)));
    Ok(HttpResponse::from_parts(parts, body.into()))
}
