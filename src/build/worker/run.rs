//! One build by a runner, from the first line of its log to the last: begun anew while the runner is lost.

use std::pin::pin;
use std::time::{Duration, Instant};

use narinfo::StorePath;
use tracing::Instrument;
use tracing::field::Empty;

use crate::build::Logs;
use crate::build::log::LogWriter;
use crate::build::runner::{Built, Loss, MachineRunner, NotBuilt, Runner};
use crate::build::scheduler::{BuildIds, Scheduler};
use crate::build::verdict::logged;
use crate::telemetry::TRACE;

/// Time limit of a question to a machine for what it may have built, with the outputs.
const FOUND_WITHIN: Duration = Duration::from_secs(60);

/// A build that has ended and is not to be begun anew here.
pub(super) type RunEnd = Result<Built, Unbuilt>;

/// Why a build has no outputs.
#[derive(Debug)]
pub(super) struct Unbuilt {
    pub(super) why: NotBuilt,
    /// True where a builder was started.
    pub(super) started: bool,
}

/// Has a runner build one derivation. Where there is no other machine, a runner that is lost is waited for,
/// and it is a failure when it does not come back.
pub(super) async fn run(scheduler: &Scheduler, runner: &impl Runner, logs: &Logs, drv: &StorePath) -> RunEnd {
    let ids = scheduler.build_ids(drv);
    let BuildIds { request, builder } = &ids;
    let span = tracing::info_span!(
        target: TRACE, parent: None, "build", %drv, request, builder, outcome = Empty, reason = Empty,
        otel.status_code = Empty,
    );
    let ended = run_patiently(scheduler, runner, logs, drv, &ids).instrument(span.clone()).await;
    span.record("outcome", outcome(&ended));
    if let Err(Unbuilt { why: why @ (NotBuilt::Failed(_) | NotBuilt::Lost(_)), .. }) = &ended {
        span.record("reason", why.last_line());
        span.record("otel.status_code", "error");
    }
    ended
}

fn outcome(ended: &RunEnd) -> &'static str {
    match ended.as_ref().map_err(|unbuilt| &unbuilt.why) {
        Ok(_) => "built",
        Err(NotBuilt::Failed(_)) => "failed",
        Err(NotBuilt::Stopped) => "stopped",
        Err(NotBuilt::Lost(_)) => "lost",
    }
}

async fn run_patiently(
    scheduler: &Scheduler,
    runner: &impl Runner,
    logs: &Logs,
    drv: &StorePath,
    BuildIds { request, builder }: &BuildIds,
) -> RunEnd {
    tracing::info!(%drv, request, builder, "building");
    let begun = Instant::now();
    let log = logs.begin(drv);
    let waits = scheduler.farm().is_local();
    let lost = |why: &NotBuilt| match why {
        NotBuilt::Lost(loss) if waits && log.starts() < loss.starts_max => Some(loss.reason.clone()),
        _ => None,
    };
    let built = scheduler.patiently(drv, || attempt(scheduler, runner, &log, drv), lost).await;
    let started = log.starts() > 0;
    log.finish(built.as_ref().err().map(NotBuilt::last_line).as_deref());
    let seconds = begun.elapsed().as_secs();
    built.inspect(|_| tracing::info!(%drv, seconds, request, builder, "built")).map_err(|why| {
        let why = match why {
            NotBuilt::Lost(Loss { verdict, .. }) if waits => NotBuilt::Failed(verdict),
            why => why,
        };
        match &why {
            NotBuilt::Stopped => tracing::info!(%drv, seconds, request, builder, "stopped: others go first"),
            NotBuilt::Failed(verdict) => {
                let reason = logged(&verdict.reason);
                tracing::warn!(%drv, seconds, request, builder, %reason, "build failed");
            }
            // Told by who takes it elsewhere.
            NotBuilt::Lost(_) => {}
        }
        Unbuilt { why, started }
    })
}

/// Outputs of a derivation that a machine has built for a server which ended meanwhile.
pub(super) async fn found_elsewhere(drv: &StorePath, machines: &[MachineRunner]) -> Option<Built> {
    for machine in machines {
        let MachineRunner::Remote(runner) = machine else { continue };
        match tokio::time::timeout(FOUND_WITHIN, runner.take_if_built(drv)).await {
            Ok(Ok(Some(built))) => {
                tracing::info!(%drv, builder = %runner.name, "built before the server was started");
                return Some(built);
            }
            Ok(Ok(None)) => {}
            Ok(Err(why)) => {
                let reason = why.last_line();
                tracing::debug!(%drv, builder = %runner.name, reason, "cannot ask a builder for outputs");
            }
            Err(_) => tracing::debug!(%drv, builder = %runner.name, "a builder does not tell of outputs"),
        }
    }
    None
}

