//! The JSON types of requests for many builds at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::RequestStatus;

/// Arguments of `POST /api/v1/builds`: ten thousand items at most.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BuildsRequest {
    /// Base names or paths of derivations, with `^` and names of outputs where not all are wanted.
    pub derivations: Vec<String>,
    /// Hashes of store paths.
    pub hashes: Vec<String>,
    /// Attributes of package sets.
    pub attributes: Vec<AttributeTarget>,
    /// False: only tells of what is there and what could be built.
    pub start: bool,
    /// Name of the builder that alone builds them; needs the right `admin`. Inputs are built anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
}

/// Everything is to be started.
impl Default for BuildsRequest {
    fn default() -> Self {
        Self { derivations: Vec::new(), hashes: Vec::new(), attributes: Vec::new(), start: true, on: None }
    }
}

/// An attribute of a package set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttributeTarget {
    /// Name of the set.
    pub set: String,
    /// The attribute as Nix writes it, with `^` and an output where wanted.
    pub attribute: String,
    /// System of the package; null for the first one of the set.
    #[serde(default)]
    pub system: Option<String>,
}

/// Answer to `POST /api/v1/builds`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct BuildsAnswer {
    /// One for each item: derivations, then hashes, then attributes, in the order of the request.
    pub items: Vec<BuildItem>,
}

/// An item of a request for builds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct BuildItem {
    /// The item as it was asked for.
    pub asked: String,
    pub state: BuildItemState,
    /// Base name of the derivation that makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<String>,
    /// Number of its request while it is in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
    /// Place of that in the queue, 1 being the oldest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<usize>,
    /// Reason that it is not served and not in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The wanted outputs, as far as they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<BuildItemOutput>,
}

/// State of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildItemState {
    /// All wanted outputs are served.
    Served,
    /// Something is being built for it.
    Building,
    /// The request waits in the queue.
    Queued,
    /// Buildable, and not to be started.
    Known,
    /// The build failed, and that is remembered.
    Failed,
    /// This server cannot or may not build it, or too many wait.
    Refused,
    /// The server does not have the derivation, or cannot tell now.
    Unknown,
}

/// A wanted output of an item.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct BuildItemOutput {
    /// Its name; empty where only a hash was asked for.
    pub name: String,
    /// Its store path; absent where it is known only after the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub served: bool,
}

/// Data of the event `log` of a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct BuildLogLines {
    /// Base name of the derivation that is being built.
    pub derivation: String,
    /// Lines of its log, without escape codes.
    pub lines: Vec<String>,
}

/// Data of the event `phase` of a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct EnteredPhase {
    /// Base name of the derivation that is being built.
    pub derivation: String,
    /// Name of the phase that its builder enters.
    pub phase: String,
}

/// Explanation of where something is, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Explanation {
    #[serde(flatten)]
    pub item: BuildItem,
    /// Makers of what is served: this server, or the names of upstreams that have the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_by: Vec<String>,
    /// Unix seconds of the try that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_since: Option<u64>,
    /// Unix seconds from which the next request tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<u64>,
    /// Address of the log of the build that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Advice for a person.
    pub advice: String,
    /// Notes on clients for whom the advice does not work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Requests that wait, and the latest that have ended.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct BuildList {
    /// Requests that wait, in all.
    pub total: usize,
    /// The oldest thousand of them, in order.
    pub requests: Vec<RequestStatus>,
    /// The latest hundred that have ended, the last one first.
    pub ended: Vec<RequestStatus>,
}

/// Data of the event `queue`: marks of the queue, which has changed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueueChange {
    /// Base names of the derivations of the builds that run.
    pub running: Vec<String>,
    /// Requests that wait.
    pub waiting: usize,
    /// Number of the request that ended last; null before the first.
    pub ended: Option<u64>,
    /// Reason that none of them goes on; null while they do.
    pub stalled: Option<String>,
}
