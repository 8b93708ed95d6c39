//! Import of what clients push: NARs are received, narinfos are verified against them and published, and
//! derivations are remembered by their outputs. Must never publish a path that was not verified, or whose
//! references are not served.

mod built;
mod derivation;
mod error;
mod received;
mod spread;
mod store;
mod supply;
mod turns;
mod upload_reader;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use narinfo::{
    Addressed, Compression, NarHash, NarInfo, PathInfo, PublicKey, Realisation, StoreDir, StorePath,
    StorePathHash,
};
use tokio::sync::Semaphore;

use crate::adopt::Adopter;
use crate::caller::{Action, Caller, may, may_for};
use crate::index::Index;
use crate::model::{NarRow, NewNar, PathRow, PushedDerivation, RealisationOutcome, UploadOutcome};
use crate::nar_store::Packed;
use crate::packer::{self, LeasedNar, Packer};
pub use built::TakeError;
use derivation::InputHashes;
pub use error::UploadError;
use received::{ReceivedNar, ReceivedNars};
pub use store::StoreError;
pub use supply::{CopyHelpers, InputFetcher};
pub use turns::OpenUpload;
use turns::UploadTurns;
pub use upload_reader::{UploadFeed, UploadReader, upload_channel};

/// Interval at which abandoned uploads are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(15);
/// Contents that are read again to be verified at the same time; each derivation among them is in memory.
const VERIFIED_AT_ONCE_MAX: usize = 4;

/// Bytes at the beginning of a file that tell its compression where its name does not.
const MAGIC_BYTES: usize = 3;

/// Settings of pushes.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Keys whose signatures make an input-addressed path believed, beside our own and those of upstreams.
    pub trusted_keys: Vec<PublicKey>,
}

/// Importer of pushes; clones share it.
#[derive(Clone)]
pub struct Importer(Arc<Inner>);

struct Inner {
    adopter: Adopter,
    index: Index,
    packer: Packer,
    store_dir: StoreDir,
    trusted_keys: Vec<PublicKey>,
    received: ReceivedNars,
    turns: UploadTurns,
    verifying: Semaphore,
    input_hashes: InputHashes,
}

impl Importer {
    /// An importer that publishes as `adopter` does. Paths with a signature by one of our own keys, or by one
    /// of `more_keys`, are believed, too.
    #[must_use]
    pub fn new(adopter: &Adopter, settings: Settings, more_keys: Vec<PublicKey>) -> Self {
        let Settings { mut trusted_keys } = settings;
        trusted_keys.extend(more_keys);
        trusted_keys.extend(adopter.keys.public());
        Self(Arc::new(Inner {
            adopter: adopter.clone(),
            index: adopter.index.clone(),
            packer: adopter.packer.clone(),
            store_dir: adopter.store_dir.clone(),
            trusted_keys,
            received: ReceivedNars::default(),
            turns: UploadTurns::default(),
            verifying: Semaphore::new(VERIFIED_AT_ONCE_MAX),
            input_hashes: InputHashes::default(),
        }))
    }

    /// An importer of what builders have built, which publishes as `adopter` does. It shares no uploads with
    /// this one.
    #[must_use]
    pub fn for_adopter(&self, adopter: &Adopter) -> Self {
        Self(Arc::new(Inner {
            adopter: adopter.clone(),
            index: adopter.index.clone(),
            packer: adopter.packer.clone(),
            store_dir: adopter.store_dir.clone(),
            trusted_keys: self.0.trusted_keys.clone(),
            received: ReceivedNars::default(),
            turns: UploadTurns::default(),
            verifying: Semaphore::new(VERIFIED_AT_ONCE_MAX),
            input_hashes: InputHashes::default(),
        }))
    }

    /// True where a NAR of this file name was received lately.
    #[must_use]
    pub fn has_received(&self, file: &str) -> bool {
        self.0.received.has(file)
    }

    /// Opens the upload of a NAR, which is to wait for its turn before it is received.
    ///
    /// # Errors
    /// The uploader has too many open.
    pub fn open(&self, uploader: &Caller) -> Result<OpenUpload, UploadError> {
        self.0.turns.open(uploader.key())
    }

