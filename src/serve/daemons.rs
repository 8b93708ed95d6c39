//! Opening of the Nix daemons and of the Nix store on this machine.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::time::sleep;

use super::steps::pools;
use super::{Error, Settings};
use crate::isolation;
use crate::nix::{DaemonLogs, Detected, Detector, LocalStore, Pool, SentDerivations};
use crate::state_dir::{SENT, using};
use crate::tasks::Tasks;

/// Delay before the look-ups that no client waits for: they take a core for a while, and the first clients
/// come first.
const ASK_NIX_AFTER: Duration = Duration::from_millis(100);

/// Handles of the Nix daemons.
pub(super) struct Daemons {
    pub(super) pool: Pool,
    /// Connections to the daemon of the background lane.
    pub(super) background: Option<Pool>,
    pub(super) local: LocalStore,
    pub(super) logs: DaemonLogs,
    pub(super) detected: Detected,
    detector: Detector,
    /// Bounds of builds on this machine, if any are made.
    bounds: Option<isolation::BuildLimits>,
}

impl Daemons {
    /// Opens connections as they are needed; a background lane must answer at once.
    pub(super) async fn open(settings: &Settings, state_dir: &std::path::Path) -> Result<Self, Error> {
        let (pool, background) = pools(settings);
        if let Some(background) = &background {
            isolation::check_background(&pool, background).await?;
        }
        let detected = Detected::default();
        let detector = Detector {
            settings: settings.capabilities.clone(),
            pools: background.iter().chain([&pool]).cloned().collect(),
            dir: state_dir.to_owned(),
            detected: detected.clone(),
        };
        let local_slots = settings.farm.local_slots.map_or(0, NonZeroUsize::get);
        let bounds = isolation::BuildLimits {
            build_cores: settings.daemon.build_cores,
            builds: settings.daemon.jobs.saturating_mul(local_slots as u64),
        };
        let sent = using(&state_dir.join(SENT), |dir| SentDerivations::open(dir, &settings.nix.store_dir))?;
        Ok(Self {
            local: LocalStore::new(settings.nix.clone(), pool.clone()).with_sent(sent),
            logs: DaemonLogs::new(settings.nix.log_dir.clone(), settings.logs.log_bytes_max),
            bounds: (!settings.substitute.build_from.is_empty()).then_some(bounds),
            pool,
            background,
            detected,
            detector,
        })
    }

    /// Tasks that find out what the daemon can build, and what the Nix store has.
    pub(super) fn start(self, tasks: &Tasks) {
        let Self { pool, local, detector, bounds, .. } = self;
        tasks.needed("capabilities", async move {
            sleep(ASK_NIX_AFTER).await;
            detector.run().await;
        });
        tasks.optional("isolation-advice", async move {
            sleep(ASK_NIX_AFTER).await;
            isolation::report(pool, bounds).await;
        });
        tasks.restarted("store-watch", move || {
            let local = local.clone();
            async move { local.maintain_filter().await }
        });
    }
}
