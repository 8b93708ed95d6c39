//! Failures that are remembered, so that nobody waits for the same one twice. The time of a failure is that
//! of its try: no request that it answers moves its end, what fails because of it ends with it, and a clock
//! that steps makes it no longer than the settings say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use narinfo::StorePath;

use super::Settings;
use super::verdict::{Verdict, lifetime};
use crate::index::{self, Index};
use crate::model::{Failure, FailureClass};

/// Remembered failures; clones share them.
#[derive(Clone)]
pub struct Failures {
    index: Index,
    settings: Settings,
    /// Failures that have happened and are not in the index yet.
    unrecorded: Arc<Mutex<HashMap<StorePath, Failure>>>,
}

impl Failures {
    /// The failures in this index, remembered for as long as these settings say.
    #[must_use]
    pub fn new(index: Index, settings: Settings) -> Self {
        Self { index, settings, unrecorded: Arc::default() }
    }

    /// The same failures, recorded through another handle to the index.
    pub(super) fn in_index(&self, index: Index) -> Self {
        Self { index, ..self.clone() }
    }

    /// Applies the settings to what was remembered under others, or by another clock. Refusals are forgotten:
    /// this may be another machine.
    ///
    /// # Errors
    /// The index fails.
    pub async fn apply_settings(&self) -> Result<(), index::Error> {
        self.index.forget_refusals().await?;
        let now = SystemTime::now();
        for class in [FailureClass::Permanent, FailureClass::Transient] {
            self.index.shorten_failures(class, lifetime(class, &self.settings), now).await?;
        }
        Ok(())
    }

    /// The failure that stands in the way of a derivation.
    ///
    /// # Errors
    /// The index fails.
    pub async fn of(&self, drv: &StorePath) -> Result<Option<Failure>, index::Error> {
        let unrecorded = self.unrecorded().get(drv).cloned();
        if unrecorded.is_some() {
            return Ok(unrecorded);
        }
        let now = SystemTime::now();
        let Some(mut failure) = self.index.failure(drv.clone(), now).await? else { return Ok(None) };
        let latest = now + lifetime(failure.class, &self.settings);
        if failure.expires_at > latest {
            // The clock has stepped back since. Recorded, so that the end stays where it is now.
            failure.expires_at = latest;
            self.index.end_failure_by(drv.clone(), latest).await?;
        }
        Ok(Some(failure))
    }

    /// Remembered failures, the latest first.
    ///
    /// # Errors
    /// The index fails.
    pub async fn list(&self) -> Result<Vec<Failure>, index::Error> {
        self.index.failures(SystemTime::now()).await
    }

    /// Forgets the failure of a derivation with its cause, and all that failed because of either. Gives the
    /// derivations.
    ///
    /// # Errors
    /// The index fails.
    pub async fn forget(&self, drv: &StorePath) -> Result<Vec<StorePath>, index::Error> {
        self.index.forget_failure(drv.clone()).await
    }

    /// Forgets what is no longer true: the derivation has been built.
    pub(super) async fn built(&self, drv: &StorePath) {
        // What stays on record a little longer harms nobody.
        if let Ok(Some(_)) = self.index.failure(drv.clone(), SystemTime::now()).await {
            let _ = self.index.forget_failure(drv.clone()).await;
        }
    }

    /// Takes note of a try that failed in this moment. From here on it is remembered, and [`Self::record`]
    /// must follow.
    pub(super) fn note(&self, cause: &StorePath, verdict: Verdict) -> Failure {
        let now = SystemTime::now();
        let failure = Failure {
            drv: cause.clone(),
            class: verdict.class,
            cause: cause.clone(),
            reason: verdict.reason,
            failed_at: now,
            expires_at: now + lifetime(verdict.class, &self.settings),
        };
        self.unrecorded().insert(cause.clone(), failure.clone());
        failure
    }

    /// Brings a failure to the index, for the derivation that failed as for `drv`, which needs it. Gives that
    /// of `drv`.
    pub(super) async fn record(&self, drv: &StorePath, cause: Failure) -> Failure {
        let failure = Failure { drv: drv.clone(), ..cause.clone() };
        let noted = self.unrecorded().contains_key(&cause.drv);
        let mut recorded = Ok(());
        if noted {
            recorded = self.index.remember_failure(cause.clone()).await;
        }
        if recorded.is_ok() && cause.drv != *drv {
            recorded = self.index.remember_failure(failure.clone()).await;
        }
        if let Err(error) = recorded {
            let error = &error as &dyn std::error::Error;
            tracing::error!(%drv, error, "cannot record a failure, so the next request builds it again");
        }
        self.unrecorded().remove(&cause.drv);
        failure
    }

