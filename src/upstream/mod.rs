//! Other caches: asked all at once for what is not here, by priority, within a budget; and the files they have.
//! Believes nothing that no trusted key has signed, and keeps nothing: that is for `adopt` and `packer`.

mod breaker;
mod cache;
mod certificates;
mod credentials;
mod document;
mod guard;
mod metrics;
mod netrc;
mod proxies;
mod settings;
mod transfer;
mod transport;
mod via;

use std::sync::Arc;
use std::time::Duration;

use narinfo::{DrvOutput, NarHash, NarInfo, Realisation, StoreDir, StorePathHash};
use tokio::task::JoinSet;

use cache::{Cache, Said};
use certificates::Authorities;
pub use credentials::{Credentials, Error as CredentialsError, NetrcFile, without_secrets};
use document::Document;
use metrics::Metrics;
pub use metrics::NarOutcome;
pub use settings::{CacheSettings, Mode};
pub use transfer::{Broken, Transfer};
pub use transport::BUILDS_HEADER;
pub use via::{Name, Via};

/// Which other caches there are, and how they are asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The caches.
    pub caches: Vec<CacheSettings>,
    /// How long they may take to say whether they have a path.
    pub budget: Duration,
    /// How long one is remembered not to have a path.
    pub remember_missing: Duration,
    /// Where logins are that no other setting has.
    pub netrc: NetrcFile,
}

impl Settings {
    /// Reads the files with credentials into the settings of the caches that they are for.
    ///
    /// # Errors
    /// When one cannot be read, or has another form.
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

/// Why an upstream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One has an address that cannot be used.
    #[error("the upstream {name} cannot be used: {reason}")]
    Cache {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Its credentials cannot be had.
    #[error("an upstream's credentials cannot be read")]
    Credentials(#[from] CredentialsError),
}

/// What upstreams say of a hash.
#[derive(Debug)]
pub enum Lookup {
    /// One has it.
    Found(Box<Found>),
    /// None has it, as far as they could be asked; what they said else.
    Missing(Vec<String>),
}

/// A narinfo that is trusted, and where it is from.
#[derive(Clone, Debug)]
pub struct Found {
    /// What the upstream says.
    pub info: NarInfo,
    /// The upstream's name.
    pub upstream: String,
    /// Whether clients are to fetch from there.
    pub redirect: bool,
}

/// Why a file does not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The upstream has it no more, or never will: it need not be asked again.
    #[error("{0}")]
    Gone(String),
    /// It may come later.
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
    /// What we are called on the way of a request.
    own: Name,
    metrics: Arc<Metrics>,
}

impl Upstreams {
    /// The upstreams of these settings; `own` is this cache itself.
    ///
    /// # Errors
    /// When one has an address that cannot be used, or a file with credentials cannot be read.
    pub fn new(mut settings: Settings, store_dir: &StoreDir, own: Name) -> Result<Self, Error> {
        // An error means that there is one already, which is as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        settings.read_credentials()?;
        let (metrics, authorities) = (Arc::new(Metrics::new()), Authorities::load());
        let mut caches = Vec::new();
        for cache in settings.caches {
            let (name, metrics) = (cache.name(), Arc::clone(&metrics));
            let cache =
                Cache::new(cache, store_dir.clone(), settings.remember_missing, metrics, &authorities);
            caches.push(Arc::new(cache.map_err(|error| Error::Cache { name, reason: error.to_string() })?));
        }
        // A stable sort: equal ones stay in the order in which they were written.
        caches.sort_by_key(|cache: &Arc<Cache>| cache.settings().priority);
        let (for_builds, caches): (Vec<_>, Vec<_>) =
            caches.into_iter().partition(|cache| cache.settings().mode == Mode::BuildOnly);
        Ok(Self {
            caches: caches.into(),
            for_builds: for_builds.into(),
            budget: settings.budget,
            own,
            metrics,
        })
    }

    /// Whether nothing is served from any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.caches.is_empty()
    }

