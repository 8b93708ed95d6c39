//! Results of builds: copied from the server to the local store, held by symlinks, and printed as `nix build`
//! does.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::nix::Environment;
use crate::remote::programs::{Messages, output};
use crate::remote::{Remote, RemoteItem, ServerAddress, nix_conf};

/// Where symlinks to results are made.
pub(super) enum Links<'a> {
    None,
    /// This name, with a number and an output's name where there are several.
    Named(&'a Path),
}

/// What was built for one item.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BuiltItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    drv_path: Option<String>,
    outputs: BTreeMap<String, String>,
}

/// Results, in the order in which they were asked for.
pub(super) struct BuildResults(Vec<BuiltItem>);

/// Copies the outputs of the items, which are served, to the local store.
pub(super) async fn fetch(remote: &Remote, items: &[RemoteItem]) -> anyhow::Result<BuildResults> {
    let store_dir = Environment::from_env()?.store_dir;
    let absolute =
        |path: &str| if path.starts_with('/') { path.to_owned() } else { format!("{store_dir}/{path}") };
    let mut results = Vec::new();
    for item in items {
        let outputs = item.outputs.iter().filter_map(|output| {
            let path = absolute(output.path.as_deref()?);
            Some((output.name.clone().unwrap_or_else(|| "out".to_owned()), path))
        });
        let drv_path = item.derivation.as_deref().map(absolute);
        results.push(BuiltItem { drv_path, outputs: outputs.collect() });
    }
    let results = BuildResults(results);
    match remote.address() {
        ServerAddress::Url(_) => copy(remote, &results).await?,
        // The server's store is this machine's, and holds what was built here.
        ServerAddress::Socket(_) => {
            let words = ["--realise"].into_iter().chain(results.all());
            output("nix-store", words, Messages::Kept).await.context(
                "the results are not in the store of this machine; name the server with --server URL",
            )?;
        }
    }
    Ok(results)
}

async fn copy(remote: &Remote, results: &BuildResults) -> anyhow::Result<()> {
    let keys = remote.identity().await?.public_keys.join(" ");
    let url = remote.shown();
    let mut words = vec!["copy", "--from", url, "--option", "extra-trusted-public-keys", &keys];
    // The client may have been told an hour ago that there was none.
    words.extend(["--option", "narinfo-cache-negative-ttl", "0"]);
    // Nix takes the token from a file, which nobody else can read.
    let mut netrc = tempfile::NamedTempFile::new()?;
    let netrc_path = netrc.path().to_string_lossy().into_owned();
    if let (ServerAddress::Url(server), Some(password)) = (remote.address(), remote.credentials().password())
    {
        let text =
            nix_conf::netrc_with("", server.host_str().unwrap_or_default(), password).unwrap_or_default();
        netrc.write_all(text.as_bytes())?;
        words.extend(["--option", "netrc-file", &netrc_path]);
    }
    words.extend(results.all());
    if let Err(error) = output("nix", words, Messages::Kept).await {
        let text = error.to_string();
        if text.contains("lacks a") && text.contains("signature") {
            bail!("{text}\nThe Nix daemon does not trust the server's key: run ondine use {url}");
        }
        return Err(anyhow::Error::new(error).context("the results are built, but cannot be fetched"));
    }
    Ok(())
}

impl BuildResults {
    fn all(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|item| item.outputs.values().map(String::as_str))
    }

    /// Makes symlinks, which hold the results against garbage collection.
    pub(super) async fn link(&self, links: Links<'_>) -> anyhow::Result<()> {
        let Links::Named(name) = links else { return Ok(()) };
        for (number, item) in self.0.iter().enumerate() {
            for (output_name, path) in &item.outputs {
                let mut link = name.as_os_str().to_owned();
                if number > 0 {
                    link.push(format!("-{number}"));
                }
                if output_name != "out" {
                    link.push(format!("-{output_name}"));
                }
                let link = link.to_string_lossy().into_owned();
                let words = ["--realise", path, "--add-root", &link, "--indirect"];
                output("nix-store", words, Messages::Kept).await?;
            }
        }
        Ok(())
    }

    /// A path in each line.
    pub(super) fn paths(&self) -> String {
        self.all().map(|path| format!("{path}\n")).collect()
    }

    /// The form of `nix build --json`.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(&self.0)? + "\n")
    }
}
