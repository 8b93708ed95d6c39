//! Errors of a request to a server, in words for the person who typed the command. Must never have any part
//! of a token.

/// The reason that a server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing answers.
    #[error("{server}: {reason}")]
    Unreachable {
        /// The server.
        server: String,
        /// The failure, and the way out.
        reason: String,
    },
    /// The connection ended before the answer did.
    #[error("{server} closed the connection before the end of its answer ({reason}): has it stopped?")]
    Cut {
        /// The server.
        server: String,
        /// The end of the connection.
        reason: String,
    },
    /// Something else answers.
    #[error("{server} is no Ondine: {reason}")]
    NotOndine {
        /// The server.
        server: String,
        /// The sign of that.
        reason: String,
    },
    /// The caller is not known.
    #[error("{server} does not know this caller: {reason}. {advice}")]
    Unauthorized {
        /// The server.
        server: String,
        /// The server's words.
        reason: String,
        /// The place of the token that was sent, or the places for one.
        advice: String,
    },
    /// The caller is known, or needs no name, and may not do this.
    #[error("{server} refuses: {reason}")]
    Refused {
        /// The server.
        server: String,
        /// The server's words.
        reason: String,
    },
    /// The server has no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The server has trouble that may pass.
    #[error("{server} cannot do this now: {reason}")]
    Unavailable {
        /// The server.
        server: String,
        /// The server's words.
        reason: String,
    },
    /// The request is wrong, or the server failed.
    #[error("{0}")]
    Answer(String),
    /// The answer has another form than this program knows.
    #[error(
        "the server's response cannot be parsed ({0}); run the command with the version of ondine that the server runs"
    )]
    OtherVersion(String),
    /// Nothing says which server is meant, or how to speak with it.
    #[error("{0}")]
    Settings(String),
}

/// Kind of an error, as scripts tell them by the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The server cannot be reached, or not now.
    Unreachable,
    /// The server refuses.
    Refused,
    /// The command line, the settings or the environment are wrong.
    Usage,
    /// Any other.
    Other,
}

impl Error {
    /// The kind.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. }
            | Self::Cut { .. }
            | Self::Unavailable { .. }
            | Self::NotOndine { .. } => ErrorClass::Unreachable,
            Self::Unauthorized { .. } | Self::Refused { .. } => ErrorClass::Refused,
            Self::Settings(_) => ErrorClass::Usage,
            Self::NotFound(_) | Self::Answer(_) | Self::OtherVersion(_) => ErrorClass::Other,
        }
    }

    /// True for trouble that may be over at the next try.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Cut { .. } | Self::Unavailable { .. })
    }
}
