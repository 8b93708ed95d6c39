//! Turns of uploaders: receiving a NAR takes threads and a file, so few are received at once, and no uploader
//! keeps all others from theirs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::UploadError;
use crate::caller::CallerKey;

/// NARs that are received at once, and those of one uploader. A client of Nix has 25 connections.
const RECEIVED_AT_ONCE_MAX: usize = 64;
const RECEIVED_OF_ONE_MAX: usize = 32;
/// Uploads of one uploader that are open, received or waiting for their turn.
const OPEN_OF_ONE_MAX: usize = 128;
/// Time for which an upload waits for its turn.
const TURN_WITHIN: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 120_000 });

/// Turns of all uploaders.
pub(super) struct UploadTurns {
    all: Arc<Semaphore>,
    uploaders: Arc<Mutex<HashMap<CallerKey, OpenUploads>>>,
}

struct OpenUploads {
    open: usize,
    turns: Arc<Semaphore>,
}

/// The turn of one upload.
pub struct UploadTurn {
    _permits: Option<[OwnedSemaphorePermit; 2]>,
    uploaders: Arc<Mutex<HashMap<CallerKey, OpenUploads>>>,
    id: CallerKey,
}

impl Default for UploadTurns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(RECEIVED_AT_ONCE_MAX)), uploaders: Arc::default() }
    }
}

impl UploadTurns {
    /// Waits for a turn.
    pub(super) async fn take(&self, id: CallerKey) -> Result<UploadTurn, UploadError> {
        let own = {
            let mut uploaders = self.uploaders.lock().unwrap_or_else(PoisonError::into_inner);
            let uploads = uploaders.entry(id).or_insert_with(|| OpenUploads {
                open: 0,
                turns: Arc::new(Semaphore::new(RECEIVED_OF_ONE_MAX)),
            });
            if uploads.open >= OPEN_OF_ONE_MAX {
                return Err(UploadError::TooMany("uploads of one client"));
            }
            uploads.open += 1;
            Arc::clone(&uploads.turns)
        };
        let mut turn = UploadTurn { _permits: None, uploaders: Arc::clone(&self.uploaders), id };
        let all = Arc::clone(&self.all);
        let permits = async { Some([own.acquire_owned().await.ok()?, all.acquire_owned().await.ok()?]) };
        turn._permits = timeout(TURN_WITHIN, permits).await.ok().flatten();
        if turn._permits.is_some() { Ok(turn) } else { Err(UploadError::TooMany("uploads of all clients")) }
    }
}

impl Drop for UploadTurn {
    fn drop(&mut self) {
        let mut uploaders = self.uploaders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uploads) = uploaders.get_mut(&self.id) {
            uploads.open -= 1;
            if uploads.open == 0 {
                uploaders.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_uploader_leaves_turns_to_others_and_has_a_bounded_number_open() {
        let turns = Arc::new(UploadTurns::default());
        let [greedy, other] = [1, 2].map(CallerKey::Token);
        let mut held = Vec::new();
        for _ in 0..RECEIVED_OF_ONE_MAX {
            held.push(turns.take(greedy).await.expect("a turn"));
        }
        let late = turns.take(greedy).await;
        assert!(matches!(late, Err(UploadError::TooMany("uploads of all clients"))));
        drop(late);
        let waiting: Vec<_> = (RECEIVED_OF_ONE_MAX..OPEN_OF_ONE_MAX)
            .map(|_| {
                let (turns, greedy) = (Arc::clone(&turns), greedy);
                tokio::spawn(async move { turns.take(greedy).await.map(drop) })
            })
            .collect();
        let open = || turns.uploaders.lock().expect("nothing panics")[&greedy].open;
        while open() < OPEN_OF_ONE_MAX {
            tokio::task::yield_now().await;
        }
        assert!(matches!(turns.take(greedy).await, Err(UploadError::TooMany("uploads of one client"))));
        drop(turns.take(other).await.expect("a turn"));
        drop(held);
        for waiting in waiting {
            waiting.await.expect("no panic").expect("a turn");
        }
        assert!(turns.uploaders.lock().expect("nothing panics").is_empty());
    }
}
