//! Failed builds and refused requests, with the time for which each is remembered.

use std::time::SystemTime;

use narinfo::StorePath;

/// The kind of a failure, which decides how long it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The machine was in trouble.
    Transient,
    /// The build itself is wrong.
    Permanent,
    /// Nothing was tried: this server cannot build it, or will not.
    Refused,
}

impl FailureClass {
    /// The word for it in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::Refused => "refused",
        }
    }
}

/// A derivation that was not built, with the reason and the time until which it is not retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The derivation that was asked for.
    pub drv: StorePath,
    /// The kind of failure.
    pub class: FailureClass,
    /// The derivation whose build failed: `drv`, or one that it needs.
    pub cause: StorePath,
    /// The daemon's words, without escape codes.
    pub reason: String,
    /// The time of the try.
    pub failed_at: SystemTime,
    /// The time at which the failure is forgotten.
    pub expires_at: SystemTime,
}
