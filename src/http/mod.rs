//! The HTTP side: connections, and the handlers of endpoints (`endpoints.rs` has the table of them).
//! Decides nothing about hashes (see `substitute`) and names no status code (see `answer.rs` and `error.rs`).

mod accept;
mod address;
mod answer;
mod api;
mod body;
mod body_memory;
mod build_details;
mod builders;
mod builds;
mod by_name;
mod call;
mod catalogue;
mod client_stream;
mod delivery;
mod derivations;
mod endpoint;
mod endpoints;
#[cfg(test)]
mod endpoints_tests;
mod error;
mod events;
mod explain;
mod failures;
mod files;
mod history;
mod info;
mod listing;
mod live;
mod log;
mod maintenance;
mod metric_values;
mod nar;
mod nar_restore;
mod narinfo;
mod openapi;
mod packages;
mod page;
mod pattern;
mod per_core;
mod pins;
mod put;
mod range;
mod realisation;
mod request_body;
mod response_future;
mod route;
mod server;
mod status;
mod stream_body;
mod tokens;
mod traffic;
mod usage;
mod wait_lines;

use std::sync::Arc;
use std::time::Duration;

use ::narinfo::{StoreDir, StorePathHash};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method, Request, header};
use tokio::sync::watch;

use crate::auth::{Auth, RateLimits, has_token};
use crate::build::{DrainedBuilders, Failures, Logs, Scheduler, Worker};
use crate::caller::{Action, Caller, CallerKey, may};
use crate::catalogue::{Catalogue, NameResolver};
use crate::contents::Contents;
use crate::debug_info::DebugInfo;
use crate::escape::Line;
use crate::import::Importer;
use crate::index::Index;
use crate::nix::{DaemonLogs, Detected, Pool};
use crate::packer::Packer;
use crate::publish::Publication;
use crate::requests::Requests;
use crate::retention::Retention;
use crate::retry::Retry;
use crate::shares::Shares;
use crate::substitute::{OnMiss, Substitute, Wait};
use crate::upstream::{Upstreams, Via};
use accept::{Preference, preference};
use address::Peer;
pub use address::{PublicUrl, TrustedProxies};
pub(crate) use api::{
    AttributeLine, AttributePage, BuildList, BuilderPhase, BuilderStatus, CheckRequest, CollectRequest,
    IssueRequest, IssuedToken, PackageSet, PinView, QueueStatus, RememberedFailure, RequestPhase,
    RequestStatus, RetryRequest, RunningBuild, ServerStatus, TokenView, UpstreamHealth, UpstreamMode,
    UpstreamStatus, UsageReport,
};
use call::{Call, contradicted};
use endpoint::{Endpoint, Verb};
use endpoints::ENDPOINTS;
use error::{Audience, Error};
use page::LostBrowser;
use pattern::is_for_programs;
use request_body::{BodySender, RequestBody};
use response_future::ResponseFuture;
pub use route::NO_ADDRESS;
use route::{Address, Match, without_cached};
pub use server::{Listener, adopt_listener, listen, serve};
use traffic::{AccessLine, RouteLabel, Traffic};

/// Settings of the HTTP side.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Time that a narinfo answer is held before lines about the wait are sent.
    pub hold: Duration,
    /// Time between two lines about the wait; clients give up after 300 s of silence by default.
    pub keep_alive: Duration,
    /// The cache's priority: clients ask lower ones first, cache.nixos.org has 40.
    pub priority: u32,
    /// Allows clients to ask for the existence of many paths at once.
    pub want_mass_query: bool,
    /// Time that connections have to end when the server stops.
    pub drain: Duration,
    /// Time after which a client that takes no byte of its answer is disconnected.
    pub write_timeout: Duration,
    /// The cache's address as clients see it; `None` for the one in their request.
    pub public_url: Option<PublicUrl>,
    /// Reverse proxies.
    pub trusted_proxies: TrustedProxies,
}

/// Everything that handlers use.
pub struct AppState {
    /// Decisions about hashes.
    pub substitute: Arc<Substitute>,
    /// Requests that no connection stands for.
    pub requests: Requests,
    /// NARs.
    pub packer: Packer,
    /// Narinfos in the bucket.
    pub publication: Publication,
    /// Files within NARs.
    pub contents: Contents,
    /// Places of debugging symbols.
    pub debug_info: DebugInfo,
    /// Importer of pushes.
    pub importer: Importer,
    /// Retention and eviction.
    pub retention: Retention,
    /// Failures that are remembered.
    pub failures: Failures,
    /// Retries of failures.
    pub retry: Retry,
    /// Logs of our builds.
    pub logs: Logs,
    /// Logs of all builds that the Nix daemon did.
    pub daemon_logs: DaemonLogs,
    /// Tokens of clients.
    pub auth: Auth,
    /// The queue.
    pub builds: Scheduler,
    /// The worker, which tells what it would refuse.
    pub worker: Worker,
    /// Record of drained builders.
    pub drained: DrainedBuilders,
    /// Package sets.
    pub catalogue: Catalogue,
    /// Attributes by name.
    pub names: NameResolver,
    /// Upstream caches.
    pub upstreams: Upstreams,
    /// The index.
    pub index: Index,
    /// Connections to the Nix daemon.
    pub pool: Pool,
    /// Detected systems and features.
    pub detected: Detected,
    /// The store that is served.
    pub store_dir: StoreDir,
    /// The cache's address for clients whose request has none.
    pub url: PublicUrl,
    /// Public keys of all signers; clients are told to trust the first.
    pub public_keys: Vec<String>,
    /// Settings.
    pub settings: Settings,
}

