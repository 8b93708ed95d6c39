//! Requests of Nix clients that take this program for a daemon, read from their connection. Nothing is done
//! here: a request that is understood and has no place here is read to its end, so that the next one follows.

use std::collections::BTreeSet;

use narinfo::derivation::{ResolvedDerivation, ResolvedOutput};
use narinfo::{PathInfo, StoreDir, StorePath, StorePathHash};

use super::build::BuildTarget;
use super::error::DaemonError;
use super::operation::{
    ADD_BUILD_LOG, ADD_INDIRECT_ROOT, ADD_MULTIPLE_TO_STORE, ADD_PERM_ROOT, ADD_SIGNATURES, ADD_TEMP_ROOT,
    ADD_TO_STORE, ADD_TO_STORE_NAR, BUILD_DERIVATION, BUILD_PATHS, BUILD_PATHS_WITH_RESULTS, COLLECT_GARBAGE,
    ENSURE_PATH, FIND_ROOTS, IS_VALID_PATH, NAR_FROM_PATH, OPTIMISE_STORE, QUERY_ALL_VALID_PATHS,
    QUERY_DERIVATION_OUTPUT_MAP, QUERY_MISSING, QUERY_PATH_FROM_HASH_PART, QUERY_PATH_INFO,
    QUERY_REALISATION, QUERY_REFERRERS, QUERY_SUBSTITUTABLE_PATH_INFOS, QUERY_SUBSTITUTABLE_PATHS,
    QUERY_VALID_DERIVERS, QUERY_VALID_PATHS, REGISTER_DRV_OUTPUT, SET_OPTIONS, SYNC_WITH_GC, VERIFY_STORE,
};
use super::path_info::path_info;
use super::wire::Wire;

/// Store paths in one list: more than all packages of a large set have together.
const PATHS_MAX: u64 = 200_000;
/// Targets of one request.
const TARGETS_MAX: u64 = 10_000;
/// Outputs, arguments, variables and settings in one list.
const ITEMS_MAX: u64 = 10_000;
/// Bytes of all texts of a derivation together.
const DERIVATION_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientRequest {
    /// Asks if a path is there.
    IsValidPath(StorePath),
    /// Asks which paths are there.
    QueryValidPaths(BTreeSet<StorePath>),
    /// Asks for the record of a path.
    QueryPathInfo(StorePath),
    /// Asks for the path with a hash.
    QueryPathFromHashPart(StorePathHash),
    /// Asks for the outputs of a derivation.
    QueryOutputs(StorePath),
    /// Asks what a build would take.
    QueryMissing(Vec<ClientTarget>),
    /// Asks for what only a store on the same machine has: nothing is there.
    QueryNothing,
    /// Wants something that needs no work here: a temporary root, or a pause of the garbage collector.
    Acknowledge,
    /// Tells its settings. They are for a daemon that builds by itself.
    SetOptions,
    /// Wants the NAR of a path.
    NarFromPath(StorePath),
    /// Adds a file or folder whose contents follow.
    AddToStore {
        /// Name in the store.
        name: String,
        /// Kind of the contents, and the hash that the path is named by: `text:sha256`, `fixed:r:sha256`.
        method: String,
        /// References of a text.
        references: BTreeSet<StorePath>,
    },
    /// Adds a path whose NAR follows.
    AddToStoreNar {
        /// The path.
        info: PathInfo,
        /// True where no signature is to be asked for.
        unchecked: bool,
    },
    /// Adds paths that follow, each with its NAR.
    AddMultipleToStore {
        /// True where no signatures are to be asked for.
        unchecked: bool,
    },
    /// Adds the log of a build, which follows.
    AddBuildLog(StorePath),
    /// Wants a path to be there.
    EnsurePath(StorePath),
    /// Wants builds.
    BuildPaths {
        /// Derivations and paths.
        targets: Vec<ClientTarget>,
        /// True where the reply has the result of each.
        with_results: bool,
    },
    /// Wants a derivation built whose inputs have been added, and whose file may be unknown here.
    BuildDerivation {
        /// The derivation.
        drv: StorePath,
        /// Its parts.
        resolved: Box<ResolvedDerivation>,
    },
    /// Wants something that has no place here: its name.
    Unsupported(&'static str),
}

/// A target of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientTarget {
    /// A path, however it comes.
    Path(StorePath),
    /// Outputs of a derivation.
    Outputs(BuildTarget),
}

impl ClientTarget {
    /// The target as the client wrote it.
    pub(super) fn to_wire(&self, dir: &StoreDir) -> String {
        match self {
            Self::Path(path) => path.in_dir(dir),
            Self::Outputs(target) => target.to_wire(dir),
        }
    }

    /// The derivation, or the path.
    #[must_use]
    pub fn path(&self) -> &StorePath {
        match self {
            Self::Path(path) => path,
            Self::Outputs(target) => target.drv(),
        }
    }
}

