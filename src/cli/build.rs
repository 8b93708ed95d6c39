//! `ondine build`: evaluates here, has the server build, and fetches the results. The Nix of this machine builds
//! nothing.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use narinfo::StorePath;

use super::control::ServerArgs;
use super::push::push;
use super::results::{self, Links};
use crate::escape::{Line, Lines, in_one_line};
use crate::nix::Environment;
use crate::remote::programs::{Messages, output};
use crate::remote::{BuildsQuestion, Error, Remote, RemoteItem, RemoteRequest};

/// Time for which a server that is away is asked again.
const OUTAGE_MAX: Duration = Duration::from_secs(300);
/// Pause before it is asked again.
const PAUSE: Duration = Duration::from_secs(2);
/// Characters of a line of a log in the line of progress.
const LOG_CHARS_MAX: usize = 60;

#[derive(Args, Debug)]
pub(super) struct Build {
    /// Installables such as .#hello, derivations, or store paths; with --file or --expr, attributes
    #[arg(value_name = "INSTALLABLE")]
    installables: Vec<String>,
    /// Evaluates this file, as nix-build does
    #[arg(long, short, value_name = "FILE")]
    file: Option<String>,
    /// Evaluates this expression
    #[arg(long, conflicts_with = "file", value_name = "NIX")]
    expr: Option<String>,
    /// Makes no symlinks to the results
    #[arg(long)]
    no_link: bool,
    /// Name of the symlinks
    #[arg(long, short, value_name = "PATH", default_value = "result")]
    out_link: PathBuf,
    /// Prints derivations and outputs as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Derivations with outputs, and hashes of paths, to be asked for.
struct Wanted {
    question: BuildsQuestion,
    /// Holds the derivations until the end.
    _roots: tempfile::TempDir,
}

impl Build {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let remote = self.server.clone().connect()?;
        super::runtime()?.block_on(self.build(&remote))
    }

    async fn build(&self, remote: &Remote) -> anyhow::Result<ExitCode> {
        let wanted = self.evaluate().await?;
        let mut items = remote.ask_builds(&wanted.question).await?;
        let unknown = unknown_derivations(&items)?;
        if !unknown.is_empty() {
            push(remote, &unknown, true).await.context("the derivations cannot be uploaded")?;
            items = remote.ask_builds(&wanted.question).await?;
        }
        for item in &items {
            refuse(item)?;
        }
        let failures = wait_for_all(remote, &items).await?;
        for (request, failure) in &failures {
            tell(*request, failure);
        }
        if failures.iter().any(|(_, failure)| failure.state == "refused") {
            return Ok(ExitCode::from(super::REFUSED));
        }
        if !failures.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
        let told = BuildsQuestion { start: false, ..wanted.question };
        let items = remote.ask_builds(&told).await?;
        if let Some(item) = items.iter().find(|item| item.state != "served") {
            let reason = item.reason.as_deref().unwrap_or("it is not served although its build has ended");
            bail!("{}: {}: {}", Line(&item.asked), Line(&item.state), Lines(reason));
        }
        let results = results::fetch(remote, &items).await?;
        let links = if self.no_link { Links::None } else { Links::Named(&self.out_link) };
        results.link(links).await?;
        print!("{}", if self.json { results.json()? } else { results.paths() });
        Ok(ExitCode::SUCCESS)
    }

    /// The derivations of the installables, made by the Nix of this machine.
    async fn evaluate(&self) -> anyhow::Result<Wanted> {
        let store_dir = Environment::from_env()?.store_dir;
        let roots = tempfile::Builder::new().prefix("ondine-build-").tempdir()?;
        let mut question = BuildsQuestion { start: true, ..BuildsQuestion::default() };
        if self.file.is_some() || self.expr.is_some() {
            let mut words = match (&self.file, &self.expr) {
                (Some(file), _) => vec![file.clone()],
                (None, expression) => vec!["--expr".to_owned(), expression.clone().unwrap_or_default()],
            };
            words.extend(self.installables.iter().flat_map(|attribute| ["-A".to_owned(), attribute.clone()]));
            let root = roots.path().join("drv").to_string_lossy().into_owned();
            words.extend(["--add-root".to_owned(), root, "--indirect".to_owned()]);
            for line in output("nix-instantiate", words, Messages::Shown).await?.lines() {
                let (link, wanted) = line.split_once('!').unwrap_or((line, ""));
                let drv = std::fs::read_link(link)
                    .with_context(|| format!("{link} is no symlink to a derivation"))?;
                question.derivations.push(derivation(&drv, wanted)?);
            }
            return Ok(Wanted { question, _roots: roots });
        }
        let current = [".".to_owned()];
        let installables = if self.installables.is_empty() { &current[..] } else { &self.installables };
        for installable in installables {
            let (name, wanted) = installable.rsplit_once('^').unwrap_or((installable, ""));
            if !Path::new(name).starts_with(store_dir.to_string()) {
                let words = ["path-info", "--derivation", name];
                for drv in output("nix", words, Messages::Shown).await?.lines() {
                    question.derivations.push(derivation(Path::new(drv), wanted)?);
                }
            } else if name.ends_with(".drv") {
                question.derivations.push(derivation(Path::new(name), wanted)?);
            } else {
                let path = StorePath::parse_in(&store_dir, name).with_context(|| name.to_owned())?;
                question.hashes.push(path.hash().to_string());
            }
        }
        Ok(Wanted { question, _roots: roots })
    }
}

