//! Checks of the Nix of this machine as a client of a server.

use std::collections::BTreeMap;
use std::path::Path;

use super::finding::{DoctorReport, FindingLevel};
use crate::cli::use_server::command_to_write;
use crate::nix::Environment;
use crate::remote::{Remote, ServerAddress, UserTrust, programs};

/// Seconds for which Nix remembers a 404 unless its settings say otherwise.
const NEGATIVE_TTL: &str = "3600";

/// Looks at the server, and at Nix's settings for it. Advice repeats the file of the token.
pub(super) async fn check(
    remote: &Remote,
    token_file: Option<&Path>,
    report: &mut DoctorReport,
) -> anyhow::Result<()> {
    let url = remote.shown().to_owned();
    let to_write = &command_to_write(&url, token_file);
    let identity = match remote.identity().await {
        Ok(identity) => identity,
        Err(error) => {
            report.add(
                FindingLevel::Error,
                "server",
                format!("{error}"),
                "nothing can be fetched from it",
                "see if the URL and the token are right, and if the server runs",
            );
            return Ok(());
        }
    };
    report.ok("server", format!("{url} is Ondine {}", identity.version));
    let nix = programs::settings().await?;
    let own = Environment::from_env()?.store_dir.to_string();
    if identity.store_dir == own {
        report.ok("store", format!("both have the store directory {own}"));
    } else {
        report.add(
            FindingLevel::Error,
            "store",
            format!("the server has paths of {}, and this machine's store is {own}", identity.store_dir),
            "Nix uses no path of another store directory",
            "use a server for this store directory",
        );
    }
    lines(&url, &identity.public_keys, to_write, &nix, report);
    trust(to_write, &nix, report).await;
    login(remote, to_write, &nix, report);
    match nix.get("always-allow-substitutes").map(String::as_str) {
        Some("true") => report.ok("substitutes", "every derivation may be fetched"),
        Some(_) => report.add(
            FindingLevel::Note,
            "substitutes",
            "always-allow-substitutes is false",
            "derivations with allowSubstitutes = false are built here, though the server has them",
            format!("{to_write}, or always-allow-substitutes = true in nix.conf"),
        ),
        None => report.ok("substitutes", "this release of Nix has no always-allow-substitutes"),
    }
    let ttl = nix.get("narinfo-cache-negative-ttl").map_or(NEGATIVE_TTL, String::as_str);
    match ttl {
        "0" => report.ok("misses", "a 404 is not remembered"),
        ttl => report.add(
            FindingLevel::Note,
            "misses",
            format!("Nix remembers a 404 for {ttl} s"),
            "a path that the server gained since then is built here, or said to be missing",
            "add --option narinfo-cache-negative-ttl 0 to a command that is to ask anew",
        ),
    }
    Ok(())
}

fn lines(
    url: &str,
    keys: &[String],
    to_write: &str,
    nix: &BTreeMap<String, String>,
    report: &mut DoctorReport,
) {
    let has = |setting: &str, wanted: &str| {
        let items = nix.get(setting).map(String::as_str).unwrap_or_default();
        items.split_whitespace().any(|item| item.trim_end_matches('/') == wanted)
    };
    let advice = format!("{to_write} (with --system where Nix does not trust this user)");
    if has("substituters", url) {
        report.ok("substituters", format!("{url} is a substituter"));
    } else {
        let what = format!("{url} is no substituter");
        report.add(FindingLevel::Error, "substituters", what, "Nix does not ask the server", &*advice);
    }
    if keys.iter().any(|key| has("trusted-public-keys", key)) {
        report.ok("keys", "the server's key is trusted");
    } else {
        let why = "Nix refuses everything that the server has signed";
        report.add(FindingLevel::Error, "keys", "the server's key is not trusted", why, advice);
    }
}

async fn trust(to_write: &str, nix: &BTreeMap<String, String>, report: &mut DoctorReport) {
    match programs::trust(nix).await {
        UserTrust::NotTrusted => report.add(
            FindingLevel::Warning,
            "trust",
            "the Nix daemon does not trust this user",
            "it ignores substituters and keys in the user's nix.conf, and such options of a command",
            format!("have an administrator run {to_write} --system, or add the user to trusted-users"),
        ),
        UserTrust::Trusted => report.ok("trust", "Nix trusts this user"),
        UserTrust::Unknown => report.ok("trust", "Nix does not say if it trusts this user"),
    }
}

/// The file from which Nix takes the token.
fn login(remote: &Remote, to_write: &str, nix: &BTreeMap<String, String>, report: &mut DoctorReport) {
    let ServerAddress::Url(url) = remote.address() else { return };
    let file = nix.get("netrc-file").map(Path::new);
    if let Some(file) = file {
        report.private("netrc", file, "who can read it has this machine's access to its caches");
    }
    if !remote.credentials().has_login() {
        return;
    }
    let host = url.host_str().unwrap_or_default();
    let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.windows(2).any(|pair| pair == ["machine", host]) {
        return report.ok("netrc", format!("netrc-file has a login for {host}"));
    }
    report.add(
        FindingLevel::Warning,
        "netrc",
        format!("the file that netrc-file names has no login for {host}, or cannot be read"),
        "this command has a token, but Nix sends none",
        to_write,
    );
}
