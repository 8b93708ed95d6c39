//! Reasons why a path is not to be had, in words for the person who asked. Decides nothing.

use std::sync::Arc;
use std::time::SystemTime;

use narinfo::{DrvOutput, StorePath};

use crate::model::{Failure, FailureClass};

/// Why a path is not to be had. The text is for the person who asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Missing {
    /// Nobody knows the hash.
    #[error(
        "unknown: neither this cache nor its Nix store has a path or a derivation with this hash; put the derivation into the server's store and ask again"
    )]
    Unknown,
    /// Nobody knows the hash, but not every cache behind this one could tell.
    #[error("unknown: neither this cache nor its Nix store has a path or a derivation with this hash; of the caches behind it:\n{}", .0.join("\n"))]
    Unsure(Arc<[String]>),
    /// A derivation makes it, but the request does not build.
    #[error("not built yet: {0} makes it; ask with GET outside /cached/ to have it built")]
    NotBuilt(StorePath),
    /// A derivation makes it, but the client lacks the right to have it built.
    #[error(
        "not built: {0} makes it, and to have it built needs a token with the right \"build\" in netrc; an administrator makes one with `ondine token new --name NAME --may read,build`"
    )]
    NeedsRight(StorePath),
    /// A derivation makes it, but this server builds nothing.
    #[error("not built: {0} makes it, but this server only serves (its setting build-from is empty)")]
    ServeOnly(StorePath),
    /// A derivation makes it that is in none of the sources that are built from.
    #[error(
        "not built: {0} makes it, which is in no package set, and this server builds nothing else (setting build-from)"
    )]
    NotInCatalogue(StorePath),
    /// A derivation of a package set makes it, and those are not built.
    #[error(
        "not built: {0} makes it, which only a package set has, and this server does not build those (setting build-from)"
    )]
    OnlyInCatalogue(StorePath),
    /// A package set says no.
    #[error("refused: {drv} makes it, which the package set {set} denies")]
    Denied {
        /// Derivation that makes it.
        drv: StorePath,
        /// The set that denies it.
        set: String,
    },
    /// The build failed and is remembered.
    #[error("{}", failure_text(.0))]
    Failed(Arc<Failure>),
    /// Too many wait.
    #[error("refused: {0}")]
    Refused(String),
    /// The token of the client does not allow it; the text says why.
    #[error("{0}")]
    Unallowed(String),
    /// Nobody has a realisation of this output; what the caches behind this one said of it.
    #[error("unknown: neither this cache nor its Nix store has a realisation of {id}; {}", unrealised(.id, .reasons))]
    Unrealised {
        /// The output.
        id: DrvOutput,
        /// Answers of the upstreams.
        reasons: Vec<String>,
        /// True when one of them could not tell, which is transient.
        troubled: bool,
    },
    /// There is one, but not all that it leads to.
    #[error("not served: {id} is {path}, but {reason}")]
    Incomplete {
        /// The output.
        id: DrvOutput,
        /// Its path.
        path: StorePath,
        /// The missing part.
        reason: String,
    },
    /// The Nix daemon is needed to tell, and was waited for where a client could be held.
    #[error(
        "unavailable: the Nix daemon is needed for this and does not answer ({0}); ask again once it runs"
    )]
    NoDaemon(String),
    /// A path of its closure is in the Nix store, and no client would take it.
    #[error("not served: {0}")]
    Unservable(String),
    /// The index cannot be read or written, and was waited for where a client could be held.
    #[error("unavailable: {reason}; the server's log has the details")]
    IndexUnavailable {
        /// The attempt that failed, for the person who asked.
        reason: &'static str,
        /// The failure of the index, for the log.
        cause: Arc<str>,
    },
    /// The server cannot tell at the moment.
    #[error("unavailable: {0}; the server's log has the details")]
    Unavailable(&'static str),
}

impl Missing {
    /// True where the reason is transient: the same request may find it a moment later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::NoDaemon(_) | Self::IndexUnavailable { .. } | Self::Unavailable(_))
    }
}

fn unrealised(id: &DrvOutput, reasons: &[String]) -> String {
    let mut text = match id.drv() {
        None => "build the derivation on the server, and ask again".to_owned(),
        Some(_) => "by the path of a derivation only those are found here that need no other derivation (resolved ones) and \
                    are in the store where they were built"
            .to_owned(),
    };
    if !reasons.is_empty() {
        text.push_str("; of the caches behind it:\n");
        text.push_str(&reasons.join("\n"));
    }
    text
}

fn failure_text(failure: &Failure) -> String {
    let left = failure.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
    let left = humantime::format_duration(std::time::Duration::from_secs(left.as_secs()));
    let Failure { drv, cause, reason, .. } = failure;
    if failure.expires_at <= failure.failed_at {
        return format!("not built: {drv}\nreason: {reason}\nnothing of this is remembered: ask again");
    }
    let class = failure.class.as_str();
    if failure.class == FailureClass::Refused {
        return format!(
            "refused: {drv} cannot be built here\nreason: {reason}\nremembered for {left}; a request after that looks again"
        );
    }
    format!(
        "failed ({class}): {drv}\ncause: {cause}\nreason: {reason}\nlog: /log/{cause}\nremembered for {left}; a request after that tries again"
    )
}