async fn attempt(
    scheduler: &Scheduler,
    runner: &impl Runner,
    log: &LogWriter,
    drv: &StorePath,
) -> Result<Built, NotBuilt> {
    let mut starts = log.watch_starts();
    let mut building = pin!(runner.build(drv, log, scheduler.stop_signal(drv)));
    tokio::select! {
        built = &mut building => return built,
        // The log does not end before this does.
        _ = starts.changed() => scheduler.daemon_answers(),
    }
    building.await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::build::verdict::Verdict;
    use crate::build::{LogSettings, Settings};
    use crate::index::Index;

    /// A runner that is lost a number of times, and then builds or waits to be stopped.
    #[derive(Clone)]
    struct Fragile {
        losses: u32,
        starts_max: u32,
        tried: Arc<AtomicU32>,
        forever: bool,
    }

    impl Fragile {
        fn lost(losses: u32, starts_max: u32) -> Self {
            Self { losses, starts_max, tried: Arc::default(), forever: false }
        }
    }

    impl Runner for Fragile {
        async fn build(
            &self,
            _: &StorePath,
            log: &LogWriter,
            stop: impl Future<Output = ()> + Send,
        ) -> Result<Built, NotBuilt> {
            log.start();
            log.line("a line", 0);
            if self.tried.fetch_add(1, Ordering::Relaxed) < self.losses {
                let verdict = Verdict::transient("it did not come back");
                return Err(NotBuilt::Lost(Loss {
                    reason: "gone".into(),
                    starts_max: self.starts_max,
                    verdict,
                }));
            }
            if self.forever {
                stop.await;
                return Err(NotBuilt::Stopped);
            }
            Ok(Built { outputs: Vec::new(), worked: true, took: Duration::ZERO })
        }
    }

    struct Bench {
        _folder: tempfile::TempDir,
        scheduler: Scheduler,
        logs: Logs,
        drv: StorePath,
    }

    impl Bench {
        async fn new(transient_retry: Duration) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let index = Index::open(&folder.path().join("index")).expect("opened");
            let settings = Settings { transient_retry, ..Settings::default() };
            let scheduler = Scheduler::open(settings, &index).await.expect("opened");
            let settings = LogSettings { log_bytes_max: 1000, logs_bytes_max: 1000 };
            let logs = Logs::open(&folder.path().join("log"), settings).expect("a folder");
            let drv = StorePath::parse(&format!("{}-p.drv", "a".repeat(32))).expect("a path");
            Self { _folder: folder, scheduler, logs, drv }
        }

        async fn run(&self, runner: &Fragile) -> RunEnd {
            run(&self.scheduler, runner, &self.logs, &self.drv).await
        }
    }

    #[tokio::test]
    async fn a_runner_that_is_lost_and_comes_back_is_no_failure_of_the_build() {
        let bench = Bench::new(Duration::from_secs(60)).await;
        let runner = Fragile::lost(2, 10);
        assert!(bench.run(&runner).await.is_ok());
        assert_eq!(runner.tried.load(Ordering::Relaxed), 3);
        assert_eq!(bench.scheduler.snapshot().stalled, None, "nobody waits for it any more");
    }

    #[tokio::test]
    async fn a_build_that_brings_its_runner_down_each_time_is_not_begun_for_ever() {
        let bench = Bench::new(Duration::from_secs(60)).await;
        let runner = Fragile::lost(u32::MAX, 2);
        let unbuilt = bench.run(&runner).await.expect_err("it is lost");
        let NotBuilt::Failed(verdict) = unbuilt.why else { panic!("{unbuilt:?}") };
        assert_eq!(
            (verdict.reason.as_str(), runner.tried.load(Ordering::Relaxed)),
            ("it did not come back", 2)
        );
    }

    #[tokio::test]
    async fn some_attempts_are_made_however_short_patience_is() {
        let bench = Bench::new(Duration::ZERO).await;
        let runner = Fragile::lost(u32::MAX, 10);
        assert!(bench.run(&runner).await.is_err());
        assert_eq!(runner.tried.load(Ordering::Relaxed), 3);
        assert_eq!(bench.scheduler.snapshot().stalled, None, "nobody waits for it any more");
    }

    #[tokio::test]
    async fn a_runner_stops_a_build_that_the_queue_takes_back() {
        let bench = Bench::new(Duration::ZERO).await;
        let runner = Fragile { forever: true, ..Fragile::lost(0, 1) };
        bench.scheduler.start_prebuild_without_time(&bench.drv);
        assert!(matches!(bench.run(&runner).await, Err(Unbuilt { why: NotBuilt::Stopped, .. })));
    }
}
