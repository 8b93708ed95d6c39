//! Upkeep: files and rows agree. A file without a row is verified and recorded, a row whose file is missing
//! or corrupt is removed with it, and an orphaned file is removed. Must never remove a file that has taken
//! the place of the one that was inspected.

use std::sync::Arc;

use narinfo::{NarHash, StorePath};

use super::{Error, Inner, Nar, Packer};
use crate::causes::with_causes;
use crate::index;
use crate::model::{NarRow, NewNar};
use crate::nar_store::{Blob, NarDigest, NarStore, PackError, Packed};
use crate::room::Room;
use crate::tail_file::reading;

/// Bytes a second that the scrub reads, at most.
const SCRUB_BYTES_PER_SECOND: u64 = 16 * 1024 * 1024;
/// Steps of nice(2) by which the scrub gives way.
const SCRUB_NICE: i32 = 19;

/// Fault of a packed NAR.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Its file is missing.
    #[error("its file is missing")]
    Missing,
    /// Its file was cut short, or something was added.
    #[error("its file has {found} bytes, and {recorded} are on record")]
    Size {
        /// Bytes of the file.
        found: u64,
        /// Bytes on record.
        recorded: u64,
    },
    /// Its file was verified, and holds something else.
    #[error("its file is damaged")]
    Damaged(#[source] PackError),
    /// Its file holds the right NAR, but has another hash than narinfos say.
    #[error("its file is another one than is on record")]
    Another,
}

/// Depth of an inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The file is there and has its size.
    Size,
    /// All of the file is read and verified.
    Contents,
    /// All of the file is read and verified, slowly, and behind everything else.
    Gently,
}

/// Fate of the file of a NAR that is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    /// Deleted.
    Deleted,
    /// Moved to the quarantine, for an investigation of the cause.
    Quarantined,
}

/// A packed NAR that cannot be served as it is.
#[derive(Debug)]
pub struct Corruption {
    /// Fault of the NAR.
    pub fault: Fault,
    row: NarRow,
    /// The file that was inspected.
    seen: Option<Blob>,
}

impl Corruption {
    /// Corruption that shows without reading the file of a NAR that is about to be sent.
    pub(super) fn at_sight(nar: &Nar, row: &NarRow) -> Option<Self> {
        match nar {
            Nar::Growing(_) => Some(Self { fault: Fault::Missing, row: *row, seen: None }),
            Nar::Stored(stored) => Self::of_size(stored, row),
        }
    }

    /// True if the contents are wrong: a client that is given them gets other bytes than promised.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self.fault, Fault::Damaged(_))
    }

    fn of_size(stored: &Blob, row: &NarRow) -> Option<Self> {
        let (found, recorded) = (stored.bytes(), row.file_size);
        let fault = Fault::Size { found, recorded };
        (found != recorded).then(|| Self { fault, row: *row, seen: Some(stored.clone()) })
    }
}

impl Packer {
    /// Inspects a packed NAR as deeply as `look` says.
    ///
    /// # Errors
    /// The index fails, or the file cannot be opened.
    pub async fn inspect(&self, row: &NarRow, look: Look) -> Result<Option<Corruption>, Error> {
        let Some(stored) = self.0.blob(row.nar_hash).await? else {
            return Ok(Some(Corruption { fault: Fault::Missing, row: *row, seen: None }));
        };
        let corruption = Corruption::of_size(&stored, row);
        if corruption.is_some() || look == Look::Size {
            return Ok(corruption);
        }
        // A NAR without a path is not served.
        let Some(path) = self.0.index.path_with_nar(row.nar_hash).await? else { return Ok(None) };
        let promised = NarDigest { hash: path.info.nar_hash, bytes: path.info.nar_size };
        let verified = match look {
            Look::Gently => self.0.verify_gently(stored.clone(), promised).await,
            _ => self.0.verify(stored.clone(), promised).await,
        };
        let fault = match verified {
            Ok(packed) if packed.file_hash == row.file_hash => return Ok(None),
            Ok(_) => Fault::Another,
            Err(error) => Fault::Damaged(error),
        };
        Ok(Some(Corruption { fault, row: *row, seen: Some(stored) }))
    }

    /// Removes a corrupt file and its row, unless something else has taken their place: the NAR is packed or
    /// fetched again, or its paths stop being served.
    ///
    /// # Errors
    /// The index or the NAR store fails.
    pub async fn repair(&self, corruption: Corruption) -> Result<(), Error> {
        self.remove_corrupt(corruption, Removal::Deleted).await
    }

