//! What programs ask: the cache and the queue as JSON, and metrics for Prometheus.

use super::Service;
use super::answer::{self, Answer};
use crate::build::QueueView;
use crate::index::Counts;

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

pub(super) fn build(service: &Service, id: u64) -> Answer {
    match service.parts.builds.request(id) {
        Some(request) => json(&request),
        None => answer::missing(format_args!(
            "no request has the number {id}, or it ended long ago; /api/v1/queue lists those that wait"
        )),
    }
}

pub(super) fn metrics(service: &Service) -> Answer {
    answer::ready(answer::OPENMETRICS, service.parts.builds.metrics())
}

fn json(value: &impl serde::Serialize) -> Answer {
    // Strings, numbers and nothing else: there is nothing in it that JSON could refuse.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    answer::ready(answer::JSON, text + "\n")
}
