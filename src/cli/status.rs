//! `ondine status` and `top`: the server at a glance, once or as it goes on.

use std::process::ExitCode;

use clap::Args;

use super::builders::builders;
use super::control::{OutputArgs, ServerArgs, WatchArgs};
use super::queue::queue;
use super::screen::{Screen, Tone, size};
use super::sets::sets;
use super::upstreams::upstreams;
use crate::escape::Line;
use crate::http::ServerStatus;
use crate::plural::counted;

#[derive(Args, Debug)]
pub(super) struct Status {
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args, Debug)]
pub(super) struct Top {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.server.open()?.watch("/api/v1/status", self.output, self.watch, status)
    }
}

impl Top {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.server.open()?.watch("/api/v1/status", self.output, WatchArgs { watch: true }, top)
    }
}

fn status(status: &ServerStatus, screen: Screen) -> String {
    let mut text = head(status, screen);
    text += &format!("\n{}", queue(&status.queue, screen));
    if let Some(package_sets) = status.package_sets.as_ref().filter(|sets| !sets.is_empty()) {
        text += &format!("\n{}", sets(package_sets, screen));
    }
    if !status.upstreams.is_empty() {
        text += &format!("\n{}", upstreams(&status.upstreams, screen));
    }
    // The local Nix daemon alone is no farm.
    if status.builders.iter().any(|builder| builder.address.is_some()) {
        text += &format!("\n{}", builders(&status.builders, screen));
    }
    text
}

/// The queue, below the sizes in one line.
fn top(status: &ServerStatus, screen: Screen) -> String {
    let mut text = format!("{} {}", screen.heading("Ondine"), Line(&status.version));
    if let Some(cache) = &status.cache {
        text += &format!("  {}  {}", counted(cache.paths, "path", "paths"), size(cache.nar_bytes));
        if cache.failures > 0 {
            let failures = counted(cache.failures, "failure", "failures");
            text += &screen.say(&format!("  {failures}"), Tone::Bad);
        }
    }
    text + "\n\n" + &queue(&status.queue, screen)
}

fn head(status: &ServerStatus, screen: Screen) -> String {
    let mut text = format!("{} {}\n", screen.heading("Ondine"), Line(&status.version));
    let mut line = |label: &str, value: String| text += &format!("  {label:10}{value}\n");
    line("address", Line(&status.url).to_string());
    line("store", Line(&status.store_dir).to_string());
    for (at, key) in status.public_keys.iter().enumerate() {
        line(if at == 0 { "keys" } else { "" }, Line(key).to_string());
    }
    if let Some(cache) = &status.cache {
        let bytes = size(cache.nar_bytes);
        let (paths, nars) = (counted(cache.paths, "path", "paths"), counted(cache.nars, "NAR", "NARs"));
        line("cache", format!("{paths}, {nars} with {bytes}"));
        if cache.reproduced + cache.not_reproduced > 0 {
            let total = cache.reproduced + cache.not_reproduced;
            line("builds", format!("{} of {total} are the same as in upstreams", cache.reproduced));
        }
        if cache.failures > 0 {
            let remembered = format!("{} remembered (ondine failures)", cache.failures);
            line("failures", screen.say(&remembered, Tone::Bad));
        }
    }
    if let Some(error) = &status.error {
        line("error", screen.say(&Line(error).to_string(), Tone::Bad));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_each_part_that_there_is() {
        let answer = r#"{"version": "1.0", "store_dir": "/nix/store", "url": "http://a:1", "public_key": "k-1:A",
            "public_keys": ["k-1:A", "k-2:B"], "cache": {"paths": 2, "nars": 1, "nar_bytes": 2048, "failures": 1, "reproduced": 1,
            "not_reproduced": 1}, "queue": {"running": [], "total": 0, "requests": [], "stalled": "no daemon"}, "new": 1}"#;
        let answer: ServerStatus = serde_json::from_str(answer).expect("JSON");
        let expected = "\
Ondine 1.0
  address   http://a:1
  store     /nix/store
  keys      k-1:A
            k-2:B
  cache     2 paths, 1 NAR with 2.0 KiB
  builds    1 of 2 are the same as in upstreams
  failures  1 remembered (ondine failures)

Nothing goes on: no daemon
Nothing is built, and nothing waits.
";
        assert_eq!(status(&answer, Screen::default()), expected);
        let mut farm = answer;
        let far = r#"{ "name": "far", "address": "nix@far", "state": "up", "since": 0, "systems": [], "features": [],
            "mandatory_features": [], "slots": 4, "speed": 1.0, "weight": 1, "running": [], "built": 7, "failed": 1, "lost": 2,
            "last_error": null, "last_error_at": null, "disagreements": 0, "last_disagreement": null,
            "nix_version": "2.34.8" }"#;
        farm.builders = vec![serde_json::from_str(far).expect("JSON")];
        assert!(
            status(&farm, Screen::default()).contains("\nBUILDER"),
            "{}",
            status(&farm, Screen::default())
        );
        let answer = farm;
        assert!(top(&answer, Screen::default()).starts_with("Ondine 1.0  2 paths  2.0 KiB  1 failure\n\n"));
    }
}
