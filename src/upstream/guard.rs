//! Targets of requests to upstreams: an address in a narinfo, a redirect or a DNS answer must not turn this
//! server against its own machine or its hoster's metadata. Only the configured origin itself (scheme, host
//! and port) may be anywhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Redirects that are followed for one request.
pub(super) const HOPS_MAX: usize = 5;

/// Addresses by which clouds give a machine its credentials, beside those that are link-local anyway.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254)),
];

/// Judges targets for one upstream.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    base: Arc<Url>,
    /// Private networks may be targets; unset, they may where the upstream itself is in one.
    private: Option<bool>,
}

/// Reason why a target is refused. Shows no path and no query: these may hold somebody's credentials.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum TargetRefusal {
    /// Neither http nor https.
    #[error("{0}: is neither http nor https")]
    Scheme(String),
    /// This machine, its neighbourhood or no single machine at all.
    #[error("{0} leads to this machine or its neighbourhood (loopback, link-local, metadata, multicast)")]
    Near(String),
    /// A private network, from an upstream outside of it.
    #[error("{0} leads into a private network; private-targets = true allows that for this upstream")]
    Private(String),
    /// Too many redirects.
    #[error("more than {HOPS_MAX} redirects")]
    Hops,
}

/// Kinds of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressClass {
    Public,
    Private,
    Near,
}

impl Guard {
    /// Judges for the upstream at `base`.
    pub(super) fn new(base: Url, private: Option<bool>) -> Self {
        Self { base: Arc::new(base), private }
    }

    /// True if `url` has the scheme, host and port that an admin configured.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Refuses `url` where its text tells that it must not be asked. Names are judged when they are looked
    /// up.
    pub(super) async fn check(&self, url: &Url) -> Result<(), TargetRefusal> {
        let shown = || url.origin().ascii_serialization();
        if !matches!(url.scheme(), "http" | "https") {
            return Err(TargetRefusal::Scheme(url.scheme().to_owned()));
        }
        if self.is_own(url) {
            return Ok(());
        }
        let host = url.host_str().unwrap_or_default();
        match literal(host) {
            _ if is_near_name(host) => Err(TargetRefusal::Near(shown())),
            Some(ip) => self.judge(ip, shown).await,
            None => Ok(()),
        }
    }

    async fn judge(&self, ip: IpAddr, shown: impl Fn() -> String) -> Result<(), TargetRefusal> {
        match reach(ip) {
            AddressClass::Public => Ok(()),
            AddressClass::Near => Err(TargetRefusal::Near(shown())),
            AddressClass::Private if self.allows_private().await => Ok(()),
            AddressClass::Private => Err(TargetRefusal::Private(shown())),
        }
    }

    async fn allows_private(&self) -> bool {
        if let Some(allowed) = self.private {
            return allowed;
        }
        let host = self.base.host_str().unwrap_or_default();
        match literal(host) {
            Some(ip) => reach(ip) != AddressClass::Public,
            None => tokio::net::lookup_host((host, 0))
                .await
                .is_ok_and(|mut found| found.any(|address| reach(address.ip()) != AddressClass::Public)),
        }
    }
}

