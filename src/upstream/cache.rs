//! One other cache: asked for narinfos, realisations and files, left alone while it fails, and trusted only
//! for signed claims.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use narinfo::{KeyName, NarHash, NarInfo, PublicKey, Signature, StoreDir};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::breaker::Breaker;
use super::certificates::Authorities;
use super::document::Document;
use super::metrics::{LookupOutcome, Metrics};
use super::settings::CacheSettings;
use super::spans::note_lookup;
use super::transport::{self, Opened, ResumePoint, Transport};
use super::turns::{Share, Turns};
use super::view::UpstreamView;
use crate::backoff::Backoff;

/// Narinfos and realisations that one upstream is asked for at the same time.
const ASKED_AT_ONCE_MAX: usize = 32;
/// NARs that are fetched from one upstream at the same time.
const TRANSFERS_MAX: usize = 16;
/// Of each kind, what is remembered of an upstream at most; some 150 bytes each.
const REMEMBERED_MAX: u64 = 100_000;

/// Bytes of what a cache says of itself, at most.
const INFO_BYTES_MAX: usize = 64 * 1024;
/// Time for which a NAR is not taken from an upstream that turned out not to have it; by then it may have
/// been repaired.
const DISTRUSTED_FOR: Duration = Duration::from_secs(300);

/// Shortest and longest pause before a question that was not answered is asked again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Time of failure after which an upstream counts as lacking everything: no client waits for a cache that is
/// switched off.
const DOWN_AFTER: Duration = Duration::from_secs(3600);

/// Time for which an upstream is the last to be tried for a NAR that broke off.
const BROKEN_FOR: Duration = Duration::from_secs(60);

/// Where a cache of our kind builds nothing.
const CACHED: &str = "/cached";

/// An upstream's answer.
#[derive(Debug)]
pub(super) enum CacheReply<T> {
    /// Present.
    Found(Box<T>),
    /// Absent.
    Missing,
    /// Something that cannot be used, and why.
    Refused(String),
    /// Nothing, which may pass, and why.
    Failed(String),
}

/// An upstream.
#[derive(Debug)]
pub(super) struct Cache {
    settings: CacheSettings,
    name: String,
    store_dir: StoreDir,
    transport: Transport,
    breaker: Breaker,
    /// Why it did not answer when it did not.
    last_failure: Mutex<String>,
    /// Files that it had not.
    missing: moka::sync::Cache<String, ()>,
    /// NARs that it promised and had not.
    distrusted: moka::sync::Cache<NarHash, ()>,
    /// NARs that did not come, or not whole.
    broken: moka::sync::Cache<NarHash, ()>,
    /// NARs that came wrong over several connections.
    resumed_wrongly: moka::sync::Cache<NarHash, ()>,
    asking: Turns,
    transfers: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Cache {
    pub(super) fn new(
        settings: CacheSettings,
        store_dir: StoreDir,
        negative_ttl: Duration,
        metrics: Arc<Metrics>,
        authorities: &Authorities,
    ) -> Result<Self, transport::Error> {
        let transport = Transport::new(&settings, authorities)?;
        Ok(Self {
            name: settings.name(),
            settings,
            store_dir,
            transport,
            breaker: Breaker::default(),
            last_failure: Mutex::default(),
            missing: remembering(negative_ttl),
            distrusted: remembering(DISTRUSTED_FOR),
            broken: remembering(BROKEN_FOR),
            resumed_wrongly: remembering(DISTRUSTED_FOR),
            asking: Turns::new(ASKED_AT_ONCE_MAX),
            transfers: Arc::new(Semaphore::new(TRANSFERS_MAX)),
            metrics,
        })
    }

    /// Its URL.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn settings(&self) -> &CacheSettings {
        &self.settings
    }

    pub(super) fn rests(&self) -> bool {
        self.breaker.rests()
    }

    /// True if it did not answer the last request.
    pub(super) fn is_failing(&self) -> bool {
        self.breaker.answered_lately(Instant::now()) == Some(false)
    }

    /// Its state, for people and programs.
    pub(super) fn view(&self) -> UpstreamView {
        let is_failing = self.breaker.is_failing();
        let failure =
            is_failing.then(|| self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone());
        UpstreamView {
            name: self.name.clone(),
            priority: self.settings.priority,
            mode: self.settings.mode,
            rests: self.breaker.rests(),
            failure,
            public_keys: self.settings.public_keys.iter().map(ToString::to_string).collect(),
            counts: self.metrics.counts(&self.name),
        }
    }

    /// True if one of its keys has signed the narinfo.
    pub(super) fn has_signed(&self, info: &NarInfo) -> bool {
        info.path_info.is_signed(&self.store_dir, &self.settings.public_keys)
    }

