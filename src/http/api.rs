//! What programs ask: the cache and the queue as JSON, and metrics for Prometheus.

use narinfo::StorePath;

use super::Service;
use super::answer::{self, Answer};
use crate::build::{QueueView, RequestState, RequestView};
use crate::index::Counts;

/// Lines of a log that are told.
const LOG_LINES: usize = 20;

/// What follows the last metric: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
const METRICS_END: &str = "# EOF\n";

/// `GET /api/v1/status`.
#[derive(serde::Serialize)]
struct Status {
    version: &'static str,
    store_dir: String,
    public_key: String,
    cache: Option<Counts>,
    queue: QueueView,
}

pub(super) async fn status(service: &Service) -> Answer {
    let parts = &service.parts;
    json(&Status {
        version: env!("CARGO_PKG_VERSION"),
        store_dir: parts.store_dir.to_string(),
        public_key: parts.public_key.clone(),
        cache: parts.index.counts().await.ok(),
        queue: parts.builds.view(),
    })
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
        return answer::missing(format_args!(
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

pub(super) fn metrics(service: &Service) -> Answer {
    let mut text = String::new();
    service.parts.builds.write_metrics(&mut text);
    service.parts.upstreams.write_metrics(&mut text);
    answer::ready(answer::OPENMETRICS, text + METRICS_END)
}

fn json(value: &impl serde::Serialize) -> Answer {
    // Strings, numbers and nothing else: there is nothing in it that JSON could refuse.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    answer::ready(answer::JSON, text + "\n")
}
