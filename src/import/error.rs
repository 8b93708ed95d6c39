//! Reasons why an upload is refused. Texts are for the person who pushes: clients print them.

use std::error::Error as StdError;
use std::io;

use narinfo::{DrvOutput, StorePath};

use crate::caller::Refusal;
use crate::causes::{causes, with_causes};
use crate::index;
use crate::nar_store::PackError;
use crate::packer::{Limits, ReceiveError};

/// Why an upload was refused; nothing of it is kept.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The upload is not as it must be.
    #[error("{0}")]
    Invalid(String),
    /// Its hash is that of another path, or of other contents.
    #[error(
        "this hash is served as {served}, and not with these contents ({path}): the path that came first stays"
    )]
    Conflict {
        /// The path that was pushed.
        path: StorePath,
        /// The path that is served.
        served: StorePath,
    },
    /// The Nix store of this machine has it with other contents.
    #[error("{0} is in the Nix store of the server with other contents: those stay")]
    InNixStore(StorePath),
    /// The output of a content-addressed derivation is known to be another path.
    #[error("{id} is {known} here, and not {pushed}: the realisation that came first stays")]
    Realised {
        /// The output.
        id: Box<DrvOutput>,
        /// The path that was pushed.
        pushed: StorePath,
        /// The path that is known.
        known: StorePath,
    },
    /// Nobody who is believed vouches for the path.
    #[error(
        "{0} is not named by its contents and has no signature by a trusted key: sign it with a key of trusted-keys, \
         or push it with a token that has the right \"vouch\""
    )]
    Unvouched(StorePath),
    /// The uploader lacks a right.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The NAR has more bytes than may be pushed.
    #[error("the NAR has more than {0} bytes, which is the limit (setting max-upstream-nar-bytes)")]
    TooLarge(u64),
    /// The server has too little room for the NAR at the moment.
    #[error(
        "the disk of the server has too little room for this NAR at the moment: tell its administrator, and try again later"
    )]
    NoRoom,
    /// Bytes did not come for too long.
    #[error("the upload made no progress for too long: try again")]
    Stalled,
    /// The uploader has too much under way.
    #[error("too much is being uploaded at once ({0}): try again in a moment")]
    TooMany(&'static str),
    /// Trouble with the server, which was logged.
    #[error("the upload cannot be stored at the moment; the server's log says why")]
    Unavailable,
}

impl UploadError {
    /// A fault of the upload, with its causes.
    pub(super) fn invalid(error: &(dyn StdError + 'static)) -> Self {
        Self::Invalid(with_causes(error).to_string())
    }

    /// A body that cannot be read.
    pub(super) fn of_body(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut { Self::Stalled } else { Self::invalid(&error) }
    }

    /// An error of the server, which is logged here.
    pub(super) fn unavailable(error: &(dyn StdError + 'static)) -> Self {
        tracing::error!(error, "cannot take an upload");
        let is_full = |cause: &(dyn StdError + 'static)| {
            cause.downcast_ref::<io::Error>().is_some_and(|cause| cause.kind() == io::ErrorKind::StorageFull)
        };
        if causes(error).any(is_full) { Self::NoRoom } else { Self::Unavailable }
    }

    /// A NAR that exceeds its limits.
    #[must_use]
    pub fn too_large(limits: Limits) -> Self {
        if limits.is_by_room {
            tracing::warn!(
                bytes_max = limits.nar_bytes_max,
                "refused an upload for which there is too little room; free some, or run `ondine gc --max-bytes BYTES`"
            );
            Self::NoRoom
        } else {
            Self::TooLarge(limits.nar_bytes_max)
        }
    }

    /// A NAR that was not received within these limits.
    pub(super) fn of_received(error: ReceiveError, limits: Limits) -> Self {
        match &error {
            ReceiveError::Pack(PackError::TooLarge { .. }) => Self::too_large(limits),
            ReceiveError::Pack(PackError::Sent(sent)) if sent.kind() == io::ErrorKind::TimedOut => {
                Self::Stalled
            }
            ReceiveError::Pack(error @ (PackError::Sent(_) | PackError::Malformed(_))) => {
                Self::invalid(error)
            }
            _ => Self::unavailable(&error),
        }
    }
}

impl From<index::Error> for UploadError {
    fn from(error: index::Error) -> Self {
        Self::unavailable(&error)
    }
}
