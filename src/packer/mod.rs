//! The packer brings NARs into the NAR store, once for all who ask: store paths are packed, also in the
//! background; NARs of upstreams are fetched on request; pushed NARs are received. Removes the GC root of a
//! store path only when its NAR is on disk and in the index.

mod ahead;
mod awaited;
mod bring;
mod copies;
mod durable;
mod error;
mod fetch;
mod leases;
mod prove;
mod receive;
mod shared;
#[cfg(test)]
mod tests;
mod upkeep;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use narinfo::{Compression, NarHash, StoreDir};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use crate::index::Index;
use crate::model::{NarRow, PathRow};
use crate::nar_store::{Blob, CopySource, Form, Nar, NarDigest, NarStore, Packed, Small};
use crate::nix::Pool;
use crate::publish::Publication;
use crate::roots::Roots;
use crate::single_flight::{Joined, SingleFlight};
use crate::tail_file::reading;
use crate::tasks::{Tasks, blocking};
use crate::upstream::Upstreams;
use ahead::{EXPECTED_FOR, Prefetch};
use awaited::Awaited;
pub use durable::Durable;
use durable::Syncs;
pub use error::{Error, ReceiveError};
pub use fetch::upstream_nar;
pub use leases::Lease;
use leases::Leases;
pub use prove::NotProven;
use prove::Proofs;
pub use receive::{LeasedNar, Limits, ReceivedFile};
pub use upkeep::{Corruption, Fault, Look};

/// Pause of background packing after the NAR store could not be written.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Delay of background packing after a path was published: its client comes for the contents in a moment.
const SETTLE_DELAY: Duration = Duration::from_millis(200);
/// Interval between two looks whether clients still wait, and the longest time for which background packing
/// gives way before each path: GC roots are held meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const GIVE_WAY_MAX: Duration = Duration::from_secs(60);
/// Time for which a store path that could not be packed is not adopted again; it may be repaired by then.
const UNSERVABLE_FOR: Duration = Duration::from_secs(300);

/// NAR of a served path.
#[derive(Clone, Debug)]
pub struct Served {
    row: PathRow,
    /// Row of its file, once it is packed.
    pub packed: Option<NarRow>,
    /// All of it, if it is small.
    pub small: Option<Small>,
    /// Its file, or a copy of it, opened by the thread that read the row: no connection's thread waits for
    /// that.
    near: Option<(Nar, Form)>,
}

impl Served {
    /// Bytes of the plain NAR.
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        self.row.info.nar_size
    }

    fn digest(&self) -> NarDigest {
        NarDigest { hash: self.row.info.nar_hash, bytes: self.row.info.nar_size }
    }
}

/// Priority of bringing a NAR: background packing gives way to what clients wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Priority {
    /// A client has asked for it, or will next.
    Client,
    /// Nobody waits yet.
    Background,
}

/// The packer; clones share it.
#[derive(Clone)]
pub struct Packer(Arc<Inner>);

/// Handles that a packer works with.
pub struct PackerHandles {
    /// Index of served paths.
    pub index: Index,
    /// Store that NARs are brought into.
    pub nars: NarStore,
    /// Publication of their narinfos.
    pub publication: Publication,
    /// GC roots of store paths that are not packed yet.
    pub roots: Roots,
    /// Upstreams that NARs are fetched from.
    pub upstreams: Upstreams,
    /// The Nix daemon.
    pub pool: Pool,
    /// Directory of the Nix store.
    pub store_dir: StoreDir,
    /// Bytes of a NAR that is fetched, at most; `None` is half of the free room.
    pub nar_bytes_max: Option<u64>,
    /// Spawner of work that goes on when the client that began it leaves.
    pub tasks: Tasks,
}

struct Inner {
    index: Index,
    nars: NarStore,
    publication: Publication,
    roots: Roots,
    upstreams: Upstreams,
    pool: Pool,
    store_dir: StoreDir,
    /// NARs that are being packed or fetched: equal requests follow the same file.
    under_way: SingleFlight<NarHash, Nar>,
    /// Contents that are being proven.
    proofs: Proofs,
    /// Files that may be there without a row.
    leases: Leases,
    /// Files that are about to be durable.
    syncs: Syncs,
    /// Bytes of a NAR that is fetched, at most; `None` is half of the free room.
    nar_bytes_max: Option<u64>,
    tasks: Tasks,
    /// Number of NARs under way that a client waits for.
    awaited: AtomicUsize,
    /// NARs that a store path does not have, though Nix registered them, or that cannot be made: when that
    /// was found, and why.
    unservable: Mutex<HashMap<NarHash, (Instant, String)>>,
    /// Requests that clients will make next.
    ahead: Mutex<Prefetch>,
    /// Permits to pack, one for each core.
    slots: Arc<Semaphore>,
    /// Lock of everything that needs a file and its row to agree, so that neither goes while the other comes.
    file_row_lock: tokio::sync::Mutex<()>,
    work: Notify,
    /// Notified when something was packed.
    stored: Notify,
}

