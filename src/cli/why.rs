//! `ondine why`: the state of something on a server, its reason, and what to do.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde::Deserialize;

use super::build_log::base_name;
use super::control::{OTHER_VERSION, OutputArgs, ServerArgs};
use super::screen::{Screen, Tone, time};
use crate::escape::{Line, Lines};
use crate::remote::{RemoteState, path_part};

#[derive(Args, Debug)]
pub(super) struct Why {
    /// Store path, derivation, hash of either, name of a package, or attribute of a package set
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    what: String,
    /// Adds notes on clients that do not get what is served
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl Why {
    /// Fails for what is not served and will not be.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let what = &*base_name(&self.what);
        let path = format!("/api/v1/explain/{}", path_part(what));
        let session = self.server.open()?;
        let answer: serde_json::Value = session.read(&path)?;
        let state = RemoteState::deserialize(&answer).context(OTHER_VERSION)?;
        match self.output.json {
            true => println!("{answer:#}"),
            false => print!("{}", told(what, &state, self.verbose, Screen::stdout())),
        }
        let is_well = matches!(&*state.state, "served" | "building" | "queued" | "known");
        Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn told(what: &str, state: &RemoteState, verbose: bool, screen: Screen) -> String {
    let RemoteState { state, derivation, outputs, reason, made_by, failed_since, retry_at, advice, notes } =
        state;
    let tone = match &**state {
        "served" => Tone::Good,
        "building" | "queued" | "known" => Tone::Warning,
        _ => Tone::Bad,
    };
    let mut text = format!("{}: {}\n", Line(what), screen.say(&Line(state).to_string(), tone));
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
    if !made_by.is_empty() {
        line("made by", &Line(made_by.join(", ")).to_string());
    }
    if let Some(reason) = reason {
        // Further lines of it stand below the first.
        line("reason", &Lines(reason.trim_end()).to_string().replace('\n', "\n              "));
    }
    if let Some(unix) = failed_since {
        line(if state == "refused" { "refused at" } else { "failed at" }, &time(*unix));
    }
    if let Some(unix) = retry_at {
        line("remembered", &format!("until {}; a request after that tries again", time(*unix)));
    }
    if let Some(advice) = advice.as_deref().filter(|advice| !advice.is_empty()) {
        text += &format!("{}\n", Lines(advice.trim_end()));
    }
    for note in notes.iter().filter(|_| verbose) {
        text += &format!("{}\n", Lines(note));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_its_reason_its_times_and_the_way_out() {
        let state = r#"{"asked": "hello", "state": "failed", "derivation": "a-hello.drv", "reason": "exit code 1;\nlast words",
            "outputs": [{"name": "out", "path": "/nix/store/b-hello", "served": false}],
            "failed_since": 86400, "retry_at": 172800, "advice": "ondine retry\u001b hello", "notes": ["a note"], "new": 1}"#;
        let state: RemoteState = serde_json::from_str(state).expect("JSON");
        let expected = "\
hello: failed
  derivation  a-hello.drv
  output      out /nix/store/b-hello (not served)
  reason      exit code 1;
              last words
  failed at   1970-01-02T00:00:00Z
  remembered  until 1970-01-03T00:00:00Z; a request after that tries again
ondine retry\\u{1b} hello
";
        assert_eq!(told("hello", &state, false, Screen::default()), expected);
        let verbose = told("hello", &state, true, Screen::default());
        assert_eq!(verbose, format!("{expected}a note\n"));
    }
}
