//! A server's description of itself, as far as clients need it: other versions may say more or less.

use serde::Deserialize;

use super::connection::Remote;
use super::error::Error;

/// A server's description of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct ServerIdentity {
    /// Its version.
    pub version: String,
    /// The store directory of its paths.
    pub store_dir: String,
    /// Its public keys, first the one that clients are told to trust.
    pub public_keys: Vec<String>,
}

impl Remote {
    /// Asks the server for its version, its store and its keys.
    ///
    /// # Errors
    /// The server does not answer, or is no Ondine.
    pub async fn identity(&self) -> Result<ServerIdentity, Error> {
        match self.get("api/v1/status").await {
            Err(Error::NotFound(reason)) => Err(self.not_ondine(&reason)),
            other => other?.json().await,
        }
    }

    /// The error for a server of another kind.
    #[must_use]
    pub fn not_ondine(&self, reason: &str) -> Error {
        Error::NotOndine { server: self.shown().to_owned(), reason: reason.to_owned() }
    }
}
