//! `ondine upstreams`: the other caches of a server and their health.

use std::process::ExitCode;

use clap::Args;

use super::control::{OutputArgs, ServerArgs};
use super::screen::{Screen, TableField, Tone, size};
use crate::http::{UpstreamHealth, UpstreamMode, UpstreamStatus};

/// Characters of a failure in a table.
const FAILURE_CHARS_MAX: usize = 200;

#[derive(Args, Debug)]
pub(super) struct UpstreamsCommand {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl UpstreamsCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let shown = |list: &Vec<UpstreamStatus>, screen: Screen| match list.is_empty() {
            true => "There is no upstream ([[upstream]] in the settings).\n".to_owned(),
            false => upstreams(list, screen),
        };
        self.server.open()?.show("/api/v1/upstreams", self.output, shown)
    }
}

/// A row for each upstream.
pub(super) fn upstreams(upstreams: &[UpstreamStatus], screen: Screen) -> String {
    let rows = upstreams.iter().map(|upstream| {
        let (health, tone) = match upstream.health {
            UpstreamHealth::Answers => ("answers", Tone::Good),
            UpstreamHealth::Failing => ("failing", Tone::Warning),
            UpstreamHealth::Resting => ("resting", Tone::Bad),
        };
        let mode = match upstream.mode {
            UpstreamMode::Cache => "cache",
            UpstreamMode::Redirect => "redirect",
            UpstreamMode::BuildOnly => "build-only",
        };
        vec![
            TableField::text(&upstream.name),
            TableField::number(upstream.priority),
            TableField::text(mode),
            TableField::text(health).tone(tone),
            TableField::number(upstream.found),
            TableField::number(upstream.missing),
            TableField::number(upstream.refused),
            TableField::number(upstream.failed),
            TableField::number(size(upstream.fetched_bytes)),
            TableField::short(upstream.failure.as_deref().unwrap_or_default(), FAILURE_CHARS_MAX),
        ]
    });
    let headings = [
        "UPSTREAM", "PRIORITY", "MODE", "HEALTH", "FOUND", "MISSING", "REFUSED", "FAILED", "FETCHED",
        "FAILURE",
    ];
    screen.table(&headings, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_listed_with_their_health_and_counts() {
        let list = r#"[{"name": "https://a", "priority": 40, "mode": "build-only", "health": "resting", "failure": "no route",
            "public_keys": [], "found": 1, "missing": 2, "refused": 3, "failed": 4, "fetched_bytes": 1024}]"#;
        let list: Vec<UpstreamStatus> = serde_json::from_str(list).expect("JSON");
        let expected = "\
UPSTREAM   PRIORITY  MODE        HEALTH   FOUND  MISSING  REFUSED  FAILED  FETCHED  FAILURE
https://a        40  build-only  resting      1        2        3       4  1.0 KiB  no route
";
        assert_eq!(upstreams(&list, Screen::default()), expected);
    }
}
