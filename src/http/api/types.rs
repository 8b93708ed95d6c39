//! The JSON types of the HTTP API, all of them: bodies of requests and answers, with the descriptions that
//! the OpenAPI document repeats. Rows of the index and views of the queue become these (`convert.rs`) and are
//! never serialised themselves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::paths::{AttributeDependant, AttributeVersion};

/// An error. Its status fits its reason.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorBody {
    /// Text for a person: what happened, why, and the way out where there is one.
    pub error: String,
    /// The same for a program.
    pub reason: ErrorReason,
    /// The right that the caller lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub right: Option<&'static str>,
    /// Address of the log of a build that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Its last lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log_lines: Vec<String>,
}

/// Class of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorReason {
    /// 400: the request is not understood.
    BadRequest,
    /// 401: this needs a token, or a valid one.
    Unauthorized,
    /// 403: the caller may not do this.
    Refused,
    /// 404: there is no such thing.
    NotFound,
    /// 405: the address has other methods.
    MethodNotAllowed,
    /// 408: the body of the request did not arrive in time.
    TooSlow,
    /// 429: the client asks more often than it may.
    TooFast,
    /// 409: another path, or other contents, came first.
    Conflict,
    /// 413: the body of the request is too large.
    TooLarge,
    /// 500: trouble with the server, which its log tells of.
    Internal,
    /// 503: trouble that may pass.
    Unavailable,
}

/// Arguments of `POST /api/v1/missing`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MissingPathsRequest {
    /// Store paths, with or without the store directory; 10,000 at most.
    pub paths: Vec<String>,
}

/// Answer of `POST /api/v1/missing`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct MissingPathsAnswer {
    /// Base names of those that are not served.
    pub missing: Vec<String>,
}

/// Arguments of `POST /api/v1/gc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CollectRequest {
    /// Bytes of NARs that may stay; null for the limit in the settings.
    pub max_bytes: Option<u64>,
    /// True: only tells of what would be evicted.
    pub dry_run: bool,
}

/// Arguments of `POST /api/v1/fsck`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckRequest {
    /// Reads every file and checks its hashes, too.
    pub verify: bool,
    /// Removes entries and files that are wrong, so that they are packed, fetched or built again.
    pub repair: bool,
}

/// Arguments of `POST /api/v1/failures/<what>/retry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryRequest {
    /// Only forgets the failure: the next request builds.
    pub forget_only: bool,
}

/// Arguments of `POST /api/v1/tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IssueRequest {
    /// Name for people; one token has it.
    pub name: String,
    /// Names of rights: `read`, `build`, `push`, `vouch`, `refresh`, `cancel`, `pin`, `admin`.
    pub rights: Vec<String>,
    /// Patterns of the names that may be pushed, built and pinned; empty for all names.
    pub only: Vec<String>,
    /// Seconds until it expires; null for never.
    pub expires_seconds: Option<u64>,
    /// Requests for builds that it may have waiting; null for no limit of its own.
    pub max_queued: Option<u64>,
}

/// A token that was made.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct IssuedToken {
    pub id: u64,
    /// The token itself, which is not kept: it is shown this one time.
    pub token: String,
}

/// A token on record.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct TokenView {
    pub id: u64,
    pub name: String,
    pub rights: Vec<String>,
    /// Patterns of the names that it is bound to; empty for all names.
    pub only: Vec<String>,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; null for never.
    pub expires_at: Option<u64>,
    /// Unix seconds; null before the first use.
    pub used_at: Option<u64>,
    /// Requests for builds that it may have waiting; null for no limit of its own.
    pub max_queued: Option<u64>,
}

/// The queue.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct QueueStatus {
    /// Builds that run now.
    pub running: Vec<RunningBuild>,
    /// Requests that wait, in all.
    pub total: usize,
    /// The oldest thousand of them, in order.
    pub requests: Vec<RequestStatus>,
    /// The reason that none of them goes on; null while they do.
    pub stalled: Option<String>,
}

