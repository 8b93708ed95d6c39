//! `ondine pin`, `unpin`, `pins`, `gc` and `fsck`: retention and verification of NARs by a running server.

use std::process::ExitCode;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::control::{OutputArgs, ServerArgs, WriteMethod};
use super::screen::{Screen, TableField, Tone};
use crate::config::bytes;
use crate::http::{CheckRequest, CollectRequest, PinView};

#[derive(Args, Debug)]
pub(super) struct Pin {
    /// Store path, its hash, or attribute of a package set (`hello`, or `SET/hello` where several sets have
    /// it), whose current outputs are pinned
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    what: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args, Debug)]
pub(super) struct PinList {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args, Debug)]
pub(super) struct Unpin {
    /// Store path, its hash, or attribute that was pinned
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    what: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
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
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
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
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl Pin {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.server.open()?.follow(WriteMethod::Post, &pin_path(&self.what), self.output)
    }
}

impl PinList {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let shown = |list: &Vec<PinView>, screen| table(list, screen);
        self.server.open()?.show("/api/v1/pins", self.output, shown)
    }
}

/// A row for each pin.
fn table(pins: &[PinView], screen: Screen) -> String {
    if pins.is_empty() {
        return "Nothing is pinned.\n".to_owned();
    }
    let rows = pins.iter().map(|PinView { name, hash, path, pinned_at }| {
        let holds = match path {
            Some(path) => TableField::text(path),
            None => TableField::text(format!("{hash}, not served yet")).tone(Tone::Warning),
        };
        vec![TableField::text(screen.moment(*pinned_at)).tone(Tone::Dim), TableField::text(name), holds]
    });
    screen.table(&["PINNED AT", "NAME", "HOLDS"], rows)
}

impl Unpin {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.server.open()?.follow(WriteMethod::Delete, &pin_path(&self.what), self.output)
    }
}

impl Gc {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let arguments = CollectRequest { max_bytes: self.max_bytes, dry_run: self.dry_run };
        self.server.open()?.post("/api/v1/gc", &arguments, self.output)
    }
}

impl Fsck {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let arguments = CheckRequest { verify: self.verify, repair: self.repair };
        self.server.open()?.post("/api/v1/fsck", &arguments, self.output)
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
        assert_eq!(table(&pins, Screen::default()), expected);
        assert_eq!(table(&[], Screen::default()), "Nothing is pinned.\n");
    }
}
