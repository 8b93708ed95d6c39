//! The operator's proxies, as the environment names them: http_proxy, https_proxy, all_proxy and no_proxy.
//! The HTTP client heeds them by itself, with the same matcher; this tells which requests it hands over.

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

/// Proxies by kinds of targets.
#[derive(Debug)]
pub(super) struct Proxies(Matcher);

impl Proxies {
    /// Those of the environment.
    pub(super) fn from_env() -> Self {
        Self(Matcher::from_env())
    }

    /// True if one of them is asked for `url`, and looks its name up.
    pub(super) fn relay(&self, url: &Url) -> bool {
        let target = url.as_str().parse();
        target.is_ok_and(|target| self.0.intercept(&target).is_some())
    }
}
