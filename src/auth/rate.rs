//! Rates of clients, each a token or a network. Must never be asked by what is answered from memory: it costs
//! more than such an answer.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

use crate::caller::{Caller, CallerKey};

/// Limit of each client's rate.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateSettings {
    /// Requests a second; `None` for no limit.
    pub per_second: Option<NonZeroU32>,
    /// Requests that may come at once.
    pub burst: Option<NonZeroU32>,
}

/// The client asks more often than it may; the time after which it may again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests: this client may ask again in {} s", .0.as_secs() + 1)]
pub struct TooFast(pub Duration);

/// Rates of all clients.
pub struct RateLimits(Option<DefaultKeyedRateLimiter<CallerKey>>);

impl RateLimits {
    pub(super) fn new(settings: RateSettings) -> Self {
        let RateSettings { per_second, burst } = settings;
        let quota = |rate| Quota::per_second(rate).allow_burst(burst.unwrap_or(rate));
        Self(per_second.map(|rate| DefaultKeyedRateLimiter::keyed(quota(rate))))
    }

    /// Counts a request; those of an administrator have no limit.
    ///
    /// # Errors
    /// The client asks too often; the request is not counted.
    pub fn count(&self, caller: &Caller) -> Result<(), TooFast> {
        let (Some(limiter), key) = (&self.0, caller.key()) else { return Ok(()) };
        if key == CallerKey::Admin {
            return Ok(());
        }
        limiter
            .check_key(&key)
            .map_err(|not_until| TooFast(not_until.wait_time_from(DefaultClock::default().now())))
    }

    /// Counts a request, unless the client asks too often: then it is true, and the request not counted.
    #[must_use]
    pub fn is_exceeded(&self, caller: &Caller) -> bool {
        self.count(caller).is_err()
    }

    /// Counts a request once the client may make it: one that cannot be refused without harm waits.
    pub async fn turn(&self, caller: &Caller) {
        while let Err(TooFast(wait)) = self.count(caller) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Forgets the clients that might ask as often as any new one by now.
    pub(super) fn forget_idle(&self) {
        if let Some(limiter) = &self.0 {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::caller::Rights;
    use crate::upstream::Via;

    fn public(address: &str) -> Caller {
        Caller::Public {
            address: address.parse().expect("an address"),
            via: Via::default(),
            rights: Rights::default(),
            rejected: None,
        }
    }

    fn limits(per_second: u32, burst: u32) -> RateLimits {
        RateLimits::new(RateSettings {
            per_second: NonZeroU32::new(per_second),
            burst: NonZeroU32::new(burst),
        })
    }

    #[test]
    fn each_client_has_a_rate_of_its_own_and_an_administrator_none() {
        let limits = limits(1, 2);
        for client in ["192.0.2.1", "192.0.2.2", "2001:db8::1"] {
            assert_eq!(limits.count(&public(client)), Ok(()));
            assert_eq!(limits.count(&public(client)), Ok(()));
            let TooFast(wait) = limits.count(&public(client)).expect_err("too fast");
            assert!(wait <= Duration::from_secs(1), "{wait:?}");
        }
        assert!(limits.count(&public("2001:db8::2")).is_err(), "it is of the same network");
        assert!((0..9).all(|_| limits.count(&Caller::Admin).is_ok()));
        let none = RateLimits::new(RateSettings::default());
        assert!((0..99).all(|_| none.count(&public("192.0.2.1")).is_ok()));
    }

    #[tokio::test]
    async fn a_request_that_may_not_be_refused_waits_until_it_may_be_made() {
        let (limits, client, begun) = (limits(20, 1), public("192.0.2.1"), Instant::now());
        assert!(!limits.is_exceeded(&client) && limits.is_exceeded(&client));
        limits.turn(&client).await;
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(45), "{waited:?}");
    }
}
