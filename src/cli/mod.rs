//! The command line: one file for each command or group of commands.
//! Output meant for people and scripts goes to stdout, the log to stderr.

#[macro_use]
mod output;

mod attributes;
mod backup;
mod build;
mod build_log;
mod build_progress;
mod builders;
mod cancel;
mod completions;
mod control;
mod doctor;
mod du;
mod failures;
mod help;
mod import;
mod installables;
mod key;
mod man;
mod migrate;
#[cfg(test)]
mod page;
mod push;
mod queue;
mod results;
mod retention;
mod screen;
mod sets;
mod status;
mod stdio;
mod token;
mod try_out;
mod upstreams;
mod use_server;
mod why;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, FromArgMatches, Parser, Subcommand};

use crate::catalogue::SetName;
use crate::config::{self, RawSettings, StateDir, UnlistedSettings};
use crate::remote::{self, ErrorClass};
use crate::serve::{self, Server};
use crate::telemetry;
pub use completions::complete;
use control::{OutputArgs, ServerArgs, WriteMethod};
use output::OutputError;

/// Threads of the runtime, whose tasks wait most of the time. Connections of clients, and work that takes a
/// core, have threads of their own.
const THREADS: usize = 2;

/// Exit code for a wrong command line, or settings that are missing or wrong.
const USAGE: u8 = 2;
/// Exit code for a server that cannot be reached.
const UNREACHABLE: u8 = 3;
/// Exit code for a server that refuses.
const REFUSED: u8 = 4;
/// Exit code where the reader of the output has gone: that of a program which SIGPIPE ends.
const CLOSED_PIPE: u8 = 128 + 13;

/// A Nix binary cache that builds what it is missing.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// True where the output is to be JSON.
    #[arg(skip)]
    is_json: bool,
}

