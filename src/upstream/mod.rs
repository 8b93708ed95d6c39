//! Other caches: all are asked at once for a missing path, by priority, within a budget; and their files.
//! Trusts nothing that no trusted key has signed, and stores nothing: that is for `adopt` and `packer`.

mod breaker;
mod cache;
mod certificates;
mod credentials;
mod document;
mod guard;
mod issuer;
mod metrics;
mod netrc;
mod proxies;
mod settings;
mod spans;
mod transfer;
mod transport;
mod turns;
mod via;
mod view;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use narinfo::{DrvOutput, NarHash, NarInfo, Realisation, StoreDir, StorePathHash};
use tokio::task::JoinSet;
use tracing::Instrument;

use cache::{Cache, CacheReply};
pub use certificates::Authorities;
pub use credentials::{Credentials, Error as CredentialsError, NetrcFile, located, without_secrets};
use document::Document;
pub use issuer::IssuerDocuments;
use metrics::Metrics;
pub use metrics::NarOutcome;
pub use settings::{CacheSettings, Mode};
use spans::{fetch_span, lookup_span, note_failure};
use transfer::TransferRequest;
pub use transfer::{Broken, Transfer};
pub use transport::BUILDS_HEADER;
use turns::Share;
pub use via::{Via, ViaName};
pub use view::{UpstreamCounts, UpstreamView};

/// Time limit of retries for a NAR, so that of the 300 s of silence that clients bear enough is left for a
/// build.
const NAR_PATIENCE_MAX: Duration = Duration::from_secs(60);

/// Which other caches there are, and how they are asked.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The caches.
    pub caches: Vec<CacheSettings>,
    /// Time limit of a lookup.
    pub lookup_timeout: Duration,
    /// Time to live of the negative cache.
    pub negative_ttl: Duration,
    /// Time limit of retries after transient failures.
    pub transient_retry: Duration,
    /// Where logins are that no other setting has.
    pub netrc: NetrcFile,
}

impl Settings {
    /// Reads the files with credentials into the settings of the caches that they are for.
    ///
    /// # Errors
    /// One cannot be read, or has another form.
    pub fn read_credentials(&mut self) -> Result<(), CredentialsError> {
        if self.caches.is_empty() {
            return Ok(());
        }
        let netrc = self.netrc.read()?;
        for cache in &mut self.caches {
            if let Some(file) = &cache.credentials_file {
                cache.credentials.read(file)?;
            }
            cache.credentials.complete(&netrc, &cache.url);
            if cache.mode == Mode::Redirect && !cache.credentials.is_empty() {
                cache.mode = Mode::Cache;
                tracing::warn!(
                    upstream = cache.name(),
                    "mode = \"redirect\" is not heeded: clients cannot be sent to an upstream that takes credentials, so what it \
                     has is fetched and served from here"
                );
            }
        }
        Ok(())
    }
}

/// For whom upstreams are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The caches of our kind that the request has come through.
    pub via: Via,
    /// The address of the client; `None` for ourselves.
    pub client: Option<IpAddr>,
}

impl Asker {
    fn share(&self) -> Share {
        Share::of(self.client)
    }
}

/// Why an upstream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One has an address that cannot be used.
    #[error("the upstream {name} cannot be used: {reason}")]
    Cache {
        /// Its name.
        name: String,
        /// The defect.
        reason: String,
    },
    /// Its credentials are not available.
    #[error("an upstream's credentials cannot be read")]
    Credentials(#[from] CredentialsError),
}

/// The upstreams' answer for a hash.
#[derive(Debug)]
pub enum Lookup {
    /// One has it.
    Found(Box<FoundNarInfo>),
    /// None has it, or none has one that can be used; what they said else.
    Missing(Vec<String>),
    /// None is known to have it, but not all could tell: another look in a while may find it. What they said.
    Troubled(Vec<String>),
}

/// No answer that can be used.
#[derive(Debug, Default)]
pub struct Nothing {
    /// The upstreams' errors and refusals.
    pub reasons: Vec<String>,
    /// One of them failed transiently.
    pub troubled: bool,
}

/// A narinfo that is trusted, and where it is from.
#[derive(Clone, Debug)]
pub struct FoundNarInfo {
    /// The upstream's narinfo.
    pub info: NarInfo,
    /// The upstream's name.
    pub upstream: String,
    /// Clients are to fetch from there.
    pub redirect: bool,
    /// A trusted key has signed it. Otherwise the path is named by its contents: they must prove the rest.
    pub signed: bool,
}

/// Why a file does not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The upstream has it no more, or never will: it need not be asked again.
    #[error("{0}")]
    Gone(String),
    /// Unavailable now; may come later.
    #[error("{0}")]
    NotNow(String),
}

/// The upstreams; clones share them.
#[derive(Clone, Debug)]
pub struct Upstreams {
    /// Those that something is served from, the best first.
    caches: Arc<[Arc<Cache>]>,
    /// Those that only builds take inputs from.
    for_builds: Arc<[Arc<Cache>]>,
    budget: Duration,
    transient_retry: Duration,
    /// Our name in the Via header.
    own: ViaName,
    metrics: Arc<Metrics>,
}

