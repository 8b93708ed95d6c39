//! Requests of commands to a server: which one, and its answers as text or JSON.

use std::fmt::Display;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use super::StateDir;
use super::screen::Screen;
use crate::remote::{Error, Remote, ServerChoice, ServerReply};

/// Bytes of one line of a response at most.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Time between two pictures of a command that watches.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// State directory of the service, which is looked at where nothing names another one.
const STATE_DIR_OF_THE_SERVICE: &str = "/var/lib/ondine";

/// Error for a response in an unknown form.
pub(super) const OTHER_VERSION: &str =
    "the server's response cannot be parsed; run the command with the version of ondine that the server runs";

// The server of a command. Not as documentation, which clap would take for the text of each such command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection")]
pub(super) struct ServerArgs {
    /// URL of the server [default: the variable ONDINE_SERVER, `server` in ~/.config/ondine/config.toml, else
    /// the server on this machine]
    #[arg(long, value_name = "URL")]
    pub(super) server: Option<String>,
    /// File with a token [default: the variable ONDINE_TOKEN, ~/.config/ondine/config.toml, or a netrc file]
    #[arg(long, env = "ONDINE_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) state_dir: StateDir,
}

// The form of a command's output.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct OutputArgs {
    /// Prints JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl OutputArgs {
    /// A result in its form: as JSON, or as the text.
    pub(super) fn text(self, result: &impl Serialize, text: impl Display) -> anyhow::Result<String> {
        Ok(if self.json { serde_json::to_string_pretty(result)? } else { text.to_string() })
    }
}

// The repetition of a command.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct WatchArgs {
    /// Shows it anew every second, until it is interrupted
    #[arg(long, short)]
    pub(super) watch: bool,
}

/// A server, and the runtime in which it is asked.
pub(super) struct ServerSession {
    runtime: Runtime,
    remote: Remote,
}

impl ServerArgs {
    /// A client of the server.
    pub(super) fn connect(self) -> Result<Remote, Error> {
        self.choice(self.state_dir.named()).connect()
    }

    /// The choice of a server, where this state directory is named.
    pub(super) fn choice(&self, state_dir: Option<PathBuf>) -> ServerChoice {
        let own = self.state_dir.clone().path().ok();
        let default_state_dirs = own.into_iter().chain([STATE_DIR_OF_THE_SERVICE.into()]).collect();
        ServerChoice {
            server: self.server.clone(),
            token_file: self.token_file.clone(),
            state_dir,
            default_state_dirs,
        }
    }

    /// A session with the server; nothing is sent yet.
    pub(super) fn open(self) -> anyhow::Result<ServerSession> {
        Ok(ServerSession { runtime: super::runtime()?, remote: self.connect()? })
    }
}

/// The path from the server's address on.
fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Method of a request that changes something.
#[derive(Clone, Copy, Debug)]
pub(super) enum WriteMethod {
    Post,
    Delete,
}

impl ServerSession {
    /// A session with the server of this state directory.
    pub(super) fn of_state_dir(state_dir: PathBuf) -> anyhow::Result<Self> {
        let choice = ServerChoice { state_dir: Some(state_dir), ..ServerChoice::default() };
        Ok(Self { runtime: super::runtime()?, remote: choice.connect()? })
    }

