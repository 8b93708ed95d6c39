//! Checks of a server's neighbours: its upstreams, its public address, the reverse proxies before it, and
//! builds that would ask the server itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::finding::{DoctorReport, FindingLevel};
use crate::cli::control::ServerSession;
use crate::http::{ServerStatus, UpstreamStatus};
use crate::remote::{Error, Remote, ServerAddress, parse_server};
use crate::serve::Settings;
use crate::upstream::{Credentials, Upstreams, ViaName};

/// Time by which the last line of the server's test lines comes after the first, at least, where nothing
/// withholds them: they are sent within two seconds.
const SPREAD_MIN: Duration = Duration::from_millis(700);

/// Status of the server that runs with this state directory.
pub(super) fn running(settings: &Settings, report: &mut DoctorReport) -> Option<ServerStatus> {
    let status = ServerSession::of_state_dir(settings.state_dir.clone())
        .and_then(|server| server.read("/api/v1/status"));
    match status {
        Ok(status) => {
            let ServerStatus { version, url, .. } = &status;
            report.ok("server", format!("Ondine {version} runs, and tells clients the address {url}"));
            Some(status)
        }
        Err(error) => {
            report.add(
                FindingLevel::Error,
                "server",
                format!("no server can be asked: {error:#}"),
                "its builders, its address and the proxies before it cannot be looked at",
                "start it (systemctl start ondine), and run this as its user or as root, with its --state-dir",
            );
            None
        }
    }
}

/// Asks each upstream, and looks at what the server has had of it.
pub(super) async fn upstreams(settings: &Settings, status: Option<&ServerStatus>, report: &mut DoctorReport) {
    let own = ViaName::of("doctor");
    let upstreams = match Upstreams::new(settings.upstream.clone(), &settings.nix.store_dir, own) {
        Ok(upstreams) => upstreams,
        // The check of the settings has told.
        Err(_) => return,
    };
    let _ = upstreams.answering().await;
    for upstream in upstreams.views().into_iter().map(UpstreamStatus::from) {
        let UpstreamStatus { name, failure, public_keys, .. } = upstream;
        if let Some(failure) = failure {
            report.add(
                FindingLevel::Error,
                "upstream",
                format!("{name} does not answer: {failure}"),
                "what only it has is built here, or is missing",
                "see if the URL is right and can be reached from here: curl URL/nix-cache-info",
            );
            continue;
        }
        let had = status.into_iter().flat_map(|status| &status.upstreams).find(|had| had.name == name);
        if public_keys.is_empty() {
            report.add(
                FindingLevel::Warning,
                "upstream",
                format!("{name} has no public-keys in the settings"),
                "only content-addressed paths are taken from it",
                "add its public key to public-keys",
            );
        } else if had.is_some_and(|had| had.refused > 0 && had.found == 0) {
            report.add(
                FindingLevel::Error,
                "upstream",
                format!("{name} answers, but nothing that it has was accepted"),
                "its paths are not signed by a key in public-keys",
                format!(
                    "compare public-keys with the key that {name} gives; ondine why PATH shows the reason"
                ),
            );
        } else {
            report.ok("upstream", format!("{name} answers"));
        }
    }
}

/// Asks the server at the address that clients are told.
pub(super) async fn public_address(settings: &Settings, status: &ServerStatus, report: &mut DoctorReport) {
    let url = settings.http.public_url.as_ref().map_or_else(|| status.url.clone(), ToString::to_string);
    let remote =
        parse_server(&url).and_then(|url| Remote::new(ServerAddress::Url(url), Credentials::default()));
    let remote = match remote {
        Ok(remote) => remote,
        Err(error) => return unreachable(&url, &error, report),
    };
    match remote.identity().await {
        Ok(identity) if identity.public_keys == status.public_keys => {
            report.ok("address", format!("{url} leads to this server"));
        }
        Ok(_) => {
            return report.add(
                FindingLevel::Error,
                "address",
                format!("{url} leads to another server, which has other keys"),
                "clients that are told this address do not reach this server",
                "set public-url to the address that leads here, or mend the proxy or the name",
            );
        }
        Err(Error::Unauthorized { .. }) => {
            return report.ok("address", format!("{url} leads to an Ondine that wants a token"));
        }
        Err(error) => return unreachable(&url, &error, report),
    }
    buffering(&remote, &url, report).await;
}

fn unreachable(url: &str, error: &Error, report: &mut DoctorReport) {
    report.add(
        FindingLevel::Error,
        "address",
        format!("{url} cannot be used: {error}"),
        "clients are told this address",
        "set public-url to the address that clients use, and see that listen, firewall and proxy let it through",
    );
}

/// Measures if lines about a wait come one by one.
async fn buffering(remote: &Remote, url: &str, report: &mut DoctorReport) {
    let Ok(mut reply) = remote.get("api/v1/wait-lines").await else { return };
    let (mut first, mut last) = (None, Instant::now());
    while let Ok(Some(_)) = reply.next_chunk().await {
        last = Instant::now();
        first.get_or_insert(last);
    }
    let spread = first.map_or(Duration::ZERO, |first| last - first);
    if spread >= SPREAD_MIN {
        return report.ok("proxy", format!("lines about a wait come through {url} as they are sent"));
    }
    report.add(
        FindingLevel::Error,
        "proxy",
        format!("{url} withholds lines about a wait, and sends them together at the end"),
        "a client that hears nothing for 300 s gives up, however well its build goes",
        "switch off buffering in the reverse proxy (docs/operations.md, \"Reverse proxies\")",
    );
}

/// Finds the server among the substituters of its own builds.
pub(super) fn own_loop(status: &ServerStatus, nix: &BTreeMap<String, String>, report: &mut DoctorReport) {
    let own = status.url.trim_end_matches('/');
    let substituters = nix.get("substituters").map(String::as_str).unwrap_or_default();
    if substituters.split_whitespace().any(|url| url.trim_end_matches('/') == own) {
        return report.add(
            FindingLevel::Error,
            "loop",
            format!("{own} is a substituter of this machine's Nix daemon, which builds for it"),
            "a build would ask the server, which waits for that build",
            format!("remove it from substituters in this machine's nix.conf, or write {own}/cached, which builds nothing"),
        );
    }
    report.ok("loop", "the server is no substituter of its own builds");
}
