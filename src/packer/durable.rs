//! The wait for a file that is in its place and becomes durable meanwhile.

use std::io;
use std::sync::Arc;

use tokio::sync::watch;

/// Outcome of a sync that is under way; clones share it.
#[derive(Clone)]
pub struct Durable(watch::Receiver<Option<Result<(), Arc<io::Error>>>>);

/// The side of who syncs.
pub(super) struct Syncing(watch::Sender<Option<Result<(), Arc<io::Error>>>>);

impl Durable {
    pub(super) fn channel() -> (Syncing, Self) {
        let (sender, receiver) = watch::channel(None);
        (Syncing(sender), Self(receiver))
    }

    /// Waits until the file is durable.
    ///
    /// # Errors
    /// The file cannot be made so, and is gone.
    pub async fn wait(&self) -> io::Result<()> {
        let mut outcome = self.0.clone();
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Err(error))) => Err(io::Error::new(error.kind(), Arc::clone(error))),
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the thread that makes files durable has panicked")),
        }
    }
}

impl Syncing {
    /// Tells those who wait how it went.
    pub(super) fn end(self, outcome: io::Result<()>) {
        self.0.send_replace(Some(outcome.map_err(Arc::new)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_wait_learn_how_the_sync_went_also_when_it_ends_without_a_word() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        for outcome in [Some(Ok(())), Some(Err(full())), None] {
            let expected = match &outcome {
                Some(outcome) => outcome.as_ref().map_err(io::Error::kind).copied(),
                None => Err(io::ErrorKind::Other),
            };
            let (syncing, durable) = Durable::channel();
            let others = durable.clone();
            let early = tokio::spawn(async move { others.wait().await.map_err(|error| error.kind()) });
            tokio::task::yield_now().await;
            match outcome {
                Some(outcome) => syncing.end(outcome),
                None => drop(syncing),
            }
            assert_eq!(early.await.expect("no panic"), expected);
            assert_eq!(durable.wait().await.map_err(|error| error.kind()), expected);
        }
    }
}
