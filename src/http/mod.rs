//! The HTTP side: connections, and which file answers which route.
//! Decides nothing about hashes (see `substitute`) and names no status code (see `answer`).

mod address;
mod again;
mod answer;
mod api;
mod body;
mod by_name;
mod catalogue;
mod client_stream;
mod control;
mod drivers;
mod failures;
mod info;
mod keeping;
mod listing;
mod log;
mod nar;
mod narinfo;
mod pins;
mod pipe;
mod pursuit;
mod realisation;
mod route;
mod server;
mod traffic;

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::narinfo::StoreDir;
use hyper::{Request, header};
use tokio::sync::watch;

use crate::build::{Builds, Failures, Logs};
use crate::catalogue::{Catalogue, Names};
use crate::index::Index;
use crate::keep::Keeper;
use crate::nix::{DaemonLogs, Detected, Pool};
use crate::packer::Packer;
use crate::retry::Retry;
use crate::substitute::{OnMiss, Substitute};
use crate::upstream::{Asker, Upstreams, Via};
use address::Peer;
pub use address::{PublicUrl, TrustedProxies};
use answer::Answer;
pub use failures::RememberedFailure;
pub use listing::{AttributeLine, Listing};
pub use pins::PinView;
pub use pursuit::GivenUp;
pub use route::{Route, Target};
pub use server::{Door, listen, serve};
use traffic::{Kind, Line, Tally, Traffic};

/// How the cache presents itself.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a narinfo answer is held before lines about the wait are sent.
    pub hold: Duration,
    /// How long trouble that may pass is waited out, from when it was met.
    pub transient_retry: Duration,
    /// The time between two such lines; clients give up after 300 s of silence by default.
    pub keep_alive: Duration,
    /// The cache's priority: clients ask lower ones first, cache.nixos.org has 40.
    pub priority: u32,
    /// Whether clients may ask for many paths at once just to know whether they exist.
    pub want_mass_query: bool,
    /// How long connections are given to end when the server stops.
    pub drain: Duration,
    /// How long a client may take no byte of an answer that waits for it.
    pub write_timeout: Duration,
    /// The address that clients are told; `None` for the one that they have asked.
    pub public_url: Option<PublicUrl>,
    /// Reverse proxies.
    pub trusted_proxies: TrustedProxies,
}

/// What the routes need.
pub struct Parts {
    /// The decision about a hash.
    pub substitute: Substitute,
    /// NARs.
    pub packer: Packer,
    /// What is kept of them.
    pub keeper: Keeper,
    /// Failures that are remembered.
    pub failures: Failures,
    /// The way out of them.
    pub retry: Retry,
    /// Logs of our builds.
    pub logs: Logs,
    /// Logs of all builds that the Nix daemon did.
    pub daemon_logs: DaemonLogs,
    /// The queue.
    pub builds: Builds,
    /// Package sets.
    pub catalogue: Catalogue,
    /// What they have, by name.
    pub names: Names,
    /// Other caches.
    pub upstreams: Upstreams,
    /// Whether the index can be read, and how much is in it.
    pub index: Index,
    /// Whether Nix can be reached.
    pub pool: Pool,
    /// Whether it is known what can be built.
    pub detected: Detected,
    /// The store that is served.
    pub store_dir: StoreDir,
    /// The address that clients are told who have named none.
    pub url: PublicUrl,
    /// Public keys of all that signs, the one that clients are told to trust first.
    pub public_keys: Vec<String>,
    /// What was looked for in vain for as long as trouble may last.
    pub given_up: GivenUp,
    /// How the cache presents itself.
    pub settings: Settings,
}

/// Answers requests; clones share everything.
#[derive(Clone)]
pub struct Service {
    parts: Arc<Parts>,
    traffic: Arc<Traffic>,
    stopping: watch::Receiver<bool>,
}

/// The methods that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

