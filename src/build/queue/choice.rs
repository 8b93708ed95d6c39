//! Which derivation is built next, and how long it may go on. Everything else about the queue only keeps the
//! facts that this file decides by.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{ActiveBuild, Overtaking, Purpose, Queue, RequestId};

/// Requests that are looked at for one that may go first; those behind wait until they are among the oldest.
const OVERTAKERS_MAX: usize = 1_000;

/// Policy by which requests may be built before older ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Nobody: strictly first come, first served, in one lane or several.
    #[default]
    Strict,
    /// Short requests, in the only lane, as far as older ones can bear it.
    Overtaking(Overtaking),
    /// Short requests in a lane of their own, which has a small share m of the processors while the main lane
    /// is busy: no request is delivered later than 1 / (1 - m) times the work that stood when its latest
    /// owner arrived.
    Background,
}

/// Duration of some work, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess {
    /// As likely shorter as longer.
    pub median: Duration,
    /// Longer in one case of twenty.
    pub p95: Duration,
}

impl<D: Clone + Ord> Queue<D> {
    /// The next derivation to build, which counts as running from `now` on: of the oldest request that has
    /// one that is ready, or of a shorter one that may go first. Nothing while a request older than any ready
    /// one is not planned yet.
    ///
    /// `guess` says how long derivations will take in all, one after the other; `None` when it does not know.
    /// It is asked only where overtaking is allowed.
    pub fn start(&mut self, now: Duration, guess: impl Fn(&BTreeSet<D>) -> Option<Guess>) -> Option<D> {
        let request = match self.policy {
            Policy::Strict => self.oldest_ready(),
            Policy::Overtaking(overtaking) => {
                self.overtaker(overtaking, guess).or_else(|| self.oldest_ready())
            }
            // Not the next one while the oldest waits for the background lane, which is as fast as this one
            // meanwhile.
            Policy::Background => self.oldest_ready().filter(|id| Some(id) == self.requests.keys().next()),
        };
        self.run(request?, now)
    }

    /// The next derivation to build in the background: of the request that is shortest as far as is known,
    /// but not of the oldest one, which the main lane works for.
    pub fn start_in_background(
        &mut self,
        now: Duration,
        guess: impl Fn(&BTreeSet<D>) -> Option<Guess>,
    ) -> Option<D> {
        let younger = self.planned().skip(1).take(OVERTAKERS_MAX);
        let ready = younger.filter(|(id, _)| self.ready_step(*id).is_some());
        let request = ready
            .map(|(id, lacks)| (guess(lacks).map_or(Duration::MAX, |guess| guess.median), id))
            .min()
            .map(|(_, id)| id);
        self.run(request?, now)
    }

    /// The next derivation to build where several places can build different ones, with the place that
    /// `place` chooses for it among those that are free: of the oldest request that has a ready one which
    /// some place can build. No derivation starts while an older request has another ready one that could
    /// have the same place. Where `place` finds none, it is asked for no other derivation of that class.
    pub fn start_placed<P>(&mut self, now: Duration, place: impl Fn(&D) -> Option<P>) -> Option<(D, P)> {
        let heads = self.ready_heads().into_iter();
        let (drv, place) = heads.map(|(_, drv)| drv).find_map(|drv| Some((drv.clone(), place(drv)?)))?;
        self.run_step(&drv, now)?;
        Some((drv, place))
    }

    fn run(&mut self, request: RequestId, now: Duration) -> Option<D> {
        let drv = self.ready_step(request)?.clone();
        self.run_step(&drv, now)?;
        Some(drv)
    }

    /// Counts a derivation as running.
    fn run_step(&mut self, drv: &D, now: Duration) -> Option<()> {
        let owner = *self.steps.get(drv)?.needed_by.first()?;
        let overtakes =
            matches!(self.policy, Policy::Overtaking(_)) && Some(&owner) > self.requests.keys().next();
        let purpose = Purpose::Owner { id: owner, overtakes };
        self.running.insert(drv.clone(), ActiveBuild { since: now, purpose });
        self.relist(drv);
        self.mark_started(owner);
        Some(())
    }