impl Upstreams {
    /// The upstreams of these settings; `own` is this cache itself.
    ///
    /// # Errors
    /// One has an address that cannot be used, or a file with credentials cannot be read.
    pub fn new(mut settings: Settings, store_dir: &StoreDir, own: ViaName) -> Result<Self, Error> {
        // An error means that there is one already, which is as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        settings.read_credentials()?;
        let metrics = Arc::new(Metrics::new());
        // Reading those of the system takes a third of the time of a start.
        let authorities = if settings.caches.is_empty() { Authorities::none() } else { Authorities::load() };
        let mut caches = Vec::new();
        for cache in settings.caches {
            let (name, metrics) = (cache.name(), Arc::clone(&metrics));
            let cache = Cache::new(cache, store_dir.clone(), settings.negative_ttl, metrics, &authorities);
            caches.push(Arc::new(cache.map_err(|error| Error::Cache { name, reason: error.to_string() })?));
        }
        // A stable sort: equal ones stay in the order in which they were written.
        caches.sort_by_key(|cache: &Arc<Cache>| cache.settings().priority);
        let (for_builds, caches): (Vec<_>, Vec<_>) =
            caches.into_iter().partition(|cache| cache.settings().mode == Mode::BuildOnly);
        Ok(Self {
            caches: caches.into(),
            for_builds: for_builds.into(),
            budget: settings.lookup_timeout,
            transient_retry: settings.transient_retry,
            own,
            metrics,
        })
    }

