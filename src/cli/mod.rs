//! The command line: `ondine serve`, `key show`, `check-config`, `status`, `refresh`, `attributes`, `failures`, `retry`, `pin`, `unpin`,
//! `gc`, `fsck`, `recover` and `try`.
//! Output meant for people and scripts goes to stdout, the log to stderr.

mod attributes;
mod control;
mod failures;
mod keep;
mod key;
mod log;
mod try_out;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::catalogue::SetName;
use crate::config::{self, Written};
use crate::nix;
use crate::serve::{self, Server};

/// Threads for all that waits for others most of the time. What takes a core has threads of its own, and so have the connections
/// of clients.
const THREADS: usize = 2;

/// A Nix binary cache that builds what it is missing.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer the binary-cache protocol, building what is missing.
    Serve(Box<Serve>),
    /// Show, make, exchange and retire signing keys.
    #[command(subcommand)]
    Key(key::Key),
    /// Say whether a settings file would let the server start.
    CheckConfig(Box<CheckConfig>),
    /// Show the queue and the cache of a running server.
    Status(StateDir),
    /// Have a running server refresh a package set, or all of them, and show how it goes.
    Refresh {
        /// The package set [default: all]
        name: Option<String>,
        #[command(flatten)]
        state_dir: StateDir,
    },
    /// List what a running server remembers to have failed.
    Failures(failures::Failures),
    /// Have a running server forget a failure, with its cause and all that failed because of it, and build it anew.
    Retry(failures::Retry),
    /// List the attributes of a package set of a running server, or those that are like a pattern.
    Attributes(attributes::Attributes),
    /// Hold a path and its closure in the NAR store of a running server however long nobody uses it, or list what is held.
    Pin(keep::Pin),
    /// Take a pin back.
    Unpin(keep::Unpin),
    /// Have a running server evict what is above its limit, and remove files that are on nobody's record.
    Gc(keep::Gc),
    /// Have a running server check its NARs against its files; fails when something is wrong and not repaired.
    Fsck(keep::Fsck),
    /// Make a lost or damaged index anew from what is recorded beside the NARs; no server may run meanwhile.
    Recover(StateDir),
    /// See it work: a throw-away store, a server, a derivation nobody has built, and a stock client that gets it.
    Try(try_out::Try),
}

#[derive(Args, Debug)]
struct Serve {
    /// Settings file (TOML).
    #[arg(long, env = "ONDINE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    written: Written,
}

#[derive(Args, Debug)]
struct CheckConfig {
    /// The settings file (TOML).
    file: PathBuf,
    /// Look at the settings alone, not at this machine: for a file that is used on another one.
    #[arg(long)]
    settings_only: bool,
    /// As the server is given them.
    #[command(flatten)]
    written: Written,
}

#[derive(Args, Debug)]
struct StateDir {
    /// The server's state directory [default: $STATE_DIRECTORY, else ~/.local/state/ondine]
    #[arg(long, env = "ONDINE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl StateDir {
    fn path(self) -> anyhow::Result<PathBuf> {
        Ok(Written::with_state_dir(self.state_dir).state_dir()?)
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// With what went wrong, for people.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(serve) => {
                log::to_stderr();
                serve.run()?;
            }
            Command::Key(key) => key.run()?,
            Command::CheckConfig(check) => check.run()?,
            Command::Status(state_dir) => return control::show(&state_dir.path()?, "/api/v1/status"),
            Command::Refresh { name, state_dir } => return refresh(name.as_deref(), &state_dir.path()?),
            Command::Failures(failures) => return failures.run(),
            Command::Retry(retry) => return retry.run(),
            Command::Attributes(attributes) => return attributes.run(),
            Command::Pin(pin) => return pin.run(),
            Command::Unpin(unpin) => return unpin.run(),
            Command::Gc(gc) => return gc.run(),
            Command::Fsck(fsck) => return fsck.run(),
            Command::Recover(state_dir) => {
                log::to_stderr();
                let store_dir = nix::Environment::from_env()?.store_dir;
                let state_dir = state_dir.path()?;
                println!("{}", runtime()?.block_on(serve::recover(&state_dir, store_dir))?);
            }
            Command::Try(try_out) => try_out.run()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Serve {
    fn run(self) -> anyhow::Result<()> {
        for warning in unknown_variables() {
            tracing::warn!("{warning}");
        }
        let settings = match &self.config {
            Some(file) => resolve(self.written, file)?,
            None => self.written.resolve()?,
        };
        // What is made from here on is nobody else's.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        runtime()?.block_on(async {
            let until = serve::told_to_end()?;
            let server = Server::open(settings).await?;
            print!("{}", banner(&server));
            server.run(until).await?;
            Ok(())
        })
    }
}

fn refresh(name: Option<&str>, state_dir: &Path) -> anyhow::Result<ExitCode> {
    let path = match name.map(SetName::new) {
        None => "/api/v1/catalogue".to_owned(),
        Some(Some(name)) => format!("/api/v1/catalogue/{name}"),
        Some(None) => anyhow::bail!("a package set has no such name"),
    };
    control::follow(control::Do::Post, state_dir, &path)
}

/// What a new admin needs next: where it is, and what goes into nix.conf.
fn banner(server: &Server) -> String {
    let Server { url, public_key: key, .. } = server;
    format!(
        "url: {url}\npublic key: {key}\nnix.conf:\n    extra-substituters = {url}\n    extra-trusted-public-keys = {key}\n"
    )
}

impl CheckConfig {
    fn run(self) -> anyhow::Result<()> {
        let settings = resolve(self.written, &self.file)?;
        let mut warnings: Vec<_> = unknown_variables().collect();
        if !self.settings_only {
            warnings.extend(runtime()?.block_on(serve::check(settings))?);
        }
        for warning in warnings {
            eprintln!("warning: {warning}");
        }
        println!("{}: ok", self.file.display());
        Ok(())
    }
}

/// The settings of flags, variables and a file.
fn resolve(written: Written, file: &Path) -> anyhow::Result<serve::Settings> {
    let in_file = Written::read(file)?;
    Ok(written.or(in_file.clone()).resolve().map_err(|error| error.in_file(file, in_file))?)
}

fn unknown_variables() -> impl Iterator<Item = String> {
    config::unknown_variables().into_iter().map(|(name, nearest)| {
        format!("the variable {name} is no setting and is ignored; did you mean {nearest}?")
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(THREADS).enable_all().build().context("cannot start the runtime")
}