    /// Does as [`Packer::repair`], but moves the file to the quarantine.
    ///
    /// # Errors
    /// The index or the NAR store fails.
    pub async fn quarantine(&self, corruption: Corruption) -> Result<(), Error> {
        self.remove_corrupt(corruption, Removal::Quarantined).await
    }

    async fn remove_corrupt(&self, corruption: Corruption, removal: Removal) -> Result<(), Error> {
        self.0
            .remove(corruption.row.nar_hash, Some(corruption.row), corruption.seen.as_ref(), removal)
            .await?;
        self.wake();
        Ok(())
    }

    /// Those of `rows` whose files are missing. Storage elsewhere is not asked.
    ///
    /// # Errors
    /// The NAR store cannot be read.
    pub async fn without_file(&self, mut rows: Vec<NarRow>) -> Result<Vec<NarRow>, Error> {
        if self.stores_elsewhere() {
            return Ok(Vec::new());
        }
        if let [row] = rows[..]
            && self.0.nars.is_at_hand(row.nar_hash)
        {
            return Ok(Vec::new());
        }
        let look = move |nars: &NarStore| {
            let mut missing = Vec::new();
            for row in rows.drain(..) {
                if nars.blob(row.nar_hash)?.is_none() {
                    missing.push(row);
                }
            }
            Ok(missing)
        };
        self.0.nars.run(look).await.map_err(Error::Store)
    }

    /// Takes back that a NAR is packed whose file is missing.
    ///
    /// # Errors
    /// The index or the NAR store fails.
    pub async fn take_back(&self, row: NarRow) -> Result<(), Error> {
        self.0.remove(row.nar_hash, Some(row), None, Removal::Deleted).await
    }

    /// Stops serving the paths with a NAR that is nowhere.
    pub async fn stop_serving(&self, path: &StorePath, nar: NarHash) {
        self.0.forget(path, nar).await;
    }

    /// Checks that NARs can be stored now.
    ///
    /// # Errors
    /// With the reason why not.
    pub async fn check_writable(&self) -> std::io::Result<()> {
        self.0.nars.run(NarStore::check_writable).await
    }

    /// True where evicting a NAR gives the disk of this machine no room.
    #[must_use]
    pub fn stores_elsewhere(&self) -> bool {
        self.0.nars.is_remote()
    }

    /// Room of the NAR store.
    ///
    /// # Errors
    /// The system call fails.
    pub fn room(&self) -> Result<Room, Error> {
        self.0.nars.room().map_err(Error::Store)
    }

    /// Frees room that serving does not need: the plain cache and the quarantine.
    pub async fn drop_spare_files(&self) {
        let nars = self.0.nars.clone();
        let dropping = tokio::task::spawn_blocking(move || {
            nars.drop_copies();
            nars.empty_quarantine(0);
        });
        // The runtime reports a panic, which leaves files that go later.
        let _ = dropping.await;
    }

