//! Tokens in memory.

use std::time::SystemTime;

use super::{MemoryBackend, done};
use crate::index::backend::{BackendFuture, Tokens};
use crate::model::{NewToken, TokenRow};

impl Tokens for MemoryBackend {
    fn add_token(&self, token: NewToken) -> BackendFuture<'_, Option<u64>> {
        let mut state = self.state();
        if state.tokens.values().any(|row| row.token.name == token.name) {
            return done(None);
        }
        state.last_token += 1;
        let id = state.last_token;
        state.tokens.insert(id, TokenRow { id, token, used_at: None });
        done(Some(id))
    }

    fn tokens(&self) -> BackendFuture<'_, Vec<TokenRow>> {
        done(self.state().tokens.values().cloned().collect())
    }

    fn remove_token(&self, id: u64) -> BackendFuture<'_, bool> {
        done(self.state().tokens.remove(&id).is_some())
    }

    fn record_token_uses(&self, uses: Vec<(u64, SystemTime)>) -> BackendFuture<'_, ()> {
        let mut state = self.state();
        for (id, at) in uses {
            if let Some(row) = state.tokens.get_mut(&id) {
                row.used_at = row.used_at.max(Some(at));
            }
        }
        done(())
    }
}
