//! Bringing one NAR into the store: it is packed or fetched, recorded, and the GC roots of its paths are
//! released. A NAR without any source is not served any more.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use narinfo::{NarHash, PathInfo, StorePath};

use super::durable::{Durable, Syncing};
use super::leases::Lease;
use super::{Error, Inner};
use crate::index;
use crate::model::{NarRow, NewNar, PathRow, UpstreamNar};
use crate::nar_store::{Blob, Commit, Draft, NarDigest, NarStore, PackError, Packed, PlacedDraft, Received};
use crate::nix::DaemonError;

/// A NAR that is verified and in its place, and has no row yet: it is to be durable first.
pub(super) struct PlacedNar {
    pub(super) received: Received,
    pub(super) commit: Commit,
    pub(super) version: Option<Arc<str>>,
    pub(super) lease: Lease,
    pub(super) durable: Durable,
}

/// A NAR in its place, with what makes its file durable.
struct UnsyncedNar {
    placed: PlacedNar,
    file: PlacedDraft,
    syncing: Syncing,
}

/// A NAR that is verified and durable, and has no row yet.
pub(super) struct Committed {
    pub(super) received: Received,
    pub(super) commit: Commit,
    /// Version of its object, which another one may have taken the place of: see [`Inner::confirm`].
    pub(super) version: Option<Arc<str>>,
    pub(super) lease: Lease,
}

/// Steps of nice(2) by which packing gives way to answers.
const NICE: i32 = 10;

