//! Opening of caches: upstreams, the NARs that are packed and retained here, and what makes a path a served
//! one.

use std::path::PathBuf;

use super::daemons::Daemons;
use super::storage::Storage;
use super::{Error, Settings};
use crate::adopt::{Adopter, Searches};
use crate::compare::Comparer;
use crate::import::Importer;
use crate::key;
use crate::packer::{Packer, PackerHandles};
use crate::publish::Publication;
use crate::retention::Retention;
use crate::tasks::Tasks;
use crate::upstream::{self, Upstreams};

/// Handles of the local cache and of upstreams.
pub(super) struct Caches {
    pub(super) upstreams: Upstreams,
    pub(super) packer: Packer,
    pub(super) publication: Publication,
    pub(super) retention: Retention,
    pub(super) adopter: Adopter,
    pub(super) importer: Importer,
    comparer: Comparer,
    /// Adds the signatures of new keys to what is served; `None` where nothing lacks one.
    resigner: Option<Resigner>,
}

impl Caches {
    pub(super) async fn open(
        settings: &Settings,
        storage: &Storage,
        daemons: &Daemons,
        tasks: &Tasks,
        public_key: &str,
    ) -> Result<Self, Error> {
        let Storage { state_dir, store_dir, index, .. } = storage;
        let roots = storage.roots("gcroots")?;
        let name = upstream::ViaName::of(public_key);
        let upstreams = Upstreams::new(settings.upstream.clone(), store_dir, name)?;
        let names = upstreams.names().map(|(name, redirect)| (name.to_owned(), redirect)).collect();
        index.sync_upstreams(names).await?;
        let publication = Publication::new(
            index.clone(),
            storage.nars.clone(),
            storage.keys.clone(),
            store_dir.clone(),
            settings.http.priority,
        );
        let packer = Packer::new(PackerHandles {
            index: index.clone(),
            nars: storage.nars.clone(),
            publication: publication.clone(),
            roots: roots.clone(),
            upstreams: upstreams.clone(),
            pool: daemons.pool.clone(),
            store_dir: store_dir.clone(),
            nar_bytes_max: settings.nar_bytes_max,
            tasks: tasks.clone(),
        });
        let retention = Retention::new(
            index.clone(),
            packer.clone(),
            publication.clone(),
            storage.reserve.clone(),
            settings.retention,
            tasks.clone(),
        );
        let adopter = Adopter {
            pool: daemons.pool.clone(),
            index: index.clone(),
            roots,
            packer: packer.clone(),
            keys: storage.keys.clone(),
            store_dir: store_dir.clone(),
            local: daemons.local.clone(),
            upstreams: upstreams.clone(),
            searches: Searches::default(),
        };
        let upstream_keys = settings.upstream.caches.iter().flat_map(|cache| cache.public_keys.clone());
        let importer = Importer::new(&adopter, settings.import.clone(), upstream_keys.collect());
        let comparer = Comparer { index: index.clone(), upstreams: upstreams.clone() };
        let resigner = Resigner { adopter: adopter.clone(), state_dir: state_dir.clone() };
        let resigner = storage.resign.then_some(resigner);
        Ok(Self { upstreams, packer, publication, retention, adopter, importer, comparer, resigner })
    }

    /// Tasks that pack, publish, evict, verify, compare and sign.
    pub(super) fn start(self, tasks: &Tasks) {
        let Self { packer, publication, retention, adopter, importer, comparer, resigner, .. } = self;
        let storing = packer.clone();
        tasks.restarted("publication", move || {
            let packer = storing.clone();
            publication.clone().run(move |row| {
                let packer = packer.clone();
                async move { packer.store(row).await }
            })
        });
        tasks.vital("packer", packer.run());
        tasks.restarted("importer", move || importer.clone().run());
        tasks.vital("retention", retention.clone().run());
        tasks.restarted("scrubber", move || retention.clone().scrub());
        tasks.restarted("signatures", move || {
            let adopter = adopter.clone();
            async move { adopter.gather_new_signatures().await }
        });
        tasks.restarted("comparer", move || comparer.clone().run());
        if let Some(resigner) = resigner {
            tasks.optional("resigner", resigner.run());
        }
    }
}

/// Adds signatures of new keys to every served path, and notes that in the state directory.
struct Resigner {
    adopter: Adopter,
    state_dir: PathBuf,
}

impl Resigner {
    async fn run(self) {
        match self.adopter.resign().await {
            Ok(paths) => {
                tracing::info!(paths, "every served path has a signature by each signing key");
                if let Err(error) = key::SignerRecord::finish(&self.state_dir, &self.adopter.keys) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot note that; signatures are looked through again at the next start"
                    );
                }
            }
            // Answers are complete without it; the next start tries again.
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot store the signatures of new keys in the index; the next start tries again"
            ),
        }
    }
}
