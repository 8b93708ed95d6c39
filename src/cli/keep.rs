//! `ondine pin`, `unpin`, `gc` and `fsck`: what is kept, asked of and told to a running server.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{StateDir, control};

#[derive(Args, Debug)]
pub(super) struct Pin {
    /// A store path, its hash, or an attribute of a package set, of which the current outputs are pinned [default: list all pins]
    what: Option<String>,
    #[command(flatten)]
    state_dir: StateDir,
}

#[derive(Args, Debug)]
pub(super) struct Unpin {
    /// A store path, its hash, or the attribute that was pinned
    what: String,
    #[command(flatten)]
    state_dir: StateDir,
}

#[derive(Args, Debug)]
pub(super) struct Gc {
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
    /// Bytes of NARs that may stay [default: the server's max-nars-bytes]
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    #[command(flatten)]
    state_dir: StateDir,
}

#[derive(Args, Debug)]
pub(super) struct Fsck {
    /// Read every file and check its hashes, too
    #[arg(long)]
    verify: bool,
    /// Remove what is wrong, so that it is packed, fetched or built again
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    state_dir: StateDir,
}

impl Pin {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let state_dir = self.state_dir.path()?;
        match self.what {
            Some(what) => control::follow(control::Do::Post, &state_dir, &pin_path(&what)),
            None => {
                print!("{}", control::get(&state_dir, "/api/v1/pins")?);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Unpin {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        control::follow(control::Do::Delete, &self.state_dir.path()?, &pin_path(&self.what))
    }
}

impl Gc {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let max_bytes = self.max_bytes.map(|bytes| format!("max-bytes={bytes}"));
        let options = [self.dry_run.then(|| "dry-run".to_owned()), max_bytes];
        post(&self.state_dir.path()?, "gc", options.into_iter().flatten())
    }
}

impl Fsck {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let options = [self.verify.then(|| "verify".to_owned()), self.repair.then(|| "repair".to_owned())];
        post(&self.state_dir.path()?, "fsck", options.into_iter().flatten())
    }
}

fn post(state_dir: &Path, what: &str, options: impl Iterator<Item = String>) -> anyhow::Result<ExitCode> {
    let options = options.collect::<Vec<_>>().join("&");
    control::follow(control::Do::Post, state_dir, &format!("/api/v1/{what}?{options}"))
}

fn pin_path(what: &str) -> String {
    format!("/api/v1/pins/{}", utf8_percent_encode(what, NON_ALPHANUMERIC))
}
