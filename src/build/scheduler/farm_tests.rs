//! The scheduler with thousands of requests over 64 slots of 16 machines, some of which are lost meanwhile,
//! on a virtual clock: the order of starts, and the share of the slots that could be busy and are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::num::NonZeroUsize;
use std::time::Duration;

use narinfo::StorePath;

use super::*;
use crate::build::farm::{BuilderSettings, FarmSettings, MachineId, Placement};
use crate::build::plan::Planned;
use crate::build::runner::{Built, Loss};
use crate::build::verdict::Verdict;
use crate::index::Index;
use crate::nix::Machine;

const MACHINES: usize = 16;
const SLOTS: usize = 4;
/// Derivations for each request.
const DERIVATIONS_EACH: u32 = 2;
/// Longest chain of derivations.
const LAYERS: u32 = 6;
const SYSTEMS: [&str; 3] = ["x86_64-linux", "aarch64-linux", "riscv64-linux"];
/// Builds after which a machine is lost, and those after which it is back.
const LOST_EVERY: u64 = 400;
const BACK_AFTER: u64 = 60;

/// Reproducible numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A derivation: its inputs, its duration, and the system that it needs.
struct Package {
    inputs: BTreeSet<u32>,
    millis: u64,
    system: usize,
}

fn packages(numbers: &mut Numbers, derivations: u32) -> Vec<Package> {
    let package = |drv: u32| {
        let below = drv % LAYERS;
        let count = if below == 0 { 0 } else { numbers.below(4) };
        let input = |number: u64| (number as u32 / LAYERS) * LAYERS + below - 1;
        let inputs = (0..count).map(|_| input(numbers.below(derivations.into()))).collect();
        let long = numbers.below(20) == 0;
        let millis = if long { 10_000 + numbers.below(60_000) } else { 100 + numbers.below(4_000) };
        Package { inputs, millis, system: numbers.below(SYSTEMS.len() as u64) as usize }
    };
    (0..derivations).map(package).collect()
}

fn name(drv: u32) -> StorePath {
    StorePath::parse(&format!("{drv:032}-p.drv")).expect("a path")
}

/// True where a machine builds for a system: each for one, and every fourth for another one.
fn has_system(machine: usize, system: usize) -> bool {
    let has_other = machine.is_multiple_of(4) && (machine + 1) % SYSTEMS.len() == system;
    machine % SYSTEMS.len() == system || has_other
}

/// Systems of a machine.
fn systems(machine: usize) -> impl Iterator<Item = usize> {
    (0..SYSTEMS.len()).filter(move |system| has_system(machine, *system))
}

fn builder(name: &str, systems: BTreeSet<String>) -> BuilderSettings {
    let slots = NonZeroUsize::new(SLOTS).expect("some");
    BuilderSettings { slots, ..BuilderSettings::sample(name, Machine { systems, ..Machine::default() }) }
}

fn farm() -> Farm {
    let builder = |number: usize| {
        let systems = systems(number).map(|system| SYSTEMS[system].to_owned());
        builder(&format!("m{number}"), systems.collect())
    };
    Farm::new(&FarmSettings { local_slots: None, builders: (0..MACHINES).map(builder).collect() })
}

/// The world around a scheduler.
struct World {
    scheduler: Scheduler,
    packages: Vec<Package>,
    names: HashMap<StorePath, u32>,
    tickets: BTreeMap<u32, Ticket>,
    built: BTreeSet<u32>,
    /// Derivations that run, each with its machine.
    running: BTreeMap<u32, usize>,
    /// The oldest request that needs each derivation.
    owners: HashMap<u32, u64>,
    /// By owner, for each system.
    ready: [BTreeSet<(u64, u32)>; SYSTEMS.len()],
    awaited_by: HashMap<u32, Vec<u32>>,
    ends: BinaryHeap<Reverse<(u64, u32)>>,
    now: u64,
    lost: BTreeMap<u64, usize>,
    ended: u64,
    starts: u64,
    /// Slot-milliseconds that were used, and those that could have been.
    busy: u64,
    possible: u64,
}

