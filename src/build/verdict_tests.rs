//! A test for each row of the table of failures, with the messages that daemons of Nix 2.8, 2.26 and 2.34
//! sent.

use super::verdict::{Evidence, Verdict};
use crate::model::FailureClass::{self, Permanent, Transient};
use crate::nix::{BuildResult, BuildStatus, DaemonError};

/// Lines of a log.
fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn result(status: BuildStatus, message: &str) -> BuildResult {
    BuildResult { status, message: message.into(), ..BuildResult::default() }
}

fn class_of(status: BuildStatus, message: &str, log: &str) -> FailureClass {
    let (log_end, result) = (lines(log), result(status, message));
    let evidence = Evidence { log_end: &log_end, ..Evidence::default() };
    Verdict::of(&result, evidence).expect("a failure").class
}

/// The class of a builder that ended with this exit code, in the words of old and new releases.
fn after_exit(code: u32, log: &str) -> FailureClass {
    let quoted: String = log.lines().map(|line| format!("\n> {line}")).collect();
    let old = format!("\u{1b}[0mbuilder for '\u{1b}[35;1m/s/h-x.drv\u{1b}[0m' failed with exit code {code}");
    let new = format!(
        "Cannot build '/s/h-x.drv'.\nReason: builder failed with exit code {code}.\nOutput paths:\n  /s/h-x"
    );
    let old = class_of(BuildStatus::PermanentFailure, &format!("{old};\nlast 9 log lines:{quoted}"), log);
    let new = class_of(BuildStatus::PermanentFailure, &format!("{new}\nLast 9 log lines:{quoted}"), log);
    assert_eq!(old, new, "{code}: {log}");
    new
}

#[test]
fn a_time_out_passes_and_a_log_without_end_does_not() {
    for (status, message, class) in [
        (
            BuildStatus::TimedOut,
            "building of '/s/h-x.drv!*' from .drv file timed out after 1 seconds of silence",
            Transient,
        ),
        (BuildStatus::TimedOut, "timed out after 1 seconds", Transient),
        (
            BuildStatus::LogLimitExceeded,
            "building derivation '/s/h-x.drv' killed after writing more than 10000 bytes of log output",
            Permanent,
        ),
        (BuildStatus::NotDeterministic, "derivation '/s/h-x.drv' may not be deterministic", Permanent),
    ] {
        assert_eq!(class_of(status, message, "No space left on device"), class, "{message}");
    }
}

#[test]
fn output_checks_are_the_derivations_own_fault_as_result_and_as_error_whatever_the_log_says() {
    for message in [
        "cycle detected in build of '/s/h-x.drv' in the references of output 'b' from output 'out'",
        "output '/s/h-x' is not allowed to refer to the following paths:\n  /s/h-dep",
        "derivation contains an illegal reference specifier 'nosuch'",
        "derivation '/s/h-x.drv' output check for 'out' contains output name 'nosuch', but this is not a valid output",
        "illegal path references in fixed-output derivation '/s/h-x.drv'",
        "fixed-output derivations must not reference store paths: '/s/h-x.drv' references 1 distinct paths",
        "hash mismatch in fixed-output derivation '/s/h-x.drv':\n  specified: sha256-A\n     got:    sha256-W",
        "output path '/s/h-x' should be a non-executable regular file since recursive hashing is not enabled",
        "suspicious ownership or permission on '/s/h-x' for output 'out'; rejecting this build output",
        "file '/s/h-x' has an unsupported type",
    ] {
        assert_eq!(class_of(BuildStatus::OutputRejected, message, "Killed"), Permanent, "{message}");
        let error = DaemonError::Nix(message.to_owned());
        assert_eq!(Verdict::of_build_error(&error, Evidence::default()).class, Permanent, "{message}");
        // The same words of a daemon that is only asked something tell nothing of a build.
        assert_eq!(Verdict::of_error(&error).class, Transient, "{message}");
    }
}

#[test]
fn a_builder_that_is_ended_from_outside_is_no_failure_of_its_own() {
    for (signal, name, class) in [
        (9, "Killed", Transient),
        (15, "Terminated", Transient),
        (1, "Hangup", Transient),
        (2, "Interrupt", Transient),
        (11, "Segmentation fault", Permanent),
        (6, "Aborted", Permanent),
        (4, "Illegal instruction", Permanent),
    ] {
        let old = format!("builder for '/s/h-x.drv' failed due to signal {signal} ({name})");
        let new =
            format!("Cannot build '/s/h-x.drv'.\nReason: builder failed due to signal {signal} ({name}).");
        for message in [old, new] {
            assert_eq!(class_of(BuildStatus::PermanentFailure, &message, ""), class, "{message}");
        }
    }
    for (code, class) in [
        (137, Transient),
        (143, Transient),
        (130, Transient),
        (1, Permanent),
        (2, Permanent),
        (127, Permanent),
        (139, Permanent),
        (124, Permanent),
    ] {
        assert_eq!(after_exit(code, "whatever"), class, "exit code {code}");
    }
}

