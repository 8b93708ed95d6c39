//! Keys of an [[upstream]] table, and the short form of a flag.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use narinfo::PublicKey;
use reqwest::Url;

use super::draft::SettingsDraft;
use super::error::{Location, Problem};
use super::raw::{RawContent, RawTable};
use super::setting::{Bool, DefaultValue, List, Number, OneOf, Setting, Text, Time};
use crate::serve::host_name;
use crate::upstream::{CacheSettings, Credentials, Mode};

pub(super) const WITHIN: &str = " in [[upstream]]";

/// Keys of the table.
pub(super) const KEYS: &[Setting<RawUpstream>] = &[
    Setting {
        name: "url",
        doc: "Address of the cache, with http, https or file as its scheme. Another Ondine is best asked at its \
              `/cached/`, where it builds nothing. A user with a password, or a query, is sent with each request and \
              never shown.",
        default: DefaultValue::Required,
        value: &Text {
            placeholder: "URL",
            expected: "http://HOST…, https://HOST… or file:///PATH",
            parse: parse_url,
            set: |to: &mut RawUpstream, url| to.url = Some(url),
        },
    },
    Setting {
        name: "public-keys",
        doc: "Public keys, of which one must have signed what is served from this cache. They may be left out only \
              with `mode = \"build-only\"`.",
        default: DefaultValue::Is(""),
        value: &List {
            placeholder: "KEY",
            expected: "a public key, NAME:BASE64",
            parse: |text| text.parse::<PublicKey>().ok(),
            set: |to: &mut RawUpstream, keys| to.public_keys = keys,
        },
    },
    Setting {
        name: "priority",
        doc: "Priority among upstreams. The upstream with the lowest value that has a path wins. The default is the \
              priority that Nix gives a cache that names none.",
        default: DefaultValue::Is("50"),
        value: &Number {
            accepted: 0..=u32::MAX as i64,
            set: |to: &mut RawUpstream, number| to.priority = number,
        },
    },
    Setting {
        name: "mode",
        doc: "Use of the cache. With `\"cache\"` its paths are downloaded, verified, stored and served; with \
              `\"redirect\"` clients are redirected to it for the NARs, and nothing is stored; with `\"build-only\"` \
              builds may take inputs from it, and clients are served nothing from it.",
        default: DefaultValue::Is("cache"),
        value: &OneOf {
            placeholder: "MODE",
            choices: &[("cache", Mode::Cache), ("redirect", Mode::Redirect), ("build-only", Mode::BuildOnly)],
            set: |to: &mut RawUpstream, mode| to.mode = mode,
        },
    },
    Setting {
        name: "connect-timeout",
        doc: "Time that a connection may take.",
        default: DefaultValue::Is("5s"),
        value: &Time {
            accepted: Duration::from_millis(100)..=Duration::from_secs(60),
            set: |to: &mut RawUpstream, time| to.connect_timeout = time,
        },
    },
    Setting {
        name: "stall-timeout",
        doc: "Time for which a download may receive almost nothing, until it is resumed from another upstream or given \
              up. Clients give up after 300 s of silence.",
        default: DefaultValue::Is("20s"),
        value: &Time {
            accepted: Duration::from_secs(1)..=Duration::from_secs(250),
            set: |to: &mut RawUpstream, time| to.stall_timeout = time,
        },
    },
    Setting {
        name: "credentials-file",
        doc: "File with one line, `USER:PASSWORD` or `Bearer TOKEN`, that is sent with each request. It is an absolute \
              path, or a name in `$CREDENTIALS_DIRECTORY` (systemd's `LoadCredential=`). For an http or https url \
              without a user and password of its own.",
        default: DefaultValue::Described("none"),
        value: &Text {
            placeholder: "FILE",
            expected: "the path of a file",
            parse: |text| Some(PathBuf::from(text)),
            set: |to: &mut RawUpstream, file| to.credentials_file = Some(file),
        },
    },
    Setting {
        name: "private-targets",
        doc: "Permission for its redirects, and for the full addresses in its narinfos, to lead into private networks.",
        default: DefaultValue::Described("true if the upstream itself is in a private network"),
        value: &Bool(|to: &mut RawUpstream, allowed| to.private_targets = Some(allowed)),
    },
];

/// The keys of one table, read.
#[derive(Default)]
pub(super) struct RawUpstream {
    url: Option<Url>,
    public_keys: Vec<PublicKey>,
    priority: u32,
    mode: Mode,
    connect_timeout: Duration,
    stall_timeout: Duration,
    credentials_file: Option<PathBuf>,
    private_targets: Option<bool>,
}

/// Reads `URL KEY KEY…`, as a flag has it.
pub(super) fn short(text: &str, location: &Location) -> Vec<(&'static str, RawContent)> {
    let mut words = text.split_whitespace();
    let url = words.next().unwrap_or_default().to_owned();
    vec![("url", RawContent::Text(url)), ("public-keys", RawContent::list(words, location))]
}

/// Adds an upstream to the settings.
///
/// # Errors
/// Its keys do not go together, or it is this server itself.
pub(super) fn add(to: &mut SettingsDraft, read: RawUpstream, table: &RawTable) -> Result<(), Problem> {
    let refuse = |key, reason: &str| Err(table.refuse(key, WITHIN, reason));
    let RawUpstream { url, public_keys, priority, mode, connect_timeout, stall_timeout, .. } = read;
    let Some(mut url) = url else { return refuse("url", "expected an address") };
    let credentials = Credentials::take_from(&mut url);
    if is_own(url.as_str(), to.settings.listen) {
        return refuse("url", "expected the address of another cache; this is the server's own");
    }
    if read.credentials_file.is_some() && (credentials.has_login() || url.scheme() == "file") {
        return refuse(
            "credentials-file",
            "expected an http or https url that has no user or password itself",
        );
    }
    if mode != Mode::BuildOnly && public_keys.is_empty() {
        return refuse("url", "it needs public-keys: only what one of them has signed is served");
    }
    if mode == Mode::Redirect && url.scheme() == "file" {
        return refuse("mode", "expected an http or https url: clients cannot be redirected to a file");
    }
    to.settings.upstream.caches.push(CacheSettings {
        url,
        credentials,
        credentials_file: read.credentials_file,
        public_keys,
        priority,
        mode,
        connect_timeout,
        stall_timeout,
        private_targets: read.private_targets,
    });
    Ok(())
}

fn parse_url(text: &str) -> Option<Url> {
    let fits = |url: &Url| match url.scheme() {
        "http" | "https" => url.has_host() && url.fragment().is_none(),
        "file" => url.to_file_path().is_ok() && url.query().is_none() && url.fragment().is_none(),
        _ => false,
    };
    text.parse().ok().filter(fits)
}

/// True where an upstream's URL leads back to the address that this server listens on, as far as its text
/// shows.
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
