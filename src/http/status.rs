//! State of the cache and the queue as JSON, and metrics for Prometheus.

use narinfo::StorePathHash;

use super::Service;
use super::answer::{self, json};
use super::api::{
    BuilderStatus, CacheCounts, PathComparison, PathDetails, QueueStatus, ServerStatus, UpstreamStatus,
};
use super::call::Call;
use super::catalogue;
use super::error::{self, Error, INDEX_UNREADABLE};
use super::response_future::ResponseFuture;
use crate::index::{self, Index, Unfit};

/// Paths that refer to one in an answer.
pub(super) const REFERRERS_MAX: u32 = 100;
/// End of the metrics: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
const METRICS_END: &str = "# EOF\n";

pub(super) fn server(call: Call<'_>) -> Option<ResponseFuture> {
    let service = call.service.clone();
    let url = call.client_url().to_string();
    Some(ResponseFuture::pending(async move {
        let (status, is_failing) = server_status(&service, url).await;
        Ok(if is_failing { error::partly(&status) } else { json(&status) })
    }))
}

pub(super) fn queue(call: Call<'_>) -> Option<ResponseFuture> {
    Some(ResponseFuture::ready(json(&QueueStatus::from(call.service.state.builds.snapshot()))))
}

/// Upstreams, their use, health and counts.
pub(super) fn upstreams(call: Call<'_>) -> Option<ResponseFuture> {
    Some(ResponseFuture::ready(json(&upstream_list(call.service))))
}

pub(super) fn path(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, hash) = (call.service.clone(), call.arguments[0].parse().ok()?);
    Some(ResponseFuture::pending(async move { Ok(json(&path_details(&service, hash).await?)) }))
}

pub(super) fn metrics(call: Call<'_>) -> Option<ResponseFuture> {
    Some(ResponseFuture::ready(answer::ready(answer::OPENMETRICS, metrics_text(call.service) + METRICS_END)))
}

/// All metrics as OpenMetrics text, without its end.
pub(super) fn metrics_text(service: &Service) -> String {
    let (state, mut text) = (&service.state, String::new());
    state.builds.write_metrics(&mut text);
    state.builds.write_builder_metrics(&mut text);
    state.upstreams.write_metrics(&mut text);
    state.catalogue.write_metrics(&mut text);
    state.retention.write_metrics(&mut text);
    state.publication.write_metrics(&mut text);
    service.traffic.write_metrics(&mut text);
    text
}

fn upstream_list(service: &Service) -> Vec<UpstreamStatus> {
    service.state.upstreams.views().into_iter().map(UpstreamStatus::from).collect()
}

/// The machines that build.
pub(super) fn builder_list(service: &Service) -> Vec<BuilderStatus> {
    service.state.builds.builders().into_iter().map(BuilderStatus::from).collect()
}

/// The state of the server for a client that has asked under this address; true beside it where its index
/// cannot be relied on.
pub(super) async fn server_status(service: &Service, url: String) -> (ServerStatus, bool) {
    let state = &service.state;
    let counts = state.index.counts().await.inspect_err(|error| {
        tracing::error!(error = error as &dyn std::error::Error, "the index cannot be read");
    });
    let unfit = state.index.check().await.err().filter(|unfit| !matches!(unfit, Unfit::Unchecked));
    // An index that cannot be written can still be read.
    let is_failing =
        counts.is_err() || unfit.as_ref().is_some_and(|unfit| !matches!(unfit, Unfit::NotWritable(_)));
    let error =
        unfit.map(|unfit| unfit.to_string()).or_else(|| counts.is_err().then(|| INDEX_UNREADABLE.to_owned()));
    let status = ServerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store_dir: state.store_dir.to_string(),
        url,
        public_key: state.public_keys.first().cloned(),
        public_keys: state.public_keys.clone(),
        error,
        cache: counts.ok().map(CacheCounts::from),
        queue: state.builds.snapshot().into(),
        package_sets: catalogue::sets(service).await.ok(),
        upstreams: upstream_list(service),
        builders: builder_list(service),
    };
    (status, is_failing)
}

/// A served path.
pub(super) async fn path_details(service: &Service, hash: StorePathHash) -> Result<PathDetails, Error> {
    let path = known_path(&service.state.index, hash).await;
    let path = path.map_err(|error| Error::index(&error, "a path cannot be read"))?;
    let unknown = "this path is not served; ask for its narinfo to have it fetched or built";
    path.ok_or_else(|| Error::not_found(unknown))
}

async fn known_path(index: &Index, hash: StorePathHash) -> Result<Option<PathDetails>, index::Error> {
    let Some(hit) = index.find(hash).await? else { return Ok(None) };
    let upstreams = index.upstreams_with(hit.row.info.nar_hash).await?;
    let comparison = index.comparison(hash).await?;
    let referrers = index.referrers(hash, REFERRERS_MAX).await?;
    let pins = index.pins().await?.into_iter().filter(|pin| pin.hash == hash).map(|pin| pin.name);
    Ok(Some(PathDetails {
        path: hit.row.info.path.to_string(),
        nar_hash: hit.row.info.nar_hash.to_string(),
        nar_size: hit.row.info.nar_size,
        references: hit.row.info.references.iter().map(ToString::to_string).collect(),
        referrers: referrers.iter().map(ToString::to_string).collect(),
        signatures: hit.row.info.signatures.iter().map(ToString::to_string).collect(),
        pins: pins.collect(),
        deriver: hit.row.info.deriver.as_ref().map(ToString::to_string),
        built_here: hit.row.built,
        file_size: hit.packed.map(|nar| nar.file_size),
        upstreams: upstreams.into_iter().map(|nar| nar.upstream).collect(),
        comparison: comparison.map(PathComparison::from),
    }))
}
