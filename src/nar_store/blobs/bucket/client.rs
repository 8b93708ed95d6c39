//! Clients of the services: made of the address of a bucket and its credentials, which come from a file, the
//! environment or the machine. What may pass is tried again for three minutes, less than a Nix client waits
//! in silence.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, RetryConfig};

use super::super::{BucketService, BucketUrl};
use super::credentials::{AmazonKeys, AzureKeys, AzureSecret, GoogleKey};
use super::service::{ServiceClient, Signing};
use super::transport::{Amendments, BucketConnector, SharedKey};
use crate::causes::with_causes;

/// Time for which a request is tried again, and the pauses between.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);
const RETRIES_MAX: usize = 1_000;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Host for which addresses of Google are signed, whatever the endpoint is.
const GOOGLE_HOST: &str = "storage.googleapis.com";

/// Reason for a container without an account.
const NO_ACCOUNT: &str =
    "its storage account is not named: add ?account=NAME, or set AZURE_STORAGE_ACCOUNT_NAME";
/// Reasons for which addresses cannot be signed.
const USER_SIGNS_NOTHING: &str = "the credentials of a user sign nothing: use the key of a service account";
const SAS_SIGNS_NOTHING: &str = "a shared access signature signs nothing: use the key of the storage account";
const OTHER_HOST: &str = "they are signed for storage.googleapis.com, which is not the endpoint";
const UNSIGNED: &str = "requests are not signed, as the environment says";

/// A client of the bucket; nothing is sent yet.
///
/// # Errors
/// The credentials cannot be read, or the settings make no client.
pub(super) fn client(url: &BucketUrl, credentials_file: Option<&Path>) -> io::Result<ServiceClient> {
    match url.service {
        BucketService::S3 => amazon(url, credentials_file),
        BucketService::Google => google(url, credentials_file),
        BucketService::Azure => azure(url, credentials_file),
    }
}

fn amazon(url: &BucketUrl, credentials_file: Option<&Path>) -> io::Result<ServiceClient> {
    let mut builder = AmazonS3Builder::from_env();
    if let Some(file) = credentials_file {
        builder = AmazonKeys::read(file)?.apply(builder);
    }
    builder = builder
        .with_bucket_name(&url.bucket)
        .with_allow_http(url.allow_http)
        .with_virtual_hosted_style_request(url.virtual_hosted)
        .with_disable_bulk_delete(true)
        .with_retry(retries())
        .with_http_connector(connector(url, Amendments::S3)?);
    if let Some(region) = &url.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &url.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let client = builder.build().map_err(|error| wrong(url, &error))?;
    Ok(ServiceClient::new(client, url.service, Signing::Here))
}

fn google(url: &BucketUrl, credentials_file: Option<&Path>) -> io::Result<ServiceClient> {
    let (mut builder, mut signing) = match credentials_file.map(GoogleKey::read).transpose()? {
        None => {
            let builder = GoogleCloudStorageBuilder::from_env();
            let signing = google_signing(&builder);
            (builder, signing)
        }
        Some(GoogleKey::ServiceAccount(key)) => {
            (GoogleCloudStorageBuilder::new().with_service_account_key(key), Signing::Here)
        }
        Some(GoogleKey::User(file)) => {
            let file = file.to_string_lossy();
            let builder = GoogleCloudStorageBuilder::new().with_application_credentials(file);
            (builder, Signing::Impossible(USER_SIGNS_NOTHING))
        }
    };
    if let Some(endpoint) = &url.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    let endpoint = builder.get_config_value(&GoogleConfigKey::BaseUrl);
    if endpoint.is_some_and(|endpoint| endpoint.split_once("://").is_none_or(|(_, host)| host != GOOGLE_HOST))
    {
        signing = Signing::Impossible(OTHER_HOST);
    }
    let builder = builder
        .with_bucket_name(&url.bucket)
        .with_retry(retries())
        .with_http_connector(connector(url, Amendments::Google)?);
    let client = builder.build().map_err(|error| wrong(url, &error))?;
    Ok(ServiceClient::new(client, url.service, signing))
}

