//! Own builds beside what other caches have of the same paths, once they have them: the same bytes, or not.
//! A little at a time, in the background; what was found is noted once and stands.

use std::time::Duration;

use crate::index::{self, Index};
use crate::model::{Comparison, PathRow};
use crate::upstream::{Asker, FoundNarInfo, Lookup, Upstreams};

/// The rest between two rounds.
const REST: Duration = Duration::from_secs(3600);
/// Interval at which a server that is not the leader looks if it is.
const PAUSE_UNTIL_LEADING: Duration = Duration::from_secs(60);
/// Paths that are looked for in one round: the ones that were looked for longest ago.
const PATHS_MAX: usize = 1000;
/// The pause between two of them, so that upstreams hardly notice.
const PAUSE: Duration = Duration::from_millis(100);

/// Compares own builds.
#[derive(Clone)]
pub struct Comparer {
    /// Where own builds are, and what was found.
    pub index: Index,
    /// The upstreams to compare with.
    pub upstreams: Upstreams,
}

impl Comparer {
    /// Compares for as long as the server runs.
    pub async fn run(self) {
        if self.upstreams.is_empty() {
            return;
        }
        loop {
            if !self.index.leads() {
                tokio::time::sleep(PAUSE_UNTIL_LEADING).await;
                continue;
            }
            if let Err(error) = self.round().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot compare own builds with upstreams");
            }
            tokio::time::sleep(REST).await;
        }
    }

    async fn round(&self) -> Result<(), index::Error> {
        for row in self.index.uncompared(PATHS_MAX).await? {
            let comparison = match self.upstreams.find(row.info.path.hash(), &Asker::default()).await {
                Lookup::Found(found) if found.signed => Some(self.compared(&row, *found)),
                Lookup::Found(_) | Lookup::Missing(_) | Lookup::Troubled(_) => None,
            };
            self.index.record_comparison(row.info.path.hash(), comparison).await?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn compared(&self, ours: &PathRow, found: FoundNarInfo) -> Comparison {
        let (upstream, theirs) = (found.upstream, found.info.path_info.nar_hash);
        let same = ours.info.nar_hash == theirs;
        self.upstreams.compared(&upstream, same);
        if !same {
            tracing::warn!(path = %ours.info.path, upstream, ours = %ours.info.nar_hash, %theirs, "this build is not reproducible");
        }
        Comparison { upstream, nar_hash: theirs, same }
    }
}