// The flags of a command are described when it is the one that runs: describing all takes 2 ms of each start.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Runs the server.
    ///
    /// It prints its address, its public key and the lines for nix.conf, then answers the binary-cache
    /// protocol. SIGTERM and SIGINT drain open responses and end it with exit code 0.
    Serve(Box<Serve>),
    /// Shows and changes the signing keys of a state directory.
    #[command(subcommand)]
    Key(key::Key),
    /// Checks a settings file, and whether the server would start with it on this machine.
    ///
    /// Run it as the server's user, with the server's flags and variables: it tries the state directory, the
    /// keys, the index, the address and the Nix daemon, and creates nothing.
    CheckConfig(Box<CheckConfig>),
    /// Shows a server at a glance: address, keys, cache, queue, package sets, upstreams, builders.
    ///
    /// As JSON it is the answer of `GET /api/v1/status`.
    Status(status::Status),
    /// Shows the queue of a server as it goes on, until it is interrupted.
    Top(status::Top),
    /// Shows the builds that run and the requests that wait, in their order.
    Queue(queue::QueueCommand),
    /// Lists the requests that wait, and the latest that have ended with their reasons.
    Builds(queue::BuildsCommand),
    /// Lists the package sets of a server.
    Sets(sets::Sets),
    /// Shows what takes the disk space of a server: package sets, and closures that nothing else refers to.
    Du(du::DiskUsage),
    /// Lists the upstreams of a server, their health and counts since its start.
    Upstreams(upstreams::UpstreamsCommand),
    /// Checks a server, and shows or writes the lines by which the Nix of this machine uses it.
    ///
    /// The command says if Nix trusts the user, whose nix.conf is ignored otherwise. Doing it again changes
    /// nothing.
    Use(use_server::UseServer),
    /// Has installables built by a server, and fetches the results.
    ///
    /// The Nix of this machine evaluates them. Derivations and sources that the server lacks are uploaded,
    /// which needs the right `push`. It waits for the builds, copies the outputs to the local store, makes
    /// symlinks to them and prints their paths. It fails with the end of the log when a build fails.
    Build(build::Build),
    /// Uploads store paths to a server, with all that they refer to.
    ///
    /// Paths that the server has are not sent, so an upload that was interrupted goes on where it stopped.
    Push(push::Push),
    /// Prints the log of a build.
    ///
    /// Of a running build it prints what is there so far.
    Log(build_log::BuildLog),
    /// Explains the state of something on a server: served, building, failed or unknown, why, and what to do.
    ///
    /// The command fails for what is not served and will not be built.
    Why(why::Why),
    /// Serves one Nix client over its standard input and output, as a remote builder.
    ///
    /// sshd starts it for each connection, as ForceCommand or as the command of a key. Requests go to a
    /// server, with the rights of a token.
    Stdio(stdio::Stdio),
    /// Refreshes a package set of a running server, or all of them, and shows the progress.
    ///
    /// It fails when a refresh fails.
    Refresh {
        /// Name of the package set [default: all]
        name: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Lists the failures that a running server remembers.
    ///
    /// Each has the times since and until which it is remembered, its class, its cause and its reason.
    Failures(failures::FailuresCommand),
    /// Clears a remembered failure of a running server, and builds again.
    ///
    /// The failure's cause is cleared with it, and so is each failure with the same cause.
    Retry(failures::RetryCommand),
    /// Cancels a request for a build of a running server, and stops its build.
    ///
    /// A request goes on while clients wait for it on a connection; then it says so.
    Cancel(cancel::Cancel),
    /// Lists the machines that build for a running server, and drains or resumes one.
    ///
    /// Each has its state, what runs there, its builds, and why it was last lost.
    Builders(builders::BuildersCommand),
    /// Lists the attributes of a package set of a running server.
    ///
    /// Each line has the attribute, a tab and the name of its derivation; with --json it is an object. It
    /// fails when there is none.
    Attributes(attributes::Attributes),
    /// Pins a path with its closure in the NAR store of a running server.
    ///
    /// What is pinned is never evicted.
    Pin(retention::Pin),
    /// Removes a pin.
    Unpin(retention::Unpin),
    /// Lists the pins of a running server.
    Pins(retention::PinList),
    /// Evicts what exceeds the limits of a running server, and removes orphaned files.
    ///
    /// It prints what was evicted, what could not be, and why.
    Gc(retention::Gc),
    /// Checks the NARs of a running server against its index.
    ///
    /// It fails when something is corrupt and was not repaired.
    Fsck(retention::Fsck),
    /// Makes, lists and revokes tokens of a running server, which give clients rights.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Uploads a cache on this machine to a server: one in a directory, as `nix copy --to file://` makes it,
    /// or one of an attic server.
    ///
    /// Each path needs a signature by a trusted key, or is named by its contents; the server verifies every
    /// NAR. What the server has is not sent, and what is wrong takes nothing else with it. It fails when a
    /// path was not taken. Of an attic server, its SQLite database and the chunks in its directory are read,
    /// while it runs or not.
    Import(import::Import),
    /// Copies what cannot be made again of a server into a directory, for a backup program to take.
    ///
    /// Those are the signing keys, and the index with tokens, pins and the queue. The server may run. NARs
    /// are not in the copy: they are fetched, packed or built again. Run it as the server's user or as root,
    /// with the server's settings.
    Backup(Box<backup::Backup>),
    /// Rebuilds a lost or damaged index from the records beside the NARs, while no server runs.
    ///
    /// An index that was there is kept as index.damaged.sqlite, a later one as index.damaged-2.sqlite, and so
    /// on. Run it with the server's settings.
    Recover(Box<Recover>),
    /// Copies the index to another database, while no server runs.
    ///
    /// The index is that of the settings. One that was interrupted goes on with the same command, and the
    /// copy is compared row by row at the end. Then set `index` to the new database, and start the server.
    Migrate(Box<migrate::Migrate>),
    /// Looks for what is wrong with a server, or with the Nix of this machine as its client.
    ///
    /// Each finding says what was found, why it matters and what to do. Run it as the server's user or as
    /// root, with the server's settings. It fails when something does not work.
    Doctor(Box<doctor::Doctor>),
    /// Runs an end-to-end demo in a temporary store.
    ///
    /// A server builds a sample derivation for a stock Nix client. The store, its daemon and all files are
    /// removed at the end.
    Try(try_out::Try),
    /// Prints the script that makes a shell complete commands, names and hashes.
    ///
    /// For bash: `ondine completions bash > ~/.local/share/bash-completion/completions/ondine`. The script
    /// has the version of the program, and is made again when that changes.
    Completions(completions::Completions),
    /// Writes the man pages into a folder.
    Man(man::Man),
}