impl Service {
    /// A service that ends its waits when `stopping` turns true.
    #[must_use]
    pub fn new(parts: Parts, stopping: watch::Receiver<bool>) -> Self {
        Self { parts: Arc::new(parts), traffic: Arc::new(Traffic::new(drivers::threads())), stopping }
    }

    /// Resolves when the server stops.
    async fn stopping(&self) {
        // An error means that the server is gone, which is the same.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    /// Whether it does. Costs next to nothing.
    fn is_stopping(&self) -> bool {
        self.stopping.has_changed().unwrap_or(true)
    }

    /// The answer to come, on a thread of this number. Who comes from nowhere comes through the control socket.
    fn answer<B: Send + 'static>(&self, request: Request<B>, peer: Option<Peer>, thread: usize) -> Answering {
        let proxies = &self.parts.settings.trusted_proxies;
        let client = peer.map(|peer| peer.client(request.headers(), proxies));
        let (head, line) = (request.method() == hyper::Method::HEAD, Line::of(&request, client));
        let (kind, coming) = self.target(request, peer, client);
        let at_once = match &coming {
            Coming::Now(Some(answer)) if line.is_none() => {
                answer.body().ready_bytes().map(|bytes| (answer, bytes))
            }
            _ => None,
        };
        let tally = match at_once {
            Some((answer, bytes)) => {
                let bytes = if head { 0 } else { bytes };
                self.traffic.count(thread, kind, answer::outcome(answer), bytes);
                None
            }
            None => Some(Tally::new(&self.traffic, thread, kind, line)),
        };
        Answering { head, tally, coming }
    }

    fn target<B: Send + 'static>(
        &self,
        request: Request<B>,
        peer: Option<Peer>,
        client: Option<IpAddr>,
    ) -> (Kind, Coming) {
        let method = match *request.method() {
            hyper::Method::GET => Method::Get,
            hyper::Method::HEAD => Method::Head,
            _ if client.is_none() => {
                return (Kind::Change, control::answer(self.clone(), request.method(), request.uri()));
            }
            _ => {
                return (
                    Kind::Unknown,
                    now(answer::method_not_allowed(route::is_for_programs(request.uri().path()))),
                );
            }
        };
        match Target::parse(request.uri().path(), request.uri().query()) {
            Some(target) => (kind(&target.route), self.route(request, target, method, peer, client)),
            None => (Kind::Unknown, now(no_such(request.uri().path()))),
        }
    }

    fn route<B: Send + 'static>(
        &self,
        request: Request<B>,
        Target { route, cached }: Target,
        method: Method,
        peer: Option<Peer>,
        client: Option<IpAddr>,
    ) -> Coming {
        let on_miss = on_miss(via(&request), method, cached, client);
        // Nearly all requests end here.
        let at_hand = match route {
            Route::NarInfo(hash) => narinfo::at_hand(self, hash, &on_miss, reader(client, method)),
            Route::Nar(hash, compression) => nar::at_hand(self, hash, compression, request.headers()),
            _ => None,
        };
        if let Some(answer) = at_hand {
            return now(answer);
        }
        let service = self.clone();
        match route {
            Route::Home => now(info::home(self, request.headers(), peer)),
            Route::CacheInfo => now(info::cache_info(self)),
            Route::NarInfo(hash) => {
                let (reader, version) = (reader(client, method), request.version());
                // Very many may wait, and the head of a request is a part of the connection's buffer.
                drop(request);
                let asked = narinfo::Asked { hash, on_miss, method, reader, version };
                later(async move { narinfo::get(&service, asked).await })
            }
            Route::Nar(hash, compression) => later(async move {
                let asked = nar::Asked { hash, compression, method, on_miss };
                nar::get(&service, asked, client, request.headers()).await
            }),
            Route::Realisation(id) => {
                let asker = Asker { via: via(&request), client };
                later(async move { realisation::get(&service, &id, &asker).await })
            }
            Route::Log(path) => later(async move { log::get(&service, path).await }),
            Route::Health => now(info::health()),
            Route::Ready => later(async move { info::ready(&service).await }),
            Route::Status => later(async move { api::status(&service).await }),
            Route::Queue => now(api::queue(self)),
            Route::Build(id) => later(async move { api::build(&service, id).await }),
            Route::Path(hash) => later(async move { api::path(&service, hash).await }),
            Route::Sets => later(async move { catalogue::all(&service).await }),
            Route::Set(name) => later(async move { catalogue::one(&service, &name).await }),
            Route::Attributes(set, wanted) => {
                later(async move { listing::get(&service, &set, wanted).await })
            }
            Route::Attribute(name) => later(async move { by_name::describe(&service, &name).await }),
            Route::Download(name) => {
                drop(request);
                later(async move { by_name::download(&service, &name, on_miss).await })
            }
            Route::Failures => later(async move { failures::list(&service).await }),
            Route::Pins => later(async move { pins::all(&service).await }),
            Route::Metrics => now(api::metrics(self)),
        }
    }
}