    fn unrecorded(&self) -> MutexGuard<'_, HashMap<StorePath, Failure>> {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn settings(permanent: u64, transient: u64) -> Settings {
        Settings {
            permanent_failure_ttl: Duration::from_secs(permanent),
            transient_failure_ttl: Duration::from_secs(transient),
            ..Settings::default()
        }
    }

    fn drv(number: u64) -> StorePath {
        StorePath::parse(&format!("{number:032}-p.drv")).expect("a path")
    }

    fn opened() -> (tempfile::TempDir, Index) {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::open(&folder.path().join("index")).expect("opened");
        (folder, index)
    }

    fn failure(number: u64, class: FailureClass, failed_at: SystemTime, lifetime: Duration) -> Failure {
        Failure {
            drv: drv(number),
            class,
            cause: drv(number),
            reason: "why".to_owned(),
            failed_at,
            expires_at: failed_at + lifetime,
        }
    }

    #[tokio::test]
    async fn a_clock_that_steps_back_makes_no_memory_longer_than_its_setting() {
        let (_folder, index) = opened();
        let failures = Failures::new(index.clone(), settings(3600, 300));
        let now = SystemTime::now();
        // As if a day had been taken back after each.
        for (number, class, lifetime) in
            [(1, FailureClass::Permanent, 3600), (2, FailureClass::Transient, 300)]
        {
            let failed = failure(number, class, now + DAY, Duration::from_secs(lifetime));
            index.remember_failure(failed).await.expect("remembered");
            let first = failures.of(&drv(number)).await.expect("read").expect("remembered");
            let latest = SystemTime::now() + Duration::from_secs(lifetime);
            assert!(first.expires_at <= latest, "{class:?}: {:?}", first.expires_at);
            assert!(first.expires_at + Duration::from_secs(60) > latest, "{class:?}: cut too far");
            // Its end is recorded: no later look moves it.
            let recorded = index.failure(drv(number), now).await.expect("read").expect("remembered");
            assert!(recorded.expires_at <= first.expires_at, "{class:?}");
        }
    }

    #[tokio::test]
    async fn shorter_settings_and_an_earlier_clock_cut_what_was_remembered_at_the_start() {
        let (_folder, index) = opened();
        let now = SystemTime::now();
        let ago = |seconds| now - Duration::from_secs(seconds);
        for failed in [
            failure(4, FailureClass::Permanent, now + DAY, DAY),
            failure(1, FailureClass::Permanent, ago(600), DAY),
            failure(2, FailureClass::Permanent, ago(7200), DAY),
            failure(3, FailureClass::Transient, ago(100), Duration::from_secs(300)),
            failure(5, FailureClass::Refused, ago(1), DAY),
        ] {
            index.remember_failure(failed).await.expect("remembered");
        }
        let failures = Failures::new(index.clone(), settings(3600, 60));
        failures.apply_settings().await.expect("applied");
        let left = async |number| {
            let failure = index.failure(drv(number), now).await.expect("read")?;
            Some(failure.expires_at.duration_since(now).expect("later").as_secs_f64().round() as u64)
        };
        assert!(left(1).await.is_some_and(|left| (2998..=3001).contains(&left)), "{:?}", left(1).await);
        assert_eq!(left(2).await, None, "it failed two hours ago");
        assert_eq!(left(3).await, None, "it failed 100 s ago, and passes after 60 s");
        assert!(left(4).await.is_some_and(|left| (3598..=3601).contains(&left)), "{:?}", left(4).await);
        assert_eq!(left(5).await, None, "this may be another machine");
        // Longer settings bring nothing back, and lengthen nothing.
        let before = left(1).await;
        Failures::new(index.clone(), settings(u64::MAX, u64::MAX)).apply_settings().await.expect("applied");
        assert_eq!((left(1).await, left(2).await), (before, None));
    }

    #[tokio::test]
    async fn a_failure_is_remembered_from_its_try_on_and_what_needs_it_fails_until_the_same_moment() {
        let (_folder, index) = opened();
        let failures = Failures::new(index.clone(), settings(3600, 300));
        let cause = failures.note(&drv(1), Verdict::transient("why"));
        let before = failures.of(&drv(1)).await.expect("read");
        assert_eq!(before.as_ref(), Some(&cause), "it is not in the index yet");
        failures.record(&drv(1), cause.clone()).await;
        // A request an hour later, in the words of the index.
        let known = index.failure(drv(1), cause.failed_at).await.expect("read").expect("remembered");
        let dependant = failures.record(&drv(2), known.clone()).await;
        assert_eq!((dependant.cause, dependant.expires_at), (drv(1), known.expires_at));
        let again = index.failure(drv(1), cause.failed_at).await.expect("read");
        assert_eq!(again, Some(known), "the answer has moved its end");
        assert_eq!(failures.list().await.expect("read").len(), 2);
        // Whoever is named of the two, both go.
        let mut forgotten = failures.forget(&drv(2)).await.expect("forgotten");
        forgotten.sort();
        assert_eq!(forgotten, [drv(1), drv(2)]);
        assert!(failures.of(&drv(1)).await.expect("read").is_none());
    }
}
