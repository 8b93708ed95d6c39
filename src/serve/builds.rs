//! Opening of builds: package sets, the queue as it was, and the worker.

use super::caches::Caches;
use super::daemons::Daemons;
use super::storage::Storage;
use super::{Error, Settings};
use crate::build::{Failures, LocalRunner, Scheduler, Worker};
use crate::catalogue::{Catalogue, NameResolver, Refresher, Tools};
use crate::nix::Connections;
use crate::tasks::Tasks;

/// Handles of what is built, and from what.
pub(super) struct Builds {
    pub(super) catalogue: Catalogue,
    pub(super) names: NameResolver,
    pub(super) failures: Failures,
    pub(super) scheduler: Scheduler,
    worker: Worker,
    refresher: Refresher,
}

impl Builds {
    pub(super) async fn open(
        settings: &Settings,
        storage: &Storage,
        daemons: &Daemons,
        caches: &Caches,
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        let Storage { state_dir, index, .. } = storage;
        let sets = settings.catalogue.sets.iter().map(|set| set.name.to_string()).collect();
        let failures = Failures::new(index.clone(), settings.build);
        tokio::try_join!(failures.apply_settings(), index.sync_sets(sets))?;
        let catalogue = Catalogue::new(settings.catalogue.clone());
        let tools = Tools {
            index: index.clone(),
            pool: daemons.pool.clone(),
            roots: storage.roots("catalogue")?,
            nix: settings.nix.clone(),
            home: state_dir.join("evaluator"),
            hidden: [state_dir].into_iter().chain(&settings.signing_keys).cloned().collect(),
            isolation: settings.catalogue.isolation,
            tasks: tasks.clone(),
        };
        let refresher = Refresher { catalogue: catalogue.clone(), tools: tools.clone() };
        let scheduler = Scheduler::open(settings.build, index).await?;
        let runner = LocalRunner {
            connections: Connections::new(daemons.pool.clone()),
            upstreams: caches.upstreams.clone(),
            roots: storage.roots("building")?,
            settings: settings.build,
        };
        let background = daemons.background.clone().map(Connections::new);
        let worker = Worker {
            scheduler: scheduler.clone(),
            background: background.map(|connections| LocalRunner { connections, ..runner.clone() }),
            runner,
            logs: storage.logs.clone(),
            adopter: caches.adopter.clone(),
            importer: caches.importer.clone(),
            requested: storage.roots("requested")?,
            index: index.clone(),
            failures: failures.clone(),
            bumps: catalogue.bumps(),
            capabilities: daemons.detected.clone(),
            settings: settings.build,
        };
        let names = NameResolver::new(catalogue.clone(), tools);
        Ok(Self { catalogue, names, failures, scheduler, worker, refresher })
    }

    /// Tasks that build and that refresh package sets.
    pub(super) fn start(self, tasks: &Tasks) {
        tasks.vital("builder", self.worker.run());
        tasks.vital("catalogue", self.refresher.run());
    }
}
