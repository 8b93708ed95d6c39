//! Reasons why a request is not started or not cancelled.

use crate::build::NotQueued;
use crate::caller::Refusal;

/// The reason why a build has no place in the queue.
#[derive(Debug, thiserror::Error)]
pub enum NotStarted {
    /// The starter may not have it built.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many wait.
    #[error(transparent)]
    Full(#[from] NotQueued),
}

/// The request of this number is another client's, who alone may cancel it beside an administrator.
#[derive(Debug, thiserror::Error)]
#[error(
    "request {0} is another client's: who asked for it may cancel it, and a token with the right \"admin\" or \
     `ondine cancel` on the server"
)]
pub struct NotOwner(pub u64);
