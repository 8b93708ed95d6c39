//! Files and rows in step: a file without a row is verified and gets one, a row whose file is lost or wrong goes with it, and a
//! file that is nobody's goes. Must never remove a file that has come in the place of the one that was judged.

use std::sync::{Arc, PoisonError};

use narinfo::NarHash;

use super::{Error, Inner, Nar, Packer};
use crate::causes::with_causes;
use crate::index::{self, NarRow};
use crate::nar_store::{Expected, PackError, Packed, Stored};
use crate::room::Room;
use crate::tail_file::reading;

/// Bytes a second at most that are read only to see whether they are right still.
const SCRUB_BYTES_PER_SECOND: u64 = 16 * 1024 * 1024;
/// How far that gives way, in steps of nice(2).
const SCRUB_NICE: i32 = 19;
/// Files that are looked for in the index at once.
const FILES_AT_ONCE: usize = 1_000;

/// What is wrong with a packed NAR.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// There is no file.
    #[error("its file is missing")]
    Missing,
    /// It was cut short, or something was added.
    #[error("its file has {found} bytes, and {recorded} are on record")]
    Size {
        /// Bytes that it has.
        found: u64,
        /// Bytes that its row has.
        recorded: u64,
    },
    /// It was verified, and is not what it must be.
    #[error("its file is damaged")]
    Damaged(#[source] PackError),
    /// It holds the right NAR, but is not the file that narinfos tell of.
    #[error("its file is another one than is on record")]
    Another,
}

/// How closely a packed NAR is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Whether its file is there and has its size.
    Size,
    /// All of the file is read and verified.
    Contents,
    /// The same, slowly, and behind everything else.
    Gently,
}

/// What becomes of the file of a NAR that is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    /// It goes.
    Deleted,
    /// It is moved out of the way, for whoever wants to know what has happened to it.
    Quarantined,
}

/// A packed NAR that cannot be served as it is.
#[derive(Debug)]
pub struct Flaw {
    /// What is wrong.
    pub fault: Fault,
    row: NarRow,
    /// The file that was judged.
    seen: Option<Stored>,
}

impl Flaw {
    /// What can be seen of a NAR that is about to be sent.
    pub(super) fn at_sight(nar: &Nar, row: &NarRow) -> Option<Self> {
        match nar {
            Nar::Growing(_) => Some(Self { fault: Fault::Missing, row: *row, seen: None }),
            Nar::Stored(stored) => Self::of_size(stored, row),
        }
    }

    /// Whether the contents are wrong: whoever is given them gets what nobody promised.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self.fault, Fault::Damaged(_))
    }

    fn of_size(stored: &Stored, row: &NarRow) -> Option<Self> {
        let (found, recorded) = (stored.bytes(), row.file_size);
        let fault = Fault::Size { found, recorded };
        (found != recorded).then(|| Self { fault, row: *row, seen: Some(stored.clone()) })
    }
}

impl Packer {
    /// What is wrong with a packed NAR, as far as `look` tells.
    ///
    /// # Errors
    /// When the index fails, or the file cannot be opened.
    pub async fn inspect(&self, row: &NarRow, look: Look) -> Result<Option<Flaw>, Error> {
        let Some(stored) = self.0.nars.get(row.nar_hash).map_err(Error::Store)? else {
            return Ok(Some(Flaw { fault: Fault::Missing, row: *row, seen: None }));
        };
        let flaw = Flaw::of_size(&stored, row);
        if flaw.is_some() || look == Look::Size {
            return Ok(flaw);
        }
        // What no path has any more is nothing to anybody.
        let Some(path) = self.0.index.path_with_nar(row.nar_hash).await? else { return Ok(None) };
        let expected = Expected { hash: path.nar_hash, bytes: path.nar_size };
        let verified = match look {
            Look::Gently => self.0.verify_gently(stored.clone(), expected).await,
            _ => self.0.verify(stored.clone(), expected).await,
        };
        let fault = match verified {
            Ok(packed) if packed.file_hash == row.file_hash => return Ok(None),
            Ok(_) => Fault::Another,
            Err(error) => Fault::Damaged(error),
        };
        Ok(Some(Flaw { fault, row: *row, seen: Some(stored) }))
    }