/// 404 of an address that nothing has.
fn no_such(path: &str) -> Answer {
    let hint = route::hint(path);
    if route::is_for_programs(path) { answer::no_such(hint) } else { answer::missing(hint) }
}

/// What of the metrics a route counts as.
fn kind(route: &Route) -> Kind {
    match route {
        Route::NarInfo(_) => Kind::NarInfo,
        Route::Nar(..) => Kind::Nar,
        Route::Realisation(_) => Kind::Realisation,
        Route::Log(_) => Kind::Log,
        Route::Download(_) => Kind::Download,
        Route::Home | Route::CacheInfo => Kind::Page,
        Route::Health | Route::Ready | Route::Metrics => Kind::Monitoring,
        _ => Kind::Api,
    }
}

/// Who reads the narinfo that is asked for, and may go on to its contents.
fn reader(client: Option<IpAddr>, method: Method) -> Option<IpAddr> {
    client.filter(|_| method == Method::Get)
}

/// The caches of our kind that a request has come through.
fn via<B>(request: &Request<B>) -> Via {
    Via::parse(request.headers().get_all(header::VIA).iter().filter_map(|value| value.to_str().ok()))
}

/// What a miss may cost.
fn on_miss(via: Via, method: Method, cached: bool, client: Option<IpAddr>) -> OnMiss {
    match method {
        _ if !via.is_empty() => OnMiss::Relayed(Asker { via, client }),
        Method::Get if !cached => OnMiss::Build(client),
        _ => OnMiss::Report(client),
    }
}

/// An answer to come, each as large as its route needs.
enum Coming {
    /// It is there; taken only once.
    Now(Option<Answer>),
    Later(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

fn now(answer: Answer) -> Coming {
    Coming::Now(Some(answer))
}

fn later(answer: impl Future<Output = Answer> + Send + 'static) -> Coming {
    Coming::Later(Box::pin(answer))
}

/// What a connection waits for: small, since hyper keeps room for it as long as the connection lives.
struct Answering {
    /// Whether the body is not wanted.
    head: bool,
    /// What counts the answer, where that is not done yet.
    tally: Option<Box<Tally>>,
    coming: Coming,
}

impl Future for Answering {
    type Output = Result<Answer, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = match &mut self.coming {
            Coming::Now(answer) => answer.take().expect("a future that has ended is not polled again"),
            Coming::Later(answer) => ready!(answer.as_mut().poll(context)),
        };
        if let Some(mut tally) = self.tally.take() {
            tally.begun(answer.status().as_u16(), answer::outcome(&answer), answer::length(&answer));
            if self.head {
                tally.ended();
            } else {
                answer.body_mut().count(tally);
            }
        }
        Poll::Ready(Ok(if self.head { answer::without_body(answer) } else { answer }))
    }
}