    /// True if nothing is served from any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.caches.is_empty()
    }

    /// True if the negative caches of all of them have `hash`.
    #[must_use]
    pub fn definitely_absent(&self, hash: StorePathHash) -> bool {
        if self.is_empty() {
            return true;
        }
        let file = NarInfo::file(&hash);
        let lack = self.caches.iter().all(|cache| cache.remembers_missing(&file));
        if lack {
            self.caches.iter().for_each(|cache| cache.note_remembered());
        }
        lack
    }

    /// The names of all, the best first, and whether clients are sent there.
    pub fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        self.caches.iter().map(|cache| (cache.name(), cache.settings().mode == Mode::Redirect))
    }

    /// All of them as people see them, the best first and those for builds alone last.
    #[must_use]
    pub fn views(&self) -> Vec<UpstreamView> {
        self.caches.iter().chain(&*self.for_builds).map(|cache| cache.view()).collect()
    }

    /// The addresses of all that answer now, those for builds alone included: the daemon would wait long for
    /// others.
    pub async fn answering(&self) -> Vec<String> {
        let mut asking = JoinSet::new();
        for (rank, cache) in self.caches.iter().chain(&*self.for_builds).enumerate() {
            let (cache, budget) = (Arc::clone(cache), self.budget);
            asking.spawn(
                async move { cache.answers(budget).await.then(|| (rank, cache.address_for_builds())) },
            );
        }
        let mut answering: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
        answering.sort_unstable();
        answering.into_iter().map(|(_, url)| url).collect()
    }

    /// The narinfo of the best of those that have `hash`. All are asked at once.
    pub async fn find(&self, hash: StorePathHash, asker: &Asker) -> Lookup {
        self.find_beside(hash, &[], asker).await
    }

    /// The same of others than these.
    pub async fn find_beside(&self, hash: StorePathHash, known: &[String], asker: &Asker) -> Lookup {
        match self.ask::<NarInfo>(hash, asker, known).await {
            Ok((info, cache)) => {
                let redirect = cache.settings().mode == Mode::Redirect;
                let signed = cache.has_signed(&info);
                let upstream = cache.name().to_owned();
                Lookup::Found(Box::new(FoundNarInfo { info, upstream, redirect, signed }))
            }
            Err(Nothing { reasons, troubled: true }) => Lookup::Troubled(reasons),
            Err(Nothing { reasons, troubled: false }) => Lookup::Missing(reasons),
        }
    }

    /// The realisation of `id` of the best of those that have one, in the same way.
    ///
    /// # Errors
    /// If none has one, as far as they could be asked; otherwise with their answers.
    pub async fn find_realisation(&self, id: &DrvOutput, asker: &Asker) -> Result<Realisation, Nothing> {
        self.ask(id.clone(), asker, &[]).await.map(|(realisation, _)| realisation)
    }

    /// Asks all but some.
    async fn ask<T: Document>(
        &self,
        key: T::Key,
        asker: &Asker,
        but: &[String],
    ) -> Result<(T, &Cache), Nothing> {
        if asker.via.ends_at(&self.own) {
            return Err(Nothing::default());
        }
        let (via, share): (Arc<str>, _) = (asker.via.and(&self.own).to_string().into(), asker.share());
        let mut asking = JoinSet::new();
        let mut said: Vec<Option<CacheReply<T>>> = self.caches.iter().map(|_| None).collect();
        for (rank, cache) in self.caches.iter().enumerate() {
            if but.iter().any(|name| name == cache.name()) {
                said[rank] = Some(CacheReply::Missing);
                continue;
            }
            let (cache, key) = (Arc::clone(cache), key.clone());
            let (budget, via) = (self.budget, Arc::clone(&via));
            let span = lookup_span(cache.name(), &key);
            let asked = async move { (rank, cache.ask::<T>(&key, budget, &via, share).await) };
            asking.spawn(asked.instrument(span));
        }
        while let Some(answer) = asking.join_next().await {
            let Ok((rank, answer)) = answer else { continue };
            said[rank] = Some(answer);
            // Decided once the best of all upstreams that may have it is known to have it.
            let best = said.iter_mut().find(|said| {
                !matches!(said, Some(CacheReply::Missing | CacheReply::Refused(_) | CacheReply::Failed(_)))
            });
            if let Some(Some(CacheReply::Found(_))) = best {
                break;
            }
        }
        let mut nothing = Nothing::default();
        for (cache, said) in self.caches.iter().zip(said) {
            match said {
                Some(CacheReply::Found(document)) => return Ok((*document, cache)),
                Some(CacheReply::Refused(reason)) => nothing.reasons.push(reason),
                Some(CacheReply::Failed(reason)) => {
                    nothing.reasons.push(reason);
                    nothing.troubled = true;
                }
                Some(CacheReply::Missing) | None => {}
            }
        }
        Err(nothing)
    }

    /// Time limit of retries for a NAR that was promised: a client waits for it in silence, and not for ever.
    #[must_use]
    pub fn nar_patience(&self) -> Duration {
        self.transient_retry.min(NAR_PATIENCE_MAX)
    }

    /// Begins to fetch the file of a NAR that an upstream has; at most `bytes_max` come of it.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn fetch(
        &self,
        upstream: &str,
        nar: NarHash,
        url: &str,
        bytes_max: u64,
    ) -> Result<Transfer, FetchError> {
        let Some(cache) = self.cache(upstream) else {
            return Err(FetchError::Gone("it is no upstream any more".into()));
        };
        let turn = cache.turn().await;
        let span = fetch_span(upstream, url);
        match cache.open(url, None).instrument(span.clone()).await {
            Ok(opened) => {
                let source = TransferRequest {
                    cache: Arc::clone(cache),
                    url: url.to_owned(),
                    bytes_max,
                    patience: self.nar_patience(),
                    whole: cache.resumes_wrongly(nar),
                };
                Ok(Transfer::start(source, opened, turn, span))
            }
            Err(error) => {
                note_failure(&span, &error);
                let reason = error.to_string();
                Err(if error.is_final() { FetchError::Gone(reason) } else { FetchError::NotNow(reason) })
            }
        }
    }

    /// Notes that a NAR that came over several connections was wrong: next time it is to come over one.
    pub fn resumed_wrongly(&self, upstream: &str, nar: NarHash) {
        if let Some(cache) = self.cache(upstream) {
            cache.note_resumed_wrongly(nar);
        }
    }

    /// The address that a client can be sent to for the file at `url`.
    #[must_use]
    pub fn address(&self, upstream: &str, url: &str) -> Option<String> {
        self.cache(upstream)?.address(url)
    }

    /// Notes the result of fetching a NAR. An upstream that lacks a NAR it promised is not asked for it for a
    /// while; one that could not give it is the last to be tried for a moment.
    pub fn fetched(&self, upstream: &str, nar: NarHash, what: NarOutcome) {
        self.metrics.fetched(upstream, what);
        let Some(cache) = self.cache(upstream) else { return };
        match what {
            NarOutcome::Missing | NarOutcome::Refused => cache.distrust(nar),
            // Where it gives nothing at all, its narinfos say nothing either.
            NarOutcome::GivenUp if cache.is_failing() => {}
            NarOutcome::GivenUp => cache.distrust(nar),
            NarOutcome::Failed => cache.note_broken(nar),
            NarOutcome::Kept => {}
        }
    }

    /// True if a NAR broke off on its way from an upstream a moment ago, though it may be there.
    #[must_use]
    pub fn broke_off(&self, upstream: &str, nar: NarHash) -> bool {
        self.cache(upstream).is_some_and(|cache| cache.broke_off(nar))
    }

    /// Counts an own build that an upstream has, too.
    pub fn compared(&self, upstream: &str, same: bool) {
        self.metrics.compared(upstream, same);
    }

    /// The place of an upstream, the best being 0.
    #[must_use]
    pub fn rank(&self, upstream: &str) -> Option<usize> {
        self.caches.iter().position(|cache| cache.name() == upstream)
    }

    /// Metrics in the OpenMetrics text format without its end.
    pub fn write_metrics(&self, out: &mut String) {
        self.metrics.write(
            self.caches.iter().chain(&*self.for_builds).map(|cache| (cache.name(), cache.rests())),
            out,
        );
    }

    fn cache(&self, name: &str) -> Option<&Arc<Cache>> {
        self.caches.iter().find(|cache| cache.name() == name)
    }
}
