//! Small answers: the page at `/`, nix-cache-info, liveness and readiness.

use narinfo::CacheInfo;

use super::Service;
use super::answer::{self, Answer};
use super::call::Call;
use super::endpoint::{Endpoint, Verb};
use super::error::{Error, REMEMBERED};
use super::response_future::ResponseFuture;

/// Instructions for the person who opens the cache's address, and all endpoints.
pub(super) fn home(call: Call<'_>) -> Option<ResponseFuture> {
    let state = &call.service.state;
    let url = call.client_url();
    let key = state.public_keys.first().map_or("", String::as_str);
    let text = format!(
        "Ondine: a Nix binary cache that builds what it is missing.\n\n\
         To use it, add to nix.conf:\n\n    \
         extra-substituters = {url}\n    \
         extra-trusted-public-keys = {key}\n\n\
         {REMEMBERED}\n\n{}\n\
         The same below /cached/, where nothing is built. PUT, POST and\n\
         DELETE need a token, or the command line on the server's machine.\n",
        list(call.service.endpoints())
    );
    Some(ResponseFuture::ready(answer::ready(answer::TEXT, text)))
}

/// One line for each endpoint.
fn list(endpoints: &[Endpoint]) -> String {
    let address = |endpoint: &Endpoint| match endpoint.verb {
        Verb::Get => endpoint.pattern.as_str().to_owned(),
        other => format!("{} {}", other.as_str(), endpoint.pattern.as_str()),
    };
    let width = endpoints.iter().map(|endpoint| address(endpoint).len()).max().unwrap_or_default();
    let line = |endpoint: &Endpoint| format!("{:width$}  {}\n", address(endpoint), endpoint.summary);
    endpoints.iter().map(line).collect()
}

pub(super) fn cache_info(call: Call<'_>) -> Option<ResponseFuture> {
    let state = &call.service.state;
    let info = CacheInfo {
        store_dir: state.store_dir.clone(),
        want_mass_query: state.settings.want_mass_query,
        priority: state.settings.priority,
    };
    Some(ResponseFuture::ready(answer::ready(answer::CACHE_INFO, info.render())))
}

pub(super) fn health(_: Call<'_>) -> Option<ResponseFuture> {
    Some(ResponseFuture::ready(answer::ready(answer::TEXT, "ok\n")))
}

/// Ready means: the index can be relied on, NARs can be stored, the Nix daemon answers, and its capabilities
/// are known.
pub(super) fn readiness(call: Call<'_>) -> Option<ResponseFuture> {
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { ready(&service).await }))
}

async fn ready(service: &Service) -> Result<Answer, Error> {
    if let Err(unfit) = service.state.index.check().await {
        tracing::debug!(reason = %unfit, "not ready");
        return Err(Error::unavailable(unfit));
    }
    if let Err(reason) = service.state.packer.check_writable().await {
        tracing::debug!(%reason, "not ready");
        return Err(Error::unavailable(format_args!(
            "no NAR can be stored ({reason}): what is cached is served, nothing new is"
        )));
    }
    if !service.state.detected.is_known() {
        return Err(Error::unavailable(
            "what is cached is served; nothing is built until the systems and features of Nix are known",
        ));
    }
    // A new connection: one that is open already does not show that the daemon is gone.
    if let Err(error) = service.state.pool.get_fresh().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "not ready");
        return Err(Error::unavailable(
            "the Nix daemon cannot be reached: what is cached is served, nothing is built",
        ));
    }
    Ok(answer::ready(answer::TEXT, "ready\n"))
}
