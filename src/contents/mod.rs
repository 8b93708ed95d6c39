//! Files within the NARs that are served: listings, single files and whole closures. Reads verified NARs
//! alone, never the Nix store itself, so that a file is what its narinfo was signed for. Knows no HTTP.

mod archive;
mod blocking;
mod closure;
mod export;
mod image;
mod resolve;
mod tar;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use narinfo::nar::Listing;
use narinfo::{NarHash, StoreDir};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::index::{self, Index};
use crate::nar_store::{Form, NarStream};
use crate::packer::{self, Packer};
use crate::single_flight::{Joined, SingleFlight};
use crate::tasks::blocking;
pub use archive::{Archive, ArchiveForm, ArchiveParts, ArchivePlan};
use blocking::BlockingReader;
pub use closure::closure_digest;
use image::BlobDigest;
pub use image::ImageConfig;
pub use resolve::{ResolveError, ResolvedFile};

/// Memory of listings that are kept, in bytes, and time for which one is kept that nobody asks for. One that
/// is larger than an eighth of it is made anew for each request.
const LISTINGS_BYTES_MAX: u64 = 64 * 1024 * 1024;
const LISTING_IDLE: Duration = Duration::from_secs(24 * 3600);
/// NARs that are read for their listings at the same time; each takes a core.
const LISTED_AT_ONCE_MAX: usize = 2;
/// Digests of files, and of layers of images, that are remembered.
const DIGESTS_MAX: u64 = 10_000;
/// Memory of the places of parts of archives, in bytes.
const PARTS_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Archives that are sent at the same time, each by a thread.
const ARCHIVES_MAX: usize = 32;