impl World {
    async fn new(folder: &tempfile::TempDir, derivations: u32) -> Self {
        let index = Index::open(&folder.path().join("index")).expect("opened");
        let settings = Settings { queued_max: usize::MAX, ..Settings::default() };
        let scheduler = Scheduler::open_farm(settings, farm(), &index).await.expect("opened");
        for machine in 0..MACHINES {
            scheduler.probed(MachineId(machine), Ok("2.34".to_owned()));
        }
        Self {
            scheduler,
            packages: packages(&mut Numbers(7), derivations),
            names: (0..derivations).map(|drv| (name(drv), drv)).collect(),
            tickets: BTreeMap::new(),
            built: BTreeSet::new(),
            running: BTreeMap::new(),
            owners: HashMap::new(),
            ready: Default::default(),
            awaited_by: HashMap::new(),
            ends: BinaryHeap::new(),
            now: 0,
            lost: BTreeMap::new(),
            ended: 0,
            starts: 0,
            busy: 0,
            possible: 0,
        }
    }

    /// Asks for a derivation, and plans the request.
    fn ask(&mut self, wanted: u32) {
        let drv = name(wanted);
        let Entered { ticket, new, .. } = self.scheduler.enter(&drv, None, None).expect("there is room");
        if !new {
            return;
        }
        let id = RequestId(ticket.id());
        let (mut needs, mut open) = (BTreeMap::new(), vec![wanted]);
        while let Some(drv) = open.pop() {
            if self.built.contains(&drv) || needs.contains_key(&drv) {
                continue;
            }
            let inputs: BTreeSet<u32> = &self.packages[drv as usize].inputs - &self.built;
            open.extend(&inputs);
            if let std::collections::hash_map::Entry::Vacant(owner) = self.owners.entry(drv) {
                owner.insert(id.0);
                inputs.iter().for_each(|input| self.awaited_by.entry(*input).or_default().push(drv));
                self.note_ready(drv);
            }
            needs.insert(drv, inputs);
        }
        let farm = self.scheduler.farm();
        let place = |drv: &u32, inputs: &BTreeSet<u32>| {
            let system = self.packages[*drv as usize].system;
            let can = |id: &MachineId| has_system(id.0, system);
            let fits = farm.machines().map(|(id, _)| id).filter(can).collect();
            Placement { fits, inputs: inputs.iter().map(|input| name(*input)).collect() }
        };
        let planned = Planned {
            placements: needs.iter().map(|(drv, inputs)| (name(*drv), place(drv, inputs))).collect(),
            systems: needs.keys().map(|drv| (name(*drv), "x".to_owned())).collect(),
            outputs: BTreeMap::new(),
            needs: needs
                .into_iter()
                .map(|(drv, inputs)| (name(drv), inputs.into_iter().map(name).collect()))
                .collect(),
        };
        if self.scheduler.planned(id, planned) {
            self.scheduler.ended(id, Ok(()));
        }
        self.tickets.insert(wanted, ticket);
    }

    fn note_ready(&mut self, drv: u32) {
        let package = &self.packages[drv as usize];
        if package.inputs.is_subset(&self.built) {
            self.ready[package.system].insert((self.owners[&drv], drv));
        }
    }

    /// Fills the slots that are free, and checks the order of each start.
    fn start(&mut self) {
        while let Some((drv, MachineId(machine))) = self.scheduler.next(Lane::Main) {
            let drv = self.names[&drv];
            let (owner, package) = (self.owners[&drv], &self.packages[drv as usize]);
            assert!(has_system(machine, package.system), "machine {machine} cannot build {drv}");
            assert!(self.ready[package.system].remove(&(owner, drv)), "{drv} is not ready, or runs");
            for system in systems(machine) {
                if let Some((older, other)) = self.ready[system].first() {
                    assert!(*older >= owner, "{drv} of {owner} starts before {other} of {older}");
                }
            }
            assert!(self.running.insert(drv, machine).is_none());
            self.ends.push(Reverse((self.now + package.millis, drv)));
            self.starts += 1;
        }
    }

