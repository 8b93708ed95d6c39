//! Brings NARs into the NAR store, once for all who ask: what only the Nix store has is packed, in the background too; what
//! an upstream has is fetched when it is asked for. A store path is let go (its GC root removed) only when its NAR is on
//! disk and in the index.

mod ahead;
mod bring;
mod fetch;
mod prove;
mod upkeep;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use narinfo::{Compression, NarHash, StoreDir};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use crate::index::{self, Index, NarRow, PathRow};
use crate::nar_store::{Expected, Form, Growing, Nar, NarStore, Packed, Small, Source};
use crate::nix::Pool;
use crate::roots::Roots;
use crate::upstream::Upstreams;
use ahead::{Ahead, EXPECTED_FOR};
pub use fetch::upstream_nar;
pub use prove::NotProven;
use prove::Proofs;
pub use upkeep::{Fault, Flaw, Look};

/// How long the background packer rests after the NAR store could not be written.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// How long the background packer rests before it begins: who was just told of a path comes for its contents in a moment.
const BREATH: Duration = Duration::from_millis(200);
/// How often it looks whether clients still wait for others, and how long it gives way to them before each path at most, since
/// GC roots are held meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const GIVE_WAY_MAX: Duration = Duration::from_secs(60);
/// How long a store path that could not be packed is not adopted again; by then it may have been repaired.
const UNSERVABLE_FOR: Duration = Duration::from_secs(300);

/// Why a NAR cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index failed.
    #[error("the index cannot be read")]
    Index(#[from] index::Error),
    /// The NAR store failed.
    #[error("the NAR store cannot be read or written")]
    Store(#[source] std::io::Error),
    /// It could neither be packed nor fetched.
    #[error("it is not to be had: {0}")]
    NotToBeHad(std::io::Error),
}

/// A NAR that a served path has.
#[derive(Clone, Debug)]
pub struct Served {
    row: PathRow,
    /// Its file, once it is packed.
    pub packed: Option<NarRow>,
    /// All of it, where that is little.
    pub small: Option<Small>,
}

impl Served {
    /// Bytes of the plain NAR.
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        self.row.nar_size
    }

    fn expected(&self) -> Expected {
        Expected { hash: self.row.nar_hash, bytes: self.row.nar_size }
    }
}

/// Whom a NAR is brought for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// A client that has asked for it, or will next.
    Client,
    /// Nobody yet.
    Nobody,
}

/// The packer; clones share it.
#[derive(Clone)]
pub struct Packer(Arc<Inner>);

struct Inner {
    index: Index,
    nars: NarStore,
    roots: Roots,
    upstreams: Upstreams,
    pool: Pool,
    store_dir: StoreDir,
    /// What is being packed now: equal requests follow the same file.
    under_way: Mutex<HashMap<NarHash, Growing>>,
    /// Contents that are being proven.
    proofs: Proofs,
    /// Bytes of a NAR that is fetched, at most; `None` goes by what is free.
    nar_bytes_max: Option<u64>,
    /// How many of those a client waits for.
    awaited: AtomicUsize,
    /// NARs that a store path turned out not to have, though Nix registered them, or that cannot be made; when, and why.
    unservable: Mutex<HashMap<NarHash, (Instant, String)>>,
    /// What clients will ask for next.
    ahead: Mutex<Ahead>,
    /// Packing takes a core each: as many at once as there are cores.
    slots: Semaphore,
    /// Held while a file and its row are brought in step, so that neither goes while the other comes.
    settling: tokio::sync::Mutex<()>,
    work: Notify,
    /// Something was packed.
    stored: Notify,
}

