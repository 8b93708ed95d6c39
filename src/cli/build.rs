//! `ondine build`: evaluates here, has the server build, and fetches the results. The Nix of this machine
//! builds nothing.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use tokio::task::JoinSet;

use super::build_progress::BuildProgress;
use super::control::ServerArgs;
use super::installables::{AttributesOf, RemoteTarget, evaluate};
use super::push::push;
use super::results;
use crate::escape::{Line, Lines};
use crate::nix::Environment;
use crate::remote::{BuildsQuestion, Error, Remote, RemoteItem, RemoteRequest};

/// Time for which a server that is away is asked again.
const OUTAGE_MAX: Duration = Duration::from_secs(300);
/// Pause before it is asked again.
const PAUSE: Duration = Duration::from_secs(2);
/// Requests that are asked for at once.
const POLLS_MAX: usize = 8;
/// Time that the server holds a question for the end of a request, and the same where somebody watches.
const HOLD: Duration = Duration::from_secs(5);
const WATCHED_HOLD: Duration = Duration::from_secs(1);

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
    /// Builds what is asked for on this builder of the server, and on no other; its inputs anywhere
    #[arg(long, value_name = "BUILDER")]
    on: Option<String>,
    /// Makes no symlinks to the results
    #[arg(long, help_heading = "Results")]
    no_link: bool,
    /// Name of the symlinks
    #[arg(long, short, value_name = "PATH", default_value = "result", help_heading = "Results")]
    out_link: PathBuf,
    /// Prints derivations and outputs as JSON
    #[arg(long, help_heading = "Results")]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

impl Build {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let remote = self.server.clone().connect()?;
        super::runtime()?.block_on(self.build(&remote))
    }

    async fn build(&self, remote: &Remote) -> anyhow::Result<ExitCode> {
        let from = match (&self.file, &self.expr) {
            (Some(file), _) => AttributesOf::File(file),
            (None, Some(expression)) => AttributesOf::Expression(expression),
            (None, None) => AttributesOf::Nothing,
        };
        let evaluated = evaluate(from, &self.installables).await?;
        let targets = &evaluated.targets;
        let requests = ask(remote, targets, self.on.as_deref()).await?;
        let failures = wait_for_all(remote, requests).await?;
        for (request, failure) in &failures {
            tell(*request, failure);
        }
        if failures.iter().any(|(_, failure)| failure.state == "refused") {
            return Ok(ExitCode::from(super::REFUSED));
        }
        if !failures.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
        wait_for_outputs(remote, targets).await?;
        results::fetch(remote, targets).await?;
        if !self.no_link {
            results::link(targets, &self.out_link).await?;
        }
        print!("{}", if self.json { results::json(targets)? } else { results::paths(targets)? });
        Ok(ExitCode::SUCCESS)
    }
}

/// Has the server start on the targets, and uploads the derivations that it lacks. Gives the numbers of its
/// requests.
async fn ask(remote: &Remote, targets: &[RemoteTarget], on: Option<&str>) -> anyhow::Result<Vec<u64>> {
    let on = on.map(str::to_owned);
    let mut question = BuildsQuestion { start: true, on: on.clone(), ..BuildsQuestion::default() };
    let (with, without): (Vec<_>, Vec<_>) = targets.iter().partition(|target| target.drv.is_some());
    for target in &with {
        let outputs = target.outputs.keys().map(String::as_str).collect::<Vec<_>>().join(",");
        question.derivations.extend(target.drv.as_ref().map(|drv| format!("{drv}^{outputs}")));
    }
    question.hashes = without.into_iter().flat_map(hashes).collect();
    let items = remote.ask_builds(&question).await?;
    let unknown: Vec<&RemoteTarget> = with
        .iter()
        .zip(&items)
        .filter(|(_, item)| item.state == "unknown")
        .map(|(target, _)| *target)
        .collect();
    let mut requests = requests(&items, unknown.is_empty())?;
    if !unknown.is_empty() {
        let store_dir = Environment::from_env()?.store_dir;
        let drvs = unknown.iter().filter_map(|target| target.drv.as_ref());
        let drvs: Vec<String> = drvs.map(|drv| drv.in_dir(&store_dir)).collect();
        push(remote, &drvs, true).await.context("the derivations cannot be uploaded")?;
        // By the hashes of its outputs a derivation is known from now on.
        let question = BuildsQuestion {
            hashes: unknown.into_iter().flat_map(hashes).collect(),
            start: true,
            on,
            ..BuildsQuestion::default()
        };
        requests.extend(self::requests(&remote.ask_builds(&question).await?, false)?);
    }
    Ok(requests)
}