/// Way in which credentials of the environment sign addresses.
fn google_signing(builder: &GoogleCloudStorageBuilder) -> Signing {
    let value = |key: GoogleConfigKey| builder.get_config_value(&key);
    if value(GoogleConfigKey::SkipSignature).as_deref() == Some("true") {
        return Signing::Impossible(UNSIGNED);
    }
    let own_key = [GoogleConfigKey::ServiceAccount, GoogleConfigKey::ServiceAccountKey];
    if own_key.into_iter().any(|key| value(key).is_some()) {
        return Signing::Here;
    }
    let usual = || Some(std::env::home_dir()?.join(".config/gcloud/application_default_credentials.json"));
    let file = value(GoogleConfigKey::ApplicationCredentials).map(Into::into).or_else(usual);
    match file.map(|file| GoogleKey::read(&file)) {
        Some(Ok(GoogleKey::ServiceAccount(_))) => Signing::Here,
        Some(Ok(GoogleKey::User(_))) => Signing::Impossible(USER_SIGNS_NOTHING),
        Some(Err(_)) | None => Signing::Service,
    }
}

fn azure(url: &BucketUrl, credentials_file: Option<&Path>) -> io::Result<ServiceClient> {
    // An emulator is reached by its endpoint.
    let mut builder = MicrosoftAzureBuilder::from_env().with_use_emulator(false);
    if let Some(file) = credentials_file {
        let AzureKeys { account, secret } = AzureKeys::read(file)?;
        if let Some(account) = account {
            builder = builder.with_account(account);
        }
        // Whatever else the environment has.
        let (key, kind, value) = match secret {
            AzureSecret::Key(key) => (AzureConfigKey::AccessKey, "access_key", key),
            AzureSecret::Sas(sas) => (AzureConfigKey::SasKey, "sas_token", sas),
        };
        builder = builder.with_config(key, value).with_credential_type(kind);
    }
    if let Some(account) = &url.account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = &url.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let value = |key: AzureConfigKey| builder.get_config_value(&key);
    let signing = azure_signing(value);
    let account = value(AzureConfigKey::AccountName).ok_or_else(|| invalid(url, NO_ACCOUNT))?;
    let key = value(AzureConfigKey::AccessKey).map(|key| SharedKey::new(account, &key));
    let key = key.transpose().map_err(|error| wrong(url, &error))?;
    let builder = builder
        .with_container_name(&url.bucket)
        .with_allow_http(url.allow_http)
        .with_retry(retries())
        .with_http_connector(connector(url, Amendments::Azure(key.map(Arc::new)))?);
    let client = builder.build().map_err(|error| wrong(url, &error))?;
    Ok(ServiceClient::new(client, url.service, signing))
}

/// Way in which the credentials of these settings sign addresses, in the order in which they are taken.
fn azure_signing(value: impl Fn(AzureConfigKey) -> Option<String>) -> Signing {
    let kind = value(AzureConfigKey::CredentialType);
    let has = |key: AzureConfigKey, name: &str| match kind.as_deref() {
        None | Some("auto") => value(key).is_some(),
        Some(kind) => kind == name,
    };
    if value(AzureConfigKey::SkipSignature).as_deref() == Some("true") {
        Signing::Impossible(UNSIGNED)
    } else if has(AzureConfigKey::Token, "bearer_token") {
        Signing::Service
    } else if has(AzureConfigKey::AccessKey, "access_key") {
        Signing::Here
    } else if has(AzureConfigKey::ClientId, "client_secret") {
        Signing::Service
    } else if has(AzureConfigKey::SasKey, "sas_token") {
        Signing::Impossible(SAS_SIGNS_NOTHING)
    } else {
        Signing::Service
    }
}

fn connector(url: &BucketUrl, amendments: Amendments) -> io::Result<BucketConnector> {
    BucketConnector::new(amendments).map_err(|error| wrong(url, &error))
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: PAUSE_MIN, max_backoff: PAUSE_MAX, base: 2.0 },
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIMEOUT,
    }
}

fn wrong(url: &BucketUrl, error: &(dyn std::error::Error + 'static)) -> io::Error {
    invalid(url, &with_causes(error))
}

fn invalid(url: &BucketUrl, reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{url}: {reason}"))
}