/// Answers requests; clones share everything.
#[derive(Clone)]
pub struct Service {
    state: Arc<AppState>,
    traffic: Arc<Traffic>,
    /// Memory for bodies of requests, in MiB.
    bodies: Shares<CallerKey>,
    /// Streams of events.
    streams: Shares<CallerKey>,
    stopping: watch::Receiver<bool>,
}

impl Service {
    /// A service that ends its waits when `stopping` turns true.
    #[must_use]
    pub fn new(state: AppState, stopping: watch::Receiver<bool>) -> Self {
        Self {
            state: Arc::new(state),
            traffic: Arc::new(Traffic::new(per_core::threads())),
            bodies: Shares::new(request_body::MEMORY),
            streams: Shares::new(live::STREAMS),
            stopping,
        }
    }

    /// Begins to wait for what becomes of a hash.
    fn wait(&self, hash: StorePathHash, on_miss: OnMiss) -> Wait {
        self.state.substitute.wait(hash, on_miss, self.stopping.clone())
    }

    /// Resolves when the server stops.
    async fn stopping(&self) {
        // An error means that the server is gone, which is the same.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    /// True once the server stops. Costs next to nothing.
    fn is_stopping(&self) -> bool {
        self.stopping.has_changed().unwrap_or(true)
    }

    /// The one table of endpoints.
    fn endpoints(&self) -> &'static [Endpoint] {
        ENDPOINTS
    }

    /// The answer to a request that a connection on a thread of this number has; one without a peer comes
    /// through the control socket.
    fn answer(&self, request: Request<Incoming>, peer: Option<Peer>, thread: usize) -> ResponseFuture {
        let head = request.method() == Method::HEAD;
        let identification = Identification::of(request.headers());
        let has_one_host = identification.hosts <= 1;
        let caller = self.caller(&identification, request.headers(), peer);
        let line = AccessLine::of(&request, caller.address());
        let (label, audience, future) = match self.keys_needed(identification.authorization, peer) {
            _ if !has_one_host => {
                (RouteLabel::Unknown, Audience::Person, ResponseFuture::failed(Error::TwoHosts))
            }
            None => self.dispatch(request, peer, caller),
            Some(keys) => self.dispatch_after(keys, request, peer),
        };
        let is_private = !self.state.auth.public().allow(Action::Read);
        future.read_by(audience, head).private(is_private).counted(&self.traffic, thread, label, line)
    }

    /// A wait for the keys of an issuer, where the request has an identity token that needs them.
    fn keys_needed(
        &self,
        authorization: Option<&HeaderValue>,
        peer: Option<Peer>,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        if peer.is_none() || !self.state.auth.has_issuers() {
            return None;
        }
        self.state.auth.keys_needed(authorization?.as_bytes())
    }

    /// Dispatches a request once its identity token can be verified.
    fn dispatch_after(
        &self,
        keys: impl Future<Output = ()> + Send + 'static,
        request: Request<Incoming>,
        peer: Option<Peer>,
    ) -> (RouteLabel, Audience, ResponseFuture) {
        let (service, head) = (self.clone(), request.method() == Method::HEAD);
        let (label, audience) = Address::parse(request.uri().path(), request.uri().query())
            .and_then(|address| match route::find(request.method(), address.path()) {
                Match::Endpoint(endpoint, _) => Some((endpoint.label, endpoint.audience)),
                Match::OtherMethod(_) | Match::Nothing => None,
            })
            .unwrap_or((RouteLabel::Unknown, Audience::Person));
        let future = ResponseFuture::pending(async move {
            keys.await;
            let identification = Identification::of(request.headers());
            let caller = service.caller(&identification, request.headers(), peer);
            let (_, audience, future) = service.dispatch(request, peer, caller);
            let Ok(answer) = future.read_by(audience, head).await;
            Ok(answer)
        });
        (label, audience, future)
    }

    /// The one place where a caller is made.
    fn caller(&self, identification: &Identification<'_>, headers: &HeaderMap, peer: Option<Peer>) -> Caller {
        let Some(peer) = peer else { return Caller::Admin };
        let Identification { authorization, is_relayed, .. } = *identification;
        let via = || headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
        let via = if is_relayed { Via::parse(via()) } else { Via::default() };
        let address = peer.client(headers, &self.state.settings.trusted_proxies);
        let auth = &self.state.auth;
        let rejected = match authorization.map(|value| auth.authenticate(value.as_bytes())) {
            Some(Ok(grant)) => return Caller::Token { grant, address, via },
            Some(Err(rejection)) => Some(rejection),
            None => None,
        };
        Caller::Public { address, via, rights: auth.public(), rejected }
    }

