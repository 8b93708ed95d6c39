//! Tokens of clients, as they are kept: never with the secret, of which only a hash is.

use std::time::SystemTime;

/// A token that is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Name for people; one token has it.
    pub name: String,
    /// SHA-256 of the secret.
    pub digest: [u8; 32],
    /// Names of the rights.
    pub rights: Vec<String>,
    /// Patterns of the names that it is bound to; empty for all names.
    pub patterns: Vec<String>,
    /// Time it was made, to the second.
    pub created_at: SystemTime,
    /// Time from which it is refused, to the second; `None` for never.
    pub expires_at: Option<SystemTime>,
    /// Requests for builds that it may have waiting; `None` for no limit of its own.
    pub queued_max: Option<u64>,
}

/// A token on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Number; never used twice.
    pub id: u64,
    /// The token as it was recorded.
    pub token: NewToken,
    /// Time of its last use, to the second and roughly; `None` before the first.
    pub used_at: Option<SystemTime>,
}
