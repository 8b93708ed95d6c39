//! Receiving: a NAR of unknown hash and size, as a push sends it. It is verified while it
//! streams in, committed, and protected from eviction by a lease until its sender has given it a row.

use std::io::{self, Read};
use std::sync::Arc;

use narinfo::{Compression, NarHash, StorePath};

use super::bring::PlacedNar;
use super::{Durable, Error, Lease, Packer, Priority, ReceiveError};
use crate::model::NarRow;
use crate::nar_store::{Blob, Commit, Nar, NarStore, Packed, Promise, Received};
use crate::tail_file::reading;

/// Bounds of a NAR that is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the plain NAR, at most.
    pub nar_bytes_max: u64,
    /// True where that is what the free room allows, and not a setting.
    pub is_by_room: bool,
}

/// A NAR that was received and has no row yet.
pub struct ReceivedFile {
    /// Hashes and sizes of the NAR.
    pub received: Received,
    /// Its file, which is to be durable before it gets a row.
    pub durable: Durable,
    /// Keeps the file until it has one.
    pub lease: Lease,
    /// Version of its object, for [`Packer::note_uploaded`].
    pub version: Option<Arc<str>>,
}

/// A NAR that a served path has, with a lease on its file.
pub struct LeasedNar {
    /// Bytes of the plain NAR.
    pub nar_size: u64,
    /// Its file.
    pub packed: Packed,
    _lease: Lease,
}

impl Packer {
    /// Stores the NAR that comes as `input`, whatever its hash turns out to be. The file has no row yet; it
    /// stays for as long as the lease is held, and is swept afterwards unless it has a row by then. The file
    /// becomes durable while its sender goes on. Equal NARs share the one that came first.
    ///
    /// # Errors
    /// The input fails, is damaged, is no NAR or has too many bytes, or the file cannot be written.
    pub async fn receive(
        &self,
        input: impl Read + Send + 'static,
        compression: Compression,
        limits: Limits,
    ) -> Result<ReceivedFile, ReceiveError> {
        // Nobody follows it.
        let begin = |nars: &NarStore| nars.draft().map(|(draft, _)| draft);
        let promise = Promise::AtMost(limits.nar_bytes_max);
        let (_, placed) = self
            .0
            .write_new(
                begin,
                |nars, nar| nars.unnamed().mark(nar),
                move |nars, draft| nars.receive(draft, input, compression, promise, None),
            )
            .await;
        let PlacedNar { mut received, commit, version, lease, durable } = placed?;
        if commit == Commit::Lost {
            let (nars, nar) = (self.0.nars.clone(), received.nar);
            // The row is to tell of the file that is there.
            received.packed = tokio::task::spawn_blocking(move || {
                let blob =
                    nars.blob(nar.hash)?.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
                Blob::verify(&blob, nar)
            })
            .await
            .map_err(|panicked| ReceiveError::Store(std::io::Error::other(panicked)))??;
        }
        Ok(ReceivedFile { received, durable, lease, version })
    }

    /// The NAR that a served path has, which is brought where it is not stored yet; `None` if no path has it.
    /// Its file stays for as long as the answer is held, even if the path is evicted meanwhile.
    ///
    /// # Errors
    /// The index or the NAR store fails.
    pub async fn lease_served(&self, nar: NarHash) -> Result<Option<LeasedNar>, Error> {
        let leases = self.0.leases.clone();
        // First: what the index says from now on stays true of the file.
        let lease = reading(move || Ok(leases.take(nar))).await.map_err(Error::Store)?;
        let Some((row, mut packed)) = self.0.index.nar(nar).await? else { return Ok(None) };
        let nar_size = row.info.nar_size;
        if packed.is_none() {
            if let Nar::Growing(mut growing) = self.start(row, Priority::Client).await?
                && growing.finished().await.is_err()
            {
                return Ok(None);
            }
            // Its row may be yet to come.
            if let Some(stored) = self.0.blob(nar).await? {
                self.0.record_found(nar, stored).await;
            }
            packed = self.0.index.packed(nar).await?;
        }
        let Some(NarRow { file_hash, file_size, .. }) = packed else { return Ok(None) };
        Ok(Some(LeasedNar { nar_size, packed: Packed { file_hash, file_size }, _lease: lease }))
    }

    /// Limits of a received NAR.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { nar_bytes_max: self.0.nar_bytes_max(), is_by_room: self.0.nar_bytes_max.is_none() }
    }

    /// Reads the plain NAR in a stored file, whether or not it has a row, on a thread that may wait; `None`
    /// if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or `work` fails.
    pub async fn read_plain<T: Send + 'static>(
        &self,
        nar: NarHash,
        work: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let nars = self.0.nars.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let Some(blob) = nars.blob(nar)? else { return Ok(None) };
            work(&mut blob.plain()?).map(Some)
        });
        reading.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked))).map_err(Error::Store)
    }

    /// Takes note that an uploaded NAR has its row: more is stored, and no path needs the Nix store for it.
    /// Its sender waits for none of that. `version` is that of its object.
    pub fn note_uploaded(&self, path: StorePath, nar: NarHash, version: Option<Arc<str>>) {
        let inner = Arc::clone(&self.0);
        self.0.stored.notify_one();
        self.0.tasks.optional("nar-uploaded", async move {
            inner.confirm(nar, version).await;
            let nars = inner.nars.clone();
            // A mark that stays is removed by the next start. The runtime reports a panic.
            let _ = tokio::task::spawn_blocking(move || nars.unnamed().clear(nar)).await;
            inner.release_roots(&path, nar).await;
        });
    }
}
