//! `ondine why`: the state of something on a server, its reason, and what to do.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;

use super::build_log::base_name;
use super::control::ServerArgs;
use crate::escape::{Line, Lines};
use crate::remote::RemoteState;

/// Unix seconds of a moment in the year 9999, with which the calendar of RFC 3339 ends.
const YEAR_9999: u64 = 253_400_000_000;

#[derive(Args, Debug)]
pub(super) struct Why {
    /// Store path, derivation, hash of either, name of a package, or attribute of a package set
    what: String,
    #[command(flatten)]
    server: ServerArgs,
}

impl Why {
    /// Fails for what is not served and will not be.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let remote = self.server.connect()?;
        let what = base_name(&self.what);
        let state = super::runtime()?.block_on(remote.explain(what))?;
        print!("{}", told(what, &state));
        let is_well = matches!(&*state.state, "served" | "building" | "queued" | "known");
        Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn told(what: &str, state: &RemoteState) -> String {
    let RemoteState { state, derivation, outputs, reason, failed_since, retry_at, advice } = state;
    let mut text = format!("{}: {}\n", Line(what), Line(state));
    let mut line = |label: &str, value: &str| text += &format!("  {label:12}{value}\n");
    if let Some(derivation) = derivation {
        line("derivation", &Line(derivation).to_string());
    }
    for output in outputs.iter().flatten() {
        let path = output.path.as_deref().unwrap_or("known only after the build");
        let served = if output.served { "served" } else { "not served" };
        line(
            "output",
            &format!("{} {} ({served})", Line(output.name.as_deref().unwrap_or("path")), Line(path)),
        );
    }
    if let Some(reason) = reason {
        // Further lines of it stand below the first.
        line("reason", &Lines(reason.trim_end()).to_string().replace('\n', "\n              "));
    }
    for (label, unix) in [("failed at", failed_since), ("tried again", retry_at)] {
        if let Some(unix) = unix {
            line(label, &time(*unix));
        }
    }
    if let Some(advice) = advice.as_deref().filter(|advice| !advice.is_empty()) {
        text += &format!("{}\n", Lines(advice.trim_end()));
    }
    text
}

fn time(unix: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.min(YEAR_9999))).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_its_reason_its_times_and_the_way_out() {
        let state = r#"{"asked": "hello", "state": "failed", "derivation": "a-hello.drv", "reason": "exit code 1;\nlast words",
            "outputs": [{"name": "out", "path": "/nix/store/b-hello", "served": false}],
            "failed_since": 86400, "retry_at": 172800, "advice": "ondine retry\u001b hello", "new": 1}"#;
        let state: RemoteState = serde_json::from_str(state).expect("JSON");
        let expected = "\
hello: failed
  derivation  a-hello.drv
  output      out /nix/store/b-hello (not served)
  reason      exit code 1;
              last words
  failed at   1970-01-02T00:00:00Z
  tried again 1970-01-03T00:00:00Z
ondine retry\\u{1b} hello
";
        assert_eq!(told("hello", &state), expected);
    }
}
