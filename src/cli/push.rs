//! `ondine push`: uploads store paths, or derivations with all that their builds need.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::control::ServerArgs;
use crate::nix::Environment;
use crate::remote::{LocalClosure, Remote, UploadCounts, upload};

#[derive(Args, Debug)]
pub(super) struct Push {
    /// Store paths, or symlinks to some, such as ./result
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// Uploads the derivations that make the paths, with all that their builds need, instead of the paths
    #[arg(long)]
    derivation: bool,
    #[command(flatten)]
    server: ServerArgs,
}

impl Push {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let remote = self.server.connect()?;
        let paths = self.paths.iter().map(|path| resolved(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let counts = super::runtime()?.block_on(push(&remote, &paths, self.derivation))?;
        let UploadCounts { paths, sent, bytes } = counts;
        println!(
            "uploaded {sent} of {paths} paths ({}); the server had the others",
            bytesize::ByteSize(bytes).display().iec()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// A path in the store, from one or a symlink to one.
fn resolved(path: &str) -> anyhow::Result<String> {
    let store_dir = Environment::from_env()?.store_dir.to_string();
    if Path::new(path).starts_with(&store_dir) {
        return Ok(path.to_owned());
    }
    let found = Path::new(path).canonicalize().with_context(|| format!("{path} cannot be read"))?;
    if !found.starts_with(&store_dir) {
        bail!("{path} is not in the store {store_dir}: expected a store path, or a symlink to one");
    }
    Ok(found.to_string_lossy().into_owned())
}

/// Uploads the closure of the paths.
///
/// # Errors
/// When one is not valid here, or the server does not take it.
pub(super) async fn push(
    remote: &Remote,
    paths: &[String],
    derivation: bool,
) -> anyhow::Result<UploadCounts> {
    let store_dir = Environment::from_env()?.store_dir;
    let closure = LocalClosure::of(&store_dir, paths, derivation).await?;
    let total = closure.paths().len();
    let is_shown = io::stderr().is_terminal();
    let show = |counts: UploadCounts| {
        if is_shown {
            eprint!("\r\u{1b}[Kuploaded {} of at most {total} paths", counts.sent);
            let _ = io::stderr().flush();
        }
    };
    let uploaded = upload(remote, &store_dir, closure, show).await;
    if is_shown {
        eprint!("\r\u{1b}[K");
    }
    Ok(uploaded?)
}