/// Why contents cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index failed.
    #[error("the index cannot be read")]
    Index(#[from] index::Error),
    /// The NAR cannot be opened.
    #[error(transparent)]
    Packer(#[from] packer::Error),
    /// The NAR was evicted a moment ago.
    #[error("evicted at this moment; ask again")]
    Evicted,
    /// The closure has too many paths.
    #[error("its closure has more than {0} paths, which is too much for such an archive")]
    TooLarge(usize),
    /// The archive is too large to be measured first.
    #[error("no part of this archive can be sent before all of it was once")]
    Unmeasured,
    /// Too many archives are being sent.
    #[error("too many archives are being sent; ask again in a while")]
    Busy,
    /// The NAR cannot be read to its end.
    #[error("its contents cannot be read: {0}")]
    Unreadable(Arc<str>),
}

/// Contents of served paths; clones share it.
#[derive(Clone)]
pub struct Contents(Arc<Inner>);

struct Inner {
    packer: Packer,
    index: Index,
    store_dir: StoreDir,
    listings: moka::sync::Cache<NarHash, Arc<Listing>>,
    under_way: SingleFlight<NarHash, Result<Arc<Listing>, Arc<str>>>,
    permits: Semaphore,
    /// SHA-256 of files, by their NAR and their place in it.
    digests: moka::sync::Cache<(NarHash, u64), [u8; 32]>,
    /// Digests of layers of images, by their contents.
    layers: moka::sync::Cache<[u8; 32], BlobDigest>,
    /// Places of the parts of archives, by their identity.
    archive_parts: moka::sync::Cache<(String, ArchiveForm), Arc<ArchiveParts>>,
    /// Permits to send an archive.
    archives: Arc<Semaphore>,
}

/// Bytes of a part of a plain NAR.
pub enum NarSlice {
    /// In memory.
    Memory(Bytes),
    /// Read while they are sent.
    Streamed {
        /// The bytes.
        stream: NarStream,
        /// True if they come from a packed file, which is to be checked where it cannot be read.
        packed: bool,
    },
}

impl Contents {
    /// Contents of what `packer` has.
    #[must_use]
    pub fn new(packer: Packer, index: Index, store_dir: StoreDir) -> Self {
        let weigh =
            |_: &NarHash, listing: &Arc<Listing>| u32::try_from(listing.memory_bytes()).unwrap_or(u32::MAX);
        let listings = moka::sync::Cache::builder()
            .max_capacity(LISTINGS_BYTES_MAX)
            .weigher(weigh)
            .time_to_idle(LISTING_IDLE)
            .build();
        Self(Arc::new(Inner {
            packer,
            index,
            store_dir,
            listings,
            under_way: SingleFlight::default(),
            permits: Semaphore::new(LISTED_AT_ONCE_MAX),
            digests: moka::sync::Cache::new(DIGESTS_MAX),
            layers: moka::sync::Cache::new(DIGESTS_MAX),
            archive_parts: moka::sync::Cache::builder()
                .max_capacity(PARTS_BYTES_MAX)
                .weigher(|_, parts: &Arc<ArchiveParts>| {
                    u32::try_from(parts.memory_bytes()).unwrap_or(u32::MAX)
                })
                .build(),
            archives: Arc::new(Semaphore::new(ARCHIVES_MAX)),
        }))
    }

    /// The listing of a served NAR, made once for all who ask by reading all of it.
    ///
    /// # Errors
    /// The NAR cannot be read.
    pub async fn listing(&self, nar: NarHash) -> Result<Arc<Listing>, Error> {
        if let Some(listing) = self.0.listings.get(&nar) {
            return Ok(listing);
        }
        let flight = match self.0.under_way.join(&nar).await {
            Joined::Follows(listing) => return listing.map_err(Error::Unreadable),
            Joined::Leads(flight) => flight,
        };
        let listed = match self.0.listings.get(&nar) {
            Some(listing) => Ok(listing),
            None => self.read_listing(nar).await,
        };
        if let Ok(listing) = &listed
            && listing.memory_bytes() as u64 <= LISTINGS_BYTES_MAX / 8
        {
            self.0.listings.insert(nar, Arc::clone(listing));
        }
        flight.publish(listed.as_ref().map(Arc::clone).map_err(|error| error.to_string().into()));
        listed
    }

    async fn read_listing(&self, nar: NarHash) -> Result<Arc<Listing>, Error> {
        // The semaphore is never closed.
        let _permit = self.0.permits.acquire().await.map_err(|_| Error::Evicted)?;
        let slice = self.slice(nar, 0..u64::MAX).await?;
        let mut reader = BlockingReader::new(slice);
        let listing = blocking(move || Listing::read(&mut reader)).await.map_err(|error| {
            tracing::warn!(%nar, error = &error as &dyn std::error::Error, "cannot list the files of a NAR");
            Error::Unreadable(error.to_string().into())
        })?;
        let programs = listing.programs();
        if !programs.is_empty() {
            // A NAR that was stored before an index had any is found by them from now on.
            if let Err(error) = self.0.index.record_programs(nar, programs).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%nar, error, "cannot record programs: they are recorded when the NAR is listed");
            }
        }
        Ok(Arc::new(listing))
    }

    /// A part of a plain NAR, which ends with the NAR at the latest. It is taken from the uncompressed copy
    /// where there can be one, so that the next part needs no decompression.
    ///
    /// # Errors
    /// The NAR cannot be opened.
    pub async fn slice(&self, nar: NarHash, part: Range<u64>) -> Result<NarSlice, Error> {
        self.open(nar, part, Form::Plain).await
    }

    /// A part of a plain NAR, from the file in this form: the uncompressed copy, or the packed file.
    async fn open(&self, nar: NarHash, part: Range<u64>, form: Form) -> Result<NarSlice, Error> {
        let packer = &self.0.packer;
        let mut served = packer.find(nar, Some(Form::Plain)).await?.ok_or(Error::Evicted)?;
        let part = part.start..part.end.min(served.nar_size());
        if let Some(small) = served.small.take() {
            let end = small.bytes.len().min(usize::try_from(part.end).unwrap_or(usize::MAX));
            let start = end.min(usize::try_from(part.start).unwrap_or(usize::MAX));
            return Ok(NarSlice::Memory(small.bytes.slice(start..end)));
        }
        let (nar, form) = packer.open(&mut served, form).await?;
        let stream = match form {
            Form::Plain => NarStream::as_it_is(nar, part),
            Form::Zstd => NarStream::decoded(nar, part).map_err(packer::Error::Store)?,
        };
        Ok(NarSlice::Streamed { stream, packed: served.packed.is_some() })
    }

    /// SHA-256 of a part of a NAR, which is read whole unless it was before.
    ///
    /// # Errors
    /// The NAR cannot be read.
    pub async fn sha256(&self, nar: NarHash, part: Range<u64>) -> Result<[u8; 32], Error> {
        let key = (nar, part.start);
        if let Some(digest) = self.0.digests.get(&key) {
            return Ok(digest);
        }
        let mut reader = BlockingReader::new(self.slice(nar, part).await?);
        let read = blocking(move || {
            let mut digest = Sha256::new();
            std::io::copy(&mut reader, &mut digest)?;
            Ok(digest.finalize().into())
        });
        let digest = read.await.map_err(unreadable)?;
        self.0.digests.insert(key, digest);
        Ok(digest)
    }

    /// The first bytes of a part of a NAR, `bytes_max` at most.
    ///
    /// # Errors
    /// The NAR cannot be read.
    pub async fn beginning(&self, nar: NarHash, part: Range<u64>, bytes_max: u64) -> Result<Vec<u8>, Error> {
        let end = part.end.min(part.start.saturating_add(bytes_max));
        let mut slice = self.slice(nar, part.start..end).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = slice.next_piece().await.map_err(unreadable)? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

impl NarSlice {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The NAR cannot be read, or turned out wrong.
    pub async fn next_piece(&mut self) -> std::io::Result<Option<Bytes>> {
        match self {
            Self::Memory(bytes) if bytes.is_empty() => Ok(None),
            Self::Memory(bytes) => Ok(Some(std::mem::take(bytes))),
            Self::Streamed { stream, .. } => stream.next_piece().await,
        }
    }
}

fn unreadable(error: std::io::Error) -> Error {
    Error::Unreadable(error.to_string().into())
}