    /// Verifies a NAR whose answer was aborted because its file could not be read, and quarantines the file
    /// if it is corrupt.
    pub fn suspect(&self, nar: NarHash) {
        let packer = self.clone();
        self.0.tasks.optional("nar-verification", async move {
            let judged = async {
                let Some(row) = packer.0.index.packed(nar).await? else { return Ok(()) };
                let nars = packer.0.nars.clone();
                // It is what could not be read, where there is one.
                let forget = move || {
                    nars.forget_copy(nar);
                    Ok(())
                };
                reading(forget).await.map_err(Error::Store)?;
                let Some(corruption) = packer.inspect(&row, Look::Contents).await? else { return Ok(()) };
                let fault = with_causes(&corruption.fault);
                tracing::error!(%nar, fault, "quarantined a stored NAR: it is packed or fetched again");
                packer.quarantine(corruption).await
            };
            if let Err(error) = judged.await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%nar, error, "cannot verify a stored NAR that could not be read: run `ondine fsck --verify`");
            }
        });
    }

    /// Removes the file of a NAR without a row, unless a lease on it is held. Returns true if it did.
    ///
    /// # Errors
    /// The index or the NAR store fails.
    pub async fn discard(&self, nar: NarHash) -> Result<bool, Error> {
        if self.0.index.packed(nar).await?.is_some() {
            return Ok(false);
        }
        let _withdrawn = self.0.publication.withdraw_nar(nar).await?;
        let _lock = self.0.file_row_lock.lock().await;
        if self.0.index.packed(nar).await?.is_some() {
            return Ok(false);
        }
        let inner = Arc::clone(&self.0);
        let removed = self.0.nars.run(move |nars| match inner.leases.remove(nar) {
            Some(_removal) => nars.remove(nar),
            // Committed a moment ago, and its row is to come.
            None => Ok(false),
        });
        let is_removed = removed.await.map_err(Error::Store)?;
        if self.0.index.is_shared() && self.0.index.packed(nar).await?.is_some() {
            // Another server has found the file a moment before it went: it is to be stored again.
            self.0.index.forget_packed(nar).await?;
        }
        Ok(is_removed)
    }

    /// Lists the orphaned files, which neither a row nor a lease nor a served path has: an interrupted
    /// eviction leaves such files, and the loss of the index. A file that a served path has is recorded
    /// instead.
    ///
    /// # Errors
    /// The index fails, or the NAR store cannot be read.
    pub async fn orphans(&self) -> Result<Vec<NarHash>, Error> {
        let (mut orphans, mut after) = (Vec::new(), None);
        loop {
            let page = self.0.nars.run(move |nars| nars.list(after)).await.map_err(Error::Store)?;
            let Some(last) = page.last().copied() else { return Ok(orphans) };
            after = Some(last);
            for nar in self.0.index.not_packed(page).await? {
                if self.0.is_orphan(nar).await? {
                    orphans.push(nar);
                }
            }
        }
    }

    /// Removes the files whose last lease has ended without a row, unless a path has them by now.
    pub(super) async fn sweep(&self) {
        self.sweep_all(self.0.leases.take_unrecorded()).await;
    }

    /// Does the same with NARs that an earlier run has received, and that no narinfo has named.
    pub(super) async fn sweep_marked(&self) {
        let nars = self.0.nars.clone();
        match reading(move || nars.unnamed().list()).await {
            Ok(marked) => self.sweep_all(marked).await,
            Err(error) => {
                tracing::warn!(%error, "cannot list uploads of an earlier run: run `ondine gc` to remove them");
            }
        }
    }

    async fn sweep_all(&self, nars: Vec<NarHash>) {
        for nar in nars {
            let swept = async {
                if self.0.index.packed(nar).await?.is_none() && self.0.is_orphan(nar).await? {
                    self.discard(nar).await?;
                }
                let inner = Arc::clone(&self.0);
                let clear = move || {
                    // Of a NAR that is received again, the mark is needed: it is made under a lease.
                    if let Some(_removal) = inner.leases.remove(nar) {
                        inner.nars.unnamed().clear(nar);
                    }
                    Ok(())
                };
                reading(clear).await.map_err(Error::Store)
            };
            if let Err(error) = swept.await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%nar, error, "a file without a row was not removed: run `ondine gc` to remove it");
            }
        }
    }
}

impl Inner {
    /// True for the file of a NAR without a row if it has no lease and no path. A file that a path has is
    /// recorded instead.
    async fn is_orphan(self: &Arc<Self>, nar: NarHash) -> Result<bool, Error> {
        if self.leases.is_leased(nar) {
            return Ok(false);
        }
        match (self.index.path_with_nar(nar).await?, self.blob(nar).await?) {
            (None, blob) => Ok(blob.is_some()),
            (Some(_), Some(stored)) => {
                self.record_found(nar, stored).await;
                Ok(false)
            }
            (Some(_), None) => Ok(false),
        }
    }

    /// Records a packed NAR and its programs. Its file is committed.
    pub(super) async fn record(&self, nar: NewNar) -> Result<(), index::Error> {
        let _lock = self.file_row_lock.lock().await;
        self.index.record_packed(nar).await?;
        self.stored.notify_one();
        Ok(())
    }