/// A build that runs.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct RunningBuild {
    /// Base name of the derivation.
    pub derivation: String,
    /// Seconds since it was started.
    pub seconds: u64,
    /// Seconds that it takes on average; null where nothing like it was built yet.
    #[serde(default)]
    pub expected_seconds: Option<u64>,
    /// Number of the request that it is built for.
    pub request: Option<u64>,
    /// True for a pre-build: no client has requested it, and it stops once a client waits for another
    /// derivation.
    pub prebuild: bool,
    /// The machine that builds it.
    #[serde(default)]
    pub builder: Option<String>,
}

/// A request for a derivation.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct RequestStatus {
    /// Its number, which is never used again.
    pub id: u64,
    /// Base name of the derivation.
    pub derivation: String,
    /// Unix seconds of the first asking.
    pub asked_at: u64,
    /// Unix seconds of its end; absent while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
    /// Clients that wait for it.
    pub clients: usize,
    /// Name of the builder that alone may build the derivation; absent for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    #[serde(flatten)]
    pub phase: RequestPhase,
    /// Its place in the queue; absent once it has left it.
    #[serde(flatten)]
    pub place: Option<RequestPlace>,
}

/// Phase of a request's life.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum RequestPhase {
    /// In the queue; nothing is being built for it now.
    Waiting,
    /// In the queue, and something is being built for it.
    Building {
        /// Base name of the derivation that is being built.
        building: String,
    },
    /// All is built; its outputs are being signed and published.
    Delivering,
    /// Its outputs were served.
    Served,
    /// A build failed.
    Failed {
        /// Base name of the derivation whose build failed.
        cause: String,
        /// The daemon's words.
        reason: String,
    },
    /// Nothing was built for it, because this server cannot or may not.
    Refused {
        /// The obstacle.
        reason: String,
    },
    /// Every client left before anything of it was built.
    Dropped,
    /// Cancelled by its owner.
    Cancelled,
}

/// Place of a request in the queue, and a forecast of its delivery.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct RequestPlace {
    /// Its place, 1 being the oldest.
    pub position: usize,
    /// Requests in the queue.
    pub of: usize,
    /// Derivations built for it since it was planned; null until it is planned.
    pub built: Option<usize>,
    /// Derivations that it lacked when it was planned; null until then.
    pub lacked: Option<usize>,
    /// Seconds of known work ahead of its delivery; null until it is planned.
    pub known_seconds: Option<u64>,
    /// Derivations ahead of its delivery whose build time is unknown; null until it is planned.
    pub unknown: Option<usize>,
    /// Seconds from now between which it is delivered in eight cases of ten; null while that is not known.
    pub eta_seconds: Option<(u64, u64)>,
}

/// A request with the end of its log.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct RequestDetails {
    #[serde(flatten)]
    pub request: RequestStatus,
    /// The last twenty lines of the log of the build that runs, failed or ended last.
    pub log: Vec<String>,
}

/// A package set.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct PackageSet {
    pub name: String,
    pub source: String,
    pub systems: Vec<String>,
    /// Time of evaluation of its attributes.
    pub index: EvaluationTime,
    /// Seconds from one refresh to the next; null where that is manual.
    pub refresh_seconds: Option<u64>,
    /// Seconds that a generation is kept after it was replaced.
    pub keep_seconds: u64,
    /// Text about the refresh that runs or is due.
    pub state: String,
    /// Unix seconds of the end of the last refresh.
    pub tried_at: Option<u64>,
    /// Reason that it failed; null where it succeeded.
    pub failure: Option<String>,
    /// The current one first.
    pub generations: Vec<PackageSetGeneration>,
}

/// Time of evaluation of a set's attributes.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EvaluationTime {
    /// All attributes in each generation.
    Full,
    /// Each attribute when it is first asked for by name.
    Lazy,
}

/// A generation of a package set.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct PackageSetGeneration {
    pub id: u64,
    pub current: bool,
    /// Unix seconds.
    pub made_at: u64,
    /// Unix seconds; null for the current one.
    pub replaced_at: Option<u64>,
    /// Attributes that gave a derivation.
    pub attributes: u64,
    /// Attributes that may not be built.
    pub denied: u64,
    /// Attributes that failed to evaluate.
    pub errors: u64,
    /// Derivations in the closure of the attributes that may be built.
    pub derivations: u64,
}