#[derive(Args, Debug)]
struct Serve {
    /// Settings file (TOML)
    #[arg(long, env = "ONDINE_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: RawSettings,
}

#[derive(Args, Debug)]
struct Recover {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

// The settings of a server on this machine, for a command that works without it. A documentation comment
// would take the place of the command's description.
#[derive(Args, Debug)]
struct ConfigArgs {
    /// Settings file (TOML) of the server
    #[arg(long, env = "ONDINE_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: UnlistedSettings,
}

impl ConfigArgs {
    fn resolve(self) -> anyhow::Result<serve::Settings> {
        resolve(self.settings.0, self.config.as_deref())
    }
}

#[derive(Args, Debug)]
struct CheckConfig {
    /// Settings file (TOML)
    file: PathBuf,
    /// Checks the settings alone, for a file that is used on another machine
    #[arg(long)]
    settings_only: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    settings: UnlistedSettings,
}

impl Cli {
    /// The command that the program was started with. Ends the program where that cannot be parsed, or asks
    /// for help.
    #[must_use]
    pub fn from_command_line() -> Self {
        let matches = help::command().get_matches();
        let parsed = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        Self { is_json: wants_json(&matches), ..parsed }
    }

    /// Runs the command, and reports its failure: to people, and where it prints JSON, as an object, too.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let is_json = self.is_json;
        self.execute().unwrap_or_else(|error| {
            if error.downcast_ref::<OutputError>().is_some_and(OutputError::is_closed_pipe) {
                return ExitCode::from(CLOSED_PIPE);
            }
            eprintln!("ondine: {error:#}");
            if is_json {
                // The message says all that this would.
                let _ = print_error(&error);
            }
            exit_code(&error)
        })
    }

    fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(serve) => serve.run()?,
            Command::Key(key) => key.run()?,
            Command::CheckConfig(check) => check.run()?,
            Command::Status(status) => return status.run(),
            Command::Top(top) => return top.run(),
            Command::Queue(queue) => return queue.run(),
            Command::Builds(builds) => return builds.run(),
            Command::Sets(sets) => return sets.run(),
            Command::Du(du) => return du.run(),
            Command::Upstreams(upstreams) => return upstreams.run(),
            Command::Refresh { name, output, server } => return refresh(name.as_deref(), output, server),
            Command::Use(use_server) => return use_server.run(),
            Command::Build(build) => return build.run(),
            Command::Push(push) => return push.run(),
            Command::Log(log) => return log.run(),
            Command::Why(why) => return why.run(),
            Command::Stdio(stdio) => return stdio.run(),
            Command::Failures(failures) => return failures.run(),
            Command::Retry(retry) => return retry.run(),
            Command::Cancel(cancel) => return cancel.run(),
            Command::Builders(builders) => return builders.run(),
            Command::Attributes(attributes) => return attributes.run(),
            Command::Pin(pin) => return pin.run(),
            Command::Unpin(unpin) => return unpin.run(),
            Command::Pins(pins) => return pins.run(),
            Command::Gc(gc) => return gc.run(),
            Command::Fsck(fsck) => return fsck.run(),
            Command::Token(token) => return token.run(),
            Command::Backup(backup) => backup.run()?,
            Command::Recover(recover) => recover.run()?,
            Command::Migrate(migrate) => migrate.run()?,
            Command::Doctor(doctor) => return doctor.run(),
            Command::Import(import) => return import.run(),
            Command::Try(try_out) => try_out.run()?,
            Command::Completions(completions) => completions.run()?,
            Command::Man(man) => man.run()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Serve {
    fn run(self) -> anyhow::Result<()> {
        let settings = resolve(self.settings, self.config.as_deref())?;
        let _telemetry = telemetry::start(&settings.telemetry)?;
        for warning in unknown_variables() {
            tracing::warn!("{warning}");
        }
        create_private_files();
        runtime()?.block_on(async {
            let until = serve::told_to_end()?;
            let server = Server::open(settings).await?;
            // Clients need none of it.
            if let Err(error) = print_banner(&server) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, url = %server.url, "cannot print the address and the public key");
            }
            server.run(until).await?;
            Ok(())
        })
    }
}

