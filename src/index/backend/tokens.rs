//! Trait of tokens.

use std::time::SystemTime;

use super::BackendFuture;
use crate::model::{NewToken, TokenRow};

/// Tokens of clients, each until it is removed; those that have expired stay on record, so that their users
/// learn why they are refused.
pub trait Tokens {
    /// Records a token, and gives its number; `None`, and nothing is recorded, where another has its name.
    fn add_token(&self, token: NewToken) -> BackendFuture<'_, Option<u64>>;

    /// All tokens, by number.
    fn tokens(&self) -> BackendFuture<'_, Vec<TokenRow>>;

    /// Removes a token; false where there is none of this number.
    fn remove_token(&self, id: u64) -> BackendFuture<'_, bool>;

    /// Records the last uses of tokens; an earlier one than that on record changes nothing.
    fn record_token_uses(&self, uses: Vec<(u64, SystemTime)>) -> BackendFuture<'_, ()>;
}
