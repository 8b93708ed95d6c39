//! Settings of one upstream. Nothing secret is in them but the credentials, which show nothing.

use std::path::PathBuf;
use std::time::Duration;

use narinfo::PublicKey;
use reqwest::Url;

use super::credentials::Credentials;

/// The use of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Its paths are fetched, stored and served.
    #[default]
    Cache,
    /// Clients are redirected to it for the NARs.
    Redirect,
    /// Only builds take inputs from it.
    BuildOnly,
}

/// An upstream, as configured.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Where it is: http, https or file; without anything secret.
    pub url: Url,
    /// Credentials for its origin.
    pub credentials: Credentials,
    /// A file with more of that: an absolute path, or a name in systemd's directory of credentials.
    pub credentials_file: Option<PathBuf>,
    /// The keys of which one must have signed what it says.
    pub public_keys: Vec<PublicKey>,
    /// Lower ones are preferred.
    pub priority: u32,
    /// Its use.
    pub mode: Mode,
    /// Time limit of a connection.
    pub connect_timeout: Duration,
    /// Time without progress after which a download is resumed or fails.
    pub stall_timeout: Duration,
    /// Private networks are allowed targets; unset, only if it is in one itself.
    pub private_targets: Option<bool>,
}

impl CacheSettings {
    /// The URL, which has nothing secret in it.
    #[must_use]
    pub fn name(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }
}
