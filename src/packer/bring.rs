//! One NAR on its way into the store: packed from the Nix store or fetched, recorded, and its path let go; or, where it turns out to be
//! nowhere, not promised any more.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use narinfo::{NarHash, StorePath};

use super::Inner;
use crate::index::{self, NarRow, PathRow, UpstreamNar};
use crate::nar_store::{Draft, Expected, NarStore, PackError, Packed};
use crate::nix::DaemonError;

/// Whether a file that is right is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It was begun as the only one.
    Always,
    /// Unless there is one already, or one on its way: a file never changes under its final name.
    IfMissing,
}

/// How far what packs gives way to what answers, in steps of nice(2).
const NICE: i32 = 10;

impl Inner {
    /// Brings the NAR of `row` into the store: from an upstream where one has it, else from the Nix store.
    pub(super) async fn bring(self: &Arc<Self>, draft: Draft, row: PathRow) {
        let (path, nar) = (row.path.clone(), row.nar_hash);
        let brought = match self.upstreams_with(nar).await {
            Ok(upstreams) if upstreams.is_empty() => self.pack_or(draft, row, None).await,
            Ok(upstreams) => self.fetch(draft, row, upstreams).await,
            Err(error) => {
                tracing::error!(%path, error = &error as &dyn std::error::Error, "not packed");
                draft.abandon("the index cannot be read");
                None
            }
        };
        let Some(Packed { file_hash, file_size }) = brought else { return };
        match self.record(NarRow { nar_hash: nar, file_hash, file_size }).await {
            Ok(()) => self.let_go(&path, nar).await,
            Err(error) => {
                tracing::error!(%path, error = &error as &dyn std::error::Error, "packed, but not recorded");
            }
        }
    }

    /// The upstreams that have a NAR, the best first.
    pub(super) async fn upstreams_with(&self, nar: NarHash) -> Result<Vec<UpstreamNar>, index::Error> {
        let mut found = self.index.upstreams_with(nar).await?;
        found.retain(|nar| self.upstreams.rank(&nar.upstream).is_some());
        found.sort_by_key(|nar| self.upstreams.rank(&nar.upstream));
        Ok(found)
    }

    /// Packs it from the Nix store; where it is not there either, its readers hear the reason why it is not to be had else.
    pub(super) async fn pack_or(
        self: &Arc<Self>,
        draft: Draft,
        row: PathRow,
        reason: Option<String>,
    ) -> Option<Packed> {
        let _slot = self.slots.acquire().await.ok()?;
        let PathRow { path, nar_hash: hash, nar_size: bytes, .. } = row;
        let source = std::path::PathBuf::from(path.in_dir(&self.store_dir));
        let expected = Expected { hash, bytes };
        let pack = move |nars: &NarStore, draft: &Draft| nars.pack(draft, &source, expected);
        let (mut left, mut packed) = self.write(draft, hash, Kept::Always, pack).await;
        let mut is_final = true;
        if let Err(PackError::Vanished | PackError::Dump(_)) = packed
            && let Some(unread) = left.take_if(|draft| !draft.is_begun())
        {
            (left, packed, is_final) = self.pack_from_daemon(unread, &path, expected).await;
        }
        let error = match packed {
            Ok(packed) => return Some(packed),
            Err(error) => error,
        };
        let unservable = match &error {
            PackError::Vanished => None,
            PackError::Mismatch { .. } => Some(
                "it is damaged in the Nix store: run nix-store --verify --check-contents --repair".into(),
            ),
            PackError::Dump(narinfo::nar::Error::Refused(reason)) => {
                Some(format!("no NAR can be made of it: {reason}"))
            }
            PackError::Malformed(reason) => Some(format!("no NAR can be made of it: {reason}")),
            PackError::Sent(_) => Some("neither its files nor the Nix daemon can be read for it".into()),
            _ => {
                is_final = false;
                None
            }
        };
        if is_final {
            match (unservable, &reason) {
                // Not to be promised any longer: the next request for its narinfo looks anew.
                (None, Some(reason)) => {
                    tracing::warn!(%path, reason, "is not served any more: no upstream gives its contents");
                }
                (unservable, _) => {
                    if let Some(reason) = unservable {
                        let mut known = self.unservable.lock().unwrap_or_else(PoisonError::into_inner);
                        known.insert(hash, (Instant::now(), reason));
                    }
                    tracing::error!(%path, error = &error as &dyn std::error::Error, "cannot be served any more");
                }
            }
            self.forget(&path, hash).await;
        } else {
            tracing::warn!(%path, error = &error as &dyn std::error::Error, "not packed");
        }
        // Last: whoever hears of it and asks again at once must find what is true now.
        if let Some(draft) = left {
            draft.abandon(&reason.unwrap_or_else(|| error.to_string()));
        }
        None
    }