    /// The address for the Nix daemon. The daemon does not say for whom it asks, so an Ondine is asked at the
    /// address that builds nothing: two that have each other behind them would otherwise wait for each other.
    /// Without a slash at its end, the daemon finds it among those that it trusts in either form. Without
    /// credentials, which the daemon would show in logs of builds: it has a netrc file of its own.
    pub(super) fn address_for_builds(&self) -> String {
        let url = self.settings.url.as_str().trim_end_matches('/');
        let end = if self.transport.builds() && !url.ends_with(CACHED) { CACHED } else { "" };
        format!("{url}{end}")
    }

    /// True if it answers: as of a moment ago, otherwise it is asked for its nix-cache-info, within `budget`.
    pub(super) async fn answers(&self, budget: Duration) -> bool {
        if let Some(answered) = self.breaker.answered_lately(Instant::now()) {
            return answered;
        }
        if !self.breaker.may_ask(Instant::now()) {
            return false;
        }
        let read = self.transport.read("nix-cache-info", INFO_BYTES_MAX, "");
        !matches!(self.within(budget, read).await, Err(error) if !error.is_final())
    }

    /// The result of a request within this time. Notes success or failure, for the next one.
    async fn within<T>(
        &self,
        time: Duration,
        request: impl Future<Output = Result<T, transport::Error>>,
    ) -> Result<T, transport::Error> {
        let outcome = tokio::time::timeout(time, request).await;
        let outcome = outcome.unwrap_or(Err(transport::Error::Stalled(time)));
        match &outcome {
            Err(error) if !error.is_final() => self.failed(error),
            _ => self.answered(),
        }
        outcome
    }

    /// Its answer for `key`, within `budget`, once it is the client's turn; `via` goes with the request.
    pub(super) async fn ask<T: Document>(
        &self,
        key: &T::Key,
        budget: Duration,
        via: &str,
        share: Share,
    ) -> CacheReply<T> {
        let (what, said) = self.say(key, budget, via, share).await;
        note_lookup(what);
        self.metrics.asked(&self.name, T::KIND, what);
        said
    }

    /// True if the negative cache has this file.
    pub(super) fn remembers_missing(&self, file: &str) -> bool {
        self.missing.contains_key(file)
    }

    /// Counts a request that the negative cache has answered.
    pub(super) fn note_remembered(&self) {
        self.metrics.asked(&self.name, NarInfo::KIND, LookupOutcome::Remembered);
    }

    async fn say<T: Document>(
        &self,
        key: &T::Key,
        budget: Duration,
        via: &str,
        share: Share,
    ) -> (LookupOutcome, CacheReply<T>) {
        let file = T::file(key);
        if self.remembers_missing(&file) {
            return (LookupOutcome::Remembered, CacheReply::Missing);
        }
        // Whoever waits for a turn has not asked yet: the budget is the upstream's.
        let _turn = self.asking.turn(share).await;
        if !self.breaker.may_ask(Instant::now()) {
            let why = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return (LookupOutcome::Rested, self.trouble(&format!("{why}; it is not asked for a while")));
        }
        let read = || self.transport.read(&file, T::BYTES_MAX, via);
        match self.within(budget, tried_again(read, Instant::now() + budget)).await {
            Ok(None) => {
                self.missing.insert(file, ());
                (LookupOutcome::Missing, CacheReply::Missing)
            }
            Ok(Some(bytes)) => match self.believed::<T>(key, &bytes) {
                Ok(document) => (LookupOutcome::Found, CacheReply::Found(Box::new(document))),
                Err(reason) => {
                    tracing::warn!(upstream = self.name, %key, reason, "rejected a {}", T::KIND);
                    let reason = format!("its {} is refused: {reason}", T::KIND);
                    (LookupOutcome::Refused, CacheReply::Refused(self.named(&reason)))
                }
            },
            Err(error) if error.is_final() => {
                tracing::warn!(upstream = self.name, %key, %error, "rejected a {}", T::KIND);
                (LookupOutcome::Refused, CacheReply::Refused(self.named(&error.to_string())))
            }
            Err(error) => (LookupOutcome::Failed, self.trouble(&error.to_string())),
        }
    }

    /// The document in `bytes`, if it is about `key` and trusted.
    fn believed<T: Document>(&self, key: &T::Key, bytes: &[u8]) -> Result<T, String> {
        let document = T::parse(&self.store_dir, key, bytes)?;
        if document.nar().is_some_and(|nar| self.distrusted.contains_key(&nar)) {
            return Err("it did not have the contents it promises a while ago".into());
        }
        if !document.is_trusted(&self.store_dir, &self.settings.public_keys) {
            return Err(untrusted(document.signatures(), &self.settings.public_keys));
        }
        Ok(document)
    }

