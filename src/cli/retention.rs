//! `ondine pin`, `unpin`, `gc` and `fsck`: retention and verification of NARs by a running server.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::StateDir;
use super::control::{self, OTHER_VERSION, WriteMethod};
use crate::config::bytes;
use crate::escape::Line;
use crate::http::{CheckRequest, CollectRequest, PinView};

#[derive(Args, Debug)]
pub(super) struct Pin {
    /// Store path, its hash, or attribute of a package set (`hello`, or `SET/hello` where several sets have
    /// it), whose current outputs are pinned [default: list all pins]
    what: Option<String>,
    #[command(flatten)]
    state_dir: StateDir,
}

#[derive(Args, Debug)]
pub(super) struct Unpin {
    /// Store path, its hash, or attribute that was pinned
    what: String,
    #[command(flatten)]
    state_dir: StateDir,
}

#[derive(Args, Debug)]
pub(super) struct Gc {
    /// Shows what would be evicted, and evicts nothing
    #[arg(long)]
    dry_run: bool,
    /// Size of NARs that may remain [default: the server's max-nar-store-bytes]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    max_bytes: Option<u64>,
    #[command(flatten)]
    state_dir: StateDir,
}

#[derive(Args, Debug)]
pub(super) struct Fsck {
    /// Reads every file and verifies its hashes, too
    #[arg(long)]
    verify: bool,
    /// Removes corrupt files, so that they are packed, downloaded or built again
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    state_dir: StateDir,
}

impl Pin {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let state_dir = self.state_dir.path()?;
        match self.what {
            Some(what) => control::follow(WriteMethod::Post, &state_dir, &pin_path(&what)),
            None => {
                let pins = control::get(&state_dir, "/api/v1/pins")?;
                let pins: Vec<PinView> = serde_json::from_str(&pins).context(OTHER_VERSION)?;
                print!("{}", table(&pins));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// A line for each pin: its time, its name and its path.
fn table(pins: &[PinView]) -> String {
    if pins.is_empty() {
        return "nothing is pinned\n".to_owned();
    }
    let width = pins.iter().map(|pin| Line(&pin.name).to_string().chars().count()).max().unwrap_or_default();
    let mut table = format!("{:20}  {:width$}  HOLDS\n", "PINNED AT", "NAME");
    for PinView { name, hash, path, pinned_at } in pins {
        let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(*pinned_at));
        let name = Line(name).to_string();
        let holds = match path {
            Some(path) => path.clone(),
            None => format!("{hash}, not served yet"),
        };
        table += &format!("{at}  {name:width$}  {holds}\n");
    }
    table
}

impl Unpin {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        control::follow(WriteMethod::Delete, &self.state_dir.path()?, &pin_path(&self.what))
    }
}

impl Gc {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let arguments = CollectRequest { max_bytes: self.max_bytes, dry_run: self.dry_run };
        control::post(&self.state_dir.path()?, "/api/v1/gc", &arguments)
    }
}

impl Fsck {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let arguments = CheckRequest { verify: self.verify, repair: self.repair };
        control::post(&self.state_dir.path()?, "/api/v1/fsck", &arguments)
    }
}

fn pin_path(what: &str) -> String {
    format!("/api/v1/pins/{}", utf8_percent_encode(what, NON_ALPHANUMERIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_listed_in_columns_with_the_time_and_what_each_holds() {
        let pin = |name: &str, path: Option<&str>| PinView {
            name: name.to_owned(),
            hash: "0123".to_owned(),
            path: path.map(str::to_owned),
            pinned_at: 86_400,
        };
        let pins = [pin("hello", Some("0123-hello-2.12")), pin("0123", None)];
        let expected = "\
PINNED AT             NAME   HOLDS
1970-01-02T00:00:00Z  hello  0123-hello-2.12
1970-01-02T00:00:00Z  0123   0123, not served yet
";
        assert_eq!(table(&pins), expected);
        assert_eq!(table(&[]), "nothing is pinned\n");
    }
}
