//! Several servers over one database on a virtual clock and a virtual network: leadership, the shared queue
//! and its record are those of the program. The database is the double in memory, which is held to the same
//! promises as PostgreSQL, and builds only take their time. What a seed does, it does each time.

mod clients;
mod clock;
mod faults;
mod history;
mod history_tests;
mod network;
mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use narinfo::StorePath;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::leadership::{LeaderWork, Leadership, Roles};
use crate::build::simulated::SimulatedWorker;
use crate::build::{Farm, Scheduler, Settings};
use crate::index::Index;
use crate::index::cluster::Database;
use crate::index::shared::SharedMemory;
use crate::model::{NodeId, Term};
use clock::RunClock;
use faults::Fault;
use history::{Event, History};
use network::{Dice, Network};
use site::{Package, Site};

/// Servers of a run.
const SERVERS: usize = 3;
/// Hours of one run where many are made.
const HOURS_EACH: u64 = 100;
/// Of so many seeds, the servers of one live through quiet times, too.
const LIVED_EVERY: u64 = 20;
/// Number of hours that are simulated in all.
const HOURS: &str = "ONDINE_SIMULATED_HOURS";
/// A seed that is run alone, with its history.
const SEED: &str = "ONDINE_SIMULATION_SEED";
/// Time within which requests that nobody waits for are dropped.
const DROPPED_WITHIN: Duration = Duration::from_secs(600);
/// Pause before a server that cannot open its index is started again.
const START_AGAIN_AFTER: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A server that answers clients.
#[derive(Clone)]
struct FrontEnd {
    scheduler: Scheduler,
    index: Index,
}

/// A server, whether it runs or not.
struct Server {
    front: watch::Sender<Option<FrontEnd>>,
    process: Mutex<Option<AbortHandle>>,
}

/// Numbers of what has happened.
#[derive(Default)]
struct Counts {
    clients: u64,
    /// Clients that are there now.
    waiting: u64,
    answered: u64,
    asked_again: u64,
    takeovers: u64,
    slowest_takeover: Duration,
    faults: BTreeMap<Fault, u64>,
}

/// The parts of a run.
struct World {
    clock: RunClock,
    dice: Dice,
    network: Network,
    database: Arc<Database>,
    servers: Vec<Server>,
    packages: Mutex<BTreeMap<StorePath, Package>>,
    /// Numbers of the packages in each Nix store.
    stores: Mutex<Vec<BTreeSet<u64>>>,
    history: Mutex<History>,
    counts: Mutex<Counts>,
    broken: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LeaderWork for SimulatedWorker {
    fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    fn for_term(
        &self,
        term: &Term,
        begun: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let worker = self.for_term(term);
        async move {
            begun.await;
            worker.run().await;
        }
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let dice = Dice::new(seed);
        let server = || Server { front: watch::channel(None).0, process: Mutex::default() };
        Self {
            clock: RunClock::new(),
            network: Network::new(&dice, SERVERS),
            dice,
            database: Arc::default(),
            servers: (0..SERVERS).map(|_| server()).collect(),
            packages: Mutex::default(),
            stores: Mutex::new(vec![BTreeSet::new(); SERVERS]),
            history: Mutex::default(),
            counts: Mutex::default(),
            broken: Mutex::default(),
        }
    }

    fn node(server: usize) -> NodeId {
        NodeId(format!("server-{server}"))
    }

    fn packages(&self) -> MutexGuard<'_, BTreeMap<StorePath, Package>> {
        lock(&self.packages)
    }

    fn package(&self, drv: &StorePath) -> Package {
        self.packages().get(drv).cloned().expect("it was made before anyone asked for it")
    }

