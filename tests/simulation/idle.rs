//! The builder of the simulation while nobody waits: what is pre-built, and what became of that.

use std::time::Duration;

use ondine::build::prebuild::Prebuild;
use ondine::build::prebuild::allowance::{Allowance, Hours};

use super::bump::Week;
use super::trace::Drv;
use super::{Outcome, Rules, Running, World, time};

/// As much as there is time for.
pub const ALWAYS: Allowance = Allowance::new(Hours::ALWAYS, Duration::MAX);

/// Time until it is seen that something may be pre-built again, in milliseconds.
const LOOK_AGAIN_AFTER: f64 = 60_000.0;

/// Candidates of pre-building, and what was pre-built.
pub struct Idle {
    choice: Prebuild<Drv>,
    allowance: Allowance,
    spans: Vec<Span>,
}

/// Something was pre-built, while it was nobody's.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub drv: Drv,
    pub from: f64,
    pub to: f64,
    pub end: End,
}

/// Why it was not pre-built any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Built,
    /// Someone needs it.
    TakenOver,
    /// Someone needs something else, or no more is allowed.
    Stopped,
}

/// Runs a week, with as much pre-building as is allowed.
pub fn run_week(week: &Week, rules: Rules, allowance: Option<Allowance>) -> (Outcome, Vec<Span>) {
    let mut world = World::new(&week.packages, rules);
    world.durations = week.durations.clone();
    world.idle = allowance.map(|allowance| Idle { choice: week.expected(), allowance, spans: Vec::new() });
    world.play(&week.trace);
    // Nobody asks for anything after the week.
    let idle = world.idle.take();
    (world.end(), idle.map(|idle| idle.spans).unwrap_or_default())
}

/// The part of the pre-built time that was of use to a request of the week.
pub fn used(week: &Week, spans: &[Span]) -> f64 {
    let needed = week.needed();
    let used = |span: &&Span| span.end != End::Stopped && needed.contains(&span.drv);
    let sum = |spans: &mut dyn Iterator<Item = &Span>| -> f64 { spans.map(|span| span.to - span.from).sum() };
    sum(&mut spans.iter().filter(used)) / sum(&mut spans.iter())
}

impl World<'_> {
    /// Starts what is worth most, where nobody waits for anything.
    pub(super) fn prebuild(&mut self) {
        let Some(idle) = &mut self.idle else { return };
        if !self.running.is_empty() || !self.queue.is_empty() {
            return;
        }
        let now = time(self.now);
        let left = idle.allowance.left(now);
        if left.is_zero() {
            return;
        }
        let Some(drv) = idle.choice.next(left).copied() else { return };
        assert!(!self.built.contains(&drv), "{drv:?} is built again");
        assert!(self.packages.inputs(drv).all(|input| self.built.contains(&input)), "{drv:?} lacks an input");
        if self.queue.prebuild(&drv, now, now.saturating_add(left)) {
            let left = self.packages.millis(drv) as f64;
            self.running.push(Running { drv, background: false, nobodys: true, started: self.now, left });
        }
    }

    /// Moment of the next look for something to pre-build.
    pub(super) fn look_again_at(&self) -> f64 {
        let waits = self.idle.is_some() && self.running.is_empty();
        if waits { self.now + LOOK_AGAIN_AFTER } else { f64::INFINITY }
    }

    /// Ends a pre-build.
    pub(super) fn prebuilt(&mut self, drv: Drv, from: f64, end: End) {
        if let Some(idle) = &mut self.idle {
            idle.allowance.spend(time(from), time(self.now));
            idle.spans.push(Span { drv, from, to: self.now, end });
        }
    }

    /// Someone has come: what is pre-built may be theirs now.
    pub(super) fn take_over(&mut self) {
        let queue = &self.queue;
        let taken = |running: &Running| running.nobodys && queue.needed_by(&running.drv).next().is_some();
        if let Some(running) = self.running.iter_mut().find(|running| taken(running)) {
            running.nobodys = false;
            let (drv, from) = (running.drv, running.started);
            self.prebuilt(drv, from, End::TakenOver);
        }
    }

    pub(super) fn tell_built(&mut self, drv: Drv) {
        if let Some(idle) = &mut self.idle {
            idle.choice.built(&drv);
        }
    }
}