    /// Answer to `GET path`.
    ///
    /// # Errors
    /// The server cannot be reached, or reports an error.
    pub(super) fn read<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        Ok(self.runtime.block_on(async { self.remote.get(relative(path)).await?.json().await })?)
    }

    /// Answer to a POST with arguments.
    ///
    /// # Errors
    /// The server cannot be reached, or reports an error.
    pub(super) fn exchange<T: DeserializeOwned>(
        &self,
        path: &str,
        arguments: &impl Serialize,
    ) -> anyhow::Result<T> {
        Ok(self
            .runtime
            .block_on(async { self.remote.post(relative(path), arguments).await?.json().await })?)
    }

    /// Sends a DELETE whose answer is not shown.
    ///
    /// # Errors
    /// The server cannot be reached, or reports an error.
    pub(super) fn remove(&self, path: &str) -> anyhow::Result<()> {
        self.runtime.block_on(async { self.remote.delete(relative(path)).await?.text().await })?;
        Ok(())
    }

    /// Prints the answer to `GET path`: as it is, or as `render` shows it.
    ///
    /// # Errors
    /// The server cannot be reached, or reports an error. One in an answer that is printed all the same is
    /// the exit code.
    pub(super) fn show<T: DeserializeOwned>(
        &self,
        path: &str,
        output: OutputArgs,
        render: impl Fn(&T, Screen) -> String,
    ) -> anyhow::Result<ExitCode> {
        let picture =
            self.runtime.block_on(picture(&self.remote, path, output, Screen::stdout(), &render))?;
        print!("{}", picture.text);
        let Some(error) = picture.error else { return Ok(ExitCode::SUCCESS) };
        // The answer, which has the error as well, is the only JSON.
        eprintln!("ondine: {error}");
        Ok(super::exit_code(&error.into()))
    }

    /// The same, again and again where that is wanted: in place on a terminal, else one after the other, each
    /// JSON in a line.
    ///
    /// # Errors
    /// As above; on a terminal it goes on with the next picture.
    pub(super) fn watch<T: DeserializeOwned>(
        &self,
        path: &str,
        output: OutputArgs,
        watch: WatchArgs,
        render: impl Fn(&T, Screen) -> String,
    ) -> anyhow::Result<ExitCode> {
        if !watch.watch {
            return self.show(path, output, render);
        }
        let screen = Screen::stdout();
        if std::io::stdout().is_terminal() && !output.json {
            let _whole = screen.take_whole()?;
            return self.runtime.block_on(async {
                loop {
                    let text = match picture(&self.remote, path, output, screen, &render).await {
                        Ok(picture) => picture.text,
                        Err(error) => format!("{error:#}\n"),
                    };
                    screen.draw(&text)?;
                    tokio::select! {
                        pressed = tokio::signal::ctrl_c() => return Ok(pressed.map(|()| ExitCode::SUCCESS)?),
                        () = tokio::time::sleep(WATCH_INTERVAL) => {}
                    }
                }
            });
        }
        loop {
            let picture = self.runtime.block_on(picture(&self.remote, path, output, screen, &render))?;
            let text = match output.json {
                true => narinfo::json::from_str::<serde_json::Value>(&picture.text)?.to_string(),
                false => picture.text,
            };
            if let Some(error) = picture.error {
                return Err(error.into());
            }
            println!("{text}");
            std::thread::sleep(WATCH_INTERVAL);
        }
    }

    /// Prints each line of the server's progress as it arrives. The exit code is a failure when a line
    /// reports one. The server goes on when the command is ended.
    ///
    /// # Errors
    /// The server cannot be reached, or reports an error.
    pub(super) fn follow(
        &self,
        action: WriteMethod,
        path: &str,
        output: OutputArgs,
    ) -> anyhow::Result<ExitCode> {
        self.runtime.block_on(async {
            let path = relative(path);
            let reply = match action {
                WriteMethod::Post => self.remote.post_nothing(path).await?,
                WriteMethod::Delete => self.remote.delete(path).await?,
            };
            print_lines(reply, output).await
        })
    }

    /// The same for a POST with arguments.
    ///
    /// # Errors
    /// The server cannot be reached, or reports an error.
    pub(super) fn post(
        &self,
        path: &str,
        arguments: &impl Serialize,
        output: OutputArgs,
    ) -> anyhow::Result<ExitCode> {
        self.runtime
            .block_on(async { print_lines(self.remote.post(relative(path), arguments).await?, output).await })
    }
}

/// An answer as it is shown.
struct Picture {
    text: String,
    /// The error that the server reports beside it.
    error: Option<Error>,
}

async fn picture<T: DeserializeOwned>(
    remote: &Remote,
    path: &str,
    output: OutputArgs,
    screen: Screen,
    render: &impl Fn(&T, Screen) -> String,
) -> anyhow::Result<Picture> {
    let (body, error) = remote.body_of(relative(path)).await?;
    let value = match (narinfo::json::from_str::<T>(&body), error) {
        (Ok(value), error) => (value, error),
        (Err(_), Some(error)) => return Err(error.into()),
        (Err(error), None) => return Err(error).context(OTHER_VERSION),
    };
    let text = if output.json { body } else { render(&value.0, screen) };
    Ok(Picture { text, error: value.1 })
}

/// A line of progress as JSON.
#[derive(Serialize)]
struct ProgressLine<'a> {
    /// True where it reports a failure.
    failed: bool,
    line: &'a str,
}

async fn print_lines(mut reply: ServerReply, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let (mut exit_code, mut line) = (ExitCode::SUCCESS, Vec::new());
    while let Some(chunk) = reply.next_chunk().await? {
        for byte in chunk {
            if byte == b'\n' {
                let failed = line.starts_with(b"failed:");
                if failed {
                    exit_code = ExitCode::FAILURE;
                }
                let text = String::from_utf8_lossy(&line);
                match output.json {
                    true => println!("{}", serde_json::to_string(&ProgressLine { failed, line: &text })?),
                    false => println!("{text}"),
                }
                line.clear();
            } else if line.len() < LINE_BYTES_MAX {
                line.push(byte);
            } else {
                bail!("{OTHER_VERSION}");
            }
        }
    }
    Ok(exit_code)
}