    fn stores(&self) -> MutexGuard<'_, Vec<BTreeSet<u64>>> {
        lock(&self.stores)
    }

    fn epoch(&self) -> Option<u64> {
        self.database.term().map(|term| term.epoch)
    }

    /// Number of the server that leads, as the database has it.
    fn leader(&self) -> Option<usize> {
        let holder = self.database.term()?.holder;
        (0..SERVERS).find(|server| Self::node(*server) == holder)
    }

    fn front_end(&self, server: usize) -> Option<FrontEnd> {
        self.servers[server].front.borrow().clone()
    }

    /// Resolves once a server is killed.
    async fn killed(&self, server: usize) {
        let mut front = self.servers[server].front.subscribe();
        let _ = front.wait_for(Option::is_none).await;
    }

    /// Notes what has happened, behind all that is in the log of the database by now.
    fn note(&self, event: Event) {
        let mut history = lock(&self.history);
        let written = self.database.take_log().into_iter();
        history.events.extend(written.map(|(at, event)| (at, Event::Database(event))));
        history.events.push((Instant::now(), event));
    }

    fn breaks(&self, promise: String) {
        lock(&self.broken).push(format!("after {:?}: {promise}", self.clock.ticked()));
    }

    fn count(&self, number: impl Fn(&mut Counts) -> &mut u64) -> u64 {
        let mut counts = lock(&self.counts);
        let number = number(&mut counts);
        *number += 1;
        *number
    }

    fn count_fault(&self, fault: Fault) {
        *lock(&self.counts).faults.entry(fault).or_default() += 1;
    }

    fn note_takeover(&self, after: Duration) {
        let mut counts = lock(&self.counts);
        counts.takeovers += 1;
        counts.slowest_takeover = counts.slowest_takeover.max(after);
    }

    fn start(self: &Arc<Self>, server: usize) {
        let process = tokio::spawn(Arc::clone(self).run_server(server));
        *lock(&self.servers[server].process) = Some(process.abort_handle());
    }

    fn kill(&self, server: usize) {
        if let Some(process) = lock(&self.servers[server].process).take() {
            if process.is_finished() {
                self.breaks(format!("server {server} has ended by itself"));
            }
            process.abort();
        }
        self.servers[server].front.send_replace(None);
        self.note(Event::Killed(server));
    }

    /// A server, from its start until it is killed.
    async fn run_server(self: Arc<Self>, server: usize) {
        let way = Arc::new(self.network.way(server));
        let index = Index::new(SharedMemory::new(Arc::clone(&self.database), way), 0);
        let settings = Settings { transient_retry: HOUR, ..Settings::default() };
        let (farm, node) = (Farm::local(NonZeroUsize::MIN), Self::node(server));
        let scheduler = loop {
            match Scheduler::open_shared(settings, farm.clone(), &index, node.clone()).await {
                Ok(scheduler) => break scheduler,
                Err(_) => sleep(START_AGAIN_AFTER).await,
            }
        };
        let site = Arc::new(Site { world: Arc::clone(&self), server });
        let worker = SimulatedWorker::new(scheduler.clone(), index.clone(), site);
        let leadership = Leadership::new(index.clone(), node, Roles::default(), false);
        self.servers[server].front.send_replace(Some(FrontEnd { scheduler: scheduler.clone(), index }));
        // Apart, as in the program: a timer of one has nothing to do with the other.
        let mut following = JoinSet::new();
        following.spawn(scheduler.follow_queue());
        tokio::select! {
            () = leadership.run(worker) => {}
            ended = following.join_next() => panic!("server {server} does not follow the queue: {ended:?}"),
        }
    }

    /// Requests whose clients have left are dropped, and nothing else is in the queue.
    async fn empty_queue(&self) {
        let begun = Instant::now();
        while self.database.has_queue() {
            if begun.elapsed() > DROPPED_WITHIN {
                return self.breaks(format!("left in the queue: {:?}", self.database.queue()));
            }
            sleep(START_AGAIN_AFTER).await;
        }
    }
}

/// Outcome of a run.
struct Outcome {
    /// Time of the run, and of its servers.
    lasted: Duration,
    ticked: Duration,
    counts: Counts,
    requests: usize,
    builds: usize,
    broken: Vec<String>,
    history: History,
}

/// Quiet times of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QuietTimes {
    /// They are passed over.
    Passed,
    /// The servers live through them.
    Lived,
}

/// Simulates so many hours.
fn simulate(seed: u64, hours: u64, quiet: QuietTimes) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let (world, until) = (Arc::new(World::new(seed)), HOUR * u32::try_from(hours).expect("few"));
        (0..SERVERS).for_each(|server| world.start(server));
        let happening = async { tokio::join!(world.receive_clients(until), world.suffer(until)) };
        tokio::select! {
            biased;
            _ = happening => {}
            () = world.clock.pass_quiet_times(|| world.is_busy()), if quiet == QuietTimes::Passed => {}
        }
        world.empty_queue().await;
        (0..SERVERS).for_each(|server| world.kill(server));
        world.outcome()
    })
}

impl World {
    /// True while anyone waits or anything is in the queue.
    fn is_busy(&self) -> bool {
        lock(&self.counts).waiting > 0 || self.database.has_queue()
    }

    fn outcome(&self) -> Outcome {
        let mut history = std::mem::take(&mut *lock(&self.history));
        let packages = self.packages();
        history.needs = packages
            .iter()
            .map(|(drv, package)| {
                let inputs = package.inputs.iter().map(|input| site::drv(*input));
                (drv.clone(), inputs.chain([drv.clone()]).collect())
            })
            .collect();
        let mut broken = std::mem::take(&mut *lock(&self.broken));
        broken.extend(history.broken());
        let count = |is: fn(&Event) -> bool| history.events.iter().filter(|(_, event)| is(event)).count();
        Outcome {
            lasted: self.clock.elapsed(),
            ticked: self.clock.ticked(),
            counts: std::mem::take(&mut *lock(&self.counts)),
            requests: count(history::is_request),
            builds: count(|event| matches!(event, Event::Started { .. })),
            broken,
            history,
        }
    }
}

/// Sums of many runs.
#[derive(Default)]
struct Report {
    seeds: u64,
    lasted: Duration,
    ticked: Duration,
    counts: Counts,
    requests: usize,
    builds: usize,
}

