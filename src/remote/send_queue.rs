//! The sender of a queue of pushes: uploads the oldest entries together, waits where the server or Nix is
//! away, and sets an entry aside that the server refuses, so that it holds up no other.

use std::time::{Duration, Instant};

use narinfo::StoreDir;

use super::closure::LocalClosure;
use super::connection::Remote;
use super::error::Error;
use super::programs::ProgramError;
use super::queue::{PushQueue, QueueEntry, QueueError, QueuedPush, SenderLock};
use super::upload::{PushError, UploadCounts, upload};
use crate::backoff::Backoff;
use crate::causes::with_causes;

/// Entries that are sent together at most: their closures are asked for, and looked up, once.
const TOGETHER_MAX: usize = 100;
/// Pauses while the server or Nix is away.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Interval at which an empty queue is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Interval at which refused entries are tried again: a token or a key may have been mended.
const REFUSED_AGAIN_EVERY: Duration = Duration::from_secs(3600);

/// Step of a sender, for whoever watches.
#[derive(Debug)]
pub enum SendEvent<'a> {
    /// The server has the paths of so many entries.
    Sent {
        /// Number of the entries.
        entries: usize,
        /// Counts of the upload.
        counts: UploadCounts,
    },
    /// An entry was refused and set aside.
    Refused {
        /// Its paths.
        paths: &'a [String],
        /// Words of the server, or of Nix.
        reason: &'a str,
    },
    /// The next try comes after a pause.
    Waiting {
        /// Reason of the pause.
        reason: &'a str,
        /// Its length.
        pause: Duration,
    },
}

/// A sender. While it lives, no other one has the queue.
pub struct QueueSender<'a> {
    queue: PushQueue,
    remote: Remote,
    store_dir: StoreDir,
    told: Box<dyn FnMut(SendEvent<'_>) + Send + 'a>,
    pauses: Backoff,
    _lock: SenderLock,
}

impl<'a> QueueSender<'a> {
    /// The sender of a queue, whose refused entries are tried again.
    ///
    /// # Errors
    /// The queue has a sender, or cannot be used.
    pub fn new(
        queue: PushQueue,
        remote: Remote,
        store_dir: StoreDir,
        told: impl FnMut(SendEvent<'_>) + Send + 'a,
    ) -> Result<Self, QueueError> {
        let _lock = queue.lock()?;
        queue.retry_refused()?;
        let pauses = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        Ok(Self { queue, remote, store_dir, told: Box::new(told), pauses, _lock })
    }

    /// Sends until the queue is empty, however long the server is away.
    ///
    /// # Errors
    /// The queue cannot be read or written.
    pub async fn send(&mut self) -> Result<(), QueueError> {
        loop {
            let mut entries = self.queue.first(TOGETHER_MAX)?;
            let Some(derivation) = entries.first().map(is_of_derivation) else { return Ok(()) };
            // One question to Nix is for either kind.
            let alike = entries.iter().take_while(|entry| is_of_derivation(entry) == derivation).count();
            entries.truncate(alike);
            self.send_all(&entries).await?;
        }
    }

    /// Sends what comes, for as long as the program runs.
    ///
    /// # Errors
    /// The queue cannot be read or written.
    pub async fn follow(&mut self) -> Result<(), QueueError> {
        let mut refused_at = Instant::now();
        loop {
            self.send().await?;
            tokio::time::sleep(LOOK_EVERY).await;
            if refused_at.elapsed() > REFUSED_AGAIN_EVERY {
                refused_at = Instant::now();
                self.queue.retry_refused()?;
            }
        }
    }

    /// Sends entries of one kind together; each by itself where one of them is refused.
    async fn send_all(&mut self, entries: &[QueueEntry]) -> Result<(), QueueError> {
        match self.upload_patiently(entries).await {
            Ok(counts) => {
                entries.iter().try_for_each(|entry| self.queue.remove(entry))?;
                (self.told)(SendEvent::Sent { entries: entries.len(), counts });
                Ok(())
            }
            Err(reason) if entries.len() == 1 => {
                self.queue.set_aside(&entries[0], &reason)?;
                let paths = entries[0].push.as_ref().map_or(&[][..], |push| &push.paths);
                (self.told)(SendEvent::Refused { paths, reason: &reason });
                Ok(())
            }
            Err(_) => {
                for entry in entries {
                    Box::pin(self.send_all(std::slice::from_ref(entry))).await?;
                }
                Ok(())
            }
        }
    }

    /// Uploads the paths of the entries, again and again while what fails may pass. The error is a refusal.
    async fn upload_patiently(&mut self, entries: &[QueueEntry]) -> Result<UploadCounts, String> {
        let mut paths = Vec::new();
        for entry in entries {
            let push = entry.push.as_ref().ok_or("the entry cannot be read")?;
            paths.extend(push.paths.iter().cloned());
        }
        let derivation = entries.first().is_some_and(is_of_derivation);
        loop {
            let closure = LocalClosure::of(&self.store_dir, &paths, derivation).await;
            let uploaded = match closure {
                Ok(closure) => upload(&self.remote, &self.store_dir, closure, |_| {}).await,
                Err(error) => Err(error.into()),
            };
            match uploaded {
                Ok(counts) => {
                    self.pauses.reset();
                    return Ok(counts);
                }
                Err(error) if may_pass(&error) => {
                    let (reason, pause) = (with_causes(&error), self.pauses.pause());
                    (self.told)(SendEvent::Waiting { reason: &reason, pause });
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(with_causes(&error)),
            }
        }
    }
}

fn is_of_derivation(entry: &QueueEntry) -> bool {
    matches!(entry.push, Some(QueuedPush { derivation: true, .. }))
}

/// True where the fault is not the entry's: the next one would meet it, too.
fn may_pass(error: &PushError) -> bool {
    match error {
        PushError::Server(Error::NotOndine { .. }) => true,
        PushError::Server(error) => error.is_transient(),
        PushError::Nix(ProgramError::NotStarted { .. }) => true,
        PushError::Nix(_) | PushError::Pack { .. } => false,
    }
}
