//! The order of builds over many machines, on a virtual clock and with the queue itself: no derivation starts
//! while an older request has another one that is ready and that the same slot could build, whatever machines
//! are lost meanwhile.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use ondine::build::queue::{PlaceClass, Policy, Queue};

/// Kinds of slots; a derivation can be built on one or two of them.
const KINDS: u64 = 3;

/// Reproducible numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Derivations are numbers: each with its inputs, its duration, and the kinds of slots that can build it.
#[derive(Default)]
struct World {
    inputs: Vec<BTreeSet<u32>>,
    millis: Vec<u64>,
    kinds: Vec<BTreeSet<u64>>,
}

impl World {
    /// So many derivations, most of them short; some need earlier ones.
    fn new(numbers: &mut Numbers, derivations: u32) -> World {
        let mut world = World::default();
        for drv in 0..derivations {
            let count = if drv < 50 { 0 } else { numbers.below(4) };
            world.inputs.push((0..count).map(|_| numbers.below(drv.into()) as u32).collect());
            let long = numbers.below(20) == 0;
            world.millis.push(if long { 10_000 + numbers.below(60_000) } else { 100 + numbers.below(4_000) });
            let kind = numbers.below(KINDS);
            let other = if numbers.below(2) == 0 { kind } else { numbers.below(KINDS) };
            world.kinds.push(BTreeSet::from([kind, other]));
        }
        world
    }

    /// The derivations that a request for `wanted` lacks.
    fn closure(&self, wanted: u32, built: &BTreeSet<u32>) -> BTreeMap<u32, BTreeSet<u32>> {
        let (mut needs, mut open) = (BTreeMap::new(), vec![wanted]);
        while let Some(drv) = open.pop() {
            if !built.contains(&drv) && !needs.contains_key(&drv) {
                let inputs: BTreeSet<u32> = &self.inputs[drv as usize] - built;
                open.extend(&inputs);
                needs.insert(drv, inputs);
            }
        }
        needs
    }
}

/// The farm at one moment.
struct Farm<'w> {
    world: &'w World,
    queue: Queue<u32>,
    /// Kind of each slot, and what runs there.
    slots: Vec<(u64, Option<u32>)>,
    built: BTreeSet<u32>,
    running: BTreeSet<u32>,
    /// Ends of builds: the time, and the slot.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    now: u64,
}

impl<'w> Farm<'w> {
    fn new(world: &'w World, lanes: usize) -> Self {
        let slots = (0..lanes).map(|slot| (slot as u64 % KINDS, None)).collect();
        let queue = Queue::new(Policy::Strict);
        let (built, running) = (BTreeSet::new(), BTreeSet::new());
        Farm { world, queue, slots, built, running, ends: BinaryHeap::new(), now: 0 }
    }

    fn ask(&mut self, wanted: u32) {
        let (id, new) = self.queue.ask(&wanted);
        if new {
            let needs = self.world.closure(wanted, &self.built);
            // The kinds of slots, as bits of a number.
            let class =
                |drv: &u32| PlaceClass(self.world.kinds[*drv as usize].iter().map(|kind| 1 << kind).sum());
            self.queue.plan_placed(id, needs, Duration::from_millis(self.now), class);
        }
    }

    /// Fills the free slots, and checks each start.
    fn start(&mut self) {
        loop {
            let place = |drv: &u32| {
                let kinds = &self.world.kinds[*drv as usize];
                self.slots.iter().position(|(kind, runs)| runs.is_none() && kinds.contains(kind))
            };
            let now = Duration::from_millis(self.now);
            let Some((drv, slot)) = self.queue.start_placed(now, place) else { return };
            self.check(drv, slot);
            self.slots[slot].1 = Some(drv);
            assert!(self.running.insert(drv), "{drv} is built twice at one time");
            self.ends.push(Reverse((self.now + self.world.millis[drv as usize], slot)));
        }
    }

    /// No older request has another derivation that is ready and that this slot could build.
    fn check(&self, drv: u32, slot: usize) {
        let owner = self.queue.needed_by(&drv).next().expect("somebody needs it");
        let kind = self.slots[slot].0;
        let older = self.queue.requests().take_while(|id| *id < owner);
        for id in older.take(200) {
            let lacks = self.queue.lacks(id).expect("it is planned");
            let could = lacks.iter().find(|other| {
                let ready = self.world.inputs[**other as usize].is_subset(&self.built);
                ready && !self.running.contains(other) && self.world.kinds[**other as usize].contains(&kind)
            });
            assert_eq!(could, None, "{drv} of {owner:?} starts while {id:?} waits for {could:?}");
        }
    }

    /// The next build ends; with `lost`, its machine is lost and it goes back to its place.
    fn end(&mut self, lost: bool) -> bool {
        let Some(Reverse((at, slot))) = self.ends.pop() else { return false };
        let drv = self.slots[slot].1.take().expect("something runs there");
        self.now = at;
        self.running.remove(&drv);
        if lost {
            self.queue.stopped(&drv, Duration::from_millis(at));
        } else {
            self.built.insert(drv);
            self.queue.built(&drv, Duration::from_millis(at));
        }
        true
    }
}

#[test]
fn no_slot_starts_anything_younger_than_what_it_could_build_whatever_is_lost() {
    for seed in 0..20 {
        let mut numbers = Numbers(seed);
        let world = World::new(&mut numbers, 600);
        let mut farm = Farm::new(&world, 3 + numbers.below(14) as usize);
        let mut asked = BTreeSet::new();
        for _ in 0..300 {
            let wanted = numbers.below(600) as u32;
            asked.insert(wanted);
            farm.ask(wanted);
            farm.start();
            if numbers.below(3) == 0 {
                let lost = numbers.below(4) == 0;
                farm.end(lost);
                farm.start();
            }
        }
        while farm.end(false) {
            farm.start();
        }
        assert!(farm.queue.is_empty(), "every request is served");
        assert!(asked.iter().all(|wanted| farm.built.contains(wanted)));
    }
}
