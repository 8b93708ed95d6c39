//! The client of the bucket: its connections, time limits and retries. What may pass is tried again for three
//! minutes, less than a Nix client waits in silence. Every completion of an upload in parts is conditional,
//! as the crate makes single puts, but not these.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
use object_store::signer::{HeaderValue, Method};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::super::BucketUrl;
use super::credentials;
use crate::causes::with_causes;
use crate::upstream::Authorities;

/// Time that a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which a download may receive nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Time that a request with a body may take, which is one part of an upload at most.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);
/// Time for which a request is tried again, and the pauses between.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);
const RETRIES_MAX: usize = 1_000;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A client of the bucket; nothing is sent yet.
///
/// # Errors
/// The credentials cannot be read, or the settings make no client.
pub(super) fn store(url: &BucketUrl, credentials_file: Option<&Path>) -> io::Result<AmazonS3> {
    let wrong = |error: &(dyn std::error::Error + 'static)| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{url}: {}", with_causes(error)))
    };
    let retries = RetryConfig {
        backoff: BackoffConfig { init_backoff: PAUSE_MIN, max_backoff: PAUSE_MAX, base: 2.0 },
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIMEOUT,
    };
    let connector = BucketConnector::new().map_err(|error| wrong(&error))?;
    let mut builder = AmazonS3Builder::from_env();
    if let Some(file) = credentials_file {
        builder = credentials::read(file)?.apply(builder);
    }
    builder = builder
        .with_bucket_name(&url.bucket)
        .with_allow_http(url.allow_http)
        .with_virtual_hosted_style_request(url.virtual_hosted)
        .with_disable_bulk_delete(true)
        .with_retry(retries)
        .with_http_connector(connector);
    if let Some(region) = &url.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &url.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder.build().map_err(|error| wrong(&error))
}

/// Maker of clients, which share their connections.
#[derive(Clone, Debug)]
struct BucketConnector {
    downloads: reqwest::Client,
    uploads: reqwest::Client,
}

impl BucketConnector {
    fn new() -> reqwest::Result<Self> {
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
        Ok(Self { downloads, uploads: builder().timeout(UPLOAD_TIMEOUT).build()? })
    }
}

impl HttpConnector for BucketConnector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for BucketConnector {
    fn call<'s, 'a>(
        &'s self,
        mut request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>
    where
        's: 'a,
        Self: 'a,
    {
        let completes = |query: &str| query.starts_with("uploadId=") || query.contains("&uploadId=");
        if *request.method() == Method::POST && request.uri().query().is_some_and(completes) {
            request.headers_mut().insert("if-none-match", HeaderValue::from_static("*"));
        }
        match [Method::GET, Method::HEAD, Method::DELETE].contains(request.method()) {
            true => self.downloads.call(request),
            false => self.uploads.call(request),
        }
    }
}
