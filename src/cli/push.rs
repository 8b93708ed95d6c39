//! `ondine push`: uploads store paths, or derivations with all that their builds need, at once or through a
//! queue.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::control::{OutputArgs, ServerArgs};
use crate::escape::{Line, Lines};
use crate::nix::Environment;
use crate::remote::{
    LocalClosure, PushQueue, QueueSender, QueuedPush, Remote, SendEvent, UploadCounts, upload,
};

#[derive(Args, Debug)]
pub(super) struct Push {
    /// Store paths, or symlinks to some, such as ./result
    #[arg(required_unless_present_any = ["queue", "send_queue"], value_name = "PATH")]
    paths: Vec<String>,
    /// Uploads the derivations that make the paths, with all that their builds need, instead of the paths
    #[arg(long)]
    derivation: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    queue: QueueArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Queue")]
struct QueueArgs {
    /// Adds the paths to the queue in this folder, and returns at once; without paths, shows the queue
    #[arg(long, value_name = "DIR")]
    queue: Option<PathBuf>,
    /// Uploads what is in the queue in this folder, in its order, however long the server is away
    #[arg(long, value_name = "DIR", conflicts_with_all = ["queue", "paths", "derivation"])]
    send_queue: Option<PathBuf>,
    /// Goes on waiting for more once the queue is empty
    #[arg(long, short, requires = "send_queue")]
    follow: bool,
}

impl Push {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(dir) = &self.queue.send_queue {
            let remote = self.server.connect()?;
            return super::runtime()?.block_on(send(dir, remote, self.queue.follow, self.output));
        }
        if let Some(dir) = &self.queue.queue {
            return super::runtime()?.block_on(add(dir, &self.paths, self.derivation, self.output));
        }
        let remote = self.server.connect()?;
        let paths = self.paths.iter().map(|path| resolved(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let counts = super::runtime()?.block_on(push(&remote, &paths, self.derivation))?;
        println!("{}", self.output.text(&counts, summary(counts))?);
        Ok(ExitCode::SUCCESS)
    }
}

/// Adds paths to a queue, or shows it.
async fn add(dir: &Path, paths: &[String], derivation: bool, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let queue = PushQueue::open(dir)?;
    if paths.is_empty() {
        let queue = PushQueueView::of(&queue)?;
        println!("{}", output.text(&queue, &queue)?);
        return Ok(ExitCode::SUCCESS);
    }
    let paths = paths.iter().map(|path| resolved(path)).collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(reason) = queue.add(&Environment::from_env()?, paths, derivation).await? {
        eprintln!(
            "ondine: queued, but a garbage collection may take the paths before they are sent: {reason}"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The state of a queue.
#[derive(Serialize)]
struct PushQueueView {
    /// Entries that wait.
    waiting: usize,
    has_sender: bool,
    refused: Vec<RefusedEntry>,
}

/// An entry that the server refused.
#[derive(Serialize)]
struct RefusedEntry {
    paths: Vec<String>,
    reason: String,
}

impl PushQueueView {
    fn of(queue: &PushQueue) -> anyhow::Result<Self> {
        let (waiting, refused) = (queue.waiting()?, queue.refused()?);
        let refused = refused.into_iter().filter_map(|entry| entry.push);
        let refused = refused.map(|QueuedPush { paths, refusal, .. }| RefusedEntry {
            paths,
            reason: refusal.unwrap_or_default(),
        });
        Ok(Self { waiting, has_sender: queue.has_sender()?, refused: refused.collect() })
    }
}

impl std::fmt::Display for PushQueueView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sender = if self.has_sender { "a sender runs" } else { "no sender runs" };
        write!(f, "{} waiting, {} refused; {sender}", self.waiting, self.refused.len())?;
        for RefusedEntry { paths, reason } in &self.refused {
            write!(f, "\nrefused: {}: {}", Line(paths.join(" ")), Line(reason))?;
        }
        Ok(())
    }
}

/// Sends a queue. Fails where entries were refused.
async fn send(dir: &Path, remote: Remote, follow: bool, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let queue = PushQueue::open(dir)?;
    let store_dir = Environment::from_env()?.store_dir;
    let told = |event: SendEvent<'_>| match event {
        SendEvent::Sent { entries, counts } => {
            let plural = if entries == 1 { "entry" } else { "entries" };
            match output.json {
                true => println!("{}", serde_json::json!({ "entries": entries, "upload": counts })),
                false => println!("{entries} {plural}: {}", summary(counts)),
            }
        }
        SendEvent::Refused { paths, reason } => {
            eprintln!("ondine: refused, and set aside: {}: {}", Line(paths.join(" ")), Lines(reason));
        }
        SendEvent::Waiting { reason, pause } => {
            let pause = humantime::format_duration(pause);
            eprintln!("ondine: {}; trying again in {pause}", Lines(reason));
        }
    };
    let mut sender = QueueSender::new(queue.clone(), remote, store_dir, told)?;
    if follow {
        sender.follow().await?
    } else {
        sender.send().await?
    }
    match queue.refused()?.len() {
        0 => Ok(ExitCode::SUCCESS),
        refused => {
            bail!("{refused} entries were refused; `ondine push --queue {}` lists them", dir.display())
        }
    }
}

fn summary(counts: UploadCounts) -> String {
    let UploadCounts { paths, sent, bytes } = counts;
    let bytes = bytesize::ByteSize(bytes).display().iec();
    format!("uploaded {sent} of {paths} paths ({bytes}); the server had the others")
}

/// A path in the store, from one or a symlink to one.
fn resolved(path: &str) -> anyhow::Result<String> {
    let store_dir = Environment::from_env()?.store_dir.to_string();
    if Path::new(path).starts_with(&store_dir) {
        return Ok(path.to_owned());
    }
    let found = Path::new(path).canonicalize().with_context(|| format!("{path} cannot be read"))?;
    if !found.starts_with(&store_dir) {
        bail!("{path} is not in the store {store_dir}: expected a store path, or a symlink to one");
    }
    Ok(found.to_string_lossy().into_owned())
}

/// Uploads the closure of the paths.
///
/// # Errors
/// One is not valid here, or the server does not take it.
pub(super) async fn push(
    remote: &Remote,
    paths: &[String],
    derivation: bool,
) -> anyhow::Result<UploadCounts> {
    let store_dir = Environment::from_env()?.store_dir;
    let closure = LocalClosure::of(&store_dir, paths, derivation).await?;
    let total = closure.paths().len();
    let is_shown = io::stderr().is_terminal();
    let show = |counts: UploadCounts| {
        if is_shown {
            eprint!("\r\u{1b}[Kuploaded {} of at most {total} paths", counts.sent);
            let _ = io::stderr().flush();
        }
    };
    let uploaded = upload(remote, &store_dir, closure, show).await;
    if is_shown {
        eprint!("\r\u{1b}[K");
    }
    Ok(uploaded?)
}