    /// Verifies and records a file without a row, which an interrupted run leaves. False if that must be
    /// tried again.
    pub(super) async fn record_found(self: &Arc<Self>, nar: NarHash, stored: Blob) -> bool {
        match self.index.path_with_nar(nar).await {
            Ok(Some(row)) => self.record_stored(nar, row.info.nar_size, &row.info.path, stored).await,
            Ok(None) => true,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%nar, error, "cannot record a stored NAR: it is tried again");
                false
            }
        }
    }

    /// Does the same for a path that is served, or will be next.
    pub(super) async fn record_stored(
        self: &Arc<Self>,
        nar: NarHash,
        nar_size: u64,
        path: &StorePath,
        stored: Blob,
    ) -> bool {
        let found = async {
            let promised = NarDigest { hash: nar, bytes: nar_size };
            let Packed { file_hash, file_size } = match self.verify(stored.clone(), promised).await {
                Ok(packed) => packed,
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(%nar, error, "removing a file without a row, which is corrupt");
                    self.remove(nar, None, Some(&stored), Removal::Deleted).await?;
                    return Ok(false);
                }
            };
            let file = stored.clone();
            reading(move || file.sync()).await.map_err(Error::Store)?;
            {
                let _lock = self.file_row_lock.lock().await;
                if !self.is_in_place(nar, Some(&stored)).await? {
                    return Ok(false);
                }
                self.index.record_packed(NarRow { nar_hash: nar, file_hash, file_size }.into()).await?;
            }
            self.stored.notify_one();
            self.release_roots(path, nar).await;
            Ok::<_, Error>(true)
        };
        found.await.unwrap_or_else(|error| {
            tracing::error!(%nar, error = &error as &dyn std::error::Error, "cannot record a stored NAR: it is tried again");
            false
        })
    }

    /// Looks if the object of a NAR is still the one of this version, once that has its row, and makes the
    /// row true of the one that has taken its place. Of uploads that have all won, each does so after its row
    /// is written: whoever looks last sees the object that stays.
    pub(super) async fn confirm(self: &Arc<Self>, nar: NarHash, version: Option<Arc<str>>) {
        let Some(version) = version else { return };
        match self.blob(nar).await {
            Ok(Some(stored)) if stored.version() != Some(&version) => {
                tracing::debug!(%nar, "another upload of a NAR has won, too: recording the one that stays");
                self.record_found(nar, stored).await;
            }
            Ok(_) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(%nar, error, "cannot look at an object again; its readers verify it");
            }
        }
    }

    /// Removes a file and its row, if both are those that were inspected. The file first: a corrupt one must
    /// not be found without a row and taken for the work of an interrupted run.
    async fn remove(
        self: &Arc<Self>,
        nar: NarHash,
        row: Option<NarRow>,
        seen: Option<&Blob>,
        removal: Removal,
    ) -> Result<(), Error> {
        // Of a file that is missing already, narinfos are withdrawn once the row is gone: a request may wait.
        let _withdrawn = match seen {
            Some(_) => Some(self.publication.withdraw_nar(nar).await?),
            None => None,
        };
        let _lock = self.file_row_lock.lock().await;
        if self.index.packed(nar).await? != row || !self.is_in_place(nar, seen).await? {
            return Ok(());
        }
        let is_missing = seen.is_none();
        let removing = self.nars.run(move |nars| match removal {
            // A file that has come since is another one.
            _ if is_missing => {
                nars.forget(nar);
                Ok(())
            }
            Removal::Quarantined => nars.quarantine(nar),
            Removal::Deleted => nars.remove(nar).map(drop),
        });
        removing.await.map_err(Error::Store)?;
        Ok(self.index.forget_packed(nar).await?)
    }

    /// True if the file of a NAR is this one; `None` means that there is none.
    pub(super) async fn is_in_place(
        self: &Arc<Self>,
        nar: NarHash,
        seen: Option<&Blob>,
    ) -> Result<bool, Error> {
        match (self.blob(nar).await?, seen) {
            (Some(now), Some(seen)) => now.is(seen).map_err(Error::Store),
            (now, seen) => Ok(now.is_none() && seen.is_none()),
        }
    }

    /// Verifies all of a file, as many at once as there are cores.
    async fn verify(&self, stored: Blob, promised: NarDigest) -> Result<Packed, PackError> {
        // The semaphore is never closed.
        let _slot =
            self.slots.acquire().await.map_err(|closed| PackError::Stored(std::io::Error::other(closed)))?;
        let verified = tokio::task::spawn_blocking(move || stored.verify(promised)).await;
        verified.unwrap_or_else(|panicked| Err(PackError::Stored(std::io::Error::other(panicked))))
    }

    /// Verifies all of a file within a rate, on a thread that gives way to all others: no packing waits for
    /// it.
    async fn verify_gently(&self, stored: Blob, promised: NarDigest) -> Result<Packed, PackError> {
        let (done, verified) = tokio::sync::oneshot::channel();
        let failed = |error| Err(PackError::Stored(error));
        let begun = std::thread::Builder::new().name("nar-scrubber".into()).spawn(move || {
            // The kernel derives the rank of reads from this. If it is refused, the rate alone holds.
            let _ = rustix::process::nice(SCRUB_NICE);
            let _ = done.send(stored.verify_within(promised, SCRUB_BYTES_PER_SECOND));
        });
        match begun {
            Ok(_) => verified.await.unwrap_or_else(|panicked| failed(std::io::Error::other(panicked))),
            Err(error) => failed(error),
        }
    }
}
