//! The table of failures: from the evidence of a failed build (the daemon's status and words, the builder's
//! exit, the end of its log) to a class, and from that to how long the failure is remembered. The first row
//! that matches wins. A builder writes what it likes into its log, so the log counts by where a word stands:
//! see [`trouble_at_the_end`].

use std::time::Duration;

use super::Settings;
use crate::causes::causes;
use crate::escape::in_one_line;
use crate::model::FailureClass::{self, Permanent, Transient};
use crate::nix::{BuildResult, BuildStatus, DaemonError};

/// A failed build, before it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Class of the failure: when it is of use to try again.
    pub(super) class: FailureClass,
    /// The reason in the daemon's words or ours, free of escape codes.
    pub(super) reason: String,
}

/// Observations of a failed build.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evidence<'a> {
    /// The latest error that the daemon reported beside its result, such as that of a dependency.
    pub(super) daemon_error: &'a str,
    /// The last lines of the builder, the very last one last.
    pub(super) log_end: &'a [String],
}

/// One kind of evidence.
#[derive(Debug)]
enum Sign {
    /// The daemon's status.
    Status(&'static [BuildStatus]),
    /// Words of the daemon itself, not of the log that it quotes.
    Said(&'static [&'static str]),
    /// The builder was ended by one of these signals, or by exit code 128 + n, which is how a shell tells of
    /// its child's.
    Signal(&'static [u32]),
    /// The log ends in trouble of the machine.
    LogEnd,
    /// All else.
    Any,
}

/// The table. Messages are those of Nix 2.8, 2.26 and 2.34.
const TABLE: &[(Sign, FailureClass)] = &[
    (Sign::Status(&[BuildStatus::TimedOut]), Transient),
    (Sign::Status(&[BuildStatus::LogLimitExceeded, BuildStatus::NotDeterministic]), Permanent),
    // Output checks. Nix 2.8 and 2.26 report some of them as an error of the daemon, without a status.
    (
        Sign::Said(&[
            "cycle detected",
            "not allowed to refer",
            "illegal reference",
            "illegal path reference",
            "output check for",
            "must not reference store paths",
            "hash mismatch in fixed-output derivation",
            "should be a non-executable regular file",
            "suspicious ownership or permission",
            "has an unsupported type",
        ]),
        Permanent,
    ),
    // HUP, INT, QUIT, KILL and TERM come from outside: the out-of-memory killer, a service that stops, an
    // operator.
    (Sign::Signal(&[1, 2, 3, 9, 15]), Transient),
    (
        Sign::Said(&[
            "No space left on device",
            "Disk quota exceeded",
            "database or disk is full",
            "Cannot allocate memory",
            "Resource temporarily unavailable",
            "Too many open files",
            "Input/output error",
        ]),
        Transient,
    ),
    // Another machine, or another setting, may have them.
    (
        Sign::Said(&[
            "platform mismatch",
            "missing system features",
            "but I am a",
            "required system or feature",
        ]),
        Transient,
    ),
    (Sign::LogEnd, Transient),
    (
        Sign::Status(&[
            BuildStatus::PermanentFailure,
            BuildStatus::InputRejected,
            BuildStatus::OutputRejected,
        ]),
        Permanent,
    ),
    // Nix's transient failure is that of a download (fixed-output derivations) or a full disk; a failed
    // dependency is one that was collected meanwhile, and is built for itself by the next request; an error
    // is the daemon's own.
    (Sign::Any, Transient),
];

/// Words of programs that ran out of memory, room or processes, in lower case.
const TROUBLE: &[&str] = &[
    "killed signal terminated program",
    "terminated with signal 9",
    "terminated with signal 15",
    "internal compiler error: killed",
    "signal: 9",
    "signal: 15",
    "sigkill",
    "sigterm",
    "cannot allocate memory",
    "virtual memory exhausted",
    "out of memory",
    "memory exhausted",
    "std::bad_alloc",
    "outofmemoryerror",
    "no space left on device",
    "disk quota exceeded",
    "resource temporarily unavailable",
    "too many open files in system",
    "input/output error",
    "stale file handle",
];

/// Beginnings of lines by which programs report that one below them has failed.
const REPORTS: &[&str] = &[
    "make:",
    "make[",
    "gmake:",
    "gmake[",
    "ninja:",
    "compilation terminated",
    "collect2:",
    "clang: error:",
    "clang: note:",
    "clang++: error:",
    "please submit a full bug report",
    "see <",
    "error: could not compile",
    "error: build failed",
    "error: command ",
    "error: linking with",
    "warning: build failed, waiting",
    "caused by:",
    "tar: exiting with failure",
    "tar: error is not recoverable",
    "for full logs",
];

/// Endings of such lines, and of what `dd` counts.
const REPORT_ENDS: &[&str] = &[" records in", " records out", "b/s", "core dumped"];

/// The line of `make` after which only other jobs come to their end.
const OTHER_JOBS: &str = "waiting for unfinished jobs";

/// The signal by which services are stopped.
const SIGTERM: u32 = 15;

/// Lines at the end of a log that are looked at.
pub(super) const LOG_END_LINES: usize = 40;
/// Characters of a reason that are kept; a longer one is cut, since the log has it all.
const REASON_CHARS_MAX: usize = 4000;
/// Characters of a reason in the server's log.
const LOGGED_CHARS_MAX: usize = 1000;

impl Verdict {
    /// The verdict on a result, or `None` when the outputs are there.
    pub(super) fn of(result: &BuildResult, evidence: Evidence<'_>) -> Option<Self> {
        if result.status.is_success() {
            return None;
        }
        let mut reason = own_words(&result.message);
        let daemon_error = own_words(evidence.daemon_error);
        if result.status == BuildStatus::DependencyFailed && !daemon_error.is_empty() {
            reason = format!("{reason}\n{daemon_error}");
        }
        let class = classify(Some(result.status), &reason, evidence.log_end);
        let reason =
            if reason.is_empty() { format!("the daemon reported {:?}", result.status) } else { reason };
        Some(Self { class, reason })
    }

