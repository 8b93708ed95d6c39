//! What a failed build means: is the build itself wrong, or was it the machine.
//! Decides how long a failure is remembered, nothing else.

use crate::causes::causes;
use crate::index::FailureClass;
use crate::nix::{BuildResult, BuildStatus, DaemonError};

/// A failed build, before it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Whether trying again is of use, and when.
    pub(super) class: FailureClass,
    /// What went wrong, in the daemon's words or ours, free of escape codes.
    pub(super) reason: String,
}

/// Characters of a reason that are kept; a longer one is cut, since the log has it all.
const REASON_CHARS_MAX: usize = 4000;
/// How Nix says that a builder was killed from outside: the kernel's out-of-memory killer, most often.
const KILLED: &str = "failed due to signal 9";
/// How a full disk shows in a message.
const DISK_FULL: &str = "No space left on device";

impl Verdict {
    /// The verdict on a result, or `None` when the outputs are there.
    pub(super) fn of(result: &BuildResult) -> Option<Self> {
        let reason = clean(&result.message);
        let machine = reason.contains(KILLED) || reason.contains(DISK_FULL);
        let permanent = match result.status {
            BuildStatus::Built
            | BuildStatus::Substituted
            | BuildStatus::AlreadyValid
            | BuildStatus::ResolvesToAlreadyValid => return None,
            BuildStatus::PermanentFailure
            | BuildStatus::InputRejected
            | BuildStatus::OutputRejected
            | BuildStatus::NotDeterministic
            | BuildStatus::LogLimitExceeded
            | BuildStatus::DependencyFailed => !machine,
            _ => false,
        };
        let reason =
            if reason.is_empty() { format!("the daemon reported {:?}", result.status) } else { reason };
        let class = if permanent { FailureClass::Permanent } else { FailureClass::Passing };
        Some(Self { class, reason })
    }

    /// The verdict when the daemon did not answer with a result. An error it reported may come from the derivation,
    /// but also from its own state, so it is never held for long.
    pub(super) fn of_error(error: &DaemonError) -> Self {
        let reason = causes(error).map(|error| clean(&error.to_string())).collect::<Vec<_>>().join(": ");
        Self { class: FailureClass::Passing, reason }
    }

    /// A failure for good that is ours to explain.
    pub(super) fn permanent(reason: String) -> Self {
        Self { class: FailureClass::Permanent, reason }
    }

    /// A passing failure that is ours to explain.
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self { class: FailureClass::Passing, reason: reason.into() }
    }

    /// Nothing is tried, for this reason.
    pub(super) fn refused(reason: String) -> Self {
        Self { class: FailureClass::Refused, reason }
    }
}

fn clean(message: &str) -> String {
    anstream::adapter::strip_str(message).to_string().chars().take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(status: BuildStatus, message: &str) -> BuildResult {
        BuildResult { status, message: message.into(), ..BuildResult::default() }
    }

    #[test]
    fn what_the_build_did_is_permanent_and_what_the_machine_did_passes() {
        for (status, message, permanent) in [
            (BuildStatus::PermanentFailure, "builder failed with exit code 1", true),
            (BuildStatus::OutputRejected, "hash mismatch", true),
            (BuildStatus::InputRejected, "bad", true),
            (BuildStatus::PermanentFailure, "builder failed due to signal 9 (Killed)", false),
            (BuildStatus::PermanentFailure, "write error: No space left on device", false),
            (BuildStatus::TransientFailure, "disk full", false),
            (BuildStatus::TimedOut, "timed out after 10 seconds", false),
            (BuildStatus::MiscFailure, "?", false),
        ] {
            let verdict = Verdict::of(&result(status, message)).expect("a failure");
            assert_eq!(verdict.class == FailureClass::Permanent, permanent, "{message}");
        }
    }

    #[test]
    fn a_valid_output_is_no_failure_however_it_came() {
        for status in [BuildStatus::Built, BuildStatus::Substituted, BuildStatus::AlreadyValid] {
            assert_eq!(Verdict::of(&result(status, "")), None);
        }
    }

    #[test]
    fn a_reason_has_no_escape_codes() {
        let verdict = Verdict::of(&result(
            BuildStatus::PermanentFailure,
            "\u{1b}[31;1merror:\u{1b}[0m no\u{1b}]0;title\u{7}",
        ));
        assert_eq!(verdict.expect("a failure").reason, "error: no");
    }
}