    /// Slots that could be busy: as many as the derivations that run or are ready can be matched with.
    fn could_be_busy(&self) -> u64 {
        let lost: BTreeSet<usize> = self.lost.values().copied().collect();
        let mut able = [0; SYSTEMS.len()];
        self.running.keys().for_each(|drv| able[self.packages[*drv as usize].system] += 1);
        able.iter_mut().zip(&self.ready).for_each(|(able, ready)| *able += ready.len());
        // The smallest cut: for each set of systems, the slots that can build one of it, and all the others'
        // derivations.
        let cuts = (0..1_usize << SYSTEMS.len()).map(|set| {
            let is_in = |system: &usize| set & (1 << system) != 0;
            let slots = (0..MACHINES).filter(|machine| !lost.contains(machine));
            let slots =
                slots.filter(|machine| systems(*machine).any(|system| is_in(&system))).count() * SLOTS;
            let others = (0..SYSTEMS.len()).filter(|system| !is_in(system)).map(|system| able[system]);
            slots + others.sum::<usize>()
        });
        cuts.min().unwrap_or_default() as u64
    }

    /// The next build ends. Now and then its machine is lost instead, with all that runs there.
    fn end(&mut self) -> bool {
        let Some(Reverse((at, drv))) = self.ends.pop() else { return false };
        if !self.running.contains_key(&drv) {
            return true;
        }
        self.possible += (at - self.now) * self.could_be_busy();
        self.busy += (at - self.now) * self.running.len() as u64;
        self.now = at;
        self.ended += 1;
        if self.ended.is_multiple_of(LOST_EVERY) && self.lost.is_empty() {
            self.lose(self.running[&drv]);
        } else {
            self.finish(drv);
        }
        let back =
            self.lost.first_key_value().filter(|(at, _)| **at <= self.ended || self.running.is_empty());
        if let Some((at, machine)) = back.map(|(at, machine)| (*at, *machine)) {
            self.lost.remove(&at);
            self.scheduler.probed(MachineId(machine), Ok("2.34".to_owned()));
        }
        true
    }

    fn finish(&mut self, drv: u32) {
        self.running.remove(&drv);
        self.built.insert(drv);
        let built = Built { outputs: Vec::new(), worked: true, took: Duration::from_secs(1) };
        for follow_up in self.scheduler.finished(&name(drv), Finished::Built(built), Lane::Main) {
            let FollowUp::Deliver(id, _) = follow_up else { panic!("{follow_up:?}") };
            self.scheduler.ended(id, Ok(()));
        }
        for waiting in self.awaited_by.remove(&drv).into_iter().flatten() {
            self.note_ready(waiting);
        }
    }

    fn lose(&mut self, machine: usize) {
        let hit: Vec<u32> =
            self.running.iter().filter(|(_, on)| **on == machine).map(|(drv, _)| *drv).collect();
        for drv in hit {
            let loss = Loss { reason: "gone".to_owned(), starts_max: 9, verdict: Verdict::transient("gone") };
            assert!(!self.scheduler.lose_machine(&name(drv), &loss, true));
            self.scheduler.finished(&name(drv), Finished::Stopped, Lane::Main);
            self.running.remove(&drv);
            // Built anew, it ends later.
            self.ends.retain(|Reverse((_, other))| *other != drv);
            self.note_ready(drv);
        }
        self.lost.insert(self.ended + BACK_AFTER, machine);
    }
}

#[tokio::test]
async fn requests_over_64_slots_start_in_order_and_leave_no_slot_idle_that_could_work() {
    simulate(1_000).await;
}

/// `cargo test --lib -- --ignored ten_thousand_requests --nocapture`
#[tokio::test]
#[ignore = "takes a minute without optimisation"]
async fn ten_thousand_requests_over_64_slots_start_in_order_and_leave_no_slot_idle_that_could_work() {
    simulate(10_000).await;
}

