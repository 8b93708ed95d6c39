//! Choice of what to build while nobody waits, after new versions have come: what people asked for lately,
//! first what costs least time per request. Pure: it is told what could be asked for and what was built, and
//! says what to build next. It never says when: that is for the [queue](super::queue::Queue::prebuild), which
//! stops it for anyone who waits.

pub mod allowance;
pub mod demand;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::forecast::estimate::Estimate;

/// One day; time changes and leap seconds make no difference here.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The number of a day, of a time that counts from any midnight.
#[must_use]
pub fn day(time: Duration) -> u64 {
    time.as_secs() / DAY.as_secs()
}

/// Requests that are expected at most; those beyond are left to those who ask.
pub const WANTED_MAX: usize = 2_000;
/// Derivations that are kept in mind for them at most.
const STEPS_MAX: usize = 100_000;

/// Candidates for pre-builds. `D` names a derivation.
#[derive(Clone, Debug)]
pub struct Prebuild<D> {
    wanted: Vec<WantedStep>,
    steps: Vec<PrebuildStep<D>>,
    by_drv: BTreeMap<D, usize>,
    /// Counts the walks through the steps, so that none looks at a step twice.
    walks: u64,
}

/// A derivation that will probably be asked for, and is not built yet.
#[derive(Clone, Copy, Debug)]
struct WantedStep {
    step: usize,
    /// Number of requests for something like it.
    asked: u32,
}

/// A derivation that is needed for something.
#[derive(Clone, Debug)]
struct PrebuildStep<D> {
    drv: D,
    inputs: Vec<usize>,
    /// Steps that it is an input of.
    needed_by: Vec<usize>,
    state: StepState,
    /// Duration on average, in seconds.
    seconds: f64,
    /// Duration that is exceeded in one case of twenty.
    p95: Duration,
    /// The rest of its closure, where it is wanted and that was found out since the last change.
    left: Option<Left>,
    /// The last walk that came here.
    walk: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StepState {
    Lacking,
    Built,
    Failed,
}

impl<D> Default for Prebuild<D> {
    fn default() -> Self {
        Self { wanted: Vec::new(), steps: Vec::new(), by_drv: BTreeMap::new(), walks: 0 }
    }
}

/// The rest of the work for something wanted.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    seconds: f64,
    /// The shortest of what can be built now.
    next: Option<usize>,
    impossible: bool,
}

impl<D: Clone + Ord> Prebuild<D> {
    /// Something that will probably be asked for, as something like it was `asked` for so often, with
    /// everything that it lacks and the lacking inputs of each. The most wanted first: beyond a bound nothing
    /// more is taken, and this is false.
    ///
    /// `guess` says how long a derivation takes, or an average one if nothing is known of it: what is new
    /// should neither count as nothing nor put off all that needs it. Where it cannot tell even that, nothing
    /// was ever built here, and nothing is pre-built.
    pub fn offer(
        &mut self,
        wanted: &D,
        asked: u32,
        needs: &BTreeMap<D, BTreeSet<D>>,
        guess: impl Fn(&D) -> Option<Estimate>,
    ) -> bool {
        let new: Option<Vec<(&D, Estimate)>> = needs
            .keys()
            .filter(|drv| !self.by_drv.contains_key(*drv))
            .map(|drv| Some((drv, guess(drv)?)))
            .collect();
        let Some(new) = new.filter(|_| asked > 0 && needs.contains_key(wanted)) else { return false };
        if self.wanted.len() >= WANTED_MAX || self.steps.len() + new.len() > STEPS_MAX {
            return false;
        }
        let first = self.steps.len();
        for (drv, estimate) in new {
            self.by_drv.insert(drv.clone(), self.steps.len());
            self.steps.push(PrebuildStep {
                drv: drv.clone(),
                inputs: Vec::new(),
                needed_by: Vec::new(),
                state: StepState::Lacking,
                seconds: estimate.mean(),
                p95: estimate.guess().p95,
                left: None,
                walk: 0,
            });
        }
        for n in first..self.steps.len() {
            let inputs = needs[&self.steps[n].drv].iter();
            let inputs: Vec<usize> = inputs.filter_map(|input| self.by_drv.get(input).copied()).collect();
            inputs.iter().for_each(|input| self.steps[*input].needed_by.push(n));
            self.steps[n].inputs = inputs;
        }
        self.wanted.push(WantedStep { step: self.by_drv[wanted], asked });
        true
    }

    /// The next derivation to build, if it may take so long: one whose inputs are all built, of what has most
    /// requests per second of work that is left.
    pub fn next(&mut self, longest: Duration) -> Option<&D> {
        let Self { wanted, steps, walks, .. } = self;
        let mut best: Option<(f64, usize)> = None;
        wanted.retain(|WantedStep { step, asked }| {
            if steps[*step].state == StepState::Built {
                return false;
            }
            let left = steps[*step].left.unwrap_or_else(|| {
                *walks += 1;
                look(steps, *step, *walks)
            });
            steps[*step].left = Some(left);
            let worth = f64::from(*asked) / left.seconds;
            if let Some(next) = left.next.filter(|next| !left.impossible && steps[*next].p95 <= longest)
                && best.is_none_or(|(other, _)| worth > other)
            {
                best = Some((worth, next));
            }
            !left.impossible
        });
        best.map(|(_, step)| &steps[step].drv)
    }

    /// True when this is itself expected to be asked for, and not only needed for something that is.
    #[must_use]
    pub fn expects(&self, drv: &D) -> bool {
        self.by_drv.get(drv).is_some_and(|step| self.wanted.iter().any(|wanted| wanted.step == *step))
    }