/// Reads a request up to what follows it, if anything does.
///
/// # Errors
/// The request is malformed or exceeds a bound, or the connection ends: there is no way to the next one then.
pub(super) async fn read(wire: &mut Wire, dir: &StoreDir) -> Result<ClientRequest, DaemonError> {
    Ok(match wire.number().await? {
        IS_VALID_PATH => ClientRequest::IsValidPath(wire.path(dir).await?),
        QUERY_VALID_PATHS => {
            let paths = paths(wire, dir).await?;
            // What is substituted is the server's to decide.
            let _substitute = wire.flag().await?;
            ClientRequest::QueryValidPaths(paths)
        }
        QUERY_PATH_INFO => ClientRequest::QueryPathInfo(wire.path(dir).await?),
        QUERY_PATH_FROM_HASH_PART => {
            let hash = wire.text("the hash of a path").await?;
            let parsed = hash.parse().map_err(|error| DaemonError::Protocol(format!("{hash:?}: {error}")));
            ClientRequest::QueryPathFromHashPart(parsed?)
        }
        QUERY_DERIVATION_OUTPUT_MAP => ClientRequest::QueryOutputs(wire.path(dir).await?),
        QUERY_MISSING => ClientRequest::QueryMissing(targets(wire, dir).await?),
        NAR_FROM_PATH => ClientRequest::NarFromPath(wire.path(dir).await?),
        ADD_TO_STORE => {
            let name = wire.text("the name of a path").await?;
            let method = wire.text("a kind of contents").await?;
            let references = paths(wire, dir).await?;
            let _repair = wire.flag().await?;
            ClientRequest::AddToStore { name, method, references }
        }
        ADD_TO_STORE_NAR => {
            let path = wire.path(dir).await?;
            let info = path_info(wire, dir, &path).await?.info;
            let (_repair, unchecked) = (wire.flag().await?, wire.flag().await?);
            ClientRequest::AddToStoreNar { info, unchecked }
        }
        ADD_MULTIPLE_TO_STORE => {
            let (_repair, unchecked) = (wire.flag().await?, wire.flag().await?);
            ClientRequest::AddMultipleToStore { unchecked }
        }
        ADD_BUILD_LOG => {
            // A base name, unlike everywhere else.
            let drv = wire.text("a derivation").await?;
            let parsed = StorePath::parse_either(dir, &drv);
            let parsed = parsed.map_err(|error| DaemonError::Protocol(format!("{drv:?}: {error}")));
            ClientRequest::AddBuildLog(parsed?)
        }
        ENSURE_PATH => ClientRequest::EnsurePath(wire.path(dir).await?),
        BUILD_PATHS => build_paths(wire, dir, false).await?,
        BUILD_PATHS_WITH_RESULTS => build_paths(wire, dir, true).await?,
        BUILD_DERIVATION => build_derivation(wire, dir).await?,
        other => minor(wire, dir, other).await?,
    })
}

/// Requests that are answered without work, or not at all.
async fn minor(wire: &mut Wire, dir: &StoreDir, operation: u64) -> Result<ClientRequest, DaemonError> {
    Ok(match operation {
        ADD_TEMP_ROOT => {
            wire.path(dir).await?;
            ClientRequest::Acknowledge
        }
        SYNC_WITH_GC => ClientRequest::Acknowledge,
        SET_OPTIONS => {
            const NUMBERS: u32 = 12;
            for _ in 0..NUMBERS {
                wire.number().await?;
            }
            for _ in 0..2 * wire.count("a list of settings", ITEMS_MAX).await? {
                wire.text("a setting").await?;
            }
            ClientRequest::SetOptions
        }
        FIND_ROOTS => ClientRequest::QueryNothing,
        QUERY_VALID_DERIVERS => {
            wire.path(dir).await?;
            ClientRequest::QueryNothing
        }
        QUERY_SUBSTITUTABLE_PATHS => {
            paths(wire, dir).await?;
            ClientRequest::QueryNothing
        }
        QUERY_SUBSTITUTABLE_PATH_INFOS => {
            for _ in 0..wire.count("a list of store paths", PATHS_MAX).await? {
                wire.path(dir).await?;
                wire.text("a content address").await?;
            }
            ClientRequest::QueryNothing
        }
        QUERY_REALISATION => {
            wire.text("the id of a realisation").await?;
            ClientRequest::QueryNothing
        }
        REGISTER_DRV_OUTPUT => {
            wire.message("a realisation").await?;
            ClientRequest::Unsupported("registering realisations")
        }
        QUERY_REFERRERS => {
            wire.path(dir).await?;
            ClientRequest::Unsupported("listing referrers")
        }
        QUERY_ALL_VALID_PATHS => ClientRequest::Unsupported("listing all paths"),
        ADD_INDIRECT_ROOT => {
            wire.text("a symlink").await?;
            ClientRequest::Unsupported("adding GC roots")
        }
        ADD_PERM_ROOT => {
            wire.path(dir).await?;
            wire.text("a symlink").await?;
            ClientRequest::Unsupported("adding GC roots")
        }
        ADD_SIGNATURES => {
            wire.path(dir).await?;
            texts(wire, "a list of signatures").await?;
            ClientRequest::Unsupported("adding signatures")
        }
        COLLECT_GARBAGE => {
            wire.number().await?;
            paths(wire, dir).await?;
            const NUMBERS: u32 = 5;
            for _ in 0..NUMBERS {
                wire.number().await?;
            }
            ClientRequest::Unsupported("collecting garbage")
        }
        OPTIMISE_STORE => ClientRequest::Unsupported("optimising the store"),
        VERIFY_STORE => {
            let (_contents, _repair) = (wire.flag().await?, wire.flag().await?);
            ClientRequest::Unsupported("verifying the store")
        }
        other => {
            return Err(DaemonError::Protocol(format!(
                "operation {other} is not known: it may be of a newer release of Nix"
            )));
        }
    })
}

