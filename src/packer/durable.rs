//! The wait for files that are in their places and become durable meanwhile. Of equal NARs the first file
//! stays: whoever finds it there relies on the sync of its writer, too.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narinfo::NarHash;
use tokio::sync::watch;

/// Outcome of a sync, once there is one.
type SyncOutcome = watch::Receiver<Option<Result<(), Arc<io::Error>>>>;

/// The wait for a file to be durable; clones share it.
#[derive(Clone)]
pub struct Durable {
    own: SyncOutcome,
    /// Sync by the writer whose file it is, where that is another one.
    first: Option<SyncOutcome>,
}

/// Syncs that are to come or under way, by NAR; clones share them.
#[derive(Clone, Default)]
pub(super) struct Syncs(Arc<Mutex<HashMap<NarHash, SyncOutcome>>>);

/// A sync that is to come or under way. Dropped before its end, it has failed.
pub(super) struct Syncing {
    outcome: watch::Sender<Option<Result<(), Arc<io::Error>>>>,
    nar: NarHash,
    /// The list that it stands in, where no other sync of the NAR did.
    listed_in: Option<Syncs>,
}

impl Syncs {
    /// Announces the sync of a file that is about to be put in its place.
    pub(super) fn announce(&self, nar: NarHash) -> (Syncing, Durable) {
        let (outcome, own) = watch::channel(None);
        let mut listed = self.listed();
        let first = listed.get(&nar).cloned();
        if first.is_none() {
            listed.insert(nar, own.clone());
        }
        drop(listed);
        let listed_in = first.is_none().then(|| self.clone());
        (Syncing { outcome, nar, listed_in }, Durable { own, first })
    }

    fn listed(&self) -> MutexGuard<'_, HashMap<NarHash, SyncOutcome>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Durable {
    /// Waits until the file is durable.
    ///
    /// # Errors
    /// The file cannot be made so, and is gone.
    pub async fn wait(&self) -> io::Result<()> {
        for outcome in self.outcomes() {
            let mut outcome = outcome.clone();
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(error))) => return Err(io::Error::new(error.kind(), Arc::clone(error))),
                Ok(_) => {}
                Err(_) => return Err(io::Error::other("the thread that makes files durable has panicked")),
            }
        }
        Ok(())
    }

    /// True once it is known that the file cannot be made durable.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.outcomes().any(|outcome| match &*outcome.borrow() {
            Some(outcome) => outcome.is_err(),
            None => outcome.has_changed().is_err(),
        })
    }

    fn outcomes(&self) -> impl Iterator<Item = &SyncOutcome> {
        self.first.iter().chain([&self.own])
    }
}

impl Syncing {
    /// Tells those who wait how it went.
    pub(super) fn end(self, outcome: io::Result<()>) {
        self.outcome.send_replace(Some(outcome.map_err(Arc::new)));
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        if let Some(syncs) = &self.listed_in {
            syncs.listed().remove(&self.nar);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAR: NarHash = NarHash::from_bytes([7; 32]);

    fn full() -> io::Error {
        io::ErrorKind::StorageFull.into()
    }

    #[tokio::test]
    async fn all_who_wait_learn_how_the_sync_went_also_when_it_ends_without_a_word() {
        for outcome in [Some(Ok(())), Some(Err(full())), None] {
            let expected = match &outcome {
                Some(outcome) => outcome.as_ref().map_err(io::Error::kind).copied(),
                None => Err(io::ErrorKind::Other),
            };
            let (syncing, durable) = Syncs::default().announce(NAR);
            let others = durable.clone();
            let early = tokio::spawn(async move { others.wait().await.map_err(|error| error.kind()) });
            tokio::task::yield_now().await;
            assert!(!durable.has_failed());
            match outcome {
                Some(outcome) => syncing.end(outcome),
                None => drop(syncing),
            }
            assert_eq!(early.await.expect("no panic"), expected);
            assert_eq!(durable.wait().await.map_err(|error| error.kind()), expected);
            assert_eq!(durable.has_failed(), expected.is_err());
        }
    }

    #[tokio::test]
    async fn who_finds_the_file_of_another_one_relies_on_both_syncs() {
        let syncs = Syncs::default();
        for fails in [true, false] {
            let (first, _) = syncs.announce(NAR);
            let (second, durable) = syncs.announce(NAR);
            second.end(Ok(()));
            let waited = durable.clone();
            let waiting = tokio::spawn(async move { waited.wait().await.is_err() });
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished() && !durable.has_failed(), "the first is under way");
            first.end(if fails { Err(full()) } else { Ok(()) });
            assert_eq!(waiting.await.expect("no panic"), fails);
            assert_eq!(durable.has_failed(), fails);
            assert!(syncs.listed().is_empty());
        }
    }
}
