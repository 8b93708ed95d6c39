//! `ondine import`: uploads a binary cache in a directory to a server.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use narinfo::PublicKey;
use serde::Serialize;

use super::control::{OutputArgs, ServerArgs};
use super::screen::size;
use crate::escape::Line;
use crate::nix::Environment;
use crate::remote::{FileCache, ImportOutcome, RejectedPath, UploadCounts, import};

#[derive(Args, Debug)]
pub(super) struct Import {
    /// Directory of the cache, or its file:// URL
    #[arg(value_name = "DIR")]
    cache: String,
    /// Public key that the cache's paths are signed with; may be repeated
    #[arg(long = "trusted-key", value_name = "KEY")]
    trusted_keys: Vec<PublicKey>,
    /// Only reads the cache, and says what would be imported
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// The result as JSON.
#[derive(Serialize)]
struct ImportReport<'a> {
    #[serde(flatten)]
    counts: UploadCounts,
    refused: Vec<RefusedLine<'a>>,
}

#[derive(Serialize)]
struct RefusedLine<'a> {
    path: &'a str,
    reason: &'a str,
}

impl Import {
    /// Fails when a path was not taken.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let store_dir = Environment::from_env()?.store_dir;
        let dir = Path::new(self.cache.strip_prefix("file://").unwrap_or(&self.cache));
        let cache = FileCache::open(dir, &store_dir, &self.trusted_keys);
        let cache = Arc::new(cache.with_context(|| format!("{} cannot be imported", dir.display()))?);
        if self.dry_run {
            let counts = UploadCounts { paths: cache.narinfos().len(), ..UploadCounts::default() };
            return print(self.output, counts, cache.rejected());
        }
        let remote = self.server.connect()?;
        let is_shown = io::stderr().is_terminal();
        let total = cache.narinfos().len();
        let show = |counts: UploadCounts| {
            if is_shown {
                eprint!("\r\u{1b}[Kimported {} of at most {total} paths", counts.sent);
                let _ = io::stderr().flush();
            }
        };
        let imported = super::runtime()?.block_on(import(&remote, &store_dir, Arc::clone(&cache), show));
        if is_shown {
            eprint!("\r\u{1b}[K");
        }
        let ImportOutcome { counts, refused } = imported?;
        print(self.output, counts, &[cache.rejected(), &refused].concat())
    }
}

fn print(output: OutputArgs, counts: UploadCounts, refused: &[RejectedPath]) -> anyhow::Result<ExitCode> {
    if output.json {
        let refused = refused.iter().map(|RejectedPath { path, reason }| RefusedLine { path, reason });
        let report = ImportReport { counts, refused: refused.collect() };
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        let UploadCounts { paths, sent, bytes } = counts;
        for RejectedPath { path, reason } in refused {
            eprintln!("not imported: {}: {}", Line(path), Line(reason));
        }
        println!("imported {sent} of {paths} paths ({}); {} were refused", size(bytes), refused.len());
    }
    Ok(if refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