    /// The verdict when the daemon ended a build with an error instead of a result.
    pub(super) fn of_build_error(error: &DaemonError, evidence: Evidence<'_>) -> Self {
        let reason = in_words(error);
        let class = match error {
            DaemonError::Nix(_) => classify(None, &reason, evidence.log_end),
            _ => Transient,
        };
        Self { class, reason }
    }

    /// The verdict on a daemon that failed before or after a build: never the derivation's fault.
    pub(super) fn of_error(error: &DaemonError) -> Self {
        Self { class: Transient, reason: in_words(error) }
    }

    /// A permanent failure that is ours to explain.
    pub(super) fn permanent(reason: String) -> Self {
        Self { class: Permanent, reason }
    }

    /// A transient failure that is ours to explain.
    pub(super) fn transient(reason: impl Into<String>) -> Self {
        Self { class: Transient, reason: reason.into() }
    }

    /// A refusal: nothing is tried, for this reason.
    pub(super) fn refused(reason: String) -> Self {
        Self { class: FailureClass::Refused, reason }
    }
}

/// A reason as a line of the server's log has it: whole sentences, which the daemon breaks wherever it likes.
pub(super) fn logged(reason: &str) -> String {
    in_one_line(reason, LOGGED_CHARS_MAX)
}

/// The time for which a failure of this class is remembered.
pub(super) fn lifetime(class: FailureClass, settings: &Settings) -> Duration {
    match class {
        Permanent => settings.permanent_failure_ttl,
        Transient | FailureClass::Refused => settings.transient_failure_ttl,
    }
}

/// True of a builder that was told to end, as systemd tells all of a service that stops: the daemon may be
/// back at once.
pub(super) fn told_to_stop(result: &BuildResult) -> bool {
    !result.status.is_success() && signal(&own_words(&result.message)) == Some(SIGTERM)
}

fn classify(status: Option<BuildStatus>, said: &str, log_end: &[String]) -> FailureClass {
    let matches = |sign: &Sign| match sign {
        Sign::Status(statuses) => status.is_some_and(|status| statuses.contains(&status)),
        Sign::Said(words) => words.iter().any(|words| said.contains(words)),
        Sign::Signal(signals) => signal(said).is_some_and(|signal| signals.contains(&signal)),
        Sign::LogEnd => trouble_at_the_end(log_end),
        Sign::Any => true,
    };
    TABLE.iter().find(|(sign, _)| matches(sign)).map_or(Transient, |(_, class)| *class)
}

/// The daemon's message without escape codes and without its copy of the end of the log: those lines are the
/// builder's words, and the log has them. The hint at `nix log` goes with them: no client of this server has
/// the log there.
fn own_words(message: &str) -> String {
    let text = anstream::adapter::strip_str(message).to_string();
    let mut kept: Vec<&str> = Vec::new();
    let mut hint_goes_on = false;
    for line in text.lines() {
        let words = line.trim().to_lowercase();
        let hint = words.starts_with("for full logs, run");
        let heading = words.starts_with("last ") && words.ends_with(" log lines:");
        if !hint && !heading && !hint_goes_on && !words.starts_with('>') {
            kept.push(line);
        }
        hint_goes_on = hint && words.ends_with(':');
    }
    let kept = kept.join("\n");
    cut(kept.trim_end().trim_end_matches(';').to_owned())
}

/// The signal that ended the builder, or a child whose end its exit code reports.
fn signal(said: &str) -> Option<u32> {
    let number_after = |words: &str| {
        let (_, rest) = said.split_once(words)?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u32>().ok()
    };
    let of_exit = |code: u32| code.checked_sub(128).filter(|signal| (1..=64).contains(signal));
    number_after("failed due to signal ").or_else(|| number_after("failed with exit code ").and_then(of_exit))
}

/// True when the last thing that the log tells is that the machine was in trouble. Lines by which programs
/// report the failure of one below them are passed over; before the first other line nothing counts, since a
/// test suite may print the same words and go on to fail for reasons of its own.
fn trouble_at_the_end(log_end: &[String]) -> bool {
    let lines: Vec<String> = log_end
        .iter()
        .map(|line| cut(anstream::adapter::strip_str(line).to_string()).trim().to_lowercase())
        .filter(|line| !line.is_empty())
        .collect();
    let reported_by_make = lines.last().is_some_and(|line| is_report(line));
    let others = lines.iter().position(|line| line.contains(OTHER_JOBS)).filter(|_| reported_by_make);
    for line in lines[..others.unwrap_or(lines.len())].iter().rev() {
        if TROUBLE.iter().any(|words| line.contains(words)) || names_a_kill(line) {
            return true;
        }
        if !is_report(line) {
            return false;
        }
    }
    false
}

fn is_report(line: &str) -> bool {
    REPORTS.iter().any(|start| line.starts_with(start)) || REPORT_ENDS.iter().any(|end| line.ends_with(end))
}

/// True for the words of shells and make for a child that was killed: `Killed`, `line 3: 123 Killed   cc -c
/// x.c`, `*** [x.o] Killed`, `*** [x.o] Error 137`.
fn names_a_kill(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let kill = |word: &str| matches!(word.trim_end_matches('.'), "killed" | "terminated" | "hangup");
    let alone = words.len() == 1 || line.starts_with("terminated  ") || line.starts_with("killed  ");
    words.first().is_some_and(|first| kill(first) && alone)
        || words.windows(2).any(|pair| {
            let number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
            kill(pair[1]) && (number(pair[0]) || pair[0].ends_with(']'))
                || pair[0] == "error" && matches!(pair[1], "137" | "143")
        })
}

/// The error and its causes in one sentence.
fn in_words(error: &DaemonError) -> String {
    causes(error).map(|error| own_words(&error.to_string())).collect::<Vec<_>>().join(": ")
}

/// The text, or the first [`REASON_CHARS_MAX`] characters of it.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(REASON_CHARS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}
