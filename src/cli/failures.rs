//! `ondine failures` and `retry`: failures that a running server remembers, and a new attempt.

use std::process::ExitCode;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::control::{OutputArgs, ServerArgs};
use super::screen::{Screen, TableField, Tone};
use crate::http::{RememberedFailure, RetryRequest};

/// Characters of a reason, at most.
const REASON_CHARS_MAX: usize = 500;

#[derive(Args, Debug)]
pub(super) struct FailuresCommand {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args, Debug)]
pub(super) struct RetryCommand {
    /// Derivation, store path, hash of either, name of a package, or attribute of a package set
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    what: String,
    /// Clears the failure without building: the next request builds
    #[arg(long)]
    forget_only: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl FailuresCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let shown = |list: &Vec<RememberedFailure>, screen| table(list, screen);
        self.server.open()?.show("/api/v1/failures", self.output, shown)
    }
}

impl RetryCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let what = utf8_percent_encode(&self.what, NON_ALPHANUMERIC);
        let arguments = RetryRequest { forget_only: self.forget_only };
        let path = format!("/api/v1/failures/{what}/retry");
        self.server.open()?.post(&path, &arguments, self.output)
    }
}

/// A row for each failure.
fn table(failures: &[RememberedFailure], screen: Screen) -> String {
    if failures.is_empty() {
        return "No failure is remembered.\n".to_owned();
    }
    let rows = failures.iter().map(|failure| {
        let RememberedFailure { derivation, class, cause, reason, since, until, .. } = failure;
        let tone = if class == "transient" { Tone::Warning } else { Tone::Bad };
        let reason = match cause == derivation {
            true => reason.clone(),
            false => format!("cause: {}: {reason}", screen.derivation(cause)),
        };
        vec![
            TableField::text(screen.moment(*since)).tone(Tone::Dim),
            TableField::text(screen.moment(*until)).tone(Tone::Dim),
            TableField::text(class).tone(tone),
            TableField::text(screen.derivation(derivation)),
            TableField::short(&reason, REASON_CHARS_MAX),
        ]
    });
    screen.table(&["SINCE", "UNTIL", "CLASS", "DERIVATION", "REASON"], rows)
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
SINCE                 UNTIL                 CLASS      DERIVATION  REASON
1970-01-02T00:00:00Z  1970-01-02T00:05:00Z  transient  a.drv       signal 9 and more
1970-01-02T00:00:00Z  1970-01-02T00:05:00Z  transient  b.drv       cause: a.drv: signal 9 and more
";
        assert_eq!(table(&[failure("a.drv"), failure("b.drv")], Screen::default()), expected);
        assert_eq!(table(&[], Screen::default()), "No failure is remembered.\n");
    }
}
