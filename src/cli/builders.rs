//! `ondine builders`: the machines that build, and whether anything more is built on one.

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::control::{OutputArgs, ServerArgs, WriteMethod};
use super::screen::{Screen, TableField, Tone};
use crate::http::{BuilderPhase, BuilderStatus};

/// Address of them in the API.
const BUILDERS: &str = "/api/v1/builders";
/// Characters of an error that are shown.
const ERROR_CHARS_MAX: usize = 300;

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BuildersCommand {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Has nothing more built on a builder; what runs there goes on
    Drain(BuilderName),
    /// Uses a drained builder again
    Resume(BuilderName),
}

#[derive(Args, Debug)]
struct BuilderName {
    /// Name of the builder
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl BuildersCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.change {
            Some(Change::Drain(builder)) => builder.post("drain"),
            Some(Change::Resume(builder)) => builder.post("resume"),
            None => {
                let shown = |list: &Vec<BuilderStatus>, screen| builders(list, screen);
                self.server.open()?.show(BUILDERS, self.output, shown)
            }
        }
    }
}

impl BuilderName {
    fn post(self, verb: &str) -> anyhow::Result<ExitCode> {
        let path = format!("{BUILDERS}/{}/{verb}", utf8_percent_encode(&self.name, NON_ALPHANUMERIC));
        self.server.open()?.follow(WriteMethod::Post, &path, self.output)
    }
}

/// A row for each builder.
pub(super) fn builders(builders: &[BuilderStatus], screen: Screen) -> String {
    let rows = builders.iter().map(|builder| {
        let (state, tone) = match builder.state {
            BuilderPhase::Up => ("up", Tone::Good),
            BuilderPhase::Connecting => ("connecting", Tone::Warning),
            BuilderPhase::Resting => ("resting", Tone::Bad),
            BuilderPhase::Draining => ("draining", Tone::Warning),
            BuilderPhase::Drained => ("drained", Tone::Warning),
        };
        let running: Vec<&str> = builder.running.iter().map(|build| build.derivation.as_str()).collect();
        vec![
            TableField::text(&builder.name),
            TableField::text(state).tone(tone),
            TableField::text(screen.moment(builder.since)).tone(Tone::Dim),
            TableField::number(format!("{}/{}", running.len(), builder.slots)),
            TableField::number(builder.built),
            TableField::number(builder.failed),
            TableField::number(builder.lost),
            TableField::number(builder.disagreements),
            TableField::text(builder.nix_version.as_deref().unwrap_or_default()),
            TableField::short(&running.join(" "), ERROR_CHARS_MAX),
            TableField::short(trouble(builder), ERROR_CHARS_MAX),
        ]
    });
    let headings = [
        "BUILDER",
        "STATE",
        "SINCE",
        "LOAD",
        "BUILT",
        "FAILED",
        "LOST",
        "DISAGREED",
        "NIX",
        "BUILDING",
        "LAST TROUBLE",
    ];
    screen.table(&headings, rows)
}

/// Reason why a builder was last lost, or else its latest disagreement with another one.
fn trouble(builder: &BuilderStatus) -> &str {
    builder.last_error.as_deref().or(builder.last_disagreement.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_builder_has_its_state_load_builds_and_last_error() {
        let list = r#"[{ "name": "far", "address": "nix@far", "state": "resting", "since": 0, "systems": [],
            "features": [], "mandatory_features": [], "slots": 4, "speed": 1.0, "weight": 1,
            "running": [{ "derivation": "a.drv", "seconds": 61, "request": 1, "prebuild": false }],
            "built": 7, "failed": 1, "lost": 2, "last_error": "Connection refused", "last_error_at": 1,
            "disagreements": 3, "last_disagreement": "b.drv failed on far, and was built on near",
            "nix_version": "2.34.8" }]"#;
        let list: Vec<BuilderStatus> = serde_json::from_str(list).expect("JSON");
        let table = builders(&list, Screen::default());
        let expected = ["far", "resting", "1/4", "7", "1", "2", "3", "2.34.8", "a.drv", "Connection refused"];
        let line = table.lines().nth(1).expect("a row");
        assert!(expected.iter().all(|word| line.contains(word)), "{table}");
    }
}
