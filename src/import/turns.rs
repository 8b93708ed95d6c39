//! Turns of uploaders: receiving a NAR takes threads and a file, so few are received at once. An uploader
//! takes one more only while more are free than it has: each has at most half of what the others leave, and a
//! few never keep the next one from uploading.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::UploadError;
use crate::caller::CallerKey;

/// NARs that are received at once; half of it is what one uploader has where nobody else uploads. A client of
/// Nix has 25 connections.
const RECEIVED_AT_ONCE_MAX: usize = 64;
/// Uploads of one uploader that are open, received or waiting for their turn.
const OPEN_OF_ONE_MAX: usize = 128;
/// Time for which an upload waits for its turn.
const TURN_WITHIN: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 120_000 });

/// Turns of all uploaders.
pub(super) struct UploadTurns(Arc<Shared>);

struct Shared {
    state: Mutex<TurnState>,
    /// Notified when a turn has ended.
    ended: Notify,
}

struct TurnState {
    free: usize,
    uploaders: HashMap<CallerKey, UploaderShare>,
}

#[derive(Clone, Copy, Default)]
struct UploaderShare {
    open: usize,
    turns: usize,
}

/// One upload, which is open until this is dropped.
pub struct OpenUpload {
    shared: Arc<Shared>,
    id: CallerKey,
    has_turn: bool,
}

impl Default for UploadTurns {
    fn default() -> Self {
        let state = TurnState { free: RECEIVED_AT_ONCE_MAX, uploaders: HashMap::new() };
        Self(Arc::new(Shared { state: Mutex::new(state), ended: Notify::new() }))
    }
}

impl UploadTurns {
    /// Opens an upload, which has no turn yet.
    pub(super) fn open(&self, id: CallerKey) -> Result<OpenUpload, UploadError> {
        let mut state = self.0.lock();
        let share = state.uploaders.entry(id).or_default();
        if share.open >= OPEN_OF_ONE_MAX {
            return Err(UploadError::TooMany("uploads of one client"));
        }
        share.open += 1;
        drop(state);
        Ok(OpenUpload { shared: Arc::clone(&self.0), id, has_turn: false })
    }
}

impl OpenUpload {
    /// Waits for the turn of this upload, which it has to its end.
    ///
    /// # Errors
    /// The turn does not come in time.
    pub async fn turn(&mut self) -> Result<(), UploadError> {
        let taken = async {
            loop {
                // Before the look: an end from here on is noticed.
                let ended = self.shared.ended.notified();
                if self.shared.take(self.id) {
                    return;
                }
                ended.await;
            }
        };
        if timeout(TURN_WITHIN, taken).await.is_err() {
            return Err(UploadError::TooMany("uploads of all clients"));
        }
        self.has_turn = true;
        Ok(())
    }
}

impl Shared {
    /// Takes a turn, if there is one for this uploader.
    fn take(&self, id: CallerKey) -> bool {
        let mut state = self.lock();
        let TurnState { free, uploaders } = &mut *state;
        let share = uploaders.entry(id).or_default();
        let has_one = share.turns < *free;
        if has_one {
            share.turns += 1;
            *free -= 1;
        }
        has_one
    }

    fn lock(&self) -> MutexGuard<'_, TurnState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenUpload {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let turns = usize::from(self.has_turn);
        state.free += turns;
        if let Some(share) = state.uploaders.get_mut(&self.id) {
            *share = UploaderShare { open: share.open - 1, turns: share.turns - turns };
            if share.open == 0 {
                state.uploaders.remove(&self.id);
            }
        }
        drop(state);
        if self.has_turn {
            self.shared.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns that an uploader gets without waiting for the end of another one.
    async fn take_all(turns: &UploadTurns, uploader: CallerKey) -> Vec<OpenUpload> {
        let mut held = Vec::new();
        loop {
            let mut upload = turns.open(uploader).expect("few are open");
            match upload.turn().await {
                Ok(()) => held.push(upload),
                Err(reason) => {
                    assert!(matches!(reason, UploadError::TooMany("uploads of all clients")));
                    return held;
                }
            }
        }
    }

    #[tokio::test]
    async fn uploaders_that_hold_their_turns_leave_some_to_the_next_ones() {
        let turns = UploadTurns::default();
        let mut held = Vec::new();
        for (uploader, share) in [(1, 32), (2, 16), (3, 8), (4, 4)] {
            let taken = take_all(&turns, CallerKey::Token(uploader)).await;
            assert_eq!(taken.len(), share, "uploader {uploader}");
            held.push(taken);
        }
        held.swap_remove(0).clear();
        assert_eq!(take_all(&turns, CallerKey::Token(5)).await.len(), 18, "half of what is free");
        drop(held);
        assert!(turns.0.lock().uploaders.is_empty() && turns.0.lock().free == RECEIVED_AT_ONCE_MAX);
    }

    #[tokio::test]
    async fn an_uploader_has_a_bounded_number_open_and_those_that_wait_come_when_others_end() {
        let turns = Arc::new(UploadTurns::default());
        let greedy = CallerKey::Token(1);
        let held = take_all(&turns, greedy).await;
        let waiting: Vec<_> = (held.len()..OPEN_OF_ONE_MAX)
            .map(|_| {
                let mut upload = turns.open(greedy).expect("not too many");
                tokio::spawn(async move { upload.turn().await })
            })
            .collect();
        assert!(matches!(turns.open(greedy), Err(UploadError::TooMany("uploads of one client"))));
        drop(held);
        for waiting in waiting {
            waiting.await.expect("no panic").expect("a turn");
        }
        assert!(turns.0.lock().uploaders.is_empty());
    }
}
