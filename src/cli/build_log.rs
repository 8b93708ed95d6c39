//! `ondine log`: the log of a build, whole or as it grows. Escape codes of builders act on no terminal.

use std::borrow::Cow;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anstream::adapter::StripBytes;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use narinfo::StorePath;

use super::control::ServerArgs;
use super::output::OutputError;
use crate::escape::Lines;
use crate::remote::{Error, Remote, ServerReply, path_part};

/// Silence after which the log of a running build counts as read, where it is not followed.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// Time between two looks for a build that has not begun.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Bytes of a line that are shown together.
const LINE_BYTES_MAX: usize = 64 * 1024;

#[derive(Args, Debug)]
pub(super) struct BuildLog {
    /// Derivation, store path, hash of either, name of a package, or attribute of a package set
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    what: String,
    /// Follows the log to the end of the build, and waits for the beginning of one that is queued
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    server: ServerArgs,
}

impl BuildLog {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let remote = self.server.connect()?;
        super::runtime()?.block_on(async {
            let reply = open(&remote, &self.what, self.follow).await?;
            print(reply, self.follow).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Base name of a store path, wherever the store is, or of the store path that a symlink such as `./result`
/// leads to.
pub(super) fn base_name(what: &str) -> Cow<'_, str> {
    let is_path = what.starts_with('/') || what.starts_with("./") || what.starts_with("../");
    if !is_path {
        return Cow::Borrowed(what);
    }
    let base = what.rsplit('/').next().unwrap_or(what);
    if StorePath::parse(base).is_err()
        && let Ok(target) = fs::canonicalize(what)
        && let Some(name) = target.file_name()
    {
        return Cow::Owned(name.to_string_lossy().into_owned());
    }
    Cow::Borrowed(base)
}

async fn open(remote: &Remote, what: &str, follow: bool) -> Result<ServerReply, Error> {
    let what = &*base_name(what);
    loop {
        // The address of a log needs a name, which only the server may know.
        let name = match StorePath::parse(what) {
            Ok(path) => path.to_string(),
            Err(_) => {
                let state = remote.explain(what).await?;
                let reason = state.reason.as_deref().or(state.advice.as_deref()).unwrap_or_default();
                let unknown = || Error::NotFound(no_log(what, &state.state, reason));
                state.derivation.clone().ok_or_else(unknown)?
            }
        };
        match remote.get(&format!("log/{}", path_part(&name))).await {
            Err(Error::NotFound(_)) if follow && is_queued(remote, &name).await => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            other => return other,
        }
    }
}

/// Words for something that has no log. The reason may begin with the word of the state.
fn no_log(what: &str, state: &str, reason: &str) -> String {
    let bare = reason.strip_prefix(state).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(reason);
    let verb = if state == "failed" { "has" } else { "is" };
    format!("no log: {} {verb} {}: {}", Lines(what), Lines(state), Lines(bare))
}

async fn is_queued(remote: &Remote, name: &str) -> bool {
    let state = remote.explain(name).await;
    state.is_ok_and(|state| matches!(&*state.state, "queued" | "building"))
}

async fn print(mut reply: ServerReply, follow: bool) -> anyhow::Result<()> {
    let (is_growing, mut is_empty) = (!reply.is_measured(), true);
    let (mut codes, mut line) = (StripBytes::new(), Vec::new());
    loop {
        let chunk = if is_growing && !follow {
            let Ok(chunk) = tokio::time::timeout(IDLE_MAX, reply.next_chunk()).await else {
                flush(&mut line)?;
                eprintln!("The build goes on; -f follows its log.");
                return Ok(());
            };
            chunk?
        } else {
            reply.next_chunk().await?
        };
        let Some(chunk) = chunk else { break };
        is_empty &= chunk.is_empty();
        for plain in codes.strip_next(&chunk) {
            for part in plain.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                if line.ends_with(b"\n") || line.len() > LINE_BYTES_MAX {
                    flush(&mut line)?;
                }
            }
        }
    }
    if is_empty {
        eprintln!("The log is empty: the builder printed nothing.");
    }
    Ok(flush(&mut line)?)
}

fn flush(line: &mut Vec<u8>) -> Result<(), OutputError> {
    print!("{}", Lines(String::from_utf8_lossy(line)));
    line.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_state_is_told_once() {
        assert_eq!(no_log("a", "unknown", "unknown: nobody has it"), "no log: a is unknown: nobody has it");
        assert_eq!(no_log("a", "failed", "no such file"), "no log: a has failed: no such file");
        assert_eq!(no_log("a", "served", "fetch it"), "no log: a is served: fetch it");
    }
}