impl Report {
    /// Adds a run, which has kept all promises.
    #[track_caller]
    fn add(&mut self, seed: u64, outcome: Outcome) {
        let Outcome { lasted, ticked, counts, requests, builds, broken, .. } = outcome;
        assert!(broken.is_empty(), "{SEED}={seed}: {} promises are broken: {broken:#?}", broken.len());
        self.seeds += 1;
        self.lasted += lasted;
        self.ticked += ticked;
        self.requests += requests;
        self.builds += builds;
        self.counts.clients += counts.clients;
        self.counts.answered += counts.answered;
        self.counts.asked_again += counts.asked_again;
        self.counts.takeovers += counts.takeovers;
        self.counts.slowest_takeover = self.counts.slowest_takeover.max(counts.slowest_takeover);
        for (fault, count) in counts.faults {
            *self.counts.faults.entry(fault).or_default() += count;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, lasted, ticked, counts, requests, builds } = self;
        let Counts { clients, answered, asked_again, takeovers, slowest_takeover, faults, .. } = counts;
        let [hours, ticked] = [lasted, ticked].map(|time| time.as_secs() / HOUR.as_secs());
        write!(
            f,
            "simulated hours: {hours} ({ticked} without the quiet times that were passed over), seeds: {seeds}, \
             clients: {clients}, answered: {answered}, asked again: {asked_again}, requests: {requests}, builds: \
             {builds}, takeovers that were waited for: {takeovers}, the slowest: {slowest_takeover:?}, faults: {} \
             {faults:?}",
            faults.values().sum::<u64>()
        )
    }
}

/// The same for a seed each time, as it has the same history.
fn quiet_of(seed: u64) -> QuietTimes {
    if seed.is_multiple_of(LIVED_EVERY) { QuietTimes::Lived } else { QuietTimes::Passed }
}

/// Simulates so many hours, on all cores.
fn simulate_hours(first_seed: u64, hours: u64, each: u64) -> Report {
    let (next, end) = (AtomicU64::new(first_seed), first_seed + hours.div_ceil(each));
    let report = Mutex::new(Report::default());
    // Named, so that a run that panics says its seed.
    let run = |seed: u64| {
        let quiet = quiet_of(seed);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(format!("{SEED}={seed}"));
            let outcome = thread.spawn_scoped(scope, || simulate(seed, each, quiet)).expect("a thread");
            outcome.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZeroUsize::get) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || report.is_poisoned() {
                        break;
                    }
                    let outcome = run(seed);
                    lock(&report).add(seed, outcome);
                }
            });
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn whatever_fails_the_history_of_all_servers_is_one() {
    let report = simulate_hours(1, 40, 10);
    println!("{report}");
    let Counts { takeovers, slowest_takeover, faults, answered, .. } = &report.counts;
    assert!(*takeovers > 10 && *slowest_takeover <= faults::TAKEN_OVER_WITHIN, "{report}");
    assert!(faults.len() == 5 && *answered > 100, "not all was tried: {report}");
}

#[test]
fn a_seed_has_one_history() {
    // Of what happens at one moment the order may be another one.
    let history = |seed| {
        let mut lines = simulate(seed, 4, QuietTimes::Passed).history.lines();
        lines.sort();
        lines
    };
    let [one, other] = [(); 2].map(|()| history(7));
    let differs = one.iter().zip(&other).find(|(one, other)| one != other);
    assert_eq!(differs, None);
    assert!(one.len() == other.len() && one.len() > 50, "{} and {}", one.len(), other.len());
    assert!(history(8) != one, "seeds have the same history");
}

#[test]
fn quiet_times_that_are_passed_over_change_neither_what_is_asked_nor_what_fails() {
    let [passed, lived] = [QuietTimes::Passed, QuietTimes::Lived].map(|quiet| simulate(11, 12, quiet));
    for run in [&passed, &lived] {
        assert!(run.broken.is_empty() && run.lasted >= HOUR * 12, "{:?}", run.broken);
    }
    assert_eq!((passed.counts.clients, &passed.counts.faults), (lived.counts.clients, &lived.counts.faults));
    assert!(passed.counts.clients > 50, "{} clients", passed.counts.clients);
    assert!(passed.ticked < lived.ticked / 2, "{:?} of {:?}", passed.ticked, lived.ticked);
}

/// `ONDINE_SIMULATED_HOURS` is the number of hours, in all; `ONDINE_SIMULATION_SEED` has one seed run alone,
/// and prints its history.
#[test]
#[ignore = "takes some minutes"]
fn ten_thousand_hours_of_faults_leave_one_history_each() {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    if let Some(seed) = number(SEED) {
        let outcome = simulate(seed, HOURS_EACH, quiet_of(seed));
        outcome.history.lines().iter().for_each(|line| println!("{line}"));
        return Report::default().add(seed, outcome);
    }
    let hours = number(HOURS).unwrap_or(10_000);
    let report = simulate_hours(1_000, hours, HOURS_EACH);
    println!("{report}");
    assert!(report.lasted >= HOUR * u32::try_from(hours).expect("fewer"), "{report}");
    let faults: u64 = report.counts.faults.values().sum();
    assert!(report.requests as u64 > 3 * hours && faults > 2 * hours, "not enough was tried: {report}");
}
