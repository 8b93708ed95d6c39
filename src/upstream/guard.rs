//! Where a request to an upstream may lead: a redirect, an address in a narinfo or a name's look-up must not turn this
//! server against its own machine or its hoster's metadata. Private networks are allowed: caches live there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

/// Redirects that are followed for one request.
const HOPS_MAX: usize = 5;

/// Knows the origin that an admin configured, which may be anywhere.
#[derive(Clone, Debug)]
pub(super) struct Guard(Arc<Url>);

/// Why an address is not asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Not http or https.
    #[error("{0} is neither http nor https")]
    Scheme(Url),
    /// This machine, or one of no network.
    #[error("{0} leads to this machine or its neighbourhood (loopback, link-local, multicast)")]
    Near(Url),
    /// Too many redirects.
    #[error("more than {HOPS_MAX} redirects")]
    Hops,
}

impl Guard {
    /// For the upstream at `base`.
    pub(super) fn new(base: Url) -> Self {
        Self(Arc::new(base))
    }

    /// Whether `url` may be asked.
    pub(super) fn check(&self, url: &Url) -> Result<(), Refusal> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::Scheme(url.clone()));
        }
        let near = match url.host_str() {
            Some(host) => is_near_name(host) || bare(host).parse().is_ok_and(is_near),
            None => true,
        };
        if near && url.origin() != self.0.origin() { Err(Refusal::Near(url.clone())) } else { Ok(()) }
    }

    /// Follows a few redirects to where one may go.
    pub(super) fn redirects(&self) -> Policy {
        let guard = self.clone();
        Policy::custom(move |attempt| {
            let refusal = if attempt.previous().len() > HOPS_MAX {
                Some(Refusal::Hops)
            } else {
                guard.check(attempt.url()).err()
            };
            match refusal {
                Some(refusal) => attempt.error(refusal),
                None => attempt.follow(),
            }
        })
    }
}

/// Looks names up, and leaves out where they must not lead; the configured host's own name may lead anywhere.
impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let own = self.0.host_str().is_some_and(|host| host.eq_ignore_ascii_case(name.as_str()));
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| own || !is_near(address.ip())).collect();
            if allowed.is_empty() {
                let reason = format!("{} has no address that may be asked", name.as_str());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn is_near_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// An IPv6 address without the brackets that it has in a URL.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn is_near(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            // 0.0.0.0/8 is this host (RFC 6890).
            ip.is_loopback()
                || ip.is_link_local()
                || ip.octets()[0] == 0
                || ip.is_multicast()
                || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    #[test]
    fn only_the_configured_origin_may_be_near() {
        let guard = Guard::new(url("http://127.0.0.1:8080/cache/"));
        for allowed in [
            "http://127.0.0.1:8080/x",
            "https://cache.example.org/",
            "http://10.1.2.3/",
            "http://[2001:db8::1]/",
        ] {
            assert!(guard.check(&url(allowed)).is_ok(), "{allowed}");
        }
        for refused in [
            "http://127.0.0.1:22/",
            "http://127.1/",
            "http://2130706433/",
            "http://localhost:8080/",
            "http://metadata.localhost./",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://169.254.169.254/latest",
            "http://[fe80::1]/",
            "http://0.0.0.0/",
            "http://224.0.0.1/",
            "file:///etc/passwd",
            "ftp://cache.example.org/",
        ] {
            assert!(guard.check(&url(refused)).is_err(), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_here_is_no_way_around() {
        let (own, other) =
            (Guard::new(url("http://localhost/")), Guard::new(url("https://cache.example.org/")));
        let name = || "localhost".parse::<Name>().expect("a name");
        assert!(own.resolve(name()).await.is_ok());
        assert!(other.resolve(name()).await.is_err());
    }
}