    /// Receives the NAR in the file `file`, which is named by `name`, the hash of the file or of the NAR. It
    /// is kept for a while, until a narinfo names it.
    ///
    /// # Errors
    /// The NAR is damaged, too large or another one than its name says, or cannot be stored.
    pub async fn receive(
        &self,
        file: String,
        name: NarHash,
        compression: Compression,
        mut body: UploadReader,
        uploader: &Caller,
    ) -> Result<(), UploadError> {
        let (packer, sent) = (&self.0.packer, body.digest());
        let first = body.first(MAGIC_BYTES).await.map_err(UploadError::of_body)?;
        let compression = compression_of(compression, &first);
        let limits = packer.limits();
        let file_received = packer.receive(body, compression, limits).await;
        let file_received = file_received.map_err(|error| UploadError::of_received(error, limits))?;
        let sent = sent.whole().await.ok_or_else(|| {
            UploadError::Invalid(format!("{file} goes on behind the end of its {compression} contents"))
        })?;
        if name != sent.hash && name != file_received.received.nar.hash {
            let found = sent.hash.to_nixbase32();
            return Err(UploadError::Invalid(format!("{file} is to be named by its hash, which is {found}")));
        }
        // It may have taken long.
        may(uploader, Action::Push)?;
        let nar = ReceivedNar::new(file_received, name, compression, sent);
        self.0.received.add(file, nar, uploader.key(), limits.nar_bytes_max)
    }

    /// Publishes the path of a narinfo whose NAR was received, or is stored because another path has it: a
    /// client does not upload what is there. Equal uploads succeed, whoever is first. True where it was not
    /// served before.
    ///
    /// # Errors
    /// The narinfo is not as it must be, nobody vouches for it, or another path has its hash.
    pub async fn publish(
        &self,
        hash: StorePathHash,
        narinfo: &[u8],
        uploader: &Caller,
    ) -> Result<bool, UploadError> {
        let narinfo =
            NarInfo::parse(&self.0.store_dir, narinfo).map_err(|error| UploadError::invalid(&error))?;
        let info = &narinfo.path_info;
        if info.path.hash() != hash {
            return Err(UploadError::Invalid(format!("this narinfo is that of {}", info.path)));
        }
        // A token may have been revoked since the request began, or be bound to names. What is named by its
        // contents is an input of something else: those names are not asked for.
        may(uploader, Action::Push)?;
        if info.ca.is_none() {
            may_for(uploader, Action::Push, info.path.name())?;
        }
        let Some(nar) = self.0.named_nar(&narinfo).await? else {
            return self.0.is_published(info, &narinfo.url).await.map(|()| false);
        };
        self.0.must_be_believed(info, uploader).await?;
        self.0.must_be_as_in_the_nix_store(info).await?;
        let derivation = self.0.derivation(info).await?;
        self.0.publish(narinfo.path_info, &nar, derivation).await
    }

    /// Publishes a realisation whose path is served.
    ///
    /// # Errors
    /// Nobody who is believed vouches for it, or its path is not served.
    pub async fn publish_realisation(
        &self,
        realisation: Realisation,
        uploader: &Caller,
    ) -> Result<(), UploadError> {
        let drv = realisation.id().drv();
        // A token may be bound to names. Where the address names the derivation by a hash alone, the name of
        // its output counts.
        for name in drv.into_iter().chain([realisation.path()]).map(StorePath::name) {
            may_for(uploader, Action::Push, name)?;
        }
        if drv.is_some_and(|drv| !makes(drv, &realisation)) {
            return Err(UploadError::Invalid(format!(
                "{} has not the name that this output of its derivation has",
                realisation.path()
            )));
        }
        let vouches = may_for(uploader, Action::Vouch, realisation.path().name()).is_ok();
        if !vouches && !realisation.is_trusted(&self.0.trusted_keys) {
            return Err(UploadError::Unvouched(realisation.path().clone()));
        }
        let (id, pushed) = (realisation.id().clone(), realisation.path().clone());
        let conflict =
            |known| UploadError::Realised { id: Box::new(id.clone()), pushed: pushed.clone(), known };
        // A build of this machine counts from its end on, not only once somebody has asked for it.
        match self.0.adopter.local.realisation(&id).await {
            Ok(Some(built)) if *built.path() != pushed => return Err(conflict(built.path().clone())),
            Ok(_) => {}
            Err(error) => return Err(UploadError::unavailable(&error)),
        }
        match self.0.adopter.publish_realisations(vec![realisation]).await {
            Ok(RealisationOutcome::Published) => Ok(()),
            Ok(RealisationOutcome::Lacks(path)) => {
                Err(UploadError::Invalid(format!("{path} is not served here: upload it first")))
            }
            Ok(RealisationOutcome::Conflict { known, .. }) => Err(conflict(known)),
            Err(error) => Err(UploadError::unavailable(&error)),
        }
    }

