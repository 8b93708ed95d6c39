//! `ondine failures` and `retry`: failures that a running server remembers, and a new attempt.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::StateDir;
use super::control::{self, OTHER_VERSION};
use crate::escape::{Line, in_one_line};
use crate::http::{RememberedFailure, RetryRequest};

/// Characters of a reason, at most.
const REASON_CHARS_MAX: usize = 500;
/// Unix seconds of a moment in the year 9999.
const YEAR_9999: u64 = 253_400_000_000;

#[derive(Args, Debug)]
pub(super) struct FailuresCommand {
    #[command(flatten)]
    state_dir: StateDir,
}

#[derive(Args, Debug)]
pub(super) struct RetryCommand {
    /// Derivation, store path, hash of either, name of a package, or attribute of a package set
    what: String,
    /// Clears the failure without building: the next request builds
    #[arg(long)]
    forget_only: bool,
    #[command(flatten)]
    state_dir: StateDir,
}

impl FailuresCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let failures = control::get(&self.state_dir.path()?, "/api/v1/failures")?;
        let failures: Vec<RememberedFailure> = serde_json::from_str(&failures).context(OTHER_VERSION)?;
        print!("{}", table(&failures));
        Ok(ExitCode::SUCCESS)
    }
}

impl RetryCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let what = utf8_percent_encode(&self.what, NON_ALPHANUMERIC);
        let arguments = RetryRequest { forget_only: self.forget_only };
        control::post(&self.state_dir.path()?, &format!("/api/v1/failures/{what}/retry"), &arguments)
    }
}

/// A line for each failure, and one for its reason.
fn table(failures: &[RememberedFailure]) -> String {
    if failures.is_empty() {
        return "no failure is remembered\n".to_owned();
    }
    let mut table = format!("{:20}  {:20}  {:9}  DERIVATION\n", "SINCE", "UNTIL", "CLASS");
    for failure in failures {
        // The calendar of RFC 3339 ends with the year 9999.
        let time = |unix: u64| {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.min(YEAR_9999)))
        };
        let RememberedFailure { derivation, class, cause, reason, .. } = failure;
        table += &format!("{}  {}  {class:9}  {derivation}\n", time(failure.since), time(failure.until));
        if cause != derivation {
            table += &format!("    cause: {cause}\n");
        }
        table += &format!("    {}\n", Line(in_one_line(reason, REASON_CHARS_MAX)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_listed_with_their_times_class_cause_and_reason() {
        let failure = |derivation: &str| RememberedFailure {
            derivation: derivation.to_owned(),
            class: "transient".to_owned(),
            cause: "a.drv".to_owned(),
            reason: "signal 9\nand more".to_owned(),
            log: "/log/a.drv".to_owned(),
            since: 86_400,
            until: 86_700,
        };
        let expected = "\
SINCE                 UNTIL                 CLASS      DERIVATION
1970-01-02T00:00:00Z  1970-01-02T00:05:00Z  transient  a.drv
    signal 9 and more
1970-01-02T00:00:00Z  1970-01-02T00:05:00Z  transient  b.drv
    cause: a.drv
    signal 9 and more
";
        assert_eq!(table(&[failure("a.drv"), failure("b.drv")]), expected);
        assert_eq!(table(&[]), "no failure is remembered\n");
    }
}
