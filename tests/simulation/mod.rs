//! The real queue and the real estimates on virtual time: thousands of requests whose closures overlap and
//! whose builds take seconds to hours, and for each of them when it arrived, when it was due, and when it was
//! delivered.
//!
//! T(j) is the arrival of request j plus all unbuilt work that stands just after it; the due time of a
//! request is its arrival, or T of the latest owner among its derivations where that is later.

// Tests and benchmarks use a part of this each.
#![allow(dead_code)]

pub mod adversary;
pub mod bump;
pub mod idle;
pub mod random;
pub mod trace;
pub mod yardstick;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use idle::{End, Idle};
use ondine::build::forecast::estimate::{Durations, Kind, Sum};
use ondine::build::forecast::eta::{Etas, Expected, Forecast};
use ondine::build::queue::{Guess, Overtaking, Policy, Queue, RequestId, Saved};
use random::Random;
use trace::{Drv, Packages, Trace};

/// The share of the processors that the main lane has while the background lane is busy.
pub const MAIN_LANE_SPEED: f64 = 0.9;

/// Outcome of a request; times are milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    pub arrived: f64,
    pub due: f64,
    /// The work that stood when its latest owner arrived.
    pub backlog: f64,
    pub delivered: f64,
    /// Time lost to restarts since its latest owner arrived.
    pub lost: f64,
    /// Forecast of its delivery, counted from its arrival.
    pub eta: Option<(f64, f64)>,
    /// True if something was ahead of it that was never built.
    pub first: bool,
}

impl Fate {
    /// Delay beyond its due time, not counting what restarts have cost.
    pub fn regret(&self) -> f64 {
        self.delivered - self.due - self.lost
    }

    /// Delay beyond its due time that a policy allows.
    pub fn bound(&self, policy: Policy) -> f64 {
        // What a restart interrupts has to be done again.
        let work = self.backlog + self.lost;
        match policy {
            Policy::Strict => 0.0,
            Policy::Overtaking(Overtaking { budget, share_percent }) => {
                budget.as_millis() as f64 + work * f64::from(share_percent) / 100.0
            }
            // Its work is no whole number of milliseconds: to the tick of the clock.
            Policy::Background => (1.0 / MAIN_LANE_SPEED - 1.0) * work + 1.0,
        }
    }

    /// True if everything was there when it arrived.
    pub fn hit(&self) -> bool {
        self.delivered == self.arrived
    }

    /// From its arrival to its delivery.
    pub fn wait(&self) -> f64 {
        self.delivered - self.arrived
    }
}

/// Options of one run.
#[derive(Clone, Copy, Default)]
pub struct Rules {
    pub policy: Policy,
    /// One request in so many comes just after a restart of the server.
    pub restart_every: Option<u64>,
    /// True if everyone is told when they will be served.
    pub etas: bool,
}

/// One run.
pub struct Outcome {
    /// In the order of arrival.
    pub fates: Vec<Fate>,
    /// Milliseconds that something was built.
    pub busy: f64,
}

impl Outcome {
    /// The waits if everyone were served at their own turn: not before anyone who asked earlier, unless
    /// nothing had to be built.
    pub fn own_turn_waits(&self) -> impl Iterator<Item = f64> {
        self.fates.iter().scan(0.0, |turn: &mut f64, fate| {
            *turn = turn.max(fate.delivered);
            Some(if fate.hit() { 0.0 } else { *turn - fate.arrived })
        })
    }
}

/// The policy that lets short requests go first by so much.
pub const fn overtaking(seconds: u64, share_percent: u32) -> Policy {
    Policy::Overtaking(Overtaking { budget: Duration::from_secs(seconds), share_percent })
}

/// A build that runs.
struct Running {
    drv: Drv,
    background: bool,
    /// True if it is pre-built and nobody has asked for it.
    nobodys: bool,
    started: f64,
    /// Milliseconds of work left.
    left: f64,
}

/// State at the arrival of a request.
#[derive(Clone, Copy)]
struct Horizon {
    /// T.
    end: f64,
    backlog: f64,
    /// Time lost to restarts until then.
    lost: f64,
}

struct World<'a> {
    packages: &'a Packages,
    rules: Rules,
    random: Random,
    now: f64,
    queue: Queue<Drv>,
    /// The queue as a restart would find it.
    saved: BTreeMap<RequestId, Saved<Drv>>,
    built: BTreeSet<Drv>,
    running: Vec<Running>,
    /// Work that is done while nobody waits.
    idle: Option<Idle>,
    /// Clients of each request, and the forecast that they were told.
    waiting: BTreeMap<RequestId, Vec<(usize, Option<Forecast>)>>,
    /// Of each request that may own something.
    horizon: BTreeMap<RequestId, Horizon>,
    lost: f64,
    kinds: Vec<Kind>,
    durations: Durations,
    etas: Etas,
    fates: Vec<Fate>,
    busy: f64,
}

