//! Opening of builds: package sets, the queue as it was, and the worker.

use std::fs;
use std::path::Path;

use super::caches::Caches;
use super::daemons::Daemons;
use super::leadership::Leadership;
use super::storage::Storage;
use super::{Error, Settings};
use crate::build::{
    BuilderSettings, DrainedBuilders, Failures, Farm, LocalRunner, MachineRunner, RemoteRunner, Scheduler,
    Worker,
};
use crate::catalogue::{Catalogue, NameResolver, Refresher, Tools};
use crate::import::{CopyHelpers, InputFetcher};
use crate::nix::{Connections, DaemonAddress, Options, Pool, SshMachine};
use crate::state_dir::{DRAINED, KNOWN_HOSTS, using};
use crate::tasks::Tasks;

/// Time that a builder may take to connect to this server.
const FETCH_CONNECT_SECONDS: u32 = 5;

/// Handles of what is built, and from what.
pub(super) struct Builds {
    pub(super) catalogue: Catalogue,
    pub(super) names: NameResolver,
    pub(super) failures: Failures,
    pub(super) scheduler: Scheduler,
    pub(super) drained: DrainedBuilders,
    /// The share in what several servers do with one index; `None` for a server that is alone.
    pub(super) leadership: Option<Leadership>,
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
        let farm = Farm::new(&settings.farm);
        let leadership = Leadership::open(settings, state_dir, index).await?;
        let scheduler = match &leadership {
            Some(leadership) => {
                let node = leadership.node();
                Scheduler::open_shared(settings.build, farm.clone(), index, node).await?
            }
            None => Scheduler::open_farm(settings.build, farm.clone(), index).await?,
        };
        let drained = using(&state_dir.join(DRAINED), DrainedBuilders::open)?;
        for name in farm.names().filter(|name| drained.has(name)) {
            let _ = scheduler.drain(name, true);
        }
        let runner = LocalRunner {
            connections: Connections::new(daemons.pool.clone()),
            upstreams: caches.upstreams.clone(),
            roots: storage.roots("building")?,
            importer: caches.importer.clone(),
            has_others: !farm.is_local(),
            sent: daemons.local.sent().clone(),
            settings: settings.build,
        };
        let machines = machines(settings, state_dir, &runner, caches)?;
        let background = daemons.background.clone().map(Connections::new);
        let worker = Worker {
            scheduler: scheduler.clone(),
            background: background.map(|connections| LocalRunner { connections, ..runner.clone() }),
            runner,
            machines,
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
        Ok(Self { catalogue, names, failures, scheduler, drained, leadership, worker, refresher })
    }

    /// The worker, for questions.
    pub(super) fn worker(&self) -> Worker {
        self.worker.clone()
    }

    /// Tasks that build and that refresh package sets.
    pub(super) fn start(self, tasks: &Tasks) {
        tasks.optional("local builder", self.worker.clone().describe_local());
        if let Some(leadership) = self.leadership {
            let scheduler = self.scheduler.clone();
            tasks.restarted("queue follower", move || scheduler.clone().follow_queue());
            tasks.vital("leadership", leadership.run((self.worker, self.refresher)));
            return;
        }
        tasks.vital("builder", self.worker.run());
        tasks.vital("catalogue", self.refresher.run());
    }
}

/// Runners of all machines, in the order of the farm.
fn machines(
    settings: &Settings,
    state_dir: &Path,
    local: &LocalRunner,
    caches: &Caches,
) -> Result<Vec<MachineRunner>, Error> {
    let mut machines = Vec::new();
    machines.extend(settings.farm.local_slots.map(|_| MachineRunner::Local(local.clone())));
    for builder in &settings.farm.builders {
        let mut ssh = builder.ssh.clone();
        if let Some(key) = &builder.host_key {
            let folder = state_dir.join(KNOWN_HOSTS);
            let file = folder.join(&builder.name);
            using(&folder, |folder| fs::create_dir_all(folder))?;
            using(&file, |file| fs::write(file, format!("* {key}\n")))?;
            ssh.known_hosts = Some(file);
        }
        // It is to take inputs from nowhere but here, and outputs from nowhere at all.
        let fetcher = fetcher(settings, builder, &ssh, caches);
        let options = Options {
            build_cores: settings.build.cores,
            extra: vec![("max-build-log-size".to_owned(), settings.logs.daemon_bytes_max().to_string())],
            ..Options::default()
        };
        let connections = Connections::new(Pool::new(DaemonAddress::Ssh(ssh), options));
        machines.push(MachineRunner::Remote(RemoteRunner {
            name: builder.name.as_str().into(),
            connections: connections.clone(),
            importer: caches.importer.clone(),
            fetcher,
            helpers: CopyHelpers::new(&builder.name, connections),
            sent: local.sent.clone(),
            silent_max: builder.silent_max,
            settings: settings.build,
        }));
    }
    Ok(machines)
}

/// Fetcher of inputs on a builder, where it is known how that reaches this server.
fn fetcher(
    settings: &Settings,
    builder: &BuilderSettings,
    ssh: &SshMachine,
    caches: &Caches,
) -> Option<InputFetcher> {
    let public_url = settings.http.public_url.as_ref().map(ToString::to_string);
    let url = builder.cache_url.clone().or(public_url)?;
    let keys: Vec<String> = caches.adopter.keys.public().map(|key| key.to_string()).collect();
    let options = Options {
        substituters: format!("{url}/cached"),
        extra: vec![
            ("connect-timeout".to_owned(), FETCH_CONNECT_SECONDS.to_string()),
            ("download-attempts".to_owned(), "1".to_owned()),
            ("extra-trusted-public-keys".to_owned(), keys.join(" ")),
        ],
        ..Options::default()
    };
    Some(InputFetcher::new(&builder.name, Pool::new(DaemonAddress::Ssh(ssh.clone()), options)))
}