/// A derivation as the server is asked for it.
fn derivation(drv: &Path, outputs: &str) -> anyhow::Result<String> {
    let name = drv.file_name().and_then(|name| name.to_str()).context("a derivation has no name")?;
    StorePath::parse(name).with_context(|| name.to_owned())?;
    let outputs = if outputs.is_empty() { "*" } else { outputs };
    Ok(format!("{name}^{outputs}"))
}

/// Paths of the derivations that the server does not have.
fn unknown_derivations(items: &[RemoteItem]) -> anyhow::Result<Vec<String>> {
    let store_dir = Environment::from_env()?.store_dir;
    let unknown = items.iter().filter(|item| item.state == "unknown");
    let drvs = unknown.filter_map(|item| StorePath::parse(item.asked.split('^').next()?).ok());
    Ok(drvs.filter(StorePath::is_derivation).map(|drv| drv.in_dir(&store_dir)).collect())
}

/// Fails for an item that will not be built.
fn refuse(item: &RemoteItem) -> anyhow::Result<()> {
    let reason = || {
        let reason = item.reason.as_deref().unwrap_or("the server gives no reason");
        format!("{}: {}", Line(&item.asked), Lines(reason))
    };
    match &*item.state {
        "refused" => Err(Error::Refused { server: "the server".to_owned(), reason: reason() }.into()),
        "failed" => bail!("the build failed before, and that is remembered: {}", reason()),
        "unknown" => bail!("the server does not know how to make it: {}", reason()),
        _ => Ok(()),
    }
}

/// Waits for the ends of all requests; gives those that have no result.
async fn wait_for_all(remote: &Remote, items: &[RemoteItem]) -> anyhow::Result<Vec<(u64, RemoteRequest)>> {
    let mut open: Vec<u64> = items.iter().filter_map(|item| item.request).collect();
    open.sort_unstable();
    open.dedup();
    let (total, is_shown, mut failures) = (open.len(), io::stderr().is_terminal(), Vec::new());
    let mut away_since: Option<Instant> = None;
    // Requests are served in their order, so the oldest one is waited for.
    while let Some(id) = open.first().copied() {
        let request = match remote.wait_build(id).await {
            Err(error) if error.is_transient() => {
                if away_since.get_or_insert_with(Instant::now).elapsed() > OUTAGE_MAX {
                    return Err(error.into());
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // It ended so long ago that it is forgotten; its outputs tell the rest.
            Err(Error::NotFound(_)) => {
                open.remove(0);
                continue;
            }
            other => other?,
        };
        away_since = None;
        if is_shown {
            eprint!("\r\u{1b}[K[{}/{total}] {}", total - open.len(), progress(&request));
            let _ = io::stderr().flush();
        }
        if request.has_ended() {
            open.remove(0);
            if request.state != "served" {
                failures.push((id, request));
            }
        }
    }
    if is_shown {
        eprint!("\r\u{1b}[K");
    }
    Ok(failures)
}

/// The state of a request in a line.
fn progress(request: &RemoteRequest) -> String {
    let mut text = Line(&request.derivation).to_string();
    if let (Some(position), Some(of)) = (request.position, request.of) {
        text += &format!(", {position} of {of} in the queue");
    }
    if let Some(building) = &request.building {
        text += &format!(", building {}", Line(building));
    }
    if let Some((from, to)) = request.eta_seconds {
        text += &format!(", {from} to {to} s left");
    }
    if let Some(line) = request.log.last() {
        text += &format!(": {}", Line(in_one_line(line, LOG_CHARS_MAX)));
    }
    text
}

/// Tells of a request that has no result, with the end of its log.
fn tell(id: u64, request: &RemoteRequest) {
    let reason = request.reason.as_deref().unwrap_or("no reason is given");
    eprintln!(
        "ondine: {} ({}, request {id}): {}",
        Line(&request.derivation),
        Line(&request.state),
        Lines(reason)
    );
    let cause = request.cause.as_ref().unwrap_or(&request.derivation);
    if !request.log.is_empty() {
        eprintln!("The end of the log (ondine log {} shows all of it):", Line(cause));
        for line in &request.log {
            eprintln!("    {}", Line(anstream::adapter::strip_str(line)));
        }
    }
}
