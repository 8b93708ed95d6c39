//! The small answers: what this cache is, and how it is.

use hyper::HeaderMap;
use narinfo::CacheInfo;

use super::Service;
use super::address::Peer;
use super::answer::{self, Answer, REMEMBERED};

/// How to use this cache, for the person who opens its address.
pub(super) fn home(service: &Service, headers: &HeaderMap, peer: Option<Peer>) -> Answer {
    let parts = &service.parts;
    let asked = || peer.and_then(|peer| peer.asked_url(headers));
    let url = parts.settings.public_url.clone().or_else(asked).unwrap_or_else(|| parts.url.clone());
    answer::ready(
        answer::TEXT,
        format!(
            "Ondine: a Nix binary cache that builds what it is missing.\n\n\
             To use it, add to nix.conf:\n\n    \
             extra-substituters = {url}\n    \
             extra-trusted-public-keys = {}\n\n\
             {REMEMBERED}\n\n\
             /nix-cache-info          about this cache\n\
             /<hash>.narinfo          a store path; built first where need be\n\
             /nar/<NarHash>.nar.zst   its contents, or .nar without compression\n\
             /get/<set>/<attribute>   the contents of a package, by name\n\
             /log/<derivation>        the log of a build, while it runs, too\n\
             /cached/...              the same, and nothing is built\n\
             /healthz /readyz         for monitoring\n\
             /api/v1/status           the cache and the queue, as JSON\n\
             /api/v1/paths/<hash>     what is known of a path\n\
             /api/v1/queue            who waits for what, and /api/v1/builds/<number> for one\n\
             /api/v1/catalogue        the package sets, and /api/v1/catalogue/<set>/<attribute> for one\n\
             /metrics                 for Prometheus\n",
            parts.public_keys.first().map_or("", String::as_str)
        ),
    )
}

pub(super) fn cache_info(service: &Service) -> Answer {
    let settings = &service.parts.settings;
    let info = CacheInfo {
        store_dir: service.parts.store_dir.clone(),
        want_mass_query: settings.want_mass_query,
        priority: settings.priority,
    };
    answer::ready(answer::CACHE_INFO, info.render())
}

pub(super) fn health() -> Answer {
    answer::ready(answer::TEXT, "ok\n")
}

/// Ready means: the index can be relied on, NARs can be stored, the Nix daemon answers, and it is known what that can build.
pub(super) async fn ready(service: &Service) -> Answer {
    if let Err(unfit) = service.parts.index.check().await {
        tracing::debug!(reason = %unfit, "not ready");
        return answer::not_ready(unfit);
    }
    if let Err(reason) = service.parts.packer.check_writable().await {
        tracing::debug!(%reason, "not ready");
        return answer::not_ready(format_args!(
            "no NAR can be stored ({reason}): what is cached is served, nothing new is"
        ));
    }
    if !service.parts.detected.is_known() {
        return answer::not_ready(
            "what is cached is served; nothing is built until nix has told what it can",
        );
    }
    // A new connection: one that is open already tells nothing of a daemon that is gone.
    if let Err(error) = service.parts.pool.get_fresh().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "not ready");
        return answer::not_ready(
            "the Nix daemon cannot be reached: what is cached is served, nothing is built",
        );
    }
    answer::ready(answer::TEXT, "ready\n")
}