/// A package set with its errors.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct PackageSetDetails {
    #[serde(flatten)]
    pub set: PackageSet,
    /// Attributes that failed to evaluate, a thousand at most.
    pub errors: Vec<EvaluationFailure>,
}

/// An attribute that failed to evaluate.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct EvaluationFailure {
    pub attribute: String,
    pub system: String,
    pub error: String,
}

/// A page of a package set's attributes.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct AttributePage {
    /// Name of the set.
    pub set: String,
    /// Its current generation.
    pub generation: u64,
    /// System that the attributes are evaluated for.
    pub system: String,
    /// False for a lazy set: only attributes that were asked for by name are listed.
    pub complete: bool,
    /// In the order of their names.
    pub attributes: Vec<AttributeLine>,
    /// Value of `after` for the next page; null on the last one.
    pub next: Option<String>,
}

/// An attribute in a list.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct AttributeLine {
    /// Its path, as Nix writes it.
    pub attribute: String,
    /// Name of its derivation; null where it cannot be evaluated.
    pub name: Option<String>,
    /// Base name of its derivation.
    pub derivation: Option<String>,
    /// The output that it stands for, where evaluation names one.
    pub output: Option<String>,
    /// True where the set denies its build.
    pub denied: bool,
    /// Reason that it cannot be evaluated.
    pub error: Option<String>,
}

/// An attribute of a package set.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct AttributeDetails {
    pub set: String,
    pub generation: u64,
    pub attribute: String,
    pub system: String,
    /// Base name of its derivation.
    pub derivation: String,
    /// The output that the attribute stands for.
    pub output: Option<String>,
    /// True where the set denies its build.
    pub denied: bool,
    /// Failure of its build, as long as that is remembered.
    pub failure: Option<RememberedFailure>,
    /// True while someone waits for its build.
    pub queued: bool,
    /// Seconds that its latest builds took, or those of its other versions, the oldest first.
    #[serde(default)]
    pub build_seconds: Vec<f64>,
    /// Derivations in the Nix store that need it, a hundred at most.
    #[serde(default)]
    pub dependants: Vec<AttributeDependant>,
    /// Requests for it in the last four weeks; null where nothing is pre-built.
    pub asked: Option<u32>,
    /// Program that it is run by, where its description (`meta.mainProgram`) says so.
    pub main_program: Option<String>,
    /// Derivations that it had in the generations that are kept, the latest first, fifty at most.
    #[serde(default)]
    pub versions: Vec<AttributeVersion>,
    pub outputs: Vec<AttributeOutput>,
}

/// An output of an attribute's derivation.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct AttributeOutput {
    pub name: String,
    /// Base name of its store path; null where it is known only after the build.
    pub path: Option<String>,
    /// The hash in the address of its narinfo.
    pub hash: Option<String>,
    pub served: bool,
    /// Address of its narinfo.
    pub narinfo: Option<String>,
    /// Address of its NAR; null until it is served.
    pub nar: Option<String>,
    /// Names of its programs, as far as they are known, a hundred at most.
    #[serde(default)]
    pub programs: Vec<String>,
}

/// A failure that is remembered.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct RememberedFailure {
    /// Base name of the derivation that is answered with it.
    pub derivation: String,
    /// `permanent`, `transient` or `refused`.
    pub class: String,
    /// Base name of the derivation whose build failed.
    pub cause: String,
    /// The daemon's words.
    pub reason: String,
    /// Address of the log of the cause.
    pub log: String,
    /// Unix seconds of the try.
    pub since: u64,
    /// Unix seconds from which the next request tries again.
    pub until: u64,
}

/// A pin.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct PinView {
    /// The name that was pinned: an attribute, or the path.
    pub name: String,
    /// Hash of the path.
    pub hash: String,
    /// Base name of the path; null while it is not served.
    pub path: Option<String>,
    /// Unix seconds.
    pub pinned_at: u64,
}
