//! The HTTP side: connections, and which file answers which route.
//! Decides nothing about hashes (see `substitute`) and names no status code (see `answer`).

mod answer;
mod api;
mod by_name;
mod catalogue;
mod control;
mod info;
mod keeping;
mod log;
mod nar;
mod narinfo;
mod pipe;
mod realisation;
mod route;
mod server;

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::narinfo::StoreDir;
use hyper::{Request, header};
use tokio::sync::watch;

use crate::build::{Builds, Logs};
use crate::catalogue::{Catalogue, Names};
use crate::index::Index;
use crate::keep::Keeper;
use crate::nix::Pool;
use crate::packer::Packer;
use crate::substitute::{OnMiss, Substitute};
use crate::upstream::{Upstreams, Via};
use answer::Answer;
pub use route::{Route, Target};
pub use server::{Door, serve};

/// How the cache presents itself.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a narinfo answer is held before lines about the wait are sent.
    pub hold: Duration,
    /// The time between two such lines; clients give up after 300 s of silence by default.
    pub keep_alive: Duration,
    /// The cache's priority: clients ask lower ones first, cache.nixos.org has 40.
    pub priority: u32,
    /// Whether clients may ask for many paths at once just to know whether they exist.
    pub want_mass_query: bool,
    /// How long connections are given to end when the server stops.
    pub drain: Duration,
}

/// What the routes need.
pub struct Parts {
    /// The decision about a hash.
    pub substitute: Substitute,
    /// NARs.
    pub packer: Packer,
    /// What is kept of them.
    pub keeper: Keeper,
    /// Build logs.
    pub logs: Logs,
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
    /// The store that is served.
    pub store_dir: StoreDir,
    /// The public key, for people.
    pub public_key: String,
    /// How the cache presents itself.
    pub settings: Settings,
}

/// Answers requests; clones share everything.
#[derive(Clone)]
pub struct Service {
    parts: Arc<Parts>,
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
        Self { parts: Arc::new(parts), stopping }
    }

    /// Resolves when the server stops.
    async fn stopping(&self) {
        // An error means that the server is gone, which is the same.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    /// The answer to come: small, since hyper keeps room for it as long as the connection lives.
    fn answer<B: Send + 'static>(
        &self,
        request: Request<B>,
        client: Option<IpAddr>,
    ) -> impl Future<Output = Result<Answer, Infallible>> + use<B> {
        let head = request.method() == hyper::Method::HEAD;
        let coming = self.clone().route(request, client);
        async move {
            let answer = coming.await;
            Ok(if head { answer::without_body(answer) } else { answer })
        }
    }

    fn route<B: Send + 'static>(self, request: Request<B>, client: Option<IpAddr>) -> Coming {
        let method = match *request.method() {
            hyper::Method::GET => Method::Get,
            hyper::Method::HEAD => Method::Head,
            // Who comes from nowhere comes through the control socket.
            _ if client.is_none() => return control::answer(self, request.method(), request.uri()),
            _ => return now(answer::method_not_allowed()),
        };
        let Some(Target { route, cached }) = Target::parse(request.uri().path(), request.uri().query())
        else {
            return now(answer::missing(
                "nothing has this address; a narinfo is at /<32 characters>.narinfo",
            ));
        };
        match route {
            Route::Home => now(info::home(&self, request.headers())),
            Route::CacheInfo => now(info::cache_info(&self)),
            Route::NarInfo(hash) => {
                let on_miss = on_miss(via(&request), method, cached, client);
                let version = request.version();
                // Very many may wait, and the head of a request is a part of the connection's buffer.
                drop(request);
                let reader = client.filter(|_| method == Method::Get);
                Box::pin(async move { narinfo::get(&self, hash, on_miss, reader, version).await })
            }
            Route::Nar(hash, form) => {
                Box::pin(async move { nar::get(&self, hash, form, method, client, request.headers()).await })
            }
            Route::Realisation(id) => {
                let via = via(&request);
                Box::pin(async move { realisation::get(&self, &id, &via).await })
            }
            Route::Log(drv) => now(log::get(&self, &drv)),
            Route::Health => now(info::health()),
            Route::Ready => Box::pin(async move { info::ready(&self).await }),
            Route::Status => Box::pin(async move { api::status(&self).await }),
            Route::Queue => now(api::queue(&self)),
            Route::Build(id) => Box::pin(async move { api::build(&self, id).await }),
            Route::Path(hash) => Box::pin(async move { api::path(&self, hash).await }),
            Route::Sets => Box::pin(async move { catalogue::all(&self).await }),
            Route::Set(name) => Box::pin(async move { catalogue::one(&self, &name).await }),
            Route::Attribute(name) => Box::pin(async move { by_name::describe(&self, &name).await }),
            Route::Download(name) => {
                let on_miss = on_miss(via(&request), method, cached, client);
                drop(request);
                Box::pin(async move { by_name::download(&self, &name, on_miss).await })
            }
            Route::Pins => Box::pin(async move { keeping::pins(&self).await }),
            Route::Metrics => now(api::metrics(&self)),
        }
    }
}

/// The caches of our kind that a request has come through.
fn via<B>(request: &Request<B>) -> Via {
    Via::parse(request.headers().get_all(header::VIA).iter().filter_map(|value| value.to_str().ok()))
}

/// What a miss may cost.
fn on_miss(via: Via, method: Method, cached: bool, client: Option<IpAddr>) -> OnMiss {
    match method {
        _ if !via.is_empty() => OnMiss::Relayed(via),
        Method::Get if !cached => OnMiss::Build(client),
        _ => OnMiss::Report,
    }
}

/// An answer to come, each as large as its route needs.
type Coming = Pin<Box<dyn Future<Output = Answer> + Send>>;

fn now(answer: Answer) -> Coming {
    Box::pin(std::future::ready(answer))
}
