//! A NAR that no served path has any more, asked for by a client that remembers a narinfo: they do for a month. Its path is had
//! again as if it had been asked for, and the client waits in silence, since nothing can be said in a NAR.

use std::time::{Duration, Instant};

use narinfo::NarHash;

use super::Service;
use crate::substitute::{OnMiss, WaitEnd};

/// How long a client is kept waiting: it gives up after 300 s without a byte.
const WAIT: Duration = Duration::from_secs(240);
/// What a client hears of a NAR that no path ever had.
const UNKNOWN: &str = "unknown: no path that this cache serves has this NAR";
/// What it hears where its path has other contents by now.
const OTHER: &str = "unknown: the path that had this NAR has other contents by now; ask for its narinfo anew \
                     (nix --option narinfo-cache-positive-ttl 0)";

/// Has the path of a NAR served again for a client that waits since then; else a reason.
pub(super) async fn have(
    service: &Service,
    nar: NarHash,
    on_miss: OnMiss,
    since: Instant,
) -> Result<(), String> {
    let parts = &service.parts;
    let former = parts.index.former_path(nar).await.map_err(|error| {
        tracing::error!(%nar, error = &error as &dyn std::error::Error, "what a NAR was of cannot be looked up");
        "the index cannot be read; the server's log has the details".to_owned()
    })?;
    let hash = former.ok_or(UNKNOWN)?;
    let mut waited = service.wait(hash, on_miss);
    let ready = match tokio::time::timeout(WAIT.saturating_sub(since.elapsed()), waited.ended()).await {
        Ok(WaitEnd::Ready(ready)) => ready,
        Ok(WaitEnd::Missing(reason)) => return Err(reason.to_string()),
        Ok(WaitEnd::Stopped) | Err(_) => {
            return Err(format!("not here at the moment: {}; ask for it later", waited.describe()));
        }
    };
    if ready.nar_hash == nar { Ok(()) } else { Err(OTHER.to_owned()) }
}