/// Runs a trace to its end.
pub fn run(packages: &Packages, trace: &Trace, rules: Rules) -> Outcome {
    let mut world = World::new(packages, rules);
    world.play(trace);
    world.end()
}

/// Virtual time as the queue takes it.
fn time(millis: f64) -> Duration {
    Duration::from_millis(millis as u64)
}

impl<'a> World<'a> {
    fn new(packages: &'a Packages, rules: Rules) -> Self {
        Self {
            packages,
            rules,
            random: Random(0),
            now: 0.0,
            queue: Queue::new(rules.policy),
            saved: BTreeMap::new(),
            built: BTreeSet::new(),
            running: Vec::new(),
            idle: None,
            waiting: BTreeMap::new(),
            horizon: BTreeMap::new(),
            lost: 0.0,
            kinds: packages.kinds(),
            durations: Durations::default(),
            etas: Etas::default(),
            fates: Vec::new(),
            busy: 0.0,
        }
    }

    /// Until the last request has come.
    fn play(&mut self, trace: &Trace) {
        // Restarts are at other moments in each trace.
        self.random = Random(trace.last().map_or(0, |(arrival, _)| *arrival));
        self.start();
        for (now, wanted) in trace {
            self.advance(*now as f64);
            if self.rules.restart_every.is_some_and(|every| self.random.below(every) == 0) {
                self.restart();
            }
            self.arrive(*wanted);
        }
    }

    /// Until the last one is served.
    fn end(mut self) -> Outcome {
        self.advance(f64::INFINITY);
        assert!(self.waiting.is_empty() && self.queue.is_empty(), "a request was never delivered");
        Outcome { fates: self.fates, busy: self.busy }
    }

    fn start(&mut self) {
        // Each kind is looked up once, however many requests need it.
        let known = RefCell::new(Vec::new());
        let guess = |drvs: &BTreeSet<Drv>| -> Option<Guess> {
            let mut known = known.borrow_mut();
            known.resize(self.kinds.len(), None);
            let mut sum = Sum::default();
            for (_, package) in drvs {
                let package = *package as usize;
                let estimate =
                    *known[package].get_or_insert_with(|| self.durations.estimate(&self.kinds[package]));
                // Nothing can be said of the whole when one part is unknown.
                sum.add(Some(estimate?));
            }
            sum.guess()
        };
        let (mut main, mut background) = (None, None);
        if !self.running.iter().any(|running| !running.background) {
            main = self.queue.start(time(self.now), guess);
        }
        if self.rules.policy == Policy::Background && !self.running.iter().any(|running| running.background) {
            background = self.queue.start_in_background(time(self.now), guess);
        }
        for (drv, background) in [(main, false), (background, true)] {
            if let Some(drv) = drv {
                let left = self.packages.millis(drv) as f64;
                self.running.push(Running { drv, background, nobodys: false, started: self.now, left });
            }
        }
        self.prebuild();
    }

    /// Milliseconds of work that a build gets done in one.
    fn speed(&self, running: &Running) -> f64 {
        match (self.running.len(), running.background) {
            (1, _) => 1.0,
            (_, false) => MAIN_LANE_SPEED,
            (_, true) => 1.0 - MAIN_LANE_SPEED,
        }
    }

    /// Lets time pass up to `until`.
    fn advance(&mut self, until: f64) {
        loop {
            let ends = self.running.iter().enumerate().map(|(n, running)| {
                let end = self.now + running.left / self.speed(running);
                let stop = self.queue.stop_at(&running.drv).map(|at| at.as_millis() as f64);
                match stop.filter(|stop| *stop < end) {
                    Some(stop) => (stop.max(self.now), n, true),
                    None => (end, n, false),
                }
            });
            let next = ends.min_by(|a, b| a.0.total_cmp(&b.0)).filter(|(at, ..)| *at <= until);
            let Some((at, n, stopped)) = next else {
                let again = self.look_again_at();
                if again >= until {
                    break;
                }
                self.work_until(again);
                self.start();
                continue;
            };
            self.work_until(at);
            let Running { drv, nobodys, started, .. } = self.running.remove(n);
            if nobodys {
                self.prebuilt(drv, started, if stopped { End::Stopped } else { End::Built });
            }
            let kind = &self.kinds[drv.1 as usize];
            self.durations.learn(kind, time(at - started), !stopped);
            if stopped {
                self.queue.stopped(&drv, time(at));
            } else {
                self.built.insert(drv);
                self.tell_built(drv);
                for id in self.queue.built(&drv, time(at)) {
                    self.deliver(id);
                }
            }
            self.start();
        }
        self.work_until(until);
    }