async fn build_paths(
    wire: &mut Wire,
    dir: &StoreDir,
    with_results: bool,
) -> Result<ClientRequest, DaemonError> {
    let targets = targets(wire, dir).await?;
    Ok(match wire.number().await? {
        0 => ClientRequest::BuildPaths { targets, with_results },
        _ => ClientRequest::Unsupported("repairing and checking paths"),
    })
}

async fn build_derivation(wire: &mut Wire, dir: &StoreDir) -> Result<ClientRequest, DaemonError> {
    let drv = wire.path(dir).await?;
    let mut resolved = ResolvedDerivation::default();
    for _ in 0..wire.count("a list of outputs", ITEMS_MAX).await? {
        let name = wire.text("the name of an output").await?;
        let path = wire.optional_path(dir).await?;
        let (method, hash) = (wire.text("a hash").await?, wire.text("a hash").await?);
        resolved.outputs.insert(name, ResolvedOutput { path, method, hash });
    }
    resolved.inputs = paths(wire, dir).await?;
    let mut parts = Parts { left: DERIVATION_BYTES_MAX, are_text: true };
    resolved.system = parts.next(wire).await?;
    resolved.builder = parts.next(wire).await?;
    for _ in 0..wire.count("the arguments of a derivation", ITEMS_MAX).await? {
        resolved.arguments.push(parts.next(wire).await?);
    }
    for _ in 0..wire.count("the variables of a derivation", ITEMS_MAX).await? {
        let name = parts.next(wire).await?;
        resolved.environment.insert(name, parts.next(wire).await?);
    }
    Ok(match wire.number().await? {
        0 if parts.are_text => ClientRequest::BuildDerivation { drv, resolved: Box::new(resolved) },
        0 => ClientRequest::Unsupported("derivations whose arguments or variables are not UTF-8"),
        _ => ClientRequest::Unsupported("repairing and checking paths"),
    })
}

/// Reader of the texts of a derivation.
struct Parts {
    /// Bytes that they may have yet.
    left: u64,
    /// False once one of them was no text.
    are_text: bool,
}

impl Parts {
    async fn next(&mut self, wire: &mut Wire) -> Result<String, DaemonError> {
        let bytes = wire.bytes("a part of a derivation", self.left).await?;
        self.left -= bytes.len() as u64;
        let text = String::from_utf8(bytes);
        self.are_text &= text.is_ok();
        Ok(text.unwrap_or_default())
    }
}

async fn targets(wire: &mut Wire, dir: &StoreDir) -> Result<Vec<ClientTarget>, DaemonError> {
    let mut targets = Vec::new();
    for _ in 0..wire.count("a list of targets", TARGETS_MAX).await? {
        let text = wire.text("a target").await?;
        let path = || StorePath::parse_in(dir, &text).ok().map(ClientTarget::Path);
        let target = BuildTarget::from_wire(dir, &text).map(ClientTarget::Outputs).or_else(path);
        targets.push(target.ok_or_else(|| {
            DaemonError::Protocol(format!("{text:?} is neither a path in {dir} nor outputs of a derivation"))
        })?);
    }
    Ok(targets)
}

async fn paths(wire: &mut Wire, dir: &StoreDir) -> Result<BTreeSet<StorePath>, DaemonError> {
    wire.paths_within(dir, PATHS_MAX).await
}

async fn texts(wire: &mut Wire, what: &'static str) -> Result<(), DaemonError> {
    for _ in 0..wire.count(what, ITEMS_MAX).await? {
        wire.text(what).await?;
    }
    Ok(())
}
