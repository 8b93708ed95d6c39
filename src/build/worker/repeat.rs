//! Second builds, where the settings want them: their outputs beside those that are served, noted as a
//! comparison with an upstream is. Outputs that were built first stay.

use super::Worker;
use crate::build::farm::MachineId;
use crate::build::runner::{MachineRunner, NotBuilt, RebuiltOutputs};
use crate::build::scheduler::Repeat;
use crate::index;
use crate::model::Comparison;

impl Worker {
    pub(super) async fn repeat(self, repeat: Repeat, on: MachineId) {
        let drv = &repeat.drv;
        let MachineRunner::Remote(runner) = &self.machines[on.0] else {
            return self.scheduler.repeated(&repeat, on, false);
        };
        let builder = &runner.name;
        let failed = match runner.rebuild(drv).await {
            Ok(outputs) => {
                if let Err(error) = self.compare(builder, outputs).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%drv, %builder, error, "cannot note the comparison of two builds");
                }
                false
            }
            Err(NotBuilt::Failed(verdict)) => {
                tracing::warn!(%drv, %builder, reason = verdict.reason, "the second build of a derivation failed");
                true
            }
            Err(why) => {
                let reason = why.last_line();
                tracing::info!(%drv, %builder, reason, "a derivation was not built a second time");
                false
            }
        };
        self.scheduler.repeated(&repeat, on, failed);
    }

    async fn compare(&self, builder: &str, outputs: RebuiltOutputs) -> Result<(), index::Error> {
        for (path, nar_hash) in outputs {
            let Some(hit) = self.index.find(path.hash()).await? else { continue };
            let ours = hit.row.info.nar_hash;
            let same = ours == nar_hash;
            if same {
                tracing::info!(%path, builder, "built twice with the same contents");
            } else {
                tracing::warn!(%path, builder, %ours, theirs = %nar_hash, "this build is not reproducible");
            }
            let comparison = Comparison { upstream: format!("builder {builder}"), nar_hash, same };
            self.index.record_comparison(path.hash(), Some(comparison)).await?;
        }
        Ok(())
    }
}