    fn work_until(&mut self, now: f64) {
        let done: Vec<f64> =
            self.running.iter().map(|running| (now - self.now) * self.speed(running)).collect();
        for (running, done) in self.running.iter_mut().zip(done) {
            running.left -= done;
        }
        if !self.running.is_empty() {
            self.busy += now - self.now;
        }
        self.now = now;
    }

    fn deliver(&mut self, id: RequestId) {
        for (request, told) in self.waiting.remove(&id).expect("a request that was asked for") {
            let fate = &mut self.fates[request];
            fate.delivered = self.now;
            fate.lost = self.lost - fate.lost;
            if let Some(told) = told {
                self.etas.finished(told, time(fate.wait()));
            }
        }
    }

    fn arrive(&mut self, wanted: Drv) {
        let (request, now) = (self.fates.len(), self.now);
        let needs = self.packages.lacking(wanted, &self.built);
        self.fates.push(Fate { arrived: now, due: now, delivered: now, ..Fate::default() });
        if needs.is_empty() {
            return;
        }
        let (id, new) = self.queue.ask(&wanted);
        if new {
            assert!(!self.queue.plan(id, needs.clone(), time(now)));
            self.take_over();
            let work = self.unbuilt_work();
            self.horizon.insert(id, Horizon { end: now + work, backlog: work, lost: self.lost });
        }
        // The due time by its definition, from the owners as the queue knows them at this moment.
        let owners = needs.keys().map(|drv| self.queue.needed_by(drv).next().expect("somebody needs it"));
        let owner = owners.max().expect("it lacks something");
        let horizon = self.horizon[&owner];
        let work = self.rules.etas.then(|| self.work_ahead(owner));
        let expected = work.and_then(|work| Expected::after(work, &self.durations));
        let told = expected.map(|expected| self.etas.forecast(expected));
        let fate = &mut self.fates[request];
        (fate.due, fate.backlog, fate.lost) = (now.max(horizon.end), horizon.backlog, horizon.lost);
        let millis = |time: Duration| time.as_millis() as f64;
        fate.first = work.is_some_and(|work| work.unknown > 0);
        fate.eta = told.map(|told| (millis(told.earliest), millis(told.latest)));
        self.waiting.entry(id).or_default().push((request, told));
        self.start();
    }

    /// All work that stands, in milliseconds.
    fn unbuilt_work(&self) -> f64 {
        let left = |drv: &Drv| {
            let running = self.running.iter().find(|running| running.drv == *drv);
            running.map_or(self.packages.millis(*drv) as f64, |running| running.left)
        };
        self.queue.lacking().map(left).sum()
    }

    /// Everything that is owned by `owner` or an older request.
    fn work_ahead(&self, owner: RequestId) -> Sum {
        let mut work = Sum::default();
        for id in self.queue.requests().take_while(|id| *id <= owner) {
            for drv in self.queue.owned_by(id) {
                let estimate = self.durations.estimate(&self.kinds[drv.1 as usize]);
                let running = self.running.iter().find(|running| running.drv == *drv);
                let elapsed = running.map(|running| time(self.now - running.started));
                match (estimate, elapsed) {
                    (None, Some(elapsed)) => work.add_begun(self.durations.of_first(elapsed)),
                    (estimate, Some(elapsed)) => work.add(estimate.map(|e| e.after(elapsed))),
                    (estimate, None) => work.add(estimate),
                }
            }
        }
        work
    }

    /// The server ends in this moment and starts again: what runs is lost, the queue is as it was saved,
    /// which is all that is left of it.
    fn restart(&mut self) {
        for (id, saved) in self.queue.take_changed() {
            match saved {
                Some(saved) => self.saved.insert(id, saved),
                None => self.saved.remove(&id),
            };
        }
        for running in std::mem::take(&mut self.running) {
            if running.nobodys {
                self.prebuilt(running.drv, running.started, End::Stopped);
            } else {
                self.lost += self.now - running.started;
            }
        }
        self.queue = Queue::new(self.rules.policy);
        for saved in self.saved.values() {
            self.queue.restore(saved.clone(), time(self.now));
        }
        for saved in self.saved.clone().into_values() {
            let needs = self.packages.lacking(saved.wanted, &self.built);
            assert!(!self.queue.plan(saved.id, needs, time(self.now)), "what is complete was delivered");
        }
        self.start();
    }
}
