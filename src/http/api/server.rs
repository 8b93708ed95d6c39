//! The JSON types about the server as a whole and its upstreams.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::builders::BuilderStatus;
use super::types::{PackageSet, QueueStatus};

/// The server, its cache and its queue.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct ServerStatus {
    pub version: String,
    pub store_dir: String,
    /// Address that clients are told.
    #[serde(default)]
    pub url: String,
    /// The first of `public_keys`.
    pub public_key: Option<String>,
    pub public_keys: Vec<String>,
    /// Null while the index cannot be read.
    pub cache: Option<CacheCounts>,
    pub queue: QueueStatus,
    /// Null while the index cannot be read.
    #[serde(default)]
    pub package_sets: Option<Vec<PackageSet>>,
    /// The best first.
    #[serde(default)]
    pub upstreams: Vec<UpstreamStatus>,
    /// Machines that build.
    #[serde(default)]
    pub builders: Vec<BuilderStatus>,
    /// Trouble with the index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Contents of the cache in numbers.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct CacheCounts {
    /// Store paths that are served.
    pub paths: u64,
    /// NARs on disk.
    pub nars: u64,
    /// Bytes of those files.
    pub nar_bytes: u64,
    /// Failures that are remembered.
    pub failures: u64,
    /// Own builds that an upstream has with the same contents.
    pub reproduced: u64,
    /// Own builds that an upstream has with other contents.
    pub not_reproduced: u64,
}

/// An upstream.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct UpstreamStatus {
    /// Its URL, without credentials.
    pub name: String,
    /// Lower ones are preferred.
    pub priority: u32,
    pub mode: UpstreamMode,
    pub health: UpstreamHealth,
    /// Reason that it did not answer; null while it answers.
    pub failure: Option<String>,
    /// Keys of which one must have signed a path.
    pub public_keys: Vec<String>,
    /// Narinfos that it had, since the start.
    pub found: u64,
    /// Narinfos that it had not, since the start.
    pub missing: u64,
    /// Narinfos that were refused for their signature or form, since the start.
    pub refused: u64,
    /// Requests for narinfos that failed, since the start.
    pub failed: u64,
    /// Bytes of NARs that were fetched, since the start.
    pub fetched_bytes: u64,
}

/// Use of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamMode {
    /// Its paths are fetched, stored and served.
    Cache,
    /// Clients are redirected to it for NARs.
    Redirect,
    /// Only builds take inputs from it.
    BuildOnly,
}

/// Health of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamHealth {
    /// The last request was answered, or there was none yet.
    Answers,
    /// The last request failed.
    Failing,
    /// Left alone for a while, after several failures.
    Resting,
}

/// Disk space of stored NARs.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct UsageReport {
    /// NARs on disk.
    pub nars: u64,
    /// Bytes of their files.
    pub nar_bytes: u64,
    pub package_sets: Vec<PackageSetSize>,
    /// Closures of paths that no other path refers to, the largest first.
    pub closures: Vec<ClosureSize>,
}

/// Disk space of a package set.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct PackageSetSize {
    pub name: String,
    /// Outputs of its attributes that are served.
    pub outputs: u64,
    /// Paths in the closure of those.
    pub paths: u64,
    /// Bytes of the files of that closure.
    pub bytes: u64,
}

/// Disk space of a closure.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct ClosureSize {
    /// Base name of the path that the closure is of.
    pub path: String,
    /// Paths of the closure.
    pub paths: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Bytes that no other closure needs.
    pub exclusive_bytes: u64,
}