fn hashes(target: &RemoteTarget) -> impl Iterator<Item = String> {
    target.outputs.values().map(|path| path.hash().to_string())
}

/// The requests of the items. Fails for an item that will not be built; for one that is unknown only where
/// nothing more can be done about it.
fn requests(items: &[RemoteItem], all_are_known: bool) -> anyhow::Result<Vec<u64>> {
    for item in items {
        let reason = item.reason.as_deref().unwrap_or("the server gives no reason");
        let reason = format!("{}: {}", Line(&item.asked), Lines(reason));
        match &*item.state {
            "refused" => return Err(Error::Refused { server: "the server".to_owned(), reason }.into()),
            "failed" => bail!("the build failed before, and that is remembered: {reason}"),
            "unknown" if all_are_known => bail!("the server does not know how to make it: {reason}"),
            _ => {}
        }
    }
    Ok(items.iter().filter_map(|item| item.request).collect())
}

/// Waits until all outputs are served, which is so where their builds have ended.
async fn wait_for_outputs(remote: &Remote, targets: &[RemoteTarget]) -> anyhow::Result<()> {
    let progress = BuildProgress::new(0);
    for path in targets.iter().flat_map(|target| target.outputs.values()) {
        let mut output = progress.output(path.name());
        let served = remote.wait_served(path.hash(), |words| output.show(words)).await;
        served.with_context(|| format!("{path} was not built"))?;
    }
    Ok(())
}

/// Waits for the ends of all requests; gives those that have no result. Each is asked for again and again, a
/// few at a time: the server gives up one that nobody asks for.
async fn wait_for_all(remote: &Remote, mut open: Vec<u64>) -> anyhow::Result<Vec<(u64, RemoteRequest)>> {
    open.sort_unstable();
    open.dedup();
    let mut progress = BuildProgress::new(open.len());
    let hold = if progress.is_watched() { WATCHED_HOLD } else { HOLD };
    let (mut open, mut polls, mut failures) = (VecDeque::from(open), JoinSet::new(), Vec::new());
    let mut away_since: Option<Instant> = None;
    loop {
        while polls.len() < POLLS_MAX
            && let Some(id) = open.pop_front()
        {
            let remote = remote.clone();
            polls.spawn(async move { (id, remote.wait_build(id, hold).await) });
        }
        let Some(polled) = polls.join_next().await else { break };
        let (id, request) = polled.context("the wait ended early")?;
        let request = match request {
            Err(error) if error.is_transient() => {
                if away_since.get_or_insert_with(Instant::now).elapsed() > OUTAGE_MAX {
                    return Err(error.into());
                }
                tokio::time::sleep(PAUSE).await;
                open.push_back(id);
                continue;
            }
            // It ended so long ago that it is forgotten; its outputs tell the rest.
            Err(Error::NotFound(_)) => continue,
            other => other?,
        };
        away_since = None;
        progress.show(id, &request);
        match request.has_ended() {
            false => open.push_back(id),
            true if request.state != "served" => failures.push((id, request)),
            true => {}
        }
    }
    failures.sort_by_key(|(id, _)| *id);
    Ok(failures)
}

/// Tells of a request that has no result, with the end of its log.
fn tell(id: u64, request: &RemoteRequest) {
    let reason = match (request.reason.as_deref(), &*request.state) {
        (Some(reason), _) => reason,
        (None, "cancelled") => "its owner or an administrator has cancelled it (ondine cancel)",
        (None, _) => "no reason is given",
    };
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