impl Recover {
    fn run(self) -> anyhow::Result<()> {
        telemetry::start_text_log();
        create_private_files();
        let report = runtime()?.block_on(serve::recover(self.config.resolve()?))?;
        println!("{}", self.output.text(&report, report)?);
        Ok(())
    }
}

fn refresh(name: Option<&str>, output: OutputArgs, server: ServerArgs) -> anyhow::Result<ExitCode> {
    let path = match name.map(SetName::new) {
        None => "/api/v1/catalogue".to_owned(),
        Some(Some(name)) => format!("/api/v1/catalogue/{name}"),
        Some(None) => anyhow::bail!("expected the name of a package set: letters, digits, _ and -"),
    };
    server.open()?.follow(WriteMethod::Post, &path, output)
}

/// Prints address, public key, and the lines for nix.conf.
fn print_banner(server: &Server) -> Result<(), OutputError> {
    let Server { url, public_key: key, .. } = server;
    print!(
        "url: {url}\npublic key: {key}\nnix.conf:\n    extra-substituters = {url}\n    \
         extra-trusted-public-keys = {key}\n"
    );
    Ok(())
}

/// Prints an error as JSON.
fn print_error(error: &anyhow::Error) -> Result<(), OutputError> {
    println!("{}", serde_json::json!({ "error": format!("{error:#}") }));
    Ok(())
}

impl CheckConfig {
    fn run(self) -> anyhow::Result<()> {
        let settings = resolve(self.settings.0, Some(&self.file))?;
        let mut warnings: Vec<_> = unknown_variables().collect();
        if !self.settings_only {
            let state_dir = settings.state_dir.clone();
            let checked = runtime()?.block_on(serve::check(settings))?;
            warnings.extend(checked.warnings);
            warnings.extend(checked.untried.map(|address| {
                format!(
                    "a server runs with the state directory {}, so {address} was not tried",
                    state_dir.display()
                )
            }));
        }
        for warning in &warnings {
            eprintln!("warning: {warning}");
        }
        let report = serde_json::json!({ "file": self.file, "warnings": warnings });
        println!("{}", self.output.text(&report, format_args!("{}: ok", self.file.display()))?);
        Ok(())
    }
}

/// Makes files and sockets that are created from here on private.
fn create_private_files() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Settings of flags and variables, then of a file, where there is one.
fn resolve(settings: RawSettings, file: Option<&Path>) -> anyhow::Result<serve::Settings> {
    let settings = match file {
        Some(file) => settings.or(RawSettings::read(file)?),
        None => settings,
    };
    Ok(settings.resolve()?)
}

fn unknown_variables() -> impl Iterator<Item = String> {
    config::unknown_variables().into_iter().map(|(name, nearest)| {
        format!("the variable {name} is ignored, since there is no such setting; did you mean {nearest}?")
    })
}

/// True where the command that is meant has the flag `--json`.
fn wants_json(matches: &clap::ArgMatches) -> bool {
    let here = matches.try_get_one::<bool>("json").ok().flatten().is_some_and(|json| *json);
    here || matches.subcommand().is_some_and(|(_, matches)| wants_json(matches))
}

/// Exit code for a command that failed.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<config::Error>()) {
        return ExitCode::from(USAGE);
    }
    let error = error.chain().find_map(remote::server_error);
    match error.map(remote::Error::class) {
        Some(ErrorClass::Usage) => ExitCode::from(USAGE),
        Some(ErrorClass::Unreachable) => ExitCode::from(UNREACHABLE),
        Some(ErrorClass::Refused) => ExitCode::from(REFUSED),
        Some(ErrorClass::Other) | None => ExitCode::FAILURE,
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(THREADS).enable_all().build().context("cannot start the runtime")
}