    /// Whether all of them are remembered not to have `hash`.
    #[must_use]
    pub fn surely_lack(&self, hash: StorePathHash) -> bool {
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

    /// The addresses of all that answer now, those for builds alone included: the daemon would wait long for others.
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

    /// What the best of those that have `hash` says. All are asked at once, for a request that came this way.
    pub async fn find(&self, hash: StorePathHash, via: &Via) -> Lookup {
        self.find_in(hash, via, &[]).await
    }

    /// The same of others than these, for ourselves.
    pub async fn find_beside(&self, hash: StorePathHash, known: &[String]) -> Lookup {
        self.find_in(hash, &Via::default(), known).await
    }

    async fn find_in(&self, hash: StorePathHash, via: &Via, but: &[String]) -> Lookup {
        match self.ask::<NarInfo>(hash, via, but).await {
            Ok((info, cache)) => {
                let redirect = cache.settings().mode == Mode::Redirect;
                Lookup::Found(Box::new(Found { info, upstream: cache.name().to_owned(), redirect }))
            }
            Err(reasons) => Lookup::Missing(reasons),
        }
    }

    /// What the best of those that have a realisation of `id` says, in the same way.
    ///
    /// # Errors
    /// When none has one, as far as they could be asked; with what they said else.
    pub async fn find_realisation(&self, id: &DrvOutput, via: &Via) -> Result<Realisation, Vec<String>> {
        self.ask(id.clone(), via, &[]).await.map(|(realisation, _)| realisation)
    }

    /// Asks all but some.
    async fn ask<T: Document>(
        &self,
        key: T::Key,
        via: &Via,
        but: &[String],
    ) -> Result<(T, &Cache), Vec<String>> {
        if via.ends_at(&self.own) {
            return Err(Vec::new());
        }
        let via: Arc<str> = via.and(&self.own).to_string().into();
        let mut asking = JoinSet::new();
        let mut said: Vec<Option<Said<T>>> = self.caches.iter().map(|_| None).collect();
        for (rank, cache) in self.caches.iter().enumerate() {
            if but.iter().any(|name| name == cache.name()) {
                said[rank] = Some(Said::Missing);
                continue;
            }
            let (cache, key) = (Arc::clone(cache), key.clone());
            let (budget, via) = (self.budget, Arc::clone(&via));
            asking.spawn(async move { (rank, cache.ask::<T>(&key, budget, &via).await) });
        }
        while let Some(answer) = asking.join_next().await {
            let Ok((rank, answer)) = answer else { continue };
            said[rank] = Some(answer);
            // It is settled once the best of all that may have it is known to.
            let best = said.iter_mut().find(|said| !matches!(said, Some(Said::Missing | Said::Nothing(_))));
            if let Some(Some(Said::Found(_))) = best {
                break;
            }
        }
        let mut reasons = Vec::new();
        for (cache, said) in self.caches.iter().zip(said) {
            match said {
                Some(Said::Found(document)) => return Ok((*document, cache)),
                Some(Said::Nothing(reason)) => reasons.push(reason),
                Some(Said::Missing) | None => {}
            }
        }
        Err(reasons)
    }

    /// Begins to fetch the file that a narinfo of `upstream` has at `url`; at most `bytes_max` come of it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn fetch(&self, upstream: &str, url: &str, bytes_max: u64) -> Result<Transfer, FetchError> {
        let Some(cache) = self.cache(upstream) else {
            return Err(FetchError::Gone(format!("{upstream} is no upstream any more")));
        };
        let turn = cache.turn().await;
        match cache.open(url, None).await {
            Ok(opened) => Ok(Transfer::start(Arc::clone(cache), url.to_owned(), opened, bytes_max, turn)),
            Err(error) if error.is_final() => Err(FetchError::Gone(format!("{upstream}: {error}"))),
            Err(error) => Err(FetchError::NotNow(format!("{upstream}: {error}"))),
        }
    }

    /// The address that a client can be sent to for the file at `url`.
    #[must_use]
    pub fn address(&self, upstream: &str, url: &str) -> Option<String> {
        self.cache(upstream)?.address(url)
    }

    /// Notes what came of fetching a NAR. An upstream that has not what it promised is not believed about it for a while;
    /// one that could not give it is the last to be tried for a moment.
    pub fn fetched(&self, upstream: &str, nar: NarHash, what: NarOutcome) {
        self.metrics.fetched(upstream, what);
        let Some(cache) = self.cache(upstream) else { return };
        match what {
            NarOutcome::Missing | NarOutcome::Refused => cache.distrust(nar),
            NarOutcome::Failed => cache.note_broken(nar),
            NarOutcome::Kept => {}
        }
    }

    /// Whether a NAR did not come from an upstream a moment ago, though it may be there.
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

    /// What was asked and answered, in the OpenMetrics text format without its end.
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