    /// The requests up to the first one that is not planned, oldest first, and what they lack.
    fn planned(&self) -> impl Iterator<Item = (RequestId, &BTreeSet<D>)> {
        self.requests.iter().map_while(|(id, request)| Some((*id, request.lacks.as_ref()?))).fuse()
    }

    fn oldest_ready(&self) -> Option<RequestId> {
        self.ready_heads().first().map(|(owner, _)| *owner)
    }

    /// The shortest request that may go before older ones: everyone can bear that it takes as long as it may.
    fn overtaker(
        &self,
        overtaking: Overtaking,
        guess: impl Fn(&BTreeSet<D>) -> Option<Guess>,
    ) -> Option<RequestId> {
        if !self.running.is_empty() {
            return None;
        }
        let bearable = self.bearable(overtaking)?;
        if bearable.is_zero() {
            return None;
        }
        let mut planned = self.planned();
        // Whether the oldest one is long is not known where it has an unknown part: anything known counts as
        // shorter.
        let oldest = planned.next().and_then(|(_, lacks)| guess(lacks)).map(|guess| guess.median);
        planned
            .take(OVERTAKERS_MAX)
            .filter_map(|(id, lacks)| Some((id, guess(lacks)?)))
            .filter(|(_, guess)| guess.p95 <= bearable && oldest.is_none_or(|oldest| guess.median < oldest))
            .min_by_key(|(id, guess)| (guess.median, *id))
            .map(|(id, _)| id)
    }

    /// The first derivation of a request that could be built now, and is not being built.
    fn ready_step(&self, id: RequestId) -> Option<&D> {
        let lacks = self.requests.get(&id)?.lacks.as_ref()?;
        lacks.iter().find(|drv| self.steps.get(*drv).is_some_and(|step| step.ready_at.is_some()))
    }

    /// Counts a derivation as running that nobody has asked for, and whose inputs are all built. False, and
    /// nothing is to be built, unless nobody waits for anything and nothing else runs.
    pub fn prebuild(&mut self, drv: &D, now: Duration, until: Duration) -> bool {
        let idle = self.requests.is_empty() && self.running.is_empty();
        if idle {
            self.running.insert(drv.clone(), ActiveBuild { since: now, purpose: Purpose::Nobody { until } });
        }
        idle
    }

    /// Hands a pre-build over to the oldest request once that turns out to need it. For a younger one it does
    /// not go on: the oldest would have to wait for it.
    pub(super) fn take_over_prebuilt(&mut self, id: RequestId, needs: &BTreeMap<D, BTreeSet<D>>) {
        if self.requests.keys().next() != Some(&id) {
            return;
        }
        for (drv, run) in &mut self.running {
            if matches!(run.purpose, Purpose::Nobody { .. }) && needs.contains_key(drv) {
                run.purpose = Purpose::Owner { id, overtakes: false };
                self.mark_started(id);
                return;
            }
        }
    }

    /// Time at which a running build has to be [`stopped`](Self::stopped), lest an older request is delivered
    /// later than promised. `None`: never. Only what is [pre-built](Self::prebuild) has to be stopped
    /// earlier, at once, when someone comes meanwhile who needs something else; for one who needs it, it goes
    /// on to its end.
    #[must_use]
    pub fn stop_at(&self, drv: &D) -> Option<Duration> {
        let run = self.running.get(drv)?;
        match (run.purpose, self.policy) {
            (Purpose::Nobody { until }, _) => {
                let somebody_waits = self.requests.values().any(|request| request.lacks.is_some());
                Some(if somebody_waits { run.since } else { until })
            }
            (Purpose::Owner { overtakes: true, .. }, Policy::Overtaking(overtaking)) => {
                Some(run.since + self.bearable(overtaking)?)
            }
            _ => None,
        }
    }

    /// Duration that a build which overtakes may have: as much as everyone can bear, also those that come
    /// meanwhile. These have earned nothing yet, and if it is stopped, all of the time that is lost is
    /// charged to them.
    fn bearable(&self, overtaking: Overtaking) -> Option<Duration> {
        let slack = self.requests.values().map(|request| request.account.slack(overtaking)).min()?;
        Some(slack.min(overtaking.budget))
    }
}
