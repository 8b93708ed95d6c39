//! Documents of an OpenID issuer: its configuration (OpenID Connect Discovery 1.0, section 4) and its keys
//! (RFC 7517), asked for with the guards that requests to upstreams have. Gives bytes, and trusts none of
//! them.

use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use super::certificates::Authorities;
use super::credentials::Credentials;
use super::settings::{CacheSettings, Mode};
use super::transport::Transport;
use crate::causes::with_causes;

/// Address of the configuration below that of the issuer.
const CONFIGURATION: &str = ".well-known/openid-configuration";
/// Bytes of either document at most.
const BYTES_MAX: usize = 1024 * 1024;
/// Time that a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that both documents together may take.
const TIME_MAX: Duration = Duration::from_secs(15);

/// A way to the documents of one issuer.
#[derive(Debug)]
pub struct IssuerDocuments {
    issuer: String,
    /// The reason where there is no way.
    transport: Result<Transport, String>,
}

#[derive(Deserialize)]
struct IssuerConfiguration {
    issuer: String,
    jwks_uri: String,
}

impl IssuerDocuments {
    /// Documents of the issuer at an http or https address, which is judged when it is asked.
    #[must_use]
    pub fn new(issuer: &str) -> Self {
        Self { issuer: issuer.to_owned(), transport: transport(issuer) }
    }

    /// The issuer's key set, as JSON.
    ///
    /// # Errors
    /// The key set is not available; the text says why.
    pub async fn keys(&self) -> Result<Vec<u8>, String> {
        let timed = tokio::time::timeout(TIME_MAX, self.ask()).await;
        timed.unwrap_or_else(|_| Err(format!("no answer in {}", humantime::format_duration(TIME_MAX))))
    }

    async fn ask(&self) -> Result<Vec<u8>, String> {
        let transport = self.transport.as_ref().map_err(Clone::clone)?;
        let read = transport.read(CONFIGURATION, BYTES_MAX, "").await.map_err(|error| with_causes(&error))?;
        let text = read.ok_or_else(|| format!("it has no {CONFIGURATION}"))?;
        let configuration: IssuerConfiguration = narinfo::json::from_slice(&text)
            .map_err(|error| format!("its {CONFIGURATION} is no such: {error}"))?;
        if configuration.issuer != self.issuer {
            return Err(format!("its {CONFIGURATION} is that of another issuer"));
        }
        if self.issuer.starts_with("https:") && !configuration.jwks_uri.starts_with("https:") {
            return Err("its keys are at an address that is not https".to_owned());
        }
        let opened = transport.open(&configuration.jwks_uri, None).await;
        let mut opened = opened.map_err(|error| with_causes(&error))?;
        let mut keys = Vec::new();
        while let Some(chunk) = opened.next_chunk().await.map_err(|error| with_causes(&error))? {
            if keys.len() + chunk.len() > BYTES_MAX {
                return Err("its key set is too large".to_owned());
            }
            keys.extend_from_slice(&chunk);
        }
        Ok(keys)
    }
}

fn transport(issuer: &str) -> Result<Transport, String> {
    let settings = CacheSettings {
        url: issuer.parse::<Url>().map_err(|error| error.to_string())?,
        credentials: Credentials::default(),
        credentials_file: None,
        public_keys: Vec::new(),
        priority: 0,
        mode: Mode::Cache,
        connect_timeout: CONNECT_TIMEOUT,
        stall_timeout: TIME_MAX,
        private_targets: None,
    };
    Transport::new(&settings, &Authorities::load()).map_err(|error| with_causes(&error))
}
