//! What programs ask: the cache and the queue as JSON, and metrics for Prometheus.

use narinfo::{StorePath, StorePathHash};

use super::Service;
use super::answer::{self, Answer, json};
use crate::build::{QueueView, RequestState, RequestView};
use crate::index::{self, Counts, Index, Unfit};

/// Said when the index does not answer.
const UNREADABLE: &str = "the index cannot be read; the server's log says why, and /readyz what to do";
/// Lines of a log that are told.
const LOG_LINES: usize = 20;

/// What follows the last metric: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
const METRICS_END: &str = "# EOF\n";

/// `GET /api/v1/status`.
#[derive(serde::Serialize)]
struct Status {
    version: &'static str,
    store_dir: String,
    /// The first of `public_keys`.
    public_key: Option<String>,
    public_keys: Vec<String>,
    /// Null where the index cannot tell.
    cache: Option<Counts>,
    queue: QueueView,
    /// What is wrong with the index.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) async fn status(service: &Service) -> Answer {
    let parts = &service.parts;
    let counts = parts.index.counts().await.inspect_err(|error| {
        tracing::error!(error = error as &dyn std::error::Error, "the index cannot be read");
    });
    let unfit = parts.index.check().await.err().filter(|unfit| !matches!(unfit, Unfit::Unchecked));
    // What cannot be written can be read all the same.
    let is_failing =
        counts.is_err() || unfit.as_ref().is_some_and(|unfit| !matches!(unfit, Unfit::NotWritable(_)));
    let error =
        unfit.map(|unfit| unfit.to_string()).or_else(|| counts.is_err().then(|| UNREADABLE.to_owned()));
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        store_dir: parts.store_dir.to_string(),
        public_key: parts.public_keys.first().cloned(),
        public_keys: parts.public_keys.clone(),
        error,
        cache: counts.ok(),
        queue: parts.builds.view(),
    };
    if is_failing { answer::partly(&status) } else { json(&status) }
}

/// The index does not do its part, which is logged once, here.
pub(super) fn index_failed(error: &index::Error, what: &'static str) -> Answer {
    tracing::error!(error = error as &dyn std::error::Error, "{what}");
    answer::failed(format_args!("{what}: {UNREADABLE}"))
}

pub(super) fn queue(service: &Service) -> Answer {
    json(&service.parts.builds.view())
}

/// `GET /api/v1/builds/<number>`.
#[derive(serde::Serialize)]
struct Build {
    #[serde(flatten)]
    request: RequestView,
    /// The end of the log of what is being built for it, has failed, or was built.
    log: Vec<String>,
}

pub(super) async fn build(service: &Service, id: u64) -> Answer {
    let Some(request) = service.parts.builds.request(id) else {
        return answer::no_such(format_args!(
            "no request has the number {id}, or it ended long ago; /api/v1/queue lists those that wait"
        ));
    };
    let told = match &request.state {
        RequestState::Building { building } => building,
        RequestState::Failed { cause, .. } => cause,
        _ => &request.derivation,
    };
    let log = match StorePath::parse(told) {
        Ok(drv) => last_lines(service, drv).await,
        Err(_) => Vec::new(),
    };
    json(&Build { request, log })
}

/// A log that cannot be read has no lines.
async fn last_lines(service: &Service, drv: StorePath) -> Vec<String> {
    let logs = service.parts.logs.clone();
    let lines = tokio::task::spawn_blocking(move || logs.last_lines(&drv, LOG_LINES)).await;
    lines.ok().and_then(Result::ok).unwrap_or_default()
}

/// `GET /api/v1/paths/<hash>`.
#[derive(serde::Serialize)]
struct Path {
    path: String,
    nar_hash: String,
    nar_size: u64,
    references: Vec<String>,
    deriver: Option<String>,
    /// Whether it was built on this machine.
    built_here: bool,
    /// Bytes of the file that is kept; null while there is none.
    file_size: Option<u64>,
    /// The upstreams that have the contents.
    upstreams: Vec<String>,
    /// What an upstream has of a path that was built here; null as long as none is known to have it.
    comparison: Option<Compared>,
}

#[derive(serde::Serialize)]
struct Compared {
    upstream: String,
    nar_hash: String,
    /// Whether that is what was built here.
    same: bool,
}

pub(super) async fn path(service: &Service, hash: StorePathHash) -> Answer {
    match known_path(&service.parts.index, hash).await {
        Ok(Some(path)) => json(&path),
        Ok(None) => answer::no_such("this path is not served; whether it can be had, its narinfo tells"),
        Err(error) => index_failed(&error, "a path cannot be told of"),
    }
}

async fn known_path(index: &Index, hash: StorePathHash) -> Result<Option<Path>, index::Error> {
    let Some(hit) = index.find(hash).await? else { return Ok(None) };
    let upstreams = index.upstreams_with(hit.row.nar_hash).await?;
    let comparison = index.comparison(hash).await?;
    Ok(Some(Path {
        path: hit.row.path.to_string(),
        nar_hash: hit.row.nar_hash.to_string(),
        nar_size: hit.row.nar_size,
        references: hit.row.references.iter().map(ToString::to_string).collect(),
        deriver: hit.row.deriver.as_ref().map(ToString::to_string),
        built_here: hit.row.built,
        file_size: hit.packed.map(|nar| nar.file_size),
        upstreams: upstreams.into_iter().map(|nar| nar.upstream).collect(),
        comparison: comparison.map(|found| Compared {
            upstream: found.upstream,
            nar_hash: found.nar_hash.to_string(),
            same: found.same,
        }),
    }))
}

pub(super) fn metrics(service: &Service) -> Answer {
    let mut text = String::new();
    service.parts.builds.write_metrics(&mut text);
    service.parts.upstreams.write_metrics(&mut text);
    service.parts.catalogue.write_metrics(&mut text);
    service.parts.keeper.write_metrics(&mut text);
    service.traffic.write_metrics(&mut text);
    answer::ready(answer::OPENMETRICS, text + METRICS_END)
}