impl Packer {
    /// Puts the parts together; nothing runs yet.
    #[must_use]
    pub fn new(
        index: Index,
        nars: NarStore,
        roots: Roots,
        upstreams: Upstreams,
        pool: Pool,
        store_dir: StoreDir,
        nar_bytes_max: Option<u64>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Inner {
            index,
            nars,
            roots,
            upstreams,
            pool,
            store_dir,
            under_way: Mutex::default(),
            proofs: Proofs::default(),
            nar_bytes_max,
            awaited: AtomicUsize::new(0),
            unservable: Mutex::default(),
            ahead: Mutex::default(),
            slots: Semaphore::new(cores),
            settling: tokio::sync::Mutex::default(),
            work: Notify::new(),
            stored: Notify::new(),
        }))
    }

    /// A small NAR that was asked for lately, without a look at anything else.
    #[must_use]
    pub fn in_memory(&self, nar: NarHash, form: Form) -> Option<Small> {
        let small = self.0.nars.in_memory(nar, form)?;
        self.0.index.uses().note(nar);
        Some(small)
    }

    /// The NAR with this hash, if a served path has it; packs nothing. With all its bytes in `form` where they are few.
    ///
    /// # Errors
    /// When the index fails.
    pub async fn find(&self, nar: NarHash, form: Option<Form>) -> Result<Option<Served>, Error> {
        let (nars, epoch) = (self.0.nars.clone(), self.0.nars.epoch());
        let look = move |found: Option<(PathRow, Option<NarRow>)>| {
            let (row, packed) = found?;
            let mut served = Served { row, packed, small: None };
            if let (Some(form), Some(NarRow { file_hash, file_size, .. })) = (form, packed) {
                served.small = nars.small(served.expected(), Packed { file_hash, file_size }, form, epoch);
            }
            Some(served)
        };
        let served = self.0.index.nar(nar, look).await?;
        if served.as_ref().is_some_and(|served| served.small.is_some()) {
            self.0.index.uses().note(nar);
        }
        Ok(served)
    }

    /// Where a client is to fetch the file of `served` that is compressed so, if not here.
    ///
    /// # Errors
    /// When the index fails.
    pub async fn redirect(&self, served: &Served, compression: Compression) -> Result<Option<String>, Error> {
        let ours = matches!(compression, Compression::Zstd | Compression::None);
        if ours && served.packed.is_some() {
            return Ok(None);
        }
        let upstreams = self.0.upstreams_with(served.row.nar_hash).await?;
        // What we can give ourselves is found elsewhere only where clients are sent there.
        let nar = upstreams.into_iter().find(|nar| nar.compression == compression && (nar.redirect || !ours));
        Ok(nar.and_then(|nar| self.0.upstreams.address(&nar.upstream, &nar.url)))
    }

    /// The bytes of a NAR in `form`, as soon as there are any, or in zstd, which is to be decoded on the way; packing or fetching
    /// begins (or is joined) where it is not stored yet.
    ///
    /// # Errors
    /// When the index or the NAR store fails, or it can neither be packed nor fetched.
    pub async fn open(&self, served: &mut Served, form: Form) -> Result<(Nar, Form), Error> {
        let hash = served.row.nar_hash;
        self.0.index.uses().note(hash);
        if form == Form::Plain
            && let Some(copy) = self.copy_of_tree(served).await?
        {
            return Ok((copy, form));
        }
        let mut nar = self.start(served.row.clone(), For::Client)?;
        if let Some(packed) = served.packed
            && let Some(flaw) = Flaw::at_sight(&nar, &packed)
        {
            tracing::warn!(nar = %hash, fault = %flaw.fault, "it is packed or fetched again");
            self.repair(flaw).await?;
            served.packed = None;
            nar = self.start(served.row.clone(), For::Client)?;
        }
        if let (Nar::Stored(stored), None) = (&nar, served.packed) {
            // A run was interrupted between the file and its row, or the row is just being written.
            let (inner, stored) = (Arc::clone(&self.0), stored.clone());
            tokio::spawn(async move { inner.record_found(hash, stored).await });
        }
        let mut given = Form::Zstd;
        if let (Form::Plain, Nar::Stored(stored)) = (form, &nar)
            && let Some(plain) = self.copy(served, Source::Packed(stored.clone())).await?
        {
            (nar, given) = (plain, form);
        }
        // Only now it is known whether there will be any: an answer that has begun could but be cut.
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

    /// The plain copy of what only the Nix store has, read from there: who asks for it does not wait until it is compressed, too.
    /// `None` where it is packed, or with upstreams, or no copy can be made; packing tells why.
    async fn copy_of_tree(&self, served: &Served) -> Result<Option<Nar>, Error> {
        let hash = served.row.nar_hash;
        if served.packed.is_some()
            || self.0.nars.get(hash).map_err(Error::Store)?.is_some()
            || !self.0.upstreams_with(hash).await?.is_empty()
        {
            return Ok(None);
        }
        let tree = std::path::PathBuf::from(served.row.path.in_dir(&self.0.store_dir));
        if tree.symlink_metadata().is_err() {
            return Ok(None);
        }
        let tree = Source::Tree(tree);
        let mut copy = self.copy(served, tree).await?;
        if let Some(Nar::Growing(growing)) = &mut copy
            && growing.begun().await.is_err()
        {
            copy = None;
        }
        Ok(copy)
    }

    /// A plain copy, complete or on its way, if one can be made of `source`.
    async fn copy(&self, served: &Served, source: Source) -> Result<Option<Nar>, Error> {
        let (inner, expected) = (Arc::clone(&self.0), served.expected());
        let copy = tokio::task::spawn_blocking(move || inner.nars.plain(expected, source));
        copy.await.map_err(|error| Error::Store(std::io::Error::other(error)))
    }

    /// A client was told of a NAR that is not here yet: it will ask for it.
    pub fn told(&self, client: IpAddr, nar: NarHash) {
        self.ahead().told(client, nar, Instant::now());
    }

    /// A client asks for a NAR: some that it will ask for next are brought meanwhile.
    pub fn read_ahead(&self, client: IpAddr, nar: NarHash) {
        for next in self.ahead().asks(client, nar, Instant::now()) {
            let packer = self.clone();
            tokio::spawn(async move {
                // Whatever goes wrong is said to the client that asks for it.
                if let Ok(Some(row)) = packer.0.index.path_with_nar(next).await
                    && let Ok(Nar::Growing(mut growing)) = packer.start(row, For::Client)
                {
                    // Followed until the client may have come for it.
                    let _ = timeout(EXPECTED_FOR, growing.finished()).await;
                }
            });
        }
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.0.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason why this NAR cannot be had of the Nix store, where packing has lately shown one.
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

    /// Tells the background packer that there is something new to pack.
    pub fn wake(&self) {
        self.0.work.notify_one();
    }

    /// Packs in the background, one path at a time, for as long as the server runs. Gives way to what clients wait for.
    pub async fn run(self) {
        if let Err(error) = self.release_what_is_packed().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot check the GC roots");
        }
        loop {
            if self.pack_all().await {
                self.0.work.notified().await;
                tokio::time::sleep(BREATH).await;
            } else {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    /// Packs every unpacked path; false when some could not be written and must be tried again.
    async fn pack_all(&self) -> bool {
        let rows = match self.0.index.unpacked().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot list what is to be packed");
                return false;
            }
        };
        let mut all = true;
        for row in rows {
            let hash = row.nar_hash;
            self.give_way().await;
            all &= match self.start(row, For::Nobody) {
                Ok(Nar::Stored(stored)) => self.0.record_found(hash, stored).await,
                Ok(Nar::Growing(mut growing)) => {
                    growing.finished().await.is_ok() || self.was_forgotten(hash).await
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot begin to pack");
                    false
                }
            };
        }
        all
    }

    /// Waits until no NAR is made for a client, but not for ever.
    async fn give_way(&self) {
        let calm = async {
            while self.0.awaited.load(Ordering::Relaxed) > 0 || self.0.nars.is_copying() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // Long enough either way.
        let _ = tokio::time::timeout(GIVE_WAY_MAX, calm).await;
    }

    async fn was_forgotten(&self, nar: NarHash) -> bool {
        matches!(self.0.index.path_with_nar(nar).await, Ok(None))
    }

    /// Joins the packing under way, or begins it; gives the file where it is there already.
    fn start(&self, row: PathRow, whom: For) -> Result<Nar, Error> {
        let mut under_way = self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked for under the lock: a packing leaves the map only after its file has its final name.
        if let Some(stored) = self.0.nars.get(row.nar_hash).map_err(Error::Store)? {
            return Ok(Nar::Stored(stored));
        }
        if let Some(growing) = under_way.get(&row.nar_hash) {
            return Ok(Nar::Growing(growing.clone()));
        }
        let (draft, growing) = self.0.nars.draft().map_err(Error::Store)?;
        under_way.insert(row.nar_hash, growing.clone());
        let inner = Arc::clone(&self.0);
        let awaited = usize::from(whom == For::Client);
        inner.awaited.fetch_add(awaited, Ordering::Relaxed);
        // A task of its own: it goes on when the client that began it leaves.
        tokio::spawn(async move {
            let nar = row.nar_hash;
            inner.bring(draft, row).await;
            inner.awaited.fetch_sub(awaited, Ordering::Relaxed);
            inner.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&nar);
        });
        Ok(Nar::Growing(growing))
    }

    /// Removes roots that an interrupted run left behind: of paths that are packed, or not served at all.
    async fn release_what_is_packed(&self) -> Result<(), Error> {
        for path in self.0.roots.held().map_err(Error::Store)? {
            match self.0.index.find(path.hash()).await? {
                Some(hit) if hit.packed.is_none() => {}
                _ => self.0.roots.release(&path),
            }
        }
        Ok(())
    }
}