    /// Finds the endpoint, has the caller's right to it checked, and calls its handler.
    fn dispatch(
        &self,
        request: Request<Incoming>,
        peer: Option<Peer>,
        caller: Caller,
    ) -> (RouteLabel, Audience, ResponseFuture) {
        let (head, body) = request.into_parts();
        let (sent, query) = (head.uri.path(), head.uri.query());
        let unanswered = |error| {
            let audience =
                if is_for_programs(without_cached(sent)) { Audience::Api } else { Audience::Person };
            (RouteLabel::Unknown, audience, ResponseFuture::failed(error))
        };
        if has_token(sent) || query.is_some_and(has_token) {
            return unanswered(Error::TokenInAddress);
        }
        let no_such_address = |browser: Option<LostBrowser>| {
            let error = Error::NotFound(route::hint(without_cached(sent)));
            match browser {
                Some(browser) => {
                    let page = ResponseFuture::ready(browser.answer(error));
                    (RouteLabel::Unknown, Audience::Person, page)
                }
                None => unanswered(error),
            }
        };
        // A person who types an address gets a page that leads on.
        let browser = |headers: &HeaderMap| {
            let path = without_cached(sent);
            if is_for_programs(path) { None } else { LostBrowser::of(self, &caller, peer, headers, path) }
        };
        let address = Address::parse(sent, query);
        let found = match &address {
            Some(address) => route::find(&head.method, address.path()),
            None => Match::Nothing,
        };
        let (Some(address), Match::Endpoint(endpoint, arguments)) = (&address, &found) else {
            return match found {
                Match::OtherMethod(allowed) => unanswered(Error::MethodNotAllowed(allowed)),
                _ => no_such_address(browser(&head.headers)),
            };
        };
        let browser = if endpoint.audience == Audience::Person { browser(&head.headers) } else { None };
        if let Err(error) = admit(endpoint, &caller, self.state.auth.rates()) {
            return (endpoint.label, endpoint.audience, ResponseFuture::failed(error));
        }
        if !endpoint.query.is_empty()
            && let Some(key) = contradicted(query)
        {
            let text = format!("the parameter {} has two values: give it once", Line(key));
            let refused = ResponseFuture::failed(Error::BadRequest(text));
            return (endpoint.label, endpoint.audience, refused);
        }
        let sender = (endpoint.verb != Verb::Get).then(|| BodySender {
            caller: caller.clone(),
            right: (!endpoint.open && !endpoint.is_page).then_some(endpoint.action),
            memory: self.bodies.clone(),
        });
        let call = Call {
            service: self,
            caller,
            peer,
            arguments: *arguments,
            path: address.path(),
            raw_path: address.raw,
            query,
            cached: address.cached,
            head: head.method == Method::HEAD,
            version: head.version,
            headers: head.headers,
            body: RequestBody::new(body, sender),
        };
        let audience = match endpoint.audience {
            Audience::Person if preference(&call.headers) == Preference::Json => Audience::Api,
            audience => audience,
        };
        match (endpoint.handler)(call) {
            Some(future) => (endpoint.label, audience, future),
            None => no_such_address(browser),
        }
    }
}

/// Headers that tell who asks, and of what. Most requests have few of them: one pass over those that there
/// are costs less than a look-up of each by its hash.
#[derive(Default)]
struct Identification<'r> {
    authorization: Option<&'r HeaderValue>,
    /// Has the header Via.
    is_relayed: bool,
    /// Headers Host.
    hosts: usize,
}

impl<'r> Identification<'r> {
    fn of(headers: &'r HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            if *name == header::AUTHORIZATION {
                found.authorization.get_or_insert(value);
            } else if *name == header::VIA {
                found.is_relayed = true;
            } else if *name == header::HOST {
                found.hosts += 1;
            }
        }
        found
    }
}

/// Refuses a caller that lacks the right to an endpoint. One whose token is not valid is refused, too, save
/// where a client of Nix reads what everyone may: its netrc may be older than the server.
fn admit(endpoint: &Endpoint, caller: &Caller, rates: &RateLimits) -> Result<(), Error> {
    if endpoint.open || endpoint.is_page {
        return Ok(());
    }
    let reads_cache = endpoint.audience == Audience::Cache && endpoint.verb == Verb::Get;
    let admitted = match caller.rejected() {
        Some(rejection) if !reads_cache => Err(Error::Rejected(rejection.clone())),
        _ => may(caller, endpoint.action).map_err(Error::Refused),
    };
    // Reads of the cache that are allowed are counted where memory has no answer.
    if !reads_cache || admitted.is_err() {
        rates.count(caller).map_err(Error::TooFast)?;
    }
    admitted
}
