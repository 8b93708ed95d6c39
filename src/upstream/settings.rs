//! Settings of one upstream. Nothing secret is in them but the credentials, which show nothing.

use std::path::PathBuf;
use std::time::Duration;

use narinfo::PublicKey;
use reqwest::Url;

use super::credentials::Credentials;

/// What an upstream is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// What it has is fetched, kept and served.
    #[default]
    Cache,
    /// What it has is served from there: clients are sent to it for the contents.
    Redirect,
    /// Only builds take inputs from it.
    BuildOnly,
}

/// An upstream, as configured.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Where it is: http, https or file; without anything secret.
    pub url: Url,
    /// What is sent with each request to its origin.
    pub credentials: Credentials,
    /// A file with more of that: an absolute path, or a name in systemd's directory of credentials.
    pub credentials_file: Option<PathBuf>,
    /// The keys of which one must have signed what it says.
    pub public_keys: Vec<PublicKey>,
    /// Lower ones are preferred.
    pub priority: u32,
    /// What it is for.
    pub mode: Mode,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long nothing may come of a file before it is given up or resumed.
    pub stall_timeout: Duration,
    /// Whether it may lead into private networks; unset, only if it is in one itself.
    pub private_targets: Option<bool>,
}

impl CacheSettings {
    /// The URL, which has nothing secret in it.
    #[must_use]
    pub fn name(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }
}
