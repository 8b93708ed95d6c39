//! Upstreams as they are written: tables of the file, or the short form of a flag, become settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use narinfo::PublicKey;
use serde::Deserialize;

use super::Error;
use super::bounds::{check, within, wrong};
use super::values::{written_duration, written_number};
use crate::serve::host_name;
use crate::upstream::{CacheSettings, Credentials, Mode, without_secrets};

/// The priority that Nix takes a cache to have that does not say.
const PRIORITY_DEFAULT: u32 = 50;

/// One upstream, none of it checked beyond its type.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, expecting = "a table with url and public-keys")]
pub(super) struct WrittenUpstream {
    url: String,
    #[serde(default, alias = "public_keys")]
    public_keys: Vec<String>,
    #[serde(default, deserialize_with = "written_number")]
    priority: Option<u32>,
    mode: Option<Mode>,
    #[serde(alias = "connect_timeout", default, deserialize_with = "written_duration")]
    connect_timeout: Option<Duration>,
    #[serde(alias = "stall_timeout", default, deserialize_with = "written_duration")]
    stall_timeout: Option<Duration>,
    #[serde(alias = "credentials_file")]
    credentials_file: Option<PathBuf>,
    #[serde(alias = "private_targets")]
    private_targets: Option<bool>,
}

/// `URL KEY KEY…`, as a flag has it.
impl FromStr for WrittenUpstream {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split_whitespace().map(str::to_owned);
        let url = words.next().unwrap_or_default();
        Ok(Self { url, public_keys: words.collect(), ..Self::default() })
    }
}

/// The settings of one upstream of a server that listens there.
pub(super) fn resolve(written: WrittenUpstream, listen: SocketAddr) -> Result<CacheSettings, Error> {
    let seconds = Duration::from_secs;
    let fits = |url: &reqwest::Url| match url.scheme() {
        "http" | "https" => url.has_host() && url.fragment().is_none(),
        "file" => url.to_file_path().is_ok() && url.query().is_none() && url.fragment().is_none(),
        _ => false,
    };
    let Some(mut url) = written.url.parse::<reqwest::Url>().ok().filter(fits) else {
        return Err(wrong(
            "upstream url",
            without_secrets(&written.url),
            "http://HOST…, https://HOST… or file:///PATH is needed",
        ));
    };
    let credentials = Credentials::take_from(&mut url);
    check(
        "upstream url",
        &url,
        !is_own(url.as_str(), listen),
        "another cache than this server itself is needed",
    )?;
    check(
        "upstream credentials-file",
        written.credentials_file.as_deref().unwrap_or(Path::new("")).display(),
        written.credentials_file.is_none() || (!credentials.has_login() && url.scheme() != "file"),
        "it is for an http or https url that has no user or password itself",
    )?;
    let mode = written.mode.unwrap_or_default();
    let mut public_keys = Vec::new();
    for key in &written.public_keys {
        let parsed = key.parse::<PublicKey>();
        public_keys.push(
            parsed.map_err(|_| wrong("upstream public-keys", key, "a public key is written NAME:BASE64"))?,
        );
    }
    check(
        "upstream url",
        &url,
        mode == Mode::BuildOnly || !public_keys.is_empty(),
        "it needs public-keys: only what one of them has signed is served",
    )?;
    check(
        "upstream mode",
        "redirect",
        mode != Mode::Redirect || url.scheme() != "file",
        "clients can only be sent to http or https addresses",
    )?;
    let connect_timeout = written.connect_timeout.unwrap_or(seconds(5));
    within(
        "upstream connect-timeout",
        connect_timeout,
        Duration::from_millis(100),
        seconds(60),
        "100ms to 60s",
    )?;
    let stall_timeout = written.stall_timeout.unwrap_or(seconds(20));
    within(
        "upstream stall-timeout",
        stall_timeout,
        seconds(1),
        seconds(250),
        "1s to 250s, since clients give up after 300 s of silence",
    )?;
    let priority = written.priority.unwrap_or(PRIORITY_DEFAULT);
    Ok(CacheSettings {
        url,
        credentials,
        credentials_file: written.credentials_file,
        public_keys,
        priority,
        mode,
        connect_timeout,
        stall_timeout,
        private_targets: written.private_targets,
    })
}

/// Whether an upstream's URL leads back to the address that we listen on, as far as its text tells.
fn is_own(url: &str, listen: SocketAddr) -> bool {
    let authority =
        url.split_once("://").map_or(url, |(_, rest)| rest).split(['/', '?']).next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port.parse().unwrap_or(80)),
        _ => (authority, 80),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let address = host.parse::<std::net::IpAddr>();
    let ours = host == "localhost"
        || host == host_name().to_ascii_lowercase()
        || address.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified() || ip == listen.ip());
    port == listen.port() && ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_not_its_own_upstream() {
        let listen = SocketAddr::from(([192, 0, 2, 1], 8080));
        let by_name = format!("http://{}:8080", host_name());
        for url in [
            "http://localhost:8080",
            "http://127.0.0.1:8080/x",
            "http://[::1]:8080",
            "http://192.0.2.1:8080?p=1",
            &by_name,
        ] {
            assert!(is_own(url, listen), "{url}");
        }
        for url in
            ["https://cache.nixos.org", "http://localhost:8081", "http://192.0.2.2:8080", "file:///cache"]
        {
            assert!(!is_own(url, listen), "{url}");
        }
    }
}