    /// No answer, which may pass; not so where there has been none for very long.
    fn trouble<T>(&self, reason: &str) -> CacheReply<T> {
        let reason = self.named(reason);
        if self.breaker.failing_for(Instant::now()) < DOWN_AFTER {
            CacheReply::Failed(reason)
        } else {
            CacheReply::Refused(reason)
        }
    }

    fn named(&self, reason: &str) -> String {
        format!("{}: {reason}", self.name)
    }

    /// Opens one of its files; `at` an absolute address or one from the cache on.
    pub(super) async fn open(
        &self,
        at: &str,
        rest: Option<ResumePoint<'_>>,
    ) -> Result<Opened, transport::Error> {
        let stall = self.settings.stall_timeout;
        let opened = tokio::time::timeout(stall, self.transport.open(at, rest)).await;
        let opened = opened.unwrap_or(Err(transport::Error::Stalled(stall)));
        match &opened {
            // Trouble with one file: all the others may be there.
            Err(transport::Error::Status { .. }) => {}
            Err(error) if !error.is_final() => self.failed(error),
            _ => self.answered(),
        }
        opened
    }

    /// A turn to fetch a NAR, once there are not too many under way.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.transfers).acquire_owned().await.ok()
    }

    /// Where a client finds one of its files.
    pub(super) fn address(&self, at: &str) -> Option<String> {
        self.transport.address(at).map(Into::into)
    }

    pub(super) fn stall_timeout(&self) -> Duration {
        self.settings.stall_timeout
    }

    /// Stops taking a NAR from it that it promised and lacks.
    pub(super) fn distrust(&self, nar: NarHash) {
        self.distrusted.insert(nar, ());
    }

    /// Notes that a NAR did not come, or not all of it.
    pub(super) fn note_broken(&self, nar: NarHash) {
        self.broken.insert(nar, ());
    }

    pub(super) fn broke_off(&self, nar: NarHash) -> bool {
        self.broken.contains_key(&nar)
    }

    /// A NAR came wrong over several connections.
    pub(super) fn note_resumed_wrongly(&self, nar: NarHash) {
        self.resumed_wrongly.insert(nar, ());
    }

    pub(super) fn resumes_wrongly(&self, nar: NarHash) -> bool {
        self.resumed_wrongly.contains_key(&nar)
    }

    pub(super) fn came(&self, bytes: u64) {
        self.metrics.came(&self.name, bytes);
    }

    fn answered(&self) {
        if self.breaker.answered(Instant::now()) {
            // It may have been filled since, or the address leads to another machine now.
            self.missing.invalidate_all();
            tracing::info!(upstream = self.name, "upstream answers again");
        }
    }

    fn failed(&self, error: &transport::Error) {
        let now = Instant::now();
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
        match self.breaker.failed(now) {
            Some(rest) => {
                tracing::warn!(upstream = self.name, %error, ?rest, "upstream failed repeatedly; requests pause")
            }
            None => tracing::info!(upstream = self.name, %error, "upstream did not answer"),
        }
        if let Some(after) = error.retry_after() {
            self.breaker.rest_until(now + after);
        }
    }
}

/// The reason for which signatures of which none verifies are not enough.
fn untrusted(signatures: &[Signature], keys: &[PublicKey]) -> String {
    let names =
        |names: BTreeSet<&KeyName>| names.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let signed: BTreeSet<&KeyName> = signatures.iter().map(Signature::name).collect();
    let configured: BTreeSet<&KeyName> = keys.iter().map(PublicKey::name).collect();
    let alike: BTreeSet<&KeyName> = signed.intersection(&configured).copied().collect();
    if signed.is_empty() {
        "it has no signature".to_owned()
    } else if alike.is_empty() {
        format!(
            "no configured key has signed it: it is signed by {}, public-keys has {}",
            names(signed),
            names(configured)
        )
    } else {
        let alike = names(alike);
        format!(
            "it has a signature under the name {alike}, which does not verify with the configured key of that name: either \
             public-keys has {alike} misspelt, or what is signed was changed"
        )
    }
}

/// Asks until there is an answer that stands, with longer and longer pauses, or until another attempt would
/// be too late.
async fn tried_again<T, F: Future<Output = Result<T, transport::Error>>>(
    mut ask: impl FnMut() -> F,
    deadline: Instant,
) -> Result<T, transport::Error> {
    let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
    loop {
        let error = match ask().await {
            Err(error) if !error.is_final() => error,
            answer => return answer,
        };
        let wait = error.retry_after().unwrap_or_else(|| backoff.pause());
        // As long as that there should be left for the answer.
        if Instant::now() + 2 * wait > deadline {
            return Err(error);
        }
        tokio::time::sleep(wait).await;
    }
}

/// Room for what is true for so long.
fn remembering<K: Hash + Eq + Send + Sync + 'static>(time: Duration) -> moka::sync::Cache<K, ()> {
    moka::sync::Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(time).build()
}
