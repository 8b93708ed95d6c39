//! The state of a derivation or a path on a server, as far as clients need it: other versions may say more.

use serde::Deserialize;

use super::connection::{Remote, path_part};
use super::error::Error;

/// An output of a derivation on a server.
#[derive(Clone, Debug, Deserialize)]
pub struct RemoteOutput {
    /// Its name, such as `out`; unknown where only a hash was asked for.
    pub name: Option<String>,
    /// Its store path; unknown before the build where that decides it.
    pub path: Option<String>,
    /// True if the server serves it.
    #[serde(default)]
    pub served: bool,
}

/// The answer to a question for the state of something.
#[derive(Clone, Debug, Deserialize)]
pub struct RemoteState {
    /// `served`, `building`, `queued`, `known`, `failed`, `refused` or `unknown`.
    pub state: String,
    /// Base name of the derivation.
    pub derivation: Option<String>,
    /// Its outputs.
    #[serde(default)]
    pub outputs: Option<Vec<RemoteOutput>>,
    /// The reason of the state.
    pub reason: Option<String>,
    /// Makers of what is served.
    #[serde(default)]
    pub made_by: Vec<String>,
    /// Unix seconds of the failure.
    pub failed_since: Option<u64>,
    /// Unix seconds from which the next request tries again.
    pub retry_at: Option<u64>,
    /// The way out, where there is one.
    #[serde(default)]
    pub advice: Option<String>,
    /// Notes on clients for whom the advice does not work.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Remote {
    /// The state of a hash, a name, a store path or a derivation.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn explain(&self, what: &str) -> Result<RemoteState, Error> {
        self.get(&format!("api/v1/explain/{}", path_part(what))).await?.json().await
    }
}
