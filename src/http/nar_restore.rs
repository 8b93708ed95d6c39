//! Restores an evicted NAR for a client that remembers its narinfo, as clients do for a month. Its path is
//! fetched or built as if its narinfo had been asked for; the client waits in silence, since a NAR has no
//! room for words.

use std::time::{Duration, Instant};

use narinfo::NarHash;

use super::Service;
use crate::substitute::{OnMiss, WaitEnd};

/// Longest wait of a client, which gives up after 300 s without a byte.
const WAIT: Duration = Duration::from_secs(240);
/// Reason for a NAR that no path ever had.
const UNKNOWN: &str = "unknown: no path that this cache serves has this NAR";
/// Reason for a NAR whose path has other contents by now.
const OTHER: &str = "unknown: the path that had this NAR has other contents by now; ask for its narinfo anew \
                     (nix --option narinfo-cache-positive-ttl 0)";

/// Makes sure that the path of a NAR is served, for a client that has waited since `since`; else gives the
/// reason.
pub(super) async fn ensure_served(
    service: &Service,
    nar: NarHash,
    on_miss: OnMiss,
    since: Instant,
) -> Result<(), String> {
    let state = &service.state;
    let former = state.index.former_path(nar).await.map_err(|error| {
        tracing::error!(%nar, error = &error as &dyn std::error::Error, "the former path of a NAR cannot be looked up");
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
