//! Requests for many builds at once, and the wait for one, as far as clients need them: other versions may
//! say more.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::connection::Remote;
use super::error::Error;
use super::explain::RemoteOutput;

/// Time beyond that of a question in which the answer must begin.
const GRACE: Duration = Duration::from_secs(60);

/// A question for builds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BuildsQuestion {
    /// Base names of derivations, with `^` and outputs where not all are wanted.
    pub derivations: Vec<String>,
    /// Hashes of store paths.
    pub hashes: Vec<String>,
    /// True if what is missing is to be built.
    pub start: bool,
    /// Name of the builder that alone is to build them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
}

/// An item of the answer.
#[derive(Clone, Debug, Deserialize)]
pub struct RemoteItem {
    /// The item as it was asked for.
    pub asked: String,
    /// `served`, `building`, `queued`, `known`, `failed`, `refused` or `unknown`.
    pub state: String,
    /// Base name of the derivation.
    pub derivation: Option<String>,
    /// Number of the request.
    pub request: Option<u64>,
    /// Reason of the state.
    pub reason: Option<String>,
    /// The wanted outputs.
    #[serde(default)]
    pub outputs: Vec<RemoteOutput>,
}

#[derive(Deserialize)]
struct BuildsReply {
    items: Vec<RemoteItem>,
}

/// A request on its way.
#[derive(Clone, Debug, Deserialize)]
pub struct RemoteRequest {
    /// Its phase.
    pub state: String,
    /// Base name of the derivation.
    pub derivation: String,
    /// Base name of the derivation that is being built.
    pub building: Option<String>,
    /// Its place in the queue.
    pub position: Option<usize>,
    /// Requests in the queue.
    pub of: Option<usize>,
    /// Seconds until its end, from and to.
    pub eta_seconds: Option<(u64, u64)>,
    /// Base name of the derivation whose build failed.
    pub cause: Option<String>,
    /// Reason of a failure or a refusal.
    pub reason: Option<String>,
    /// The end of the log.
    #[serde(default)]
    pub log: Vec<String>,
}

impl RemoteRequest {
    /// True once nothing more will happen.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !matches!(&*self.state, "waiting" | "building" | "delivering")
    }
}

impl Remote {
    /// The state of each item, in the order of derivations, then hashes.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn ask_builds(&self, question: &BuildsQuestion) -> Result<Vec<RemoteItem>, Error> {
        let reply: BuildsReply = self.post("api/v1/builds", question).await?.json().await?;
        let asked = question.derivations.len() + question.hashes.len();
        if reply.items.len() != asked {
            return Err(Error::OtherVersion(format!("{} items for {asked}", reply.items.len())));
        }
        Ok(reply.items)
    }

    /// A request, when it has ended or after this time, in whole seconds.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn wait_build(&self, request: u64, hold: Duration) -> Result<RemoteRequest, Error> {
        let path = format!("api/v1/builds/{request}?wait={}", hold.as_secs());
        self.get_within(&path, hold + GRACE).await?.json().await
    }
}