/// Looks names of other origins up, and leaves out the addresses that must not be targets.
impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let (mut allowed, mut refused) = (Vec::<SocketAddr>::new(), None);
            for address in tokio::net::lookup_host((name.as_str(), 0)).await? {
                match guard.judge(address.ip(), || name.as_str().to_owned()).await {
                    Ok(()) => allowed.push(address),
                    Err(refusal) => refused = Some(refusal),
                }
            }
            match refused {
                Some(refusal) if allowed.is_empty() => Err(refusal.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

fn is_near_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host.is_empty() || host == "localhost" || host.ends_with(".localhost")
}

/// The address that a URL has in place of a name; IPv6 in brackets.
fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn reach(ip: IpAddr) -> AddressClass {
    match ip {
        ip if METADATA.contains(&ip) => AddressClass::Near,
        IpAddr::V4(ip) => reach_v4(ip),
        IpAddr::V6(ip) => match embedded(ip) {
            Some(ip) => reach(IpAddr::V4(ip)),
            None => reach_v6(ip),
        },
    }
}

/// By the registry of special addresses (RFC 6890).
fn reach_v4(ip: Ipv4Addr) -> AddressClass {
    match ip.octets() {
        // This host, loopback, link-local, protocol assignments, multicast, reserved and broadcast.
        [0 | 127, ..] | [169, 254, ..] | [192, 0, 0, _] | [224..=255, ..] => AddressClass::Near,
        // Private networks, those between a carrier and its customers (VPNs, too), and benchmarks (some
        // proxies' made-up addresses).
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [198, 18 | 19, ..] => {
            AddressClass::Private
        }
        _ => AddressClass::Public,
    }
}

fn reach_v6(ip: Ipv6Addr) -> AddressClass {
    match ip.segments() {
        // Teredo (2001::/32) hides the address it leads to.
        [0x2001, 0, ..] => AddressClass::Near,
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => AddressClass::Private,
        _ if ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast() => {
            AddressClass::Near
        }
        _ => AddressClass::Public,
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible (RFC 4291), NAT64 (RFC 6052, 8215),
/// 6to4 (RFC 3056).
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let pair = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        // The unspecified address and loopback are none.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => pair(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => pair(high, low),
        [0x2002, high, low, ..] => pair(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    const NEAR: [&str; 22] = [
        "http://127.0.0.1:22/",
        "http://127.1/",
        "http://2130706433/",
        "http://localhost:8080/",
        "http://metadata.localhost./",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::169.254.169.254]/",
        "http://[64:ff9b:1::127.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:1::]/",
        "http://169.254.169.254/latest",
        "http://100.100.100.200/latest",
        "http://[fd00:ec2::254]/latest",
        "http://[fe80::1]/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://[ff02::1]/",
        "http://255.255.255.255/",
        "http://192.0.0.192/",
    ];

    const PRIVATE: [&str; 6] = [
        "http://10.1.2.3/",
        "http://172.31.0.1/",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://[fd12::1]/",
        "http://[64:ff9b::10.0.0.1]/",
    ];

    #[tokio::test]
    async fn only_the_configured_origin_may_be_near() {
        let guard = Guard::new(url("http://127.0.0.1:8080/cache/"), Some(true));
        for allowed in [
            "http://127.0.0.1:8080/x",
            "https://cache.example.org/",
            "http://[2001:db8::1]/",
            "http://8.8.8.8",
        ] {
            assert!(guard.check(&url(allowed)).await.is_ok(), "{allowed}");
        }
        let others =
            ["https://127.0.0.1:8080/x", "http://127.0.0.1/x", "file:///etc/passwd", "ftp://c.example.org/"];
        for refused in NEAR.into_iter().chain(others) {
            assert!(guard.check(&url(refused)).await.is_err(), "{refused}");
        }
    }

    #[tokio::test]
    async fn private_networks_are_for_upstreams_in_one_unless_a_setting_says_else() {
        for (base, private, expected) in [
            ("http://127.0.0.1:8080/", None, true),
            ("http://192.168.7.7/", None, true),
            ("http://localhost/", None, true),
            ("http://8.8.8.8/", None, false),
            ("http://8.8.8.8/", Some(true), true),
            ("http://192.168.7.7/", Some(false), false),
        ] {
            let guard = Guard::new(url(base), private);
            for target in PRIVATE {
                let checked = guard.check(&url(target)).await;
                assert_eq!(checked.is_ok(), expected, "{base} {private:?} {target}: {checked:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_here_is_no_way_around() {
        let guard = Guard::new(url("http://localhost/"), None);
        assert!(guard.check(&url("http://localhost:8080/")).await.is_err(), "another port of its own host");
        // Only names of other origins are looked up by the guard, its own host on another port among them.
        assert!(guard.resolve("localhost".parse::<Name>().expect("a name")).await.is_err());
    }

    #[tokio::test]
    async fn a_refusal_shows_where_to_and_not_how() {
        let guard = Guard::new(url("https://cache.example.org/"), None);
        let refusal = guard.check(&url("http://127.0.0.1:9/secret?token=secret")).await.expect_err("near");
        assert!(refusal.to_string().starts_with("http://127.0.0.1:9 leads to"), "{refusal}");
        assert!(!refusal.to_string().contains("secret"), "{refusal}");
    }
}
