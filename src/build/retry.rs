//! Beginning anew what lost the Nix daemon, a bounded number of times.

use std::time::Duration;

use narinfo::StorePath;

/// How often something is begun anew when the daemon goes away under it.
const ATTEMPTS_MAX: u32 = 3;
/// The rest between two attempts: a daemon that restarts is back within it.
const ATTEMPT_PAUSE: Duration = Duration::from_secs(2);

/// Runs `attempt` until it succeeds, fails for good, or has lost the daemon [`ATTEMPTS_MAX`] times.
pub(super) async fn again<T, E, F: Future<Output = Result<T, E>>>(
    drv: &StorePath,
    attempt: impl Fn() -> F,
    lost: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let mut attempts = 1;
    loop {
        match attempt().await {
            Err(error) if lost(&error) && attempts < ATTEMPTS_MAX => {
                tracing::warn!(%drv, attempts, "the Nix daemon went away; trying again");
                attempts += 1;
                tokio::time::sleep(ATTEMPT_PAUSE).await;
            }
            other => return other,
        }
    }
}
