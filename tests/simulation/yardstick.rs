//! Shortest first without a bound, for scale: the waits if the request that has the least work left always
//! went first, and everyone knew how long everything takes. No policy of the queue: it is only what their
//! gains are measured by.

use std::collections::{BTreeMap, BTreeSet};

use super::trace::{Drv, Packages, Trace};

/// Derivations that a wanted one lacks, and who waits for it since when.
type Waiting = (BTreeSet<Drv>, Vec<(usize, u64)>);

struct Shortest<'a> {
    packages: &'a Packages,
    built: BTreeSet<Drv>,
    waiting: BTreeMap<Drv, Waiting>,
    running: Option<(Drv, u64)>,
    waits: Vec<f64>,
}

/// The wait of each request of a trace, in milliseconds.
pub fn waits(packages: &Packages, trace: &Trace) -> Vec<f64> {
    let mut world = Shortest {
        packages,
        built: BTreeSet::new(),
        waiting: BTreeMap::new(),
        running: None,
        waits: vec![0.0; trace.len()],
    };
    for (request, (now, wanted)) in trace.iter().enumerate() {
        world.advance(*now);
        let lacks: BTreeSet<Drv> = packages.lacking(*wanted, &world.built).into_keys().collect();
        if !lacks.is_empty() {
            world.waiting.entry(*wanted).or_insert_with(|| (lacks, Vec::new())).1.push((request, *now));
        }
        world.start(*now);
    }
    world.advance(u64::MAX);
    assert!(world.waiting.is_empty(), "a request was never delivered");
    world.waits
}

impl Shortest<'_> {
    fn advance(&mut self, until: u64) {
        while let Some((drv, end)) = self.running.filter(|(_, end)| *end <= until) {
            self.running = None;
            self.built.insert(drv);
            let waits = &mut self.waits;
            self.waiting.retain(|_, (lacks, requests)| {
                lacks.remove(&drv);
                if lacks.is_empty() {
                    requests.iter().for_each(|(request, since)| waits[*request] = (end - since) as f64);
                }
                !lacks.is_empty()
            });
            self.start(end);
        }
    }

    fn start(&mut self, now: u64) {
        if self.running.is_some() {
            return;
        }
        let left = |lacks: &BTreeSet<Drv>| lacks.iter().map(|drv| self.packages.millis(*drv)).sum::<u64>();
        let shortest = self.waiting.values().min_by_key(|(lacks, _)| left(lacks));
        let Some((lacks, _)) = shortest else { return };
        let ready = |drv: &&Drv| self.packages.inputs(**drv).all(|input| self.built.contains(&input));
        let drv = *lacks.iter().find(ready).expect("inputs form no cycle");
        self.running = Some((drv, now + self.packages.millis(drv)));
    }
}
