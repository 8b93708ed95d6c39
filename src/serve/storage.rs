//! Opening of storage: all that the server keeps in its state directory. Tests put their own index and NARs
//! in the place of those there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use narinfo::StoreDir;

use super::index_stamp::IndexStamp;
use super::{Error, Settings};
use crate::build::Logs;
use crate::debug_info::DebugInfo;
use crate::index::{Index, IndexLocation, Sqlite, has_ledger};
use crate::key::{self, Keys};
use crate::nar_store::{self, NarStore, Secrets};
use crate::recover::Recovery;
use crate::retention::Reserve;
use crate::roots::Roots;
use crate::state_dir::{self, INDEX, LEDGER, NARS, using};
use crate::tasks::Tasks;

/// Handles of all that is kept.
pub(super) struct Storage {
    /// The state directory, which is locked.
    pub(super) state_dir: PathBuf,
    pub(super) store_dir: StoreDir,
    pub(super) keys: Arc<Keys>,
    /// True when served paths lack signatures of new keys.
    pub(super) resign: bool,
    pub(super) index: Index,
    /// True where the index is the one that the last server here has closed, or a new one.
    pub(super) is_as_left: bool,
    pub(super) nars: NarStore,
    pub(super) reserve: Reserve,
    pub(super) logs: Logs,
    pub(super) debug_info: DebugInfo,
}

/// The index and the NARs, whatever they are kept in.
pub(crate) struct Stores {
    pub(crate) index: Index,
    pub(crate) nars: NarStore,
}

impl Stores {
    /// The index that the settings name, and a directory in the state directory.
    async fn open(state_dir: &Path, settings: &Settings, keys: &Keys) -> Result<Self, Error> {
        let nar_store =
            nar_store::Settings { secrets: Secrets::of_keys(keys.texts()), ..settings.nar_store.clone() };
        let nars = using(&state_dir.join(NARS), |dir| NarStore::open(dir, nar_store))?;
        let bytes = settings.narinfo_memory_bytes;
        let index = match &settings.index.location {
            IndexLocation::Sqlite => Index::new(sqlite(state_dir, settings, keys, &nars).await?, bytes),
            IndexLocation::Postgres(url) => {
                let password_file = settings.index.password_file.as_deref();
                Index::open_postgres(url, password_file, bytes).await?
            }
        };
        Ok(Self { index, nars })
    }
}

/// True where a server with this state directory has served something, as far as the directory tells.
pub(super) fn has_served(state_dir: &Path, location: &IndexLocation) -> Result<bool, Error> {
    Ok(match location {
        IndexLocation::Sqlite => state_dir.join(INDEX).exists() || has_ledger(&state_dir.join(LEDGER)),
        IndexLocation::Postgres(_) => key::SignerRecord::read(state_dir)?.keys().next().is_some(),
    })
}

/// The index in a state directory, made anew where it is lost.
async fn sqlite(
    state_dir: &Path,
    settings: &Settings,
    keys: &Keys,
    nars: &NarStore,
) -> Result<Sqlite, Error> {
    let [index, ledger] = [INDEX, LEDGER].map(|name| state_dir.join(name));
    let recovery = Recovery {
        state_dir: state_dir.to_owned(),
        index: index.clone(),
        ledger: ledger.clone(),
        nars: nars.clone(),
        store_dir: settings.nix.store_dir.clone(),
        keys: keys.public().collect(),
    };
    recovery.run_if_needed().await?;
    Ok(Sqlite::open(&index)?.with_ledger(&ledger).await?)
}

impl Storage {
    /// Opens what is in a state directory that this process has locked; `stores` take the place of the index
    /// and the NARs there.
    pub(super) async fn open(
        state_dir: PathBuf,
        settings: &Settings,
        stores: Option<Stores>,
    ) -> Result<Self, Error> {
        // On a full disk the index could not even be opened.
        let reserve = Reserve::of(&state_dir);
        using(&state_dir, |_| reserve.release_if_needed())?;
        let is_old = has_served(&state_dir, &settings.index.location)?;
        let keys = Keys::open(&state_dir, &settings.signing_keys, &settings.key_name, is_old)?;
        if let Some(warning) = keys.unheeded(&settings.key_name) {
            tracing::warn!("{warning}");
        }
        let store_dir = settings.nix.store_dir.clone();
        let is_as_left = match settings.index.location {
            IndexLocation::Sqlite => IndexStamp::of(&state_dir).take() || !is_old,
            IndexLocation::Postgres(_) => false,
        };
        let Stores { index, nars } = match stores {
            Some(stores) => stores,
            None => Stores::open(&state_dir, settings, &keys).await?,
        };
        let is_fresh = match settings.index.location {
            IndexLocation::Sqlite => !is_old,
            // Another server may have filled it, with other keys.
            IndexLocation::Postgres(_) => index.counts().await?.paths == 0,
        };
        let resign = key::SignerRecord::begin(&state_dir, &keys, is_fresh)?;
        let logs = using(&state_dir.join("log"), |dir| Logs::open(dir, settings.logs))?;
        let debug_info = using(&state_dir.join("debuginfo"), DebugInfo::open)?;
        let keys = Arc::new(keys);
        Ok(Self { state_dir, store_dir, keys, resign, index, is_as_left, nars, reserve, logs, debug_info })
    }

    /// Keys that clients trust; the first is shown to them.
    pub(super) fn public_keys(&self) -> Vec<String> {
        self.keys.public().map(|key| key.to_string()).collect()
    }

    /// A folder of GC roots.
    pub(super) fn roots(&self, name: &str) -> Result<Roots, state_dir::Error> {
        using(&self.state_dir.join(name), |dir| Roots::open(dir, self.store_dir.clone()))
    }

    /// Tasks by which the index maintains itself.
    pub(super) fn start(&self, tasks: &Tasks) {
        let index = self.index.clone();
        tasks.restarted("index-maintenance", move || {
            let index = index.clone();
            async move { index.maintain().await }
        });
        let index = self.index.clone();
        tasks.restarted("index-filter", move || {
            let index = index.clone();
            async move { index.maintain_filter().await }
        });
    }
}
