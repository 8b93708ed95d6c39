//! The HTTP side: connections, and which file answers which route.
//! Decides nothing about hashes (see `substitute`) and names no status code (see `answer`).

mod answer;
mod api;
mod info;
mod log;
mod nar;
mod narinfo;
mod pipe;
mod route;
mod server;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::narinfo::StoreDir;
use hyper::Request;
use tokio::sync::watch;

use crate::build::{Builds, Logs};
use crate::index::Index;
use crate::nix::Pool;
use crate::packer::Packer;
use crate::substitute::{OnMiss, Substitute};
use answer::Answer;
pub use route::{NarForm, Route, Target};
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
    /// Build logs.
    pub logs: Logs,
    /// The queue.
    pub builds: Builds,
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

    async fn answer<B>(self, request: Request<B>, client: Option<IpAddr>) -> Result<Answer, Infallible> {
        let method = match *request.method() {
            hyper::Method::GET => Method::Get,
            hyper::Method::HEAD => Method::Head,
            _ => return Ok(answer::method_not_allowed()),
        };
        let answer = self.route(method, &request, client).await;
        Ok(if method == Method::Head { answer::without_body(answer) } else { answer })
    }

    async fn route<B>(&self, method: Method, request: &Request<B>, client: Option<IpAddr>) -> Answer {
        let uri = request.uri();
        let Some(Target { route, cached }) = Target::parse(uri.path(), uri.query()) else {
            return answer::missing("nothing has this address; a narinfo is at /<32 characters>.narinfo");
        };
        let on_miss = if cached { OnMiss::Report } else { OnMiss::Build(client) };
        match route {
            Route::Home => info::home(self, request.headers()),
            Route::CacheInfo => info::cache_info(self),
            Route::NarInfo(hash) => narinfo::get(self, hash, method, on_miss, request.version()).await,
            Route::Nar(hash, form) => nar::get(self, hash, form, method, request.headers()).await,
            Route::Log(drv) => log::get(self, &drv, method),
            Route::Health => info::health(),
            Route::Ready => info::ready(self).await,
            Route::Status => api::status(self).await,
            Route::Queue => api::queue(self),
            Route::Build(id) => api::build(self, id).await,
            Route::Metrics => api::metrics(self),
        }
    }
}
