//! Requests of commands to a server: which one, and its answers printed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::StateDir;
use crate::remote::{Error, Remote, ServerAddress, ServerChoice, ServerReply, reason};
use crate::upstream::Credentials;

/// Bytes of one line of a response at most.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Error for a response in an unknown form.
pub(super) const OTHER_VERSION: &str =
    "the server's response cannot be parsed; run the command with the version of ondine that the server runs";

/// The server of a command that can be run on another machine.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(super) struct ServerArgs {
    /// URL of the server [default: `server` in ~/.config/ondine/config.toml, else the server on this machine]
    #[arg(long, env = "ONDINE_SERVER", hide_env_values = true, value_name = "URL")]
    server: Option<String>,
    /// File with a token [default: the variable ONDINE_TOKEN, ~/.config/ondine/config.toml, or a netrc file]
    #[arg(long, env = "ONDINE_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    state_dir: StateDir,
}

impl ServerArgs {
    /// A client of the server.
    pub(super) fn connect(self) -> Result<Remote, Error> {
        let state_dir = self.state_dir.named();
        let default_state_dir = self.state_dir.path().ok();
        ServerChoice { server: self.server, token_file: self.token_file, state_dir, default_state_dir }
            .connect()
    }
}

fn local(state_dir: &Path) -> Result<Remote, Error> {
    Remote::new(ServerAddress::of_state_dir(state_dir), Credentials::default())
}

/// The path from the server's address on.
fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Body of `GET path` from the server of `state_dir`.
///
/// # Errors
/// The server cannot be reached, or reports an error.
pub(super) fn get(state_dir: &Path, path: &str) -> anyhow::Result<String> {
    let remote = local(state_dir)?;
    Ok(super::runtime()?.block_on(async { remote.get(relative(path)).await?.text().await })?)
}

/// Prints the body of `GET path`.
///
/// # Errors
/// When the server cannot be reached, or reports an error in a body that was printed all the same.
pub(super) fn show(state_dir: &Path, path: &str) -> anyhow::Result<ExitCode> {
    let remote = local(state_dir)?;
    let body = super::runtime()?.block_on(remote.body_of(relative(path)))?;
    match body {
        Ok(text) => print!("{text}"),
        Err(text) => {
            print!("{text}");
            bail!("{}", reason(&text));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Method of a request that changes something.
#[derive(Clone, Copy, Debug)]
pub(super) enum WriteMethod {
    Post,
    Delete,
}

/// Prints each line of the server's progress as it arrives. The exit code is a failure when a line reports
/// one. The server goes on when the command is ended.
///
/// # Errors
/// The server cannot be reached, or reports an error.
pub(super) fn follow(action: WriteMethod, state_dir: &Path, path: &str) -> anyhow::Result<ExitCode> {
    let remote = local(state_dir)?;
    super::runtime()?.block_on(async {
        let path = relative(path);
        print_lines(match action {
            WriteMethod::Post => remote.post_nothing(path).await?,
            WriteMethod::Delete => remote.delete(path).await?,
        })
        .await
    })
}

/// The same for a POST with arguments.
///
/// # Errors
/// The server cannot be reached, or reports an error.
pub(super) fn post(
    state_dir: &Path,
    path: &str,
    arguments: &impl serde::Serialize,
) -> anyhow::Result<ExitCode> {
    let remote = local(state_dir)?;
    super::runtime()?.block_on(async { print_lines(remote.post(relative(path), arguments).await?).await })
}

/// Body of the answer to a POST with arguments.
///
/// # Errors
/// The server cannot be reached, or reports an error.
pub(super) fn exchange(
    state_dir: &Path,
    path: &str,
    arguments: &impl serde::Serialize,
) -> anyhow::Result<String> {
    let remote = local(state_dir)?;
    Ok(super::runtime()?.block_on(async { remote.post(relative(path), arguments).await?.text().await })?)
}

async fn print_lines(mut reply: ServerReply) -> anyhow::Result<ExitCode> {
    let (mut exit_code, mut line) = (ExitCode::SUCCESS, Vec::new());
    while let Some(chunk) = reply.next_chunk().await? {
        for byte in chunk {
            if byte == b'\n' {
                if line.starts_with(b"failed:") {
                    exit_code = ExitCode::FAILURE;
                }
                println!("{}", String::from_utf8_lossy(&line));
                line.clear();
            } else if line.len() < LINE_BYTES_MAX {
                line.push(byte);
            }
        }
    }
    Ok(exit_code)
}