    /// A derivation is built, for whomever.
    pub fn built(&mut self, drv: &D) {
        self.set(drv, StepState::Built);
    }

    /// A derivation cannot be built: what needs it is given up.
    pub fn failed(&mut self, drv: &D) {
        self.set(drv, StepState::Failed);
    }

    /// Sets a state; the rest of everything that needs this has changed by it.
    fn set(&mut self, drv: &D, state: StepState) {
        let Some(step) = self.by_drv.get(drv) else { return };
        self.steps[*step].state = state;
        self.walks += 1;
        let mut stack = vec![*step];
        while let Some(n) = stack.pop() {
            let step = &mut self.steps[n];
            if std::mem::replace(&mut step.walk, self.walks) != self.walks {
                step.left = None;
                stack.extend(&step.needed_by);
            }
        }
    }
}

/// Walks through what is left of a closure.
fn look<D>(steps: &mut [PrebuildStep<D>], wanted: usize, walk: u64) -> Left {
    let mut left = Left::default();
    let mut stack = vec![wanted];
    while let Some(n) = stack.pop() {
        if std::mem::replace(&mut steps[n].walk, walk) == walk {
            continue;
        }
        let step = &steps[n];
        left.impossible |= step.state == StepState::Failed;
        left.seconds += step.seconds;
        let before = stack.len();
        stack.extend(step.inputs.iter().filter(|input| steps[**input].state != StepState::Built));
        let ready = stack.len() == before;
        if ready && left.next.is_none_or(|other| step.p95 < steps[other].p95) {
            left.next = Some(n);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::super::forecast::estimate::{Durations, Kind};
    use super::*;

    const FOREVER: Duration = Duration::MAX;

    /// Each derivation takes about as many seconds as its number says.
    fn guess(drv: &u32) -> Option<Estimate> {
        let (mut durations, kind) = (Durations::default(), Kind::new("p", "system", 0));
        durations.learn(&kind, Duration::from_secs(u64::from(*drv)), true);
        durations.estimate(&kind)
    }

    /// Offers lists of derivations each of which needs the one before it, and how often they were asked for.
    fn offered(wanted: &[(&[u32], u32)]) -> Prebuild<u32> {
        let mut prebuild = Prebuild::default();
        for (chain, asked) in wanted {
            let inputs = |n: usize| n.checked_sub(1).map(|before| chain[before]).into_iter().collect();
            let needs = chain.iter().enumerate().map(|(n, drv)| (*drv, inputs(n))).collect();
            assert!(prebuild.offer(chain.last().expect("something"), *asked, &needs, guess));
        }
        prebuild
    }

    fn order(mut prebuild: Prebuild<u32>, longest: Duration) -> Vec<u32> {
        std::iter::from_fn(|| {
            let next = *prebuild.next(longest)?;
            prebuild.built(&next);
            Some(next)
        })
        .collect()
    }

    #[test]
    fn what_has_most_requests_for_its_time_comes_first_inputs_before_what_needs_them() {
        let prebuild = offered(&[(&[90, 10], 9), (&[20, 30], 8), (&[5], 1)]);
        assert!(prebuild.expects(&10) && !prebuild.expects(&90) && !prebuild.expects(&7));
        assert_eq!(order(prebuild, FOREVER), [5, 20, 30, 90, 10]);
    }

    #[test]
    fn what_others_have_built_brings_a_closure_nearer() {
        let mut prebuild = offered(&[(&[20, 30], 8), (&[90, 10], 9)]);
        assert_eq!(prebuild.next(FOREVER), Some(&20));
        prebuild.built(&90);
        assert_eq!(prebuild.next(FOREVER), Some(&10), "nine requests for ten seconds");
    }

    #[test]
    fn what_would_not_be_done_in_time_is_not_begun() {
        let prebuild = offered(&[(&[20, 1000], 8), (&[2000], 90), (&[30], 1)]);
        assert_eq!(order(prebuild, Duration::from_secs(300)), [30, 20]);
        assert_eq!(offered(&[(&[2000], 90)]).next(Duration::ZERO), None);
    }

    #[test]
    fn what_needs_something_that_failed_is_given_up_and_nothing_else() {
        let mut prebuild = offered(&[(&[1, 2, 3], 9), (&[1, 4], 1), (&[2, 5], 1)]);
        prebuild.built(&1);
        prebuild.failed(&2);
        assert_eq!(order(prebuild, FOREVER), [4]);
    }

    #[test]
    fn nothing_is_taken_that_nobody_asked_for_or_of_which_nothing_can_be_said() {
        let mut prebuild = Prebuild::default();
        let needs = BTreeMap::from([(1, BTreeSet::new())]);
        assert!(!prebuild.offer(&1, 0, &needs, guess));
        assert!(!prebuild.offer(&1, 9, &needs, |_| None));
        assert!(!prebuild.offer(&1, 9, &BTreeMap::new(), guess), "it is there already");
        assert_eq!(prebuild.next(FOREVER), None);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut prebuild = Prebuild::default();
        let estimate = guess(&1);
        let alone = |drv: u32| BTreeMap::from([(drv, BTreeSet::new())]);
        let taken = (0..).take_while(|drv| prebuild.offer(drv, 1, &alone(*drv), |_| estimate)).count();
        assert_eq!(taken, WANTED_MAX);
        let many: BTreeMap<u32, BTreeSet<u32>> =
            (0..=STEPS_MAX as u32).map(|drv| (drv, BTreeSet::new())).collect();
        assert!(!Prebuild::default().offer(&1, 1, &many, |_| estimate));
    }
}
