//! Results of builds: copied from the server to the local store, held by symlinks, and printed as `nix build`
//! does.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;

use super::installables::RemoteTarget;
use crate::nix::Environment;
use crate::remote::programs::{Messages, output};
use crate::remote::{Remote, ServerAddress, nix_conf};

/// The form of `nix build --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BuiltItem<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    drv_path: Option<String>,
    outputs: BTreeMap<&'a str, String>,
}

/// The outputs, in the order of the targets.
fn all(targets: &[RemoteTarget]) -> anyhow::Result<Vec<String>> {
    let store_dir = Environment::from_env()?.store_dir;
    let paths = targets.iter().flat_map(|target| target.outputs.values());
    Ok(paths.map(|path| path.in_dir(&store_dir)).collect())
}

/// Copies the outputs, which are served, to the local store.
pub(super) async fn fetch(remote: &Remote, targets: &[RemoteTarget]) -> anyhow::Result<()> {
    let paths = all(targets)?;
    let paths = paths.iter().map(String::as_str);
    let ServerAddress::Url(server) = remote.address() else {
        // The server's store is this machine's, and holds what was built here.
        let words = ["--realise"].into_iter().chain(paths);
        let held = output("nix-store", words, Messages::Kept).await;
        return held
            .map(drop)
            .context("the results are not in the store of this machine: name the server with --server URL");
    };
    let keys = remote.identity().await?.public_keys.join(" ");
    let url = remote.shown();
    let mut words = vec!["copy", "--from", url, "--option", "extra-trusted-public-keys", &keys];
    // Nix may have been told within the last hour that there was none.
    words.extend(["--option", "narinfo-cache-negative-ttl", "0"]);
    // Nix takes the token from a file, which nobody else can read.
    let mut netrc = tempfile::NamedTempFile::new()?;
    let netrc_path = netrc.path().to_string_lossy().into_owned();
    if let Some(password) = remote.credentials().password() {
        let text = nix_conf::netrc_with("", server.host_str().unwrap_or_default(), password);
        netrc.write_all(text.unwrap_or_default().as_bytes())?;
        words.extend(["--option", "netrc-file", &netrc_path]);
    }
    words.extend(paths);
    if let Err(error) = output("nix", words, Messages::Kept).await {
        let text = error.to_string();
        if text.contains("lacks a") && text.contains("signature") {
            bail!("{text}\nThe Nix daemon does not trust the server's key: run ondine use {url}");
        }
        return Err(anyhow::Error::new(error).context("the results are built, but cannot be fetched"));
    }
    Ok(())
}

/// Makes symlinks of this name, which hold the results against garbage collection: with a number from the
/// second target on, and the name of an output that is not `out`.
pub(super) async fn link(targets: &[RemoteTarget], name: &Path) -> anyhow::Result<()> {
    let store_dir = Environment::from_env()?.store_dir;
    for (number, target) in targets.iter().enumerate() {
        for (output_name, path) in &target.outputs {
            let mut link = name.to_string_lossy().into_owned();
            if number > 0 {
                link += &format!("-{number}");
            }
            if output_name != "out" {
                link += &format!("-{output_name}");
            }
            let path = path.in_dir(&store_dir);
            let words = ["--realise", &path, "--add-root", &link, "--indirect"];
            output("nix-store", words, Messages::Kept).await?;
        }
    }
    Ok(())
}

/// A path in each line.
pub(super) fn paths(targets: &[RemoteTarget]) -> anyhow::Result<String> {
    Ok(all(targets)?.iter().map(|path| format!("{path}\n")).collect())
}

/// The derivations and outputs as JSON.
pub(super) fn json(targets: &[RemoteTarget]) -> anyhow::Result<String> {
    let store_dir = Environment::from_env()?.store_dir;
    let items = targets.iter().map(|target| BuiltItem {
        drv_path: target.drv.as_ref().map(|drv| drv.in_dir(&store_dir)),
        outputs: target.outputs.iter().map(|(name, path)| (&**name, path.in_dir(&store_dir))).collect(),
    });
    Ok(serde_json::to_string(&items.collect::<Vec<_>>())? + "\n")
}