#[test]
fn what_the_daemon_itself_ran_out_of_passes() {
    for message in [
        "writing to file: No space left on device",
        "write of 379 bytes: No space left on device",
        "executing SQLite statement: database or disk is full",
        "unable to fork: Cannot allocate memory",
        "unable to fork: Resource temporarily unavailable",
    ] {
        for status in [BuildStatus::PermanentFailure, BuildStatus::OutputRejected, BuildStatus::MiscFailure] {
            assert_eq!(class_of(status, message, ""), Transient, "{message}");
        }
    }
}

#[test]
fn a_machine_that_is_missing_may_come() {
    for message in [
        "Cannot build '/s/h-x.drv'.\nReason: platform mismatch\nRequired system: 'riscv64-none'",
        "Cannot build '/s/h-x.drv'.\nReason: missing system features\nRequired features: {nope}",
        "a 'riscv64-none' with features {} is required to build '/s/h-x.drv', but I am a 'x86_64-linux' with features {kvm}",
    ] {
        assert_eq!(class_of(BuildStatus::InputRejected, message, ""), Transient, "{message}");
    }
}

#[test]
fn a_log_that_ends_in_trouble_of_the_machine_passes() {
    for log in [
        "gcc: fatal error: Killed signal terminated program cc1",
        "gcc: fatal error: Killed signal terminated program cc1\ncompilation terminated.\nmake[1]: *** [Makefile:3: x.o] Error 1\nmake: *** [all] Error 2\n",
        "c++: internal compiler error: Killed (program cc1plus)\nPlease submit a full bug report, with preprocessed source.\nSee <https://gcc.gnu.org/bugs/> for instructions.\nmake: *** [x.o] Error 4",
        "collect2: fatal error: ld terminated with signal 9 [Killed]\ncompilation terminated.",
        "error: could not compile `x`\n\nCaused by:\n  process didn't exit successfully: `rustc` (signal: 9, SIGKILL: kill)",
        "/s/h-setup: line 131:  4711 Killed                  cc -c x.c\nmake: *** [Makefile:3: x.o] Error 137",
        "make: *** [Makefile:3: x.o] Killed",
        "make: *** [Makefile:3: x.o] Terminated",
        "Terminated                 sleep 20",
        "Killed",
        "fork: Cannot allocate memory",
        "virtual memory exhausted: Cannot allocate memory",
        "\u{1b}[31mfatal error: runtime: out of memory\u{1b}[0m",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "dd: error writing '/dev/full': No space left on device\n1+0 records in\n0+0 records out\n0 bytes copied, 5.2544e-05 s, 0.0 kB/s",
        "OSError: [Errno 28] No space left on device: '/build/x'",
        "tar: x: Cannot write: No space left on device\ntar: Exiting with failure status due to previous errors",
        "cc1: out of memory allocating 65536 bytes\nmake: *** [a.o] Error 1\nmake: *** Waiting for unfinished jobs....\n  CC b.o\n  CC c.o\nmake: *** [all] Error 2",
    ] {
        assert_eq!(after_exit(2, log), Transient, "{log}");
    }
    // A script that goes on after its disk was full, and makes nothing.
    let message = "builder for '/s/h-x.drv' failed to produce output path for output 'out' at '/s/h-x'";
    let full = "cp: error writing '/s/h-x': No space left on device";
    assert_eq!(class_of(BuildStatus::OutputRejected, message, full), Transient);
    assert_eq!(class_of(BuildStatus::OutputRejected, message, ""), Permanent);
}

#[test]
fn words_that_a_log_quotes_before_its_end_tell_nothing() {
    for log in [
        "test full disk: write: No space left on device ... ok\ntest sum ... FAILED\n1 of 2 tests failed\nmake: *** [check] Error 1",
        "No space left on device\nassertion failed",
        "out of memory is handled\nkilled the server\nFAIL: frobnicate",
        "Killed\nerror: expected ';' before '}' token\nmake: *** [x.o] Error 1",
        "the process was killed as it should be",
        "failed due to signal 9 (Killed)\nx.c:3: error: no such thing",
        "make: *** [Makefile:3: x.o] Error 1",
        "",
    ] {
        assert_eq!(after_exit(1, log), Permanent, "{log}");
    }
}

