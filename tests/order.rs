//! The promise of the order of builds, held for every single request: the real queue, driven on virtual time through
//! thousands of requests whose closures overlap and whose builds take seconds to hours.
//!
//! T(j) is the arrival of request j plus all unbuilt work that stands just after it; the due time of a request is its
//! arrival, or T of the latest owner among its derivations where that is later. No request may be delivered after it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ondine::build::queue::{Queue, RequestId};

const SEEDS: u64 = 30;
const REQUESTS: usize = 6_000;

/// Numbers that are the same on every machine (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// More than 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

/// A package set: derivation n may need those below n, and takes so many milliseconds.
struct Packages {
    inputs: Vec<Vec<u32>>,
    millis: Vec<u64>,
}

/// When each request arrives, and for which derivation.
type Trace = Vec<(u64, u32)>;

impl Packages {
    fn new(random: &mut Random, count: u32) -> Self {
        let mut packages = Self { inputs: Vec::new(), millis: Vec::new() };
        for n in 0..count {
            let wanted = random.below(4).min(u64::from(n));
            // Low numbers are what much depends on.
            let input = |random: &mut Random| (f64::from(n) * random.unit() * random.unit()) as u32;
            let inputs: BTreeSet<u32> = (0..wanted).map(|_| input(random).min(n.saturating_sub(1))).collect();
            packages.inputs.push(inputs.into_iter().collect());
            // Four of five are short; the others have a heavy tail, up to four hours.
            let seconds = if random.below(5) < 4 { 1.0 + 29.0 * random.unit() } else { 30.0 / random.unit() };
            packages.millis.push((seconds.min(4.0 * 3600.0) * 1000.0) as u64);
        }
        packages
    }

    /// What `wanted` lacks, each with its lacking inputs.
    fn lacking(&self, wanted: u32, built: &BTreeSet<u32>) -> BTreeMap<u32, BTreeSet<u32>> {
        let mut needs = BTreeMap::new();
        let mut stack = vec![wanted];
        while let Some(drv) = stack.pop() {
            if built.contains(&drv) || needs.contains_key(&drv) {
                continue;
            }
            let inputs: BTreeSet<u32> =
                self.inputs[drv as usize].iter().copied().filter(|input| !built.contains(input)).collect();
            stack.extend(&inputs);
            needs.insert(drv, inputs);
        }
        needs
    }

    /// Requests at random moments for random packages, some much more often than others, so many that the builder is
    /// busy for about `load` of the time. New versions come all the time: what was built long ago is asked for anew.
    fn trace(&self, random: &mut Random, load: f64) -> Trace {
        let count = self.millis.len() as f64;
        let popular = |random: &mut Random| {
            ((count.powf(random.unit()) - 1.0) as u32).min(self.millis.len() as u32 - 1)
        };
        let wanted: Vec<u32> = (0..REQUESTS).map(|_| popular(random)).collect();
        let work: u64 = wanted.chunks(BUMP_EVERY).map(|chunk| self.work_of(chunk)).sum();
        let gap = work as f64 / load / REQUESTS as f64;
        let mut now = 0.0;
        let arrivals = wanted.into_iter().map(|drv| {
            now += -gap * random.unit().ln();
            (now as u64, drv)
        });
        arrivals.collect()
    }

    /// Milliseconds to build all of these once.
    fn work_of(&self, wanted: &[u32]) -> u64 {
        let mut built = BTreeSet::new();
        for drv in wanted {
            built.extend(self.lacking(*drv, &built).into_keys());
        }
        built.iter().map(|drv| self.millis[*drv as usize]).sum()
    }
}

/// After so many requests the packages have new versions: nothing of what was built is of use any more.
const BUMP_EVERY: usize = 200;

/// One run: what became of each request.
struct Outcome {
    arrived: Vec<u64>,
    due: Vec<u64>,
    delivered: Vec<u64>,
}

/// The world of one run on virtual time. A derivation is named by its version and number.
struct World<'a> {
    packages: &'a Packages,
    queue: Queue<(u32, u32)>,
    built: BTreeSet<(u32, u32)>,
    /// What is being built, until when.
    running: Option<((u32, u32), u64)>,
    requests: BTreeMap<RequestId, Vec<usize>>,
    /// T of each request that is in the queue.
    horizon: BTreeMap<RequestId, u64>,
    outcome: Outcome,
}

