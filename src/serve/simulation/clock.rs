//! The time of a run. Servers live by the clock of tokio. Where nothing is asked for, built or broken, only
//! the same timers go off again and again, which was two thirds of what an hour of a run cost: such a time is
//! passed over, by a whole number of periods of these timers. For the servers the next request or fault only
//! comes sooner.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Multiple of the period of every timer of a server that has nothing to do.
const PERIOD: Duration = Duration::from_secs(10);
/// Time for which nothing has happened before time is passed over.
const QUIET_FOR: Duration = Duration::from_secs(30);
/// Interval at which it is looked for that.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A cause of what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Clients ask.
    Clients = 0,
    /// Something fails.
    Faults = 1,
}

/// Clock of a run.
pub(super) struct RunClock {
    begun: Instant,
    /// Time that was passed over.
    passed: watch::Sender<Duration>,
    plan: Mutex<Plan>,
}

struct Plan {
    /// Time of the run at which each cause acts next; none while it is at work.
    next: [Option<Duration>; 2],
    stirred: Instant,
}

impl RunClock {
    pub(super) fn new() -> Self {
        let begun = Instant::now();
        let plan = Mutex::new(Plan { next: [None; 2], stirred: begun });
        Self { begun, passed: watch::channel(Duration::ZERO).0, plan }
    }

    /// Time of the servers since the begin.
    pub(super) fn ticked(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Time of the run since its begin.
    pub(super) fn elapsed(&self) -> Duration {
        self.ticked() + *self.passed.borrow()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has happened.
    pub(super) fn stir(&self) {
        self.plan().stirred = Instant::now();
    }

    /// Has a cause rest for so long, by the time of the run.
    pub(super) async fn rest(&self, cause: Cause, lasts: Duration) {
        let (due, mut passed) = (self.elapsed() + lasts, self.passed.subscribe());
        self.plan().next[cause as usize] = Some(due);
        loop {
            passed.borrow_and_update();
            let left = due.saturating_sub(self.elapsed());
            if left.is_zero() {
                break;
            }
            tokio::select! {
                biased;
                _ = passed.changed() => {}
                () = sleep(left) => {}
            }
        }
        self.plan().next[cause as usize] = None;
        self.stir();
    }

    /// A cause acts no more.
    pub(super) fn end(&self, cause: Cause) {
        self.plan().next[cause as usize] = Some(Duration::MAX);
    }

    /// Passes quiet times over for as long as this is polled. Nothing is quiet while `is_busy`.
    pub(super) async fn pass_quiet_times(&self, is_busy: impl Fn() -> bool) {
        loop {
            sleep(LOOK_EVERY).await;
            if is_busy() {
                self.stir();
            }
            let plan = self.plan();
            let [Some(one), Some(other)] = plan.next else { continue };
            let due = one.min(other);
            if due == Duration::MAX || plan.stirred.elapsed() < QUIET_FOR {
                continue;
            }
            drop(plan);
            let ahead = due.saturating_sub(self.elapsed()).as_secs() / PERIOD.as_secs();
            if ahead > 0 {
                self.passed.send_modify(|passed| *passed += PERIOD * u32::try_from(ahead).expect("few"));
            }
        }
    }
}
