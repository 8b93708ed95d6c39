//! The JSON types of served paths, of what needs a package, and of the server's use.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A store path that is served.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct PathDetails {
    /// Base name of the path.
    pub path: String,
    pub nar_hash: String,
    pub nar_size: u64,
    /// Base names.
    pub references: Vec<String>,
    /// Base names of served paths that refer to it, itself excepted; a hundred at most.
    pub referrers: Vec<String>,
    /// Signatures that clients get.
    pub signatures: Vec<String>,
    /// Names under which it is pinned itself.
    pub pins: Vec<String>,
    /// Base name of its derivation.
    pub deriver: Option<String>,
    /// True for a path that was built on this machine.
    pub built_here: bool,
    /// Bytes of its file in the NAR store; null while there is none.
    pub file_size: Option<u64>,
    /// Names of the upstreams that have the contents.
    pub upstreams: Vec<String>,
    /// An upstream's NAR beside the one that was built here; null as long as none is known to have it.
    pub comparison: Option<PathComparison>,
}

/// An upstream's NAR of a path that was built here.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct PathComparison {
    /// Name of the upstream.
    pub upstream: String,
    pub nar_hash: String,
    /// True where both hashes are equal.
    pub same: bool,
}

/// Use of the server in an hour: totals at its end, and requests for narinfos and downloads in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct HourOfUse {
    /// Unix seconds.
    pub begins_at: u64,
    /// Store paths that are served.
    pub paths: u64,
    /// NARs on disk.
    pub nars: u64,
    /// Bytes of those files.
    pub nar_bytes: u64,
    /// Requests that were answered at once.
    pub hits: u64,
    /// Requests for what was not to be had.
    pub misses: u64,
    /// Requests that were answered after a build.
    pub built: u64,
    /// Requests whose build failed.
    pub failed: u64,
    /// Builds that ended well, and the seconds that they took.
    pub builds: u64,
    pub build_seconds: f64,
    /// Requests whose first build began, and the seconds that they had waited for it.
    pub waits: u64,
    pub wait_seconds: f64,
    /// Requests that joined one that waited.
    pub joined: u64,
    /// Builds ahead of requests that ended well, and the seconds that they took.
    pub prebuilds: u64,
    pub prebuild_seconds: f64,
    /// Builds ahead of requests that a request joined.
    pub taken_over: u64,
}

/// A derivation that an attribute had.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct AttributeVersion {
    /// Base name of the derivation.
    pub derivation: String,
    /// The first generation with it.
    pub first: u64,
    /// The last one; null for the current one.
    pub last: Option<u64>,
    /// Unix seconds at which the first one was made.
    pub since: u64,
    /// Unix seconds at which the last one was replaced.
    pub until: Option<u64>,
}

/// A derivation that needs another.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct AttributeDependant {
    /// Base name of the derivation.
    pub derivation: String,
    /// A package set that has it; null where none does.
    pub set: Option<String>,
    /// Its attribute there.
    pub attribute: Option<String>,
}