/// Milliseconds of virtual time as the queue takes them.
fn time(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl World<'_> {
    fn start(&mut self, now: u64) {
        if self.running.is_none() {
            self.running = self
                .queue
                .start(time(now), |_| None)
                .map(|drv| (drv, now + self.packages.millis[drv.1 as usize]));
        }
    }

    /// Ends builds up to `now`.
    fn advance(&mut self, now: u64) {
        while let Some((drv, end)) = self.running.filter(|(_, end)| *end <= now) {
            self.running = None;
            self.built.insert(drv);
            for id in self.queue.built(&drv, time(end)) {
                self.horizon.remove(&id);
                for request in self.requests.remove(&id).expect("a request that was asked for") {
                    self.outcome.delivered[request] = end;
                }
            }
            self.start(end);
        }
    }

    fn arrive(&mut self, request: usize, now: u64, version: u32, wanted: u32) {
        self.outcome.arrived.push(now);
        let built: BTreeSet<u32> =
            self.built.range((version, 0)..=(version, u32::MAX)).map(|(_, drv)| *drv).collect();
        let name = |set: BTreeSet<u32>| set.into_iter().map(|drv| (version, drv)).collect();
        let needs: BTreeMap<_, BTreeSet<_>> = self
            .packages
            .lacking(wanted, &built)
            .into_iter()
            .map(|(drv, inputs)| ((version, drv), name(inputs)))
            .collect();
        self.outcome.delivered.push(now);
        if needs.is_empty() {
            self.outcome.due.push(now);
            return;
        }
        let (id, new) = self.queue.ask(&(version, wanted));
        self.requests.entry(id).or_default().push(request);
        if new {
            assert!(!self.queue.plan(id, needs.clone(), time(now)));
            let horizon = now + self.unbuilt_work(now);
            self.horizon.insert(id, horizon);
        }
        // The due time by its definition, from the owners as the queue knows them at this moment.
        let owners = needs.keys().map(|drv| self.queue.needed_by(drv).next().expect("somebody needs it"));
        let due = owners.map(|owner| self.horizon[&owner]).max().expect("it lacks something");
        self.outcome.due.push(now.max(due));
        self.start(now);
    }

    /// All work that stands, in milliseconds.
    fn unbuilt_work(&self, now: u64) -> u64 {
        let all: BTreeSet<(u32, u32)> = self.queue.lacking().copied().collect();
        let left = |drv: &(u32, u32)| match self.running {
            Some((running, end)) if running == *drv => end - now,
            _ => self.packages.millis[drv.1 as usize],
        };
        all.iter().map(left).sum()
    }
}

fn run(packages: &Packages, trace: &Trace) -> Outcome {
    let outcome = Outcome { arrived: Vec::new(), due: Vec::new(), delivered: Vec::new() };
    let mut world = World {
        packages,
        queue: Queue::default(),
        built: BTreeSet::new(),
        running: None,
        requests: BTreeMap::new(),
        horizon: BTreeMap::new(),
        outcome,
    };
    for (request, (now, wanted)) in trace.iter().enumerate() {
        world.advance(*now);
        world.arrive(request, *now, (request / BUMP_EVERY) as u32, *wanted);
    }
    world.advance(u64::MAX);
    assert!(world.requests.is_empty() && world.queue.is_empty(), "a request was never delivered");
    world.outcome
}

/// Fails when any request is delivered after its due time, by so much as a tick.
fn in_time(outcome: &Outcome) {
    for (request, (delivered, due)) in outcome.delivered.iter().zip(&outcome.due).enumerate() {
        assert!(delivered <= due, "request {request} was due at {due} ms and delivered at {delivered} ms");
    }
}

#[test]
fn no_request_is_ever_delivered_after_its_due_time() {
    let (mut early, mut own_turn) = (0.0, 0.0);
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let packages = Packages::new(&mut random, 400);
        let trace = packages.trace(&mut random, 0.7);
        let outcome = run(&packages, &trace);
        assert_eq!(outcome.delivered.len(), REQUESTS);
        in_time(&outcome);
        let mut turn = 0;
        for (delivered, arrived) in outcome.delivered.iter().zip(&outcome.arrived) {
            // At its own turn: not before anyone who asked earlier, unless nothing had to be built for it.
            turn = turn.max(*delivered);
            early += (delivered - arrived) as f64;
            own_turn += (if delivered == arrived { *delivered } else { turn } - arrived) as f64;
        }
    }
    let ratio = early / own_turn;
    println!("mean wait, delivered when complete / at its own turn: {ratio:.3}");
    assert!(ratio <= 0.97, "delivering early should save at least 3 %: {ratio:.3}");
}

/// Traces made to hurt: everyone at once, a giant in front of many small ones, chains that overlap at their ends.
#[test]
fn no_adversary_makes_a_request_late() {
    let chain = |length: u32| Packages {
        inputs: (0..length).map(|n| n.checked_sub(1).into_iter().collect()).collect(),
        millis: (0..length)
            .map(|n| if n == length / 2 { 4 * 3_600_000 } else { 1 + u64::from(n % 7) })
            .collect(),
    };
    let packages = chain(100);
    let all_at_once: Trace = (0..100).map(|n| (0, n * 37 % 100)).collect();
    let from_the_top: Trace = (0..100).map(|n| (u64::from(n), 99 - n)).collect();
    let from_below: Trace = (0..100).map(|n| (u64::from(n), n)).collect();
    let while_the_giant_runs: Trace =
        (0..100).map(|n| (300 + u64::from(n) * 60_000, (n * 13 + 50) % 100)).collect();
    for trace in [all_at_once, from_the_top, from_below, while_the_giant_runs] {
        in_time(&run(&packages, &trace));
    }
    let apart = Packages { inputs: vec![Vec::new(); 50], millis: (0..50).map(|n| 1 << (n % 20)).collect() };
    let giants_first: Trace = (0..50).rev().map(|n| (u64::from(50 - n), n)).collect();
    in_time(&run(&apart, &giants_first));
}