impl Packer {
    /// Puts the parts together; nothing runs yet.
    #[must_use]
    pub fn new(handles: PackerHandles) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Inner {
            index: handles.index,
            nars: handles.nars,
            publication: handles.publication,
            roots: handles.roots,
            upstreams: handles.upstreams,
            pool: handles.pool,
            store_dir: handles.store_dir,
            under_way: SingleFlight::default(),
            proofs: Proofs::default(),
            leases: Leases::default(),
            syncs: Syncs::default(),
            nar_bytes_max: handles.nar_bytes_max,
            tasks: handles.tasks,
            awaited: AtomicUsize::new(0),
            unservable: Mutex::default(),
            ahead: Mutex::default(),
            slots: Arc::new(Semaphore::new(cores)),
            file_row_lock: tokio::sync::Mutex::default(),
            work: Notify::new(),
            stored: Notify::new(),
        }))
    }

    /// A small NAR from the cache in memory; looks at nothing else.
    #[must_use]
    pub fn in_memory(&self, nar: NarHash, form: Form) -> Option<Small> {
        let small = self.0.nars.in_memory(nar, form)?;
        self.0.index.access_log().note(nar);
        Some(small)
    }

    /// The NAR with this hash, if a served path has it, with all its bytes in `form` if it is small. Packs
    /// nothing.
    ///
    /// # Errors
    /// The index fails.
    pub async fn find(&self, nar: NarHash, form: Option<Form>) -> Result<Option<Served>, Error> {
        // Before the index is read: what is forgotten from now on does not come into memory again.
        let epoch = self.0.nars.epoch();
        let Some((row, packed)) = self.0.index.nar(nar).await? else { return Ok(None) };
        let mut served = Served { row, packed, small: None, near: None };
        if let (Some(form), Some(NarRow { file_hash, file_size, .. })) = (form, packed) {
            let (nars, digest) = (self.0.nars.clone(), served.digest());
            let packed = Packed { file_hash, file_size };
            let open = move || match nars.small(digest, packed, form, epoch) {
                Some(small) => (Some(small), None),
                None => (None, nars.near(digest, packed, form)),
            };
            (served.small, served.near) = blocking(open).await;
            if self.0.nars.is_remote() && served.small.is_none() && served.near.is_none() {
                let fetch = move |nars: &NarStore| nars.fetch_small(digest, packed, form, epoch);
                served.small = self.0.nars.run(fetch).await.map_err(Error::Store)?;
            }
        }
        if served.small.is_some() {
            self.0.index.access_log().note(nar);
        }
        Ok(Some(served))
    }

    /// Address to which a client is redirected for the file of `served` in this compression: of the storage,
    /// or of an upstream; `None` to serve it here, or without a reader.
    ///
    /// # Errors
    /// The index fails, or the storage gives no address.
    pub async fn redirect(
        &self,
        served: &Served,
        compression: Compression,
        reader: Option<IpAddr>,
    ) -> Result<Option<String>, Error> {
        let ours = matches!(compression, Compression::Zstd | Compression::None);
        if ours && let Some(NarRow { nar_hash, .. }) = served.packed {
            let Some(reader) = reader.filter(|_| compression == Compression::Zstd) else { return Ok(None) };
            let address = self.0.nars.address(nar_hash, reader).await.map_err(Error::Store)?;
            if address.is_some() {
                self.0.index.access_log().note(nar_hash);
            }
            return Ok(address);
        }
        let upstreams = self.0.upstreams_with(served.row.info.nar_hash).await?;
        // A NAR that can be served here is redirected only if the upstream's settings say so.
        let nar = upstreams.into_iter().find(|nar| nar.compression == compression && (nar.redirect || !ours));
        Ok(nar.and_then(|nar| self.0.upstreams.address(&nar.upstream, &nar.url)))
    }

    /// The bytes of a NAR, as soon as there are any, in `form`, or as zstd, which the caller decodes on the
    /// way. Joins or begins packing or fetching if the NAR is not stored yet.
    ///
    /// # Errors
    /// The index or the NAR store fails, or it can neither be packed nor fetched.
    pub async fn open(&self, served: &mut Served, form: Form) -> Result<(Nar, Form), Error> {
        let hash = served.row.info.nar_hash;
        self.0.index.access_log().note(hash);
        if form == Form::Plain
            && let Some(copy) = self.copy_of_tree(served).await?
        {
            return Ok((copy, form));
        }
        let (mut nar, is_copy) = match served.near.take() {
            Some((copy, Form::Plain)) => return Ok((copy, Form::Plain)),
            Some((nar, Form::Zstd)) => (nar, self.0.nars.is_remote()),
            None => (self.start(served.row.clone(), Priority::Client).await?, false),
        };
        if let Some(packed) = served.packed.filter(|_| !is_copy)
            && let Some(corruption) = Corruption::at_sight(&nar, &packed)
        {
            tracing::warn!(nar = %hash, fault = %corruption.fault, "packing or fetching a stored NAR again");
            self.repair(corruption).await?;
            served.packed = None;
            nar = self.start(served.row.clone(), Priority::Client).await?;
        }
        if let (Nar::Stored(stored), None) = (&nar, served.packed) {
            // A run was interrupted between the file and its row, or the row is just being written.
            let (inner, stored) = (Arc::clone(&self.0), stored.clone());
            self.0.tasks.optional("nar-record", async move {
                inner.record_found(hash, stored).await;
            });
        }
        if let (Form::Zstd, Some(packed), Nar::Stored(Blob::Object(_))) = (form, served.packed, &nar) {
            nar = self.copy_of_object(packed, nar).await?;
        }
        let mut given = Form::Zstd;
        if let (Form::Plain, Nar::Stored(stored)) = (form, &nar)
            && let Some(plain) = self.copy(served, CopySource::Packed(stored.clone())).await?
        {
            (nar, given) = (plain, form);
        }
        // Waits for the first byte, because an answer that has begun can only be aborted.
        if let Nar::Growing(growing) = &mut nar
            && let Err(error) = growing.begun().await
        {
            if served.packed.is_some() {
                self.suspect(hash);
            }
            return Err(Error::NotToBeHad(error));
        }
        Ok((nar, given))
    }

    /// Notes that a client has the narinfo of a NAR that is not stored yet: it will ask for the NAR.
    pub fn told(&self, client: IpAddr, nar: NarHash) {
        self.ahead().told(client, nar, Instant::now());
    }

    /// Prefetches NARs that a client will ask for after this one.
    pub fn read_ahead(&self, client: IpAddr, nar: NarHash) {
        for next in self.ahead().asks(client, nar, Instant::now()) {
            let packer = self.clone();
            self.0.tasks.optional("nar-prefetch", async move {
                // Errors are reported to the client that asks for it.
                if let Ok(Some(row)) = packer.0.index.path_with_nar(next).await
                    && let Ok(Nar::Growing(mut growing)) = packer.start(row, Priority::Client).await
                {
                    // Followed until the client may have come for it.
                    let _ = timeout(EXPECTED_FOR, growing.finished()).await;
                }
            });
        }
    }

    fn ahead(&self) -> MutexGuard<'_, Prefetch> {
        self.0.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason why this NAR cannot be packed from the Nix store, if that was found lately.
    #[must_use]
    pub fn why_unservable(&self, nar: NarHash) -> Option<String> {
        let mut unservable = self.0.unservable.lock().unwrap_or_else(PoisonError::into_inner);
        unservable.retain(|_, (since, _)| since.elapsed() < UNSERVABLE_FOR);
        unservable.get(&nar).map(|(_, reason)| reason.clone())
    }

    /// Resolves once something was packed since this resolved last.
    pub async fn stored(&self) {
        self.0.stored.notified().await;
    }

    /// Wakes the background packer: there is something new to pack.
    pub fn wake(&self) {
        self.0.work.notify_one();
    }

    /// Packs in the background, one path at a time, for as long as the server runs. Gives way to requests of
    /// clients.
    pub async fn run(self) {
        if let Err(error) = self.restore_roots().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot restore GC roots: store paths may stay until the next start"
            );
        }
        self.sweep_marked().await;
        loop {
            self.sweep().await;
            if self.pack_all().await {
                tokio::select! {
                    () = self.0.work.notified() => tokio::time::sleep(SETTLE_DELAY).await,
                    () = self.0.leases.unrecorded() => {}
                }
            } else {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    /// Packs every unpacked path. False if some could not be written and must be tried again.
    async fn pack_all(&self) -> bool {
        let unpacked = async {
            let mut rows = self.0.index.unpacked().await?;
            self.retain_own(&mut rows).await?;
            Ok::<_, Error>(rows)
        };
        let rows = match unpacked.await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot list unpacked paths; background packing tries again"
                );
                return false;
            }
        };
        let mut all = true;
        for row in rows {
            all &= self.store(row).await;
        }
        all
    }

    /// Packs or fetches the NAR of a path, unless it is stored, behind what clients wait for. False if that
    /// must be tried again.
    pub async fn store(&self, row: PathRow) -> bool {
        let hash = row.info.nar_hash;
        self.give_way().await;
        match self.start(row, Priority::Background).await {
            Ok(Nar::Stored(stored)) => self.0.record_found(hash, stored).await,
            Ok(Nar::Growing(mut growing)) => {
                growing.finished().await.is_ok() || self.was_forgotten(hash).await
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot begin to pack a path; the next request for it tries again"
                );
                false
            }
        }
    }

    /// Waits until no NAR is made for a client, [`GIVE_WAY_MAX`] at most.
    async fn give_way(&self) {
        let calm = async {
            while self.0.awaited.load(Ordering::Relaxed) > 0 || self.0.nars.is_copying() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // An error is the end of the time.
        let _ = timeout(GIVE_WAY_MAX, calm).await;
    }

    async fn was_forgotten(&self, nar: NarHash) -> bool {
        matches!(self.0.index.path_with_nar(nar).await, Ok(None))
    }

    /// Joins the packing under way, or leads it; a file that is there already is opened. All files are opened
    /// and made on blocking threads, outside of every lock. Storage elsewhere is asked for what has a row
    /// alone: it may be slow or away, and a commit tells if it has the NAR.
    async fn start(&self, row: PathRow, priority: Priority) -> Result<Nar, Error> {
        let is_remote = self.0.nars.is_remote();
        let flight = match self.0.under_way.join(&row.info.nar_hash).await {
            // Its row is yet to come; its length is known.
            Joined::Follows(Nar::Growing(growing)) if growing.is_committed() && !is_remote => {
                let blob = self.0.blob(row.info.nar_hash).await?;
                return Ok(blob.map_or(Nar::Growing(growing), Nar::Stored));
            }
            Joined::Follows(nar) => return Ok(nar),
            Joined::Leads(flight) => flight,
        };
        let (nars, nar) = (self.0.nars.clone(), row.info.nar_hash);
        // The leader looks for the file: a flight ends only after its commit.
        let look = move |nars: &NarStore| match nars.blob(nar)? {
            Some(blob) => Ok(Err(blob)),
            None => nars.draft().map(Ok),
        };
        let begun = match is_remote && self.0.index.packed(nar).await?.is_none() {
            true => reading(move || nars.draft().map(Ok)).await,
            false => nars.run(look).await,
        };
        let (draft, growing) = match begun.map_err(Error::Store)? {
            Ok(begun) => begun,
            Err(blob) => {
                flight.publish(Nar::Stored(blob.clone()));
                return Ok(Nar::Stored(blob));
            }
        };
        flight.publish(Nar::Growing(growing.clone()));
        let (inner, awaited) = (Arc::clone(&self.0), Awaited::new(&self.0, priority));
        // A task of its own goes on when the client that began it leaves. Its guards go with it, however it
        // ends.
        self.0.tasks.optional("nar-packing", async move {
            let _guards = (awaited, flight);
            inner.bring(draft, row).await;
        });
        Ok(Nar::Growing(growing))
    }

    /// Removes roots that an interrupted run left behind: of paths that are packed, or not served.
    async fn restore_roots(&self) -> Result<(), Error> {
        for path in self.0.roots.held().map_err(Error::Store)? {
            match self.0.index.find(path.hash()).await? {
                Some(hit) if hit.packed.is_none() => {}
                _ => self.0.roots.release(&path),
            }
        }
        Ok(())
    }
}