impl Inner {
    /// Brings the NAR of `row` into the store: from an upstream where one has it, else from the Nix store.
    pub(super) async fn bring(self: &Arc<Self>, draft: Draft, row: PathRow) {
        let (path, nar, nar_size) = (row.info.path.clone(), row.info.nar_hash, row.info.nar_size);
        let brought = match self.upstreams_with(nar).await {
            Ok(upstreams) if upstreams.is_empty() => self.pack_or(draft, row, None).await,
            Ok(upstreams) => self.fetch(draft, row, upstreams).await,
            Err(error) => {
                tracing::error!(%path, error = &error as &dyn std::error::Error, "cannot pack a path; the next request for it tries again");
                draft.abandon("the index cannot be read");
                None
            }
        };
        let Some(Committed { received, commit, version, lease }) = brought else { return };
        if commit == Commit::Lost {
            // Another file of this NAR came first, with a hash of its own.
            if let Ok(Some(blob)) = self.blob(nar).await
                && self.record_stored(nar, nar_size, &path, blob).await
            {
                lease.recorded();
            }
            return;
        }
        let Received { packed: Packed { file_hash, file_size }, programs, .. } = received;
        let row = NarRow { nar_hash: nar, file_hash, file_size };
        match self.record(NewNar { row, programs }).await {
            Ok(()) => {
                lease.recorded();
                self.confirm(nar, version).await;
                self.release_roots(&path, nar).await;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%path, error, "cannot record a packed NAR: it is recorded on the next request");
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

    /// Packs a NAR from the Nix store. `reason` says why no upstream gave it, for readers of a NAR that is
    /// not there, either.
    pub(super) async fn pack_or(
        self: &Arc<Self>,
        draft: Draft,
        row: PathRow,
        reason: Option<String>,
    ) -> Option<Committed> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        let PathInfo { path, nar_hash: hash, nar_size: bytes, .. } = row.info;
        let source = std::path::PathBuf::from(path.in_dir(&self.store_dir));
        let promised = NarDigest { hash, bytes };
        let pack = move |nars: &NarStore, draft: &Draft| {
            // Not for the time of the commit, which may wait for a storage elsewhere.
            let _slot = slot;
            nars.pack(draft, &source, promised)
        };
        let (mut left, mut packed) = self.write(draft, pack).await;
        let mut is_final = true;
        if let Err(PackError::Vanished | PackError::Dump(_)) = packed
            && let Some(unread) = left.take_if(|draft| !draft.is_begun())
        {
            (left, packed, is_final) = self.pack_from_daemon(unread, &path, promised).await;
        }
        let error = match packed {
            Ok(committed) => return Some(committed),
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
            PackError::Sent(_) => Some("neither its files nor the Nix daemon can be read".into()),
            _ => {
                is_final = false;
                None
            }
        };
        if is_final {
            match (unservable, &reason) {
                // Not promised any longer: the next request for its narinfo repeats the look-up.
                (None, Some(reason)) => {
                    tracing::warn!(%path, reason, "stopped serving a path: neither an upstream nor the Nix store has it");
                }
                (unservable, _) => {
                    if let Some(reason) = unservable {
                        let mut known = self.unservable.lock().unwrap_or_else(PoisonError::into_inner);
                        known.insert(hash, (Instant::now(), reason));
                    }
                    tracing::error!(
                        %path,
                        error = &error as &dyn std::error::Error,
                        "stopped serving a path: it cannot be packed"
                    );
                }
            }
            self.forget(&path, hash).await;
        } else {
            tracing::warn!(%path, error = &error as &dyn std::error::Error, "cannot pack a path; the next request for it tries again");
        }
        // Last, because a reader that asks again at once must find the new state.
        if let Some(draft) = left {
            draft.abandon(&reason.unwrap_or_else(|| error.to_string()));
        }
        None
    }

    /// Packs what the Nix daemon sends of a path that cannot be read from here: its store may be on another
    /// disk. The flag is true if the result is final.
    async fn pack_from_daemon(
        self: &Arc<Self>,
        draft: Draft,
        path: &StorePath,
        promised: NarDigest,
    ) -> (Option<Draft>, Result<Committed, PackError>, bool) {
        let (nar, mut failure) = match self.pool.nar(path, promised.bytes).await {
            Ok(sent) => sent,
            Err(DaemonError::Nix(_)) => return (Some(draft), Err(PackError::Vanished), true),
            Err(error) => return (Some(draft), Err(PackError::Sent(std::io::Error::other(error))), false),
        };
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let pack = move |nars: &NarStore, draft: &Draft| {
            let _slot = slot;
            nars.pack_sent(draft, nar, promised)
        };
        let (left, packed) = self.write(draft, pack).await;
        let lost = failure.try_recv().is_ok_and(|error| error.is_connection_lost());
        // A daemon that sends nothing of a valid path cannot read it; one that stops on the way may be
        // shutting down.
        let is_final = !lost || left.as_ref().is_some_and(|draft| !draft.is_begun());
        (left, packed, is_final)
    }

    /// Runs `work`, which writes `draft`, on a thread of its own, and commits the draft when that went well.
    /// A draft that went wrong comes back; its readers do not know yet.
    pub(super) async fn write(
        self: &Arc<Self>,
        draft: Draft,
        work: impl FnOnce(&NarStore, &Draft) -> Result<Received, PackError> + Send + 'static,
    ) -> (Option<Draft>, Result<Committed, PackError>) {
        let (left, placed) = self.write_new(|_| Ok(draft), |_, _| Ok(()), work).await;
        let committed = match placed {
            Ok(PlacedNar { received, commit, version, lease, durable }) => {
                let synced = durable.wait().await.map_err(PackError::Write);
                synced.map(|()| Committed { received, commit, version, lease })
            }
            Err(error) => Err(error),
        };
        (left, committed)
    }

    /// The same with a draft that is begun there: nobody follows it yet. `mark` is run before the file is
    /// there, under its lease. Resolves once the file is in its place.
    pub(super) async fn write_new(
        self: &Arc<Self>,
        begin: impl FnOnce(&NarStore) -> std::io::Result<Draft> + Send + 'static,
        mark: impl FnOnce(&NarStore, NarHash) -> std::io::Result<()> + Send + 'static,
        work: impl FnOnce(&NarStore, &Draft) -> Result<Received, PackError> + Send + 'static,
    ) -> (Option<Draft>, Result<PlacedNar, PackError>) {
        let inner = Arc::clone(self);
        let (done, written) = tokio::sync::oneshot::channel();
        // A fresh thread hands its rank down to those that it starts; a pooled one could not get its own
        // back.
        let begun = std::thread::Builder::new().name("nar-packer".into()).spawn(move || {
            if let Err(error) = rustix::process::nice(NICE) {
                tracing::debug!(%error, "cannot lower the rank of a packing thread");
            }
            // Nobody waits for it when the server stops.
            let (left, placed) = inner.write_in_place(begin, mark, work);
            match placed {
                Ok(UnsyncedNar { placed, file, syncing }) => {
                    let nar = placed.received.nar.hash;
                    let _ = done.send((None, Ok(placed)));
                    let synced = file.sync();
                    if let Err(error) = &synced {
                        tracing::error!(%nar, %error, "cannot make a NAR durable; it is not recorded");
                    }
                    inner.nars.note_written(synced.as_ref().err());
                    syncing.end(synced);
                }
                Err(error) => {
                    if let PackError::Write(error) = &error {
                        inner.nars.note_written(Some(error));
                    }
                    let _ = done.send((left, Err(error)));
                }
            }
        });
        let failed = |error| (None, Err(PackError::Write(error)));
        match begun {
            Ok(_) => written.await.unwrap_or_else(|panicked| failed(std::io::Error::other(panicked))),
            Err(error) => failed(error),
        }
    }

    /// The steps of [`Inner::write_new`] on its thread.
    fn write_in_place(
        &self,
        begin: impl FnOnce(&NarStore) -> std::io::Result<Draft>,
        mark: impl FnOnce(&NarStore, NarHash) -> std::io::Result<()>,
        work: impl FnOnce(&NarStore, &Draft) -> Result<Received, PackError>,
    ) -> (Option<Draft>, Result<UnsyncedNar, PackError>) {
        let draft = match begin(&self.nars) {
            Ok(draft) => draft,
            Err(error) => return (None, Err(PackError::Write(error))),
        };
        let received = match work(&self.nars, &draft) {
            Ok(received) => received,
            Err(error) => return (Some(draft), Err(error)),
        };
        let nar = received.nar.hash;
        let (lease, (syncing, durable)) = (self.leases.take(nar), self.syncs.announce(nar));
        let placed = mark(&self.nars, nar).and_then(|()| self.nars.place(draft, &received));
        let placed = placed.map(|file| {
            let (commit, version) = (file.outcome(), file.version());
            UnsyncedNar { placed: PlacedNar { received, commit, version, lease, durable }, file, syncing }
        });
        (None, placed.map_err(PackError::Write))
    }

    /// Opens the file of a NAR on a blocking thread.
    pub(super) async fn blob(self: &Arc<Self>, nar: NarHash) -> Result<Option<Blob>, Error> {
        self.nars.run(move |nars| nars.blob(nar)).await.map_err(Error::Store)
    }

    /// Stops serving a NAR without any source.
    pub(super) async fn forget(&self, path: &StorePath, nar: NarHash) {
        match self.index.forget_paths(nar).await {
            Ok(()) => {
                let nars = self.nars.clone();
                // The runtime reports a panic; the caches are bounded anyway.
                let _ = tokio::task::spawn_blocking(move || nars.forget(nar)).await;
                self.release_roots(path, nar).await;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%path, error, "cannot stop serving a path: the next request tries again");
            }
        }
    }

    /// Removes the GC roots of every path that has this NAR: `path`, and those with equal contents.
    pub(super) async fn release_roots(&self, path: &StorePath, nar: NarHash) {
        self.roots.release(path);
        match self.index.paths_with_nar(nar).await {
            Ok(paths) => paths.iter().for_each(|path| self.roots.release(path)),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%path, error, "cannot release all GC roots: they stay until the next start");
            }
        }
    }
}
