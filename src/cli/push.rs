//! `ondine push`: uploads store paths, or derivations with all that their builds need, at once or through a
//! queue.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::control::{OutputArgs, ServerArgs};
use super::output::OutputError;
use super::screen::size;
use crate::escape::{Line, Lines};
use crate::nix::Environment;
use crate::plural::counted;
use crate::remote::{
    LocalClosure, PushQueue, QueueSender, QueuedPush, Remote, SendEvent, UploadCounts, upload,
};

/// Entries that are shown one by one.
const SHOWN_MAX: usize = 100;

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
    if paths.is_empty() {
        let queue = PushQueueView::of(&PushQueue::existing(dir)?)?;
        println!("{}", output.text(&queue, &queue)?);
        return Ok(ExitCode::SUCCESS);
    }
    let queue = PushQueue::open(dir)?;
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
    /// Entries that wait, in their order.
    waiting: Vec<WaitingEntry>,
    has_sender: bool,
    refused: Vec<RefusedEntry>,
}

/// An entry that waits.
#[derive(Serialize)]
struct WaitingEntry {
    paths: Vec<String>,
    /// True for the derivations that make them, instead of the paths.
    derivation: bool,
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
        // One that cannot be read is set aside by the sender.
        let waiting = waiting.into_iter().map(|entry| match entry.push {
            Some(QueuedPush { paths, derivation, .. }) => WaitingEntry { paths, derivation },
            None => WaitingEntry { paths: Vec::new(), derivation: false },
        });
        let waiting = waiting.collect();
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
        write!(f, "{} waiting, {} refused; {sender}", self.waiting.len(), self.refused.len())?;
        for WaitingEntry { paths, derivation } in self.waiting.iter().take(SHOWN_MAX) {
            let kind = if *derivation { "waiting, as derivations" } else { "waiting" };
            write!(f, "\n{kind}: {}", Line(paths.join(" ")))?;
        }
        if let Some(more @ 1..) = self.waiting.len().checked_sub(SHOWN_MAX) {
            write!(f, "\nand {more} more are waiting; --json lists all of them")?;
        }
        for RefusedEntry { paths, reason } in &self.refused {
            write!(f, "\nrefused: {}: {}", Line(paths.join(" ")), Line(reason))?;
        }
        Ok(())
    }
}

fn print_sent(entries: usize, counts: UploadCounts, output: OutputArgs) -> Result<(), OutputError> {
    match output.json {
        true => println!("{}", serde_json::json!({ "entries": entries, "upload": counts })),
        false => println!("{}: {}", counted(entries, "entry", "entries"), summary(counts)),
    }
    Ok(())
}

/// Sends a queue. Fails where entries were refused.
async fn send(dir: &Path, remote: Remote, follow: bool, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let queue = PushQueue::open(dir)?;
    let store_dir = Environment::from_env()?.store_dir;
    let told = |event: SendEvent<'_>| match event {
        // What is sent does not depend on who reads of it.
        SendEvent::Sent { entries, counts } => {
            if let Err(error) = print_sent(entries, counts, output) {
                eprintln!("ondine: {:#}", anyhow::Error::from(error));
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
            let were = counted(refused, "entry was", "entries were");
            bail!("{were} refused; `ondine push --queue {}` lists them", dir.display())
        }
    }
}

fn summary(counts: UploadCounts) -> String {
    let UploadCounts { paths, sent, bytes } = counts;
    let others = match paths - sent {
        0 => String::new(),
        1 => "; the server had the other".to_owned(),
        others => format!("; the server had the other {others}"),
    };
    format!("uploaded {sent} of {} ({}){others}", counted(paths, "path", "paths"), size(bytes))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_shown_with_the_paths_of_each_entry_and_an_upload_with_what_was_there() {
        let path = |name: &str| vec![format!("/nix/store/{name}")];
        let mut queue = PushQueueView {
            waiting: vec![
                WaitingEntry { paths: path("a"), derivation: false },
                WaitingEntry { paths: path("b"), derivation: true },
            ],
            has_sender: false,
            refused: vec![RefusedEntry { paths: path("c"), reason: "no".to_owned() }],
        };
        let expected = "2 waiting, 1 refused; no sender runs\nwaiting: /nix/store/a\nwaiting, as derivations: \
                        /nix/store/b\nrefused: /nix/store/c: no";
        assert_eq!(queue.to_string(), expected);
        let many = |_| WaitingEntry { paths: path("d"), derivation: false };
        queue.waiting = (0..=SHOWN_MAX).map(many).collect();
        assert!(queue.to_string().contains("\nand 1 more are waiting; --json"), "{queue}");
        for (paths, sent, expected) in [
            (1, 1, "uploaded 1 of 1 path (0 B)"),
            (2, 1, "uploaded 1 of 2 paths (0 B); the server had the other"),
            (3, 0, "uploaded 0 of 3 paths (0 B); the server had the other 3"),
        ] {
            assert_eq!(summary(UploadCounts { paths, sent, bytes: 0 }), expected);
        }
    }
}
