//! `ondine queue` and `builds`: what is built now, what waits, and what has ended.

use std::process::ExitCode;

use clap::Args;

use super::control::{OutputArgs, ServerArgs, WatchArgs};
use super::screen::{Screen, TableField, Tone, name, seconds};
use crate::http::{BuildList, QueueStatus, RequestPhase, RequestStatus, RunningBuild};

/// Characters of a reason in a table.
const REASON_CHARS_MAX: usize = 200;

#[derive(Args, Debug)]
pub(super) struct QueueCommand {
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args, Debug)]
pub(super) struct BuildsCommand {
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl QueueCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.server.open()?.watch("/api/v1/queue", self.output, self.watch, queue)
    }
}

impl BuildsCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.server.open()?.watch("/api/v1/builds", self.output, self.watch, builds)
    }
}

/// Builds that run and requests that wait.
pub(super) fn queue(queue: &QueueStatus, screen: Screen) -> String {
    let mut text = String::new();
    if let Some(stalled) = &queue.stalled {
        text += &screen.say(&format!("Nothing goes on: {}\n", crate::escape::Line(stalled)), Tone::Bad);
    }
    if queue.running.is_empty() && queue.requests.is_empty() {
        return text + "Nothing is built, and nothing waits.\n";
    }
    if !queue.running.is_empty() {
        text += &running(&queue.running, screen);
    }
    if !queue.requests.is_empty() {
        if !queue.running.is_empty() {
            text.push('\n');
        }
        text += &requests(&queue.requests, screen);
        let more = queue.total.saturating_sub(queue.requests.len());
        if more > 0 {
            text += &format!("and {more} more\n");
        }
    }
    text
}

fn running(running: &[RunningBuild], screen: Screen) -> String {
    let rows = running.iter().map(|build| {
        let progress = match build.expected_seconds {
            Some(expected) => screen.bar(build.seconds, expected) + " s",
            None => format!("{} s", build.seconds),
        };
        let purpose = match build.request {
            Some(request) => format!("request {request}"),
            None if build.prebuild => "pre-build".to_owned(),
            None => "-".to_owned(),
        };
        vec![TableField::text(name(&build.derivation)), TableField::text(progress), TableField::text(purpose)]
    });
    screen.table(&["BUILDING", "ELAPSED/EXPECTED", "FOR"], rows)
}

fn requests(requests: &[RequestStatus], screen: Screen) -> String {
    let rows = requests.iter().map(|request| {
        let place = request.place.as_ref();
        let (state, tone, _) = phase(&request.phase);
        let progress = place.and_then(|place| place.built.zip(place.lacked)).map(|(built, lacked)| {
            let [built, lacked] = [built, lacked].map(|count| u64::try_from(count).unwrap_or(u64::MAX));
            screen.bar(built, lacked)
        });
        let left = place.and_then(|place| place.eta_seconds);
        vec![
            TableField::option(place.map(|place| place.position)),
            TableField::number(request.id),
            TableField::text(state).tone(tone),
            TableField::option(progress),
            TableField::option(left.map(|(from, to)| format!("{} to {}", seconds(from), seconds(to)))),
            TableField::number(request.clients),
            TableField::text(match &request.on {
                Some(builder) => format!("{} on {builder}", name(&request.derivation)),
                None => name(&request.derivation).to_string(),
            }),
        ]
    });
    screen.table(&["PLACE", "REQUEST", "STATE", "BUILT", "TIME LEFT", "CLIENTS", "DERIVATION"], rows)
}

fn builds(builds: &BuildList, screen: Screen) -> String {
    if builds.requests.is_empty() && builds.ended.is_empty() {
        return "Nothing was requested since the server was started.\n".to_owned();
    }
    // The oldest that waits first, then those that have ended, the last one first.
    let rows = builds.requests.iter().chain(&builds.ended).map(|request| {
        let (state, tone, reason) = phase(&request.phase);
        vec![
            TableField::number(request.id),
            TableField::text(screen.moment(request.asked_at)).tone(Tone::Dim),
            TableField::text(state).tone(tone),
            TableField::text(screen.derivation(&request.derivation)),
            TableField::short(reason.unwrap_or_default(), REASON_CHARS_MAX),
        ]
    });
    screen.table(&["REQUEST", "REQUESTED AT", "STATE", "DERIVATION", "REASON"], rows)
}

/// Name of a phase, its tone, and its reason.
fn phase(phase: &RequestPhase) -> (&'static str, Tone, Option<&str>) {
    match phase {
        RequestPhase::Waiting => ("waiting", Tone::Plain, None),
        RequestPhase::Building { .. } => ("building", Tone::Warning, None),
        RequestPhase::Delivering => ("delivering", Tone::Warning, None),
        RequestPhase::Served => ("served", Tone::Good, None),
        RequestPhase::Failed { reason, .. } => ("failed", Tone::Bad, Some(reason)),
        RequestPhase::Refused { reason } => ("refused", Tone::Bad, Some(reason)),
        RequestPhase::Dropped => ("dropped", Tone::Dim, None),
        RequestPhase::Cancelled => ("cancelled", Tone::Dim, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_and_requests_are_listed_with_their_progress_and_the_time_left() {
        let status = r#"{"running": [{"derivation": "0-a.drv", "seconds": 3, "expected_seconds": 9, "request": 7, "prebuild": false},
            {"derivation": "0-b.drv", "seconds": 1, "request": null, "prebuild": true}], "total": 5, "stalled": null,
            "requests": [{"id": 7, "derivation": "0-top.drv", "asked_at": 0, "clients": 2, "state": "building", "building": "0-a.drv",
             "position": 1, "of": 5, "built": 1, "lacked": 4, "known_seconds": 9, "unknown": 0, "eta_seconds": [60, 75]},
            {"id": 8, "derivation": "0-c.drv", "asked_at": 0, "clients": 0, "on": "far", "state": "waiting", "position": 2, "of": 5,
             "built": null, "lacked": null, "known_seconds": null, "unknown": null, "eta_seconds": null}]}"#;
        let status: QueueStatus = serde_json::from_str(status).expect("JSON");
        let expected = "\
BUILDING  ELAPSED/EXPECTED  FOR
a         3/9 s             request 7
b         1 s               pre-build

PLACE  REQUEST  STATE     BUILT  TIME LEFT     CLIENTS  DERIVATION
1            7  building  1/4    1m to 1m 15s        2  top
2            8  waiting   -      -                   0  c on far
and 3 more
";
        assert_eq!(queue(&status, Screen::default()), expected);
        let nothing = QueueStatus { running: Vec::new(), total: 0, requests: Vec::new(), stalled: None };
        assert_eq!(queue(&nothing, Screen::default()), "Nothing is built, and nothing waits.\n");
    }

    #[test]
    fn ended_requests_are_listed_with_their_reasons() {
        let list = r#"{"total": 0, "requests": [], "ended": [{"id": 3, "derivation": "0-a.drv", "asked_at": 86400, "clients": 0,
            "state": "failed", "cause": "0-b.drv", "reason": "exit code 1;\n  last words"},
            {"id": 2, "derivation": "0-c.drv", "asked_at": 86400, "clients": 0, "state": "served"}]}"#;
        let list: BuildList = serde_json::from_str(list).expect("JSON");
        let expected = "\
REQUEST  REQUESTED AT          STATE   DERIVATION  REASON
      3  1970-01-02T00:00:00Z  failed  0-a.drv     exit code 1; last words
      2  1970-01-02T00:00:00Z  served  0-c.drv
";
        assert_eq!(builds(&list, Screen::default()), expected);
    }
}