    /// Those of `paths` that are not served. Who asks relies on the others, and pushes again what is evicted.
    ///
    /// # Errors
    /// The index fails.
    pub async fn missing(&self, paths: Vec<StorePath>) -> Result<Vec<StorePath>, UploadError> {
        let found = self.0.index.served(paths.iter().map(StorePath::hash).collect()).await?;
        let (served, missing): (Vec<_>, Vec<_>) =
            paths.into_iter().partition(|path| found.get(&path.hash()) == Some(path));
        let drvs: Vec<StorePath> = served.into_iter().filter(StorePath::is_derivation).collect();
        if !drvs.is_empty() {
            self.note_uses(&drvs).await;
        }
        Ok(missing)
    }

    /// Notes that derivations are about to be built, which keeps those that were pushed for longer. One whose
    /// use is not on record may only be forgotten early.
    pub async fn note_uses(&self, drvs: &[StorePath]) {
        if let Err(error) = self.0.index.note_pushed_uses(drvs.to_vec(), SystemTime::now()).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "cannot record the use of pushed derivations (keep-pushed)");
        }
    }

    /// Forgets uploads that nobody goes on with, for as long as the server runs.
    pub async fn run(self) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            sweep.tick().await;
            self.0.received.sweep();
        }
    }
}

impl Inner {
    /// Succeeds for a narinfo without a NAR whose path is served with the same contents.
    async fn is_published(&self, info: &PathInfo, url: &str) -> Result<(), UploadError> {
        match self.index.find(info.path.hash()).await? {
            Some(hit) if hit.row.info.path == info.path && hit.row.info.nar_hash == info.nar_hash => Ok(()),
            Some(hit) => Err(conflict(info, &hit.row.info)),
            None => Err(UploadError::Invalid(format!(
                "there is no NAR at {url}: upload it there first, and the narinfo soon after"
            ))),
        }
    }

    /// The NAR that a narinfo names, whose file stays for as long as the answer is held: one that was
    /// received, or one of another path. `None` where there is none.
    async fn named_nar(&self, narinfo: &NarInfo) -> Result<Option<NamedNar>, UploadError> {
        let NarInfo { path_info: info, url, compression, file_hash, file_size } = narinfo;
        let Some(file) = url.strip_prefix("nar/") else { return Ok(None) };
        if let Some(received) = self.received.get(file) {
            received.must_be(info, *compression, *file_hash, *file_size)?;
            // Before anything reads the file: one that cannot be made durable is gone.
            received.durable().await.map_err(|error| UploadError::unavailable(&error))?;
            return Ok(Some(NamedNar::Received(received)));
        }
        // The hash of our own addresses, in whatever form they are asked for.
        let name = file.split(['.', '?']).next().unwrap_or_default();
        let name = name.rsplit('-').next().unwrap_or_default();
        let is_named_by_nar = NarHash::from_nixbase32(name).is_ok_and(|hash| hash == info.nar_hash);
        if !is_named_by_nar {
            return Ok(None);
        }
        let Some(stored) = self.packer.lease_served(info.nar_hash).await.map_err(unreadable)? else {
            return Ok(None);
        };
        if stored.nar_size != info.nar_size {
            return Err(UploadError::Invalid(format!(
                "the narinfo of {} says NarSize {}, what is stored has {}",
                info.path, info.nar_size, stored.nar_size
            )));
        }
        Ok(Some(NamedNar::Served(stored)))
    }

    /// Fails unless the path is named by its contents, or somebody who is believed vouches for it.
    async fn must_be_believed(
        self: &Arc<Self>,
        info: &PathInfo,
        uploader: &Caller,
    ) -> Result<(), UploadError> {
        if let Some(ca) = &info.ca {
            let addressed = Addressed::new(ca.clone(), &info.path, &info.references);
            let is_named = info.names_contents(&self.store_dir)
                && self
                    .reading(info, move |nar| Ok(narinfo::nar::check_addressed(nar, &addressed).is_ok()))
                    .await?;
            let path = &info.path;
            return if is_named {
                Ok(())
            } else {
                Err(UploadError::Invalid(format!(
                    "{path} is not named by these contents and references ({ca})"
                )))
            };
        }
        let vouches = may_for(uploader, Action::Vouch, info.path.name()).is_ok();
        if vouches || info.is_signed(&self.store_dir, &self.trusted_keys) {
            return Ok(());
        }
        Err(UploadError::Unvouched(info.path.clone()))
    }

