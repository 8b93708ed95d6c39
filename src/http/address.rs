//! Addresses of clients, and of this cache as they see it. X-Forwarded headers count from trusted proxies
//! alone.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::http::uri::Authority;
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The address of this cache as clients write it, without a slash at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(String);

/// The text is not the address of a cache.
#[derive(Debug, thiserror::Error)]
#[error("http://HOST… or https://HOST… is needed, without a password or a query")]
pub struct NotAUrl;

impl FromStr for PublicUrl {
    type Err = NotAUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = text.parse::<Uri>().map_err(|_| NotAUrl)?;
        let plain = matches!(url.scheme_str(), Some("http" | "https")) && url.query().is_none();
        let host =
            url.authority().is_some_and(|host| !host.host().is_empty() && !host.as_str().contains('@'));
        // The parser drops a fragment.
        if plain && host && !text.contains('#') {
            Ok(Self(text.trim_end_matches('/').to_owned()))
        } else {
            Err(NotAUrl)
        }
    }
}

impl PublicUrl {
    /// The address that `listen` makes of this machine: its name where all its addresses are listened on.
    #[must_use]
    pub fn of_listener(listen: SocketAddr, host_name: &str) -> Self {
        if listen.ip().to_canonical().is_unspecified() {
            Self(format!("http://{host_name}:{}", listen.port()))
        } else {
            Self(format!("http://{listen}"))
        }
    }
}

impl std::fmt::Display for PublicUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The networks of reverse proxies whose X-Forwarded headers are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(pub Vec<IpNet>);

impl TrustedProxies {
    fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Reads an address (`10.0.0.1`) or a network (`10.0.0.0/8`).
    #[must_use]
    pub fn parse_network(text: &str) -> Option<IpNet> {
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    }
}

/// The other end of a connection over the network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    address: IpAddr,
    /// True for a trusted proxy. Looked up once for each connection.
    trusted: bool,
}

impl Peer {
    pub(super) fn new(address: IpAddr, proxies: &TrustedProxies) -> Self {
        let address = address.to_canonical();
        Self { address, trusted: proxies.has(address) }
    }

    /// The client's address: the last one in X-Forwarded-For that is not a trusted proxy's, or the peer's
    /// own.
    pub(super) fn client(&self, headers: &HeaderMap, proxies: &TrustedProxies) -> IpAddr {
        let mut client = self.address;
        if self.trusted {
            let values: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
            let hops = values.into_iter().rev().filter_map(|value| value.to_str().ok());
            for hop in hops.flat_map(|value| value.rsplit(',')) {
                // Entries before one that is no address may be forged.
                let Some(address) = hop_address(hop.trim()) else { break };
                client = address;
                if !proxies.has(address) {
                    break;
                }
            }
        }
        client
    }

    /// The address in the request, or the one that a trusted proxy says its client has asked.
    pub(super) fn asked_url(&self, headers: &HeaderMap) -> Option<PublicUrl> {
        // Of several proxies the first one was asked by the client.
        let forwarded = |name| text(headers, name).and_then(|value| value.split(',').next()).map(str::trim);
        let (mut scheme, mut host) = ("http", text(headers, header::HOST));
        if self.trusted {
            scheme = forwarded(FORWARDED_PROTO).unwrap_or(scheme);
            host = forwarded(FORWARDED_HOST).or(host);
        }
        let host = host?.parse::<Authority>().ok()?;
        format!("{scheme}://{host}").parse().ok()
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let alone = hop.parse::<IpAddr>().ok();
    let in_brackets = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    alone.or_else(in_brackets).or_else(with_port).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn proxies() -> TrustedProxies {
        let networks = ["10.0.0.0/8", "::1"];
        TrustedProxies(networks.map(|text| TrustedProxies::parse_network(text).expect("a network")).into())
    }

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    fn peer(address: &str) -> Peer {
        Peer::new(address.parse().expect("an address"), &proxies())
    }

    #[test]
    fn the_client_behind_trusted_proxies_is_the_last_address_that_is_not_theirs() {
        for (peer_address, forwarded, expected) in [
            ("10.0.0.1", &["192.0.2.1"][..], "192.0.2.1"),
            ("::ffff:10.0.0.1", &["192.0.2.1:4711"], "192.0.2.1"),
            ("::1", &["198.51.100.9, 192.0.2.1, 10.9.9.9"], "192.0.2.1"),
            ("::1", &["198.51.100.9", "[2001:db8::7]:80,10.9.9.9"], "2001:db8::7"),
            ("10.0.0.1", &["198.51.100.9, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("192.0.2.77", &["198.51.100.9"], "192.0.2.77"),
        ] {
            let fields: Vec<_> = forwarded.iter().map(|value| (FORWARDED_FOR, *value)).collect();
            let client = peer(peer_address).client(&headers(&fields), &proxies());
            assert_eq!(client.to_string(), expected, "{peer_address} {forwarded:?}");
        }
    }

    #[test]
    fn the_address_that_was_asked_is_believed_of_a_trusted_proxy_alone() {
        let fields = [
            (header::HOST, "inside:8080"),
            (FORWARDED_PROTO, "https"),
            (FORWARDED_HOST, "cache.example.org, inside"),
        ];
        let url = |peer: Peer, fields: &[(HeaderName, &str)]| {
            peer.asked_url(&headers(fields)).map(|url| url.to_string())
        };
        assert_eq!(url(peer("10.0.0.1"), &fields).as_deref(), Some("https://cache.example.org"));
        assert_eq!(url(peer("192.0.2.1"), &fields).as_deref(), Some("http://inside:8080"));
        assert_eq!(url(peer("192.0.2.1"), &[]), None);
        for wrong in ["a b", "user@host", "host/path", "", "a\"b"] {
            assert_eq!(url(peer("192.0.2.1"), &[(header::HOST, wrong)]), None, "{wrong:?}");
        }
        assert_eq!(url(peer("10.0.0.1"), &[(header::HOST, "h"), (FORWARDED_PROTO, "javascript")]), None);
    }

    #[test]
    fn a_public_url_is_an_address_without_a_secret() {
        for (text, url) in [
            ("https://cache.example.org/", "https://cache.example.org"),
            ("http://[2001:db8::1]:8080/nix", "http://[2001:db8::1]:8080/nix"),
        ] {
            assert_eq!(text.parse::<PublicUrl>().expect("a URL").to_string(), url);
        }
        for text in
            ["cache.example.org", "ftp://x", "http://", "https://a:b@x", "http://x?y", "http://x#y", "a b"]
        {
            assert!(text.parse::<PublicUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_listener_of_all_addresses_is_told_by_the_name_of_its_machine() {
        for (listen, url) in [
            ("0.0.0.0:8080", "http://builder:8080"),
            ("[::]:80", "http://builder:80"),
            ("[::ffff:0.0.0.0]:80", "http://builder:80"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            let listen = listen.parse().expect("an address");
            assert_eq!(PublicUrl::of_listener(listen, "builder").to_string(), url);
        }
    }
}