    /// Has the daemon send what cannot be read from here: its store may be elsewhere on the disk, or on another one. Whether what
    /// came of it is final.
    async fn pack_from_daemon(
        self: &Arc<Self>,
        draft: Draft,
        path: &StorePath,
        expected: Expected,
    ) -> (Option<Draft>, Result<Packed, PackError>, bool) {
        let (nar, mut failure) = match self.pool.nar(path, expected.bytes).await {
            Ok(sent) => sent,
            Err(DaemonError::Nix(_)) => return (Some(draft), Err(PackError::Vanished), true),
            Err(error) => return (Some(draft), Err(PackError::Sent(std::io::Error::other(error))), false),
        };
        let (left, packed) = self
            .write(draft, expected.hash, Kept::Always, move |nars, draft| {
                nars.pack_sent(draft, nar, expected)
            })
            .await;
        let lost = failure.try_recv().is_ok_and(|error| error.is_connection_lost());
        // One that sends nothing of a valid path cannot read it; one that stops on the way may be stopping.
        let is_final = !lost || left.as_ref().is_some_and(|draft| !draft.is_begun());
        (left, packed, is_final)
    }

    /// Has `work` write `draft` on a thread that may wait, and keeps it when that went well. A draft that went wrong comes
    /// back; its readers do not know yet.
    pub(super) async fn write(
        self: &Arc<Self>,
        draft: Draft,
        nar: NarHash,
        kept: Kept,
        work: impl FnOnce(&NarStore, &Draft) -> Result<Packed, PackError> + Send + 'static,
    ) -> (Option<Draft>, Result<Packed, PackError>) {
        let inner = Arc::clone(self);
        let (done, written) = tokio::sync::oneshot::channel();
        // One of its own, which hands its rank down to those that it starts; a borrowed one could not get its own back.
        let begun = std::thread::Builder::new().name("nar-packer".into()).spawn(move || {
            if let Err(error) = rustix::process::nice(NICE) {
                tracing::debug!(%error, "packing does not give way to answers");
            }
            // Nobody waits for it where the server stops.
            let (left, written) = match work(&inner.nars, &draft) {
                Ok(packed) if kept == Kept::IfMissing => {
                    let kept = if inner.claim(nar, &draft) {
                        let kept = inner.nars.keep(draft, nar);
                        inner.unclaim(nar);
                        kept
                    } else {
                        Ok(())
                    };
                    (None, kept.map(|()| packed).map_err(PackError::Write))
                }
                Ok(packed) => (None, inner.nars.keep(draft, nar).map(|()| packed).map_err(PackError::Write)),
                Err(error) => (Some(draft), Err(error)),
            };
            inner.nars.note_written(&written);
            let _ = done.send((left, written));
        });
        let failed = |error| (None, Err(PackError::Write(error)));
        match begun {
            Ok(_) => written.await.unwrap_or_else(|panicked| failed(std::io::Error::other(panicked))),
            Err(error) => failed(error),
        }
    }

    /// Stops serving what is nowhere any more.
    pub(super) async fn forget(&self, path: &StorePath, nar: NarHash) {
        match self.index.forget_paths(nar).await {
            Ok(()) => {
                self.nars.forget(nar);
                self.let_go(path, nar).await;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%path, error, "it stays promised until the next request");
            }
        }
    }

    /// Removes the roots of every path that has this NAR: `path`, and those with equal contents.
    pub(super) async fn let_go(&self, path: &StorePath, nar: NarHash) {
        self.roots.release(path);
        match self.index.paths_with_nar(nar).await {
            Ok(paths) => paths.iter().for_each(|path| self.roots.release(path)),
            Err(error) => {
                tracing::warn!(%path, error = &error as &dyn std::error::Error, "a GC root may stay until the next start");
            }
        }
    }
}
