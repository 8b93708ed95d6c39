//! Patience with a server that is away for a while, as during a restart.

use std::time::{Duration, Instant};

use super::error::Error;

/// Time for which a server that is away is asked again.
pub(super) const OUTAGE_MAX: Duration = Duration::from_secs(300);
/// Pause before it is asked again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// The result of `ask`, which is asked again while the server is away, up to a bound.
///
/// # Errors
/// The server answers with an error, or stays away.
pub async fn through_outage<T>(mut ask: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
    let begun = Instant::now();
    loop {
        match ask().await {
            Err(error) if error.is_transient() && begun.elapsed() < OUTAGE_MAX => {
                tokio::time::sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}