    /// Removes what is wrong, unless something else has taken its place by now: the NAR is packed or fetched again, or its
    /// paths are found not to be had.
    ///
    /// # Errors
    /// When the index or the NAR store fails.
    pub async fn repair(&self, flaw: Flaw) -> Result<(), Error> {
        self.let_go_of(flaw, Removal::Deleted).await
    }

    /// The same, and the file is kept aside.
    ///
    /// # Errors
    /// When the index or the NAR store fails.
    pub async fn quarantine(&self, flaw: Flaw) -> Result<(), Error> {
        self.let_go_of(flaw, Removal::Quarantined).await
    }

    async fn let_go_of(&self, flaw: Flaw, removal: Removal) -> Result<(), Error> {
        self.0.lose(flaw.row.nar_hash, Some(flaw.row), flaw.seen.as_ref(), removal).await?;
        self.wake();
        Ok(())
    }

    /// Whether NARs can be stored now.
    ///
    /// # Errors
    /// With the reason why not.
    pub async fn check_writable(&self) -> std::io::Result<()> {
        let nars = self.0.nars.clone();
        reading(move || nars.check_writable()).await
    }

    /// Room on the file system of the NARs.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn room(&self) -> Result<Room, Error> {
        self.0.nars.room().map_err(Error::Store)
    }

    /// Removes what is not needed to serve: plain copies, and damaged files that were kept aside.
    pub async fn drop_spare_files(&self) {
        let nars = self.0.nars.clone();
        let dropping = tokio::task::spawn_blocking(move || {
            nars.drop_copies();
            nars.empty_quarantine(0);
        });
        // A panic is told of by the runtime, and leaves files that go later.
        let _ = dropping.await;
    }

    /// An answer was cut because the file of this NAR could not be read to its end: it is verified, and repaired where it is
    /// to blame.
    pub fn suspect(&self, nar: NarHash) {
        let packer = self.clone();
        tokio::spawn(async move {
            let judged = async {
                let Some(row) = packer.0.index.packed(nar).await? else { return Ok(()) };
                let Some(flaw) = packer.inspect(&row, Look::Contents).await? else { return Ok(()) };
                let fault = with_causes(&flaw.fault);
                tracing::error!(%nar, fault, "what is stored cannot be served; it is packed or fetched again");
                packer.quarantine(flaw).await
            };
            if let Err(error) = judged.await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%nar, error, "what is stored may be damaged, and could not be looked at");
            }
        });
    }

    /// Removes the file of a NAR that is not packed (any more), unless it has come again or is just coming. Whether it did.
    ///
    /// # Errors
    /// When the index or the NAR store fails.
    pub async fn discard(&self, nar: NarHash) -> Result<bool, Error> {
        let _settling = self.0.settling.lock().await;
        if self.0.index.packed(nar).await?.is_some() {
            return Ok(false);
        }
        let inner = Arc::clone(&self.0);
        let removed = reading(move || {
            // Under the lock: one that is just coming may have its final name already.
            let under_way = inner.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            if under_way.contains_key(&nar) { Ok(false) } else { inner.nars.remove(nar) }
        });
        removed.await.map_err(Error::Store)
    }

    /// The files that are on nobody's record and of no use to a served path: an eviction that was interrupted leaves such
    /// behind, or the loss of the index. One that a served path has is put on record instead.
    ///
    /// # Errors
    /// When the index fails, or the NAR store cannot be read.
    pub async fn orphans(&self) -> Result<Vec<NarHash>, Error> {
        let nars = self.0.nars.clone();
        let files = reading(move || nars.files()).await.map_err(Error::Store)?;
        let mut orphans = Vec::new();
        for files in files.chunks(FILES_AT_ONCE) {
            for nar in self.0.index.not_packed(files.to_vec()).await? {
                match (self.0.index.path_with_nar(nar).await?, self.0.nars.get(nar).map_err(Error::Store)?) {
                    (Some(_), Some(stored)) => drop(self.0.record_found(nar, stored).await),
                    (None, Some(_)) => orphans.push(nar),
                    (_, None) => {}
                }
            }
        }
        Ok(orphans)
    }
}