#[test]
fn a_builder_cannot_claim_the_daemons_words() {
    for words in ["failed due to signal 9 (Killed)", "write: No space left on device", "but I am a fraud"] {
        let message =
            format!("builder for '/s/h-x.drv' failed with exit code 1;\nlast 2 log lines:\n> {words}\n> end");
        assert_eq!(
            class_of(BuildStatus::PermanentFailure, &message, &format!("{words}\nend")),
            Permanent,
            "{words}"
        );
        let message = format!(
            "builder for '/s/h-x.drv' failed with exit code 137;\nlast 1 log lines:\n> cycle detected {words}"
        );
        assert_eq!(class_of(BuildStatus::PermanentFailure, &message, ""), Transient, "{words}");
    }
}

#[test]
fn what_the_build_did_is_permanent_and_all_else_passes() {
    for (status, message, class) in [
        (BuildStatus::PermanentFailure, "builder for '/s/h-x.drv' failed with exit code 1", Permanent),
        (BuildStatus::OutputRejected, "builder for '/s/h-x.drv' failed to produce output path", Permanent),
        (BuildStatus::InputRejected, "bad", Permanent),
        // A download.
        (BuildStatus::TransientFailure, "builder for '/s/h-x.drv' failed with exit code 1", Transient),
        (
            BuildStatus::DependencyFailed,
            "1 dependencies of derivation '/s/h-x.drv' failed to build",
            Transient,
        ),
        (BuildStatus::NoSubstituters, "", Transient),
        (BuildStatus::CachedFailure, "", Transient),
        (BuildStatus::MiscFailure, "?", Transient),
        (BuildStatus::Unknown(99), "?", Transient),
    ] {
        assert_eq!(class_of(status, message, ""), class, "{status:?}");
    }
    for error in [DaemonError::Closed, DaemonError::Nix("interrupted by the user".into())] {
        assert_eq!(Verdict::of_build_error(&error, Evidence::default()).class, Transient, "{error}");
    }
}

#[test]
fn a_dependency_that_failed_below_the_daemon_is_judged_by_what_the_daemon_said_of_it() {
    let evidence = Evidence {
        daemon_error: "\u{1b}[31;1merror:\u{1b}[0m hash mismatch in fixed-output derivation '/s/h-dep.drv':\n  got: sha256-W\n",
        log_end: &[],
    };
    let result =
        result(BuildStatus::DependencyFailed, "1 dependencies of derivation '/s/h-x.drv' failed to build");
    let verdict = Verdict::of(&result, evidence).expect("a failure");
    assert_eq!(verdict.class, Permanent);
    assert!(verdict.reason.ends_with("got: sha256-W"), "{}", verdict.reason);
}

#[test]
fn a_valid_output_is_no_failure_however_it_came() {
    for status in [
        BuildStatus::Built,
        BuildStatus::Substituted,
        BuildStatus::AlreadyValid,
        BuildStatus::ResolvesToAlreadyValid,
    ] {
        assert_eq!(Verdict::of(&result(status, ""), Evidence::default()), None);
    }
}

#[test]
fn a_reason_has_no_escape_codes() {
    let result = result(BuildStatus::PermanentFailure, "\u{1b}[31;1merror:\u{1b}[0m no\u{1b}]0;title\u{7}");
    assert_eq!(Verdict::of(&result, Evidence::default()).expect("a failure").reason, "error: no");
}

#[test]
fn a_reason_has_no_copy_of_the_log_and_no_command_that_finds_none() {
    let logs = "last 2 log lines:\n       > one\n       > For full logs, run 'x'.";
    for (message, reason) in [
        (
            format!(
                "builder for '/s/h-x.drv' failed with exit code 1;\n       {logs}\n       For full logs, run 'nix log /s/h-x.drv'."
            ),
            "builder for '/s/h-x.drv' failed with exit code 1",
        ),
        (
            format!(
                "Cannot build '/s/h-x.drv'.\nReason: builder failed with exit code 1.\nOutput paths:\n  /s/h-x\nL{}\nFor full logs, run:\n  nix log /s/h-x.drv\nand more",
                &logs[1..]
            ),
            "Cannot build '/s/h-x.drv'.\nReason: builder failed with exit code 1.\nOutput paths:\n  /s/h-x\nand more",
        ),
        ("a path; and a line\nlast of all".to_owned(), "a path; and a line\nlast of all"),
    ] {
        let verdict = Verdict::of(&result(BuildStatus::PermanentFailure, &message), Evidence::default());
        assert_eq!(verdict.expect("a failure").reason, reason);
        let error = DaemonError::Nix(message);
        assert_eq!(Verdict::of_build_error(&error, Evidence::default()).reason, reason);
    }
}