/// So many requests; prints the order of starts and the use of slots, and fails where either is not as
/// promised.
async fn simulate(requests: u32) {
    let begun = Instant::now();
    let folder = tempfile::tempdir().expect("a folder");
    let derivations = (requests * DERIVATIONS_EACH).next_multiple_of(LAYERS);
    let mut world = World::new(&folder, derivations).await;
    let mut numbers = Numbers(1);
    let mut asked = 0;
    while asked < requests || !world.ends.is_empty() {
        // Thousands wait, and others come as long as there are any left.
        let wave = if asked == 0 { requests / 4 } else { 1 };
        for _ in 0..wave.min(requests - asked) {
            world.ask(numbers.below(derivations.into()) as u32);
            asked += 1;
        }
        world.start();
        world.end();
        world.start();
    }
    assert!(world.tickets.values().all(Ticket::has_ended), "every request is served");
    let utilisation = world.busy as f64 / world.possible as f64;
    println!(
        "{} starts for {requests} requests over {} slots: none before an older one that the same machine could \
         build; {:.1} % of the slots that could be busy were, {:.1} % of all ({:.1} s)",
        world.starts,
        MACHINES * SLOTS,
        utilisation * 100.0,
        world.busy as f64 / (world.now * (MACHINES * SLOTS) as u64) as f64 * 100.0,
        begun.elapsed().as_secs_f64()
    );
    assert!(utilisation >= 0.95, "{utilisation}");
}

#[tokio::test]
async fn builders_are_used_by_their_weight_and_then_by_their_speed() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = Index::open(&folder.path().join("index")).expect("opened");
    let named = |name: &str| builder(name, BTreeSet::new());
    let builders = vec![
        BuilderSettings { weight: 0, ..named("spare") },
        named("slow"),
        BuilderSettings { speed: 2.0, ..named("fast") },
    ];
    let farm = Farm::new(&FarmSettings { local_slots: None, builders });
    let scheduler = Scheduler::open_farm(Settings::default(), farm, &index).await.expect("opened");
    for machine in 0..3 {
        scheduler.probed(MachineId(machine), Ok("2.34".to_owned()));
    }
    let mut state = scheduler.0.lock();
    let mut started = BTreeMap::new();
    for (number, expected) in [(6, [0, 2, 4]), (8, [0, 4, 4]), (9, [1, 4, 4])] {
        while started.len() < number {
            let drv = name(started.len() as u32);
            let machine = state.machines.choose(&drv).expect("one is free");
            state.machines.start(&drv, machine);
            started.insert(drv, machine);
        }
        let count = |machine| started.values().filter(|id| **id == MachineId(machine)).count();
        assert_eq!([0, 1, 2].map(count), expected, "after {number} starts");
    }
    // One slot is free again on the machine where it failed, and others on the spare one.
    let (drv, machine) = started.first_key_value().expect("some");
    state.machines.end(drv, Some(false));
    assert_eq!(state.machines.choose(&name(100)), Some(*machine));
    assert_eq!(state.machines.choose(drv), Some(MachineId(0)), "it has failed on the other one");
}

#[tokio::test]
async fn the_local_builder_has_the_systems_that_are_detected_and_keeps_the_release_of_its_nix() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = Index::open(&folder.path().join("index")).expect("opened");
    let far = builder("far", BTreeSet::from([SYSTEMS[1].to_owned()]));
    let farm = FarmSettings { local_slots: Some(NonZeroUsize::MIN), builders: vec![far] };
    let scheduler =
        Scheduler::open_farm(Settings::default(), Farm::new(&farm), &index).await.expect("opened");
    let here = Machine { systems: BTreeSet::from([SYSTEMS[0].to_owned()]), ..Machine::default() };
    scheduler.describe_local(&here, Some("2.34.8"));
    scheduler.describe_local(&here, None);
    let shown = scheduler.builders().into_iter().map(|builder| (builder.systems, builder.nix_version));
    let expected = [(SYSTEMS[0], Some("2.34.8")), (SYSTEMS[1], None)];
    let expected = expected.map(|(system, nix)| (vec![system.to_owned()], nix.map(str::to_owned)));
    assert_eq!(shown.collect::<Vec<_>>(), expected);
}