impl Inner {
    /// Records what is packed. Its file is durable under its final name.
    pub(super) async fn record(&self, row: NarRow) -> Result<(), index::Error> {
        let _settling = self.settling.lock().await;
        self.index.record_packed(row).await?;
        self.stored.notify_one();
        Ok(())
    }

    /// The file is there though its row is not: a run was interrupted between the two. False when it must be tried again.
    pub(super) async fn record_found(&self, nar: NarHash, stored: Stored) -> bool {
        let found = async {
            let Some(path) = self.index.path_with_nar(nar).await? else { return Ok(true) };
            let expected = Expected { hash: nar, bytes: path.nar_size };
            let Packed { file_hash, file_size } = match self.verify(stored.clone(), expected).await {
                Ok(packed) => packed,
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(%nar, error, "a file that is not on record is not what it must be, and goes");
                    self.lose(nar, None, Some(&stored), Removal::Deleted).await?;
                    return Ok(false);
                }
            };
            {
                let _settling = self.settling.lock().await;
                if !self.is_in_place(nar, Some(&stored))? {
                    return Ok(false);
                }
                self.index.record_packed(NarRow { nar_hash: nar, file_hash, file_size }).await?;
            }
            self.stored.notify_one();
            self.let_go(&path.path, nar).await;
            Ok::<_, Error>(true)
        };
        found.await.unwrap_or_else(|error| {
            tracing::error!(%nar, error = &error as &dyn std::error::Error, "a NAR that is stored was not recorded");
            false
        })
    }

    /// Removes a file and its row, if both are those that were judged. The file first: one that is wrong must not be found
    /// without a row and taken for what an interrupted run left behind.
    async fn lose(
        &self,
        nar: NarHash,
        row: Option<NarRow>,
        seen: Option<&Stored>,
        removal: Removal,
    ) -> Result<(), Error> {
        let _settling = self.settling.lock().await;
        if self.index.packed(nar).await? != row || !self.is_in_place(nar, seen)? {
            return Ok(());
        }
        let nars = self.nars.clone();
        let removing = reading(move || match removal {
            Removal::Quarantined if nars.get(nar)?.is_some() => nars.quarantine(nar),
            _ => nars.remove(nar).map(drop),
        });
        removing.await.map_err(Error::Store)?;
        Ok(self.index.forget_packed(nar).await?)
    }

    /// Whether the file of a NAR is this one; `None` is that there is none.
    fn is_in_place(&self, nar: NarHash, seen: Option<&Stored>) -> Result<bool, Error> {
        let now = self.nars.get(nar).map_err(Error::Store)?;
        match (now, seen) {
            (Some(now), Some(seen)) => now.is(seen).map_err(Error::Store),
            (now, seen) => Ok(now.is_none() && seen.is_none()),
        }
    }

    /// Reads and verifies all of a file, as many at once as there are cores.
    async fn verify(&self, stored: Stored, expected: Expected) -> Result<Packed, PackError> {
        // The semaphore is never closed.
        let _slot =
            self.slots.acquire().await.map_err(|closed| PackError::Stored(std::io::Error::other(closed)))?;
        let verified = tokio::task::spawn_blocking(move || stored.verify(expected)).await;
        verified.unwrap_or_else(|panicked| Err(PackError::Stored(std::io::Error::other(panicked))))
    }

    /// The same, within a rate, and on a thread that gives way to all others: no packing waits for it.
    async fn verify_gently(&self, stored: Stored, expected: Expected) -> Result<Packed, PackError> {
        let (done, verified) = tokio::sync::oneshot::channel();
        let failed = |error| Err(PackError::Stored(error));
        let begun = std::thread::Builder::new().name("nar-scrubber".into()).spawn(move || {
            // The system derives the rank among those who read from this one. Where it is refused, the rate alone holds.
            let _ = rustix::process::nice(SCRUB_NICE);
            let _ = done.send(stored.verify_within(expected, SCRUB_BYTES_PER_SECOND));
        });
        match begun {
            Ok(_) => verified.await.unwrap_or_else(|panicked| failed(std::io::Error::other(panicked))),
            Err(error) => failed(error),
        }
    }
}