    /// Fails where the Nix store of this machine has the path with other contents. What is named by its
    /// contents was compared with them.
    async fn must_be_as_in_the_nix_store(&self, info: &PathInfo) -> Result<(), UploadError> {
        let local = &self.adopter.local;
        if info.ca.is_some() || local.definitely_absent(info.path.hash()) {
            return Ok(());
        }
        match local.nar_hash(&info.path).await {
            Ok(Some(hash)) if hash != info.nar_hash => Err(UploadError::InNixStore(info.path.clone())),
            Ok(_) => Ok(()),
            Err(error) => Err(UploadError::unavailable(&error)),
        }
    }

    /// Reads a NAR that is held, on a thread that may wait.
    async fn reading<T: Send + 'static>(
        &self,
        info: &PathInfo,
        work: impl FnOnce(&mut dyn Read) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, UploadError> {
        // The semaphore is never closed.
        let _turn = self.verifying.acquire().await;
        let read = self.packer.read_plain(info.nar_hash, work).await.map_err(unreadable)?;
        read.ok_or_else(|| UploadError::Invalid("its NAR is not there any more: upload it again".to_owned()))
    }

    async fn publish(
        &self,
        info: PathInfo,
        named: &NamedNar,
        derivation: Option<PushedDerivation>,
    ) -> Result<bool, UploadError> {
        let Packed { file_hash, file_size } = named.packed();
        let nar_row = NarRow { nar_hash: info.nar_hash, file_hash, file_size };
        let nar = NewNar { row: nar_row, programs: named.programs() };
        let mut row = PathRow { info: info.clone(), built: false };
        self.adopter.sign(&mut row);
        let is_new = match self.index.publish_upload(row, nar, derivation).await? {
            UploadOutcome::Published => {
                tracing::info!(path = %info.path, "published a pushed path");
                true
            }
            UploadOutcome::Served(served)
                if (&served.info.path, served.info.nar_hash) == (&info.path, info.nar_hash) =>
            {
                false
            }
            UploadOutcome::Served(served) => return Err(conflict(&info, &served.info)),
            UploadOutcome::Lacks(path) => {
                return Err(UploadError::Invalid(format!(
                    "{} refers to {path}, which is not served here: upload that first",
                    info.path
                )));
            }
        };
        let mut version = None;
        if let NamedNar::Received(received) = named {
            received.published();
            version = received.version();
        }
        self.packer.note_uploaded(info.path, info.nar_hash, version);
        Ok(is_new)
    }
}

/// Compression of a file whose name tells `named`: Nix leaves the ending away where it knows none.
fn compression_of(named: Compression, first: &[u8]) -> Compression {
    match (named, first) {
        (Compression::None, [0x1f, 0x8b, ..]) => Compression::Gzip,
        (Compression::None, [0x5d, 0, 0, ..]) => Compression::Lzma,
        (named, _) => named,
    }
}

fn conflict(info: &PathInfo, served: &PathInfo) -> UploadError {
    UploadError::Conflict { path: info.path.clone(), served: served.path.clone() }
}

fn unreadable(error: packer::Error) -> UploadError {
    UploadError::unavailable(&error)
}

/// A NAR that a narinfo names, held so that its file stays.
enum NamedNar {
    Received(Arc<ReceivedNar>),
    /// Stored because another path has it.
    Served(LeasedNar),
}

impl NamedNar {
    fn packed(&self) -> Packed {
        match self {
            Self::Received(received) => received.packed(),
            Self::Served(stored) => stored.packed,
        }
    }

    /// Names of its programs; those of a NAR that is stored are on record.
    fn programs(&self) -> Vec<String> {
        match self {
            Self::Received(received) => received.programs(),
            Self::Served(_) => Vec::new(),
        }
    }
}

/// True where the path has the name that Nix gives to this output of the derivation.
fn makes(drv: &StorePath, realisation: &Realisation) -> bool {
    let name = drv.name().strip_suffix(".drv").unwrap_or(drv.name());
    match realisation.id().output().as_str() {
        "out" => realisation.path().name() == name,
        output => realisation.path().name().strip_prefix(name) == Some(&format!("-{output}")),
    }
}
