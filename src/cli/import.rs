//! `ondine import`: uploads a binary cache on this machine, in a directory or of an attic server.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use narinfo::{PublicKey, StoreDir};
use serde::Serialize;

use super::control::{OutputArgs, ServerArgs};
use super::screen::size;
use crate::escape::Line;
use crate::nix::Environment;
use crate::plural::counted;
use crate::remote::{
    AtticPlaces, AtticStore, FileCache, ImportOutcome, ImportSource, RejectedPath, UploadCounts, import,
};

/// Paths that were refused and are shown one by one: with a wrong key it is all of a cache.
const SHOWN_MAX: usize = 100;

#[derive(Args, Debug)]
pub(super) struct Import {
    /// Directory of the cache, or its file:// URL; or that of an attic server (such as /var/lib/atticd)
    #[arg(value_name = "DIR")]
    dir: String,
    /// Public key that the cache's paths are signed with; may be repeated
    #[arg(long = "trusted-key", value_name = "KEY")]
    trusted_keys: Vec<PublicKey>,
    /// Name of the cache, where an attic server has several
    #[arg(long, value_name = "NAME", help_heading = "Attic")]
    cache: Option<String>,
    /// SQLite database of an attic server; DIR is then its directory of chunks [default: server.db in DIR,
    /// with chunks in its storage]
    #[arg(long, value_name = "FILE", help_heading = "Attic")]
    database: Option<PathBuf>,
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
        let dir = Path::new(self.dir.strip_prefix("file://").unwrap_or(&self.dir));
        let source = Arc::new(self.source(dir, &store_dir)?);
        if self.dry_run {
            let paths = source.count() + source.rejected().len();
            let counts = UploadCounts { paths, ..UploadCounts::default() };
            return print(self.output, true, counts, source.rejected());
        }
        let remote = self.server.connect()?;
        let is_shown = io::stderr().is_terminal();
        let total = source.count();
        let show = |counts: UploadCounts| {
            if is_shown {
                eprint!("\r\u{1b}[Kimported {} of at most {total} paths", counts.sent);
                let _ = io::stderr().flush();
            }
        };
        let imported = super::runtime()?.block_on(import(&remote, &store_dir, Arc::clone(&source), show));
        if is_shown {
            eprint!("\r\u{1b}[K");
        }
        let ImportOutcome { mut counts, refused } = imported?;
        counts.paths += source.rejected().len();
        print(self.output, false, counts, &[source.rejected(), &refused].concat())
    }

    /// The cache in the directory.
    fn source(&self, dir: &Path, store_dir: &StoreDir) -> anyhow::Result<ImportSource> {
        let shown = dir.display();
        let keys = &self.trusted_keys;
        let chunks = dir.to_owned();
        let places = match &self.database {
            Some(database) => Some(AtticPlaces { database: database.clone(), chunks }),
            None => AtticPlaces::within(dir),
        };
        if let Some(places) = places {
            let store = AtticStore::open(&places, self.cache.as_deref(), store_dir, keys);
            let store = store.with_context(|| format!("the attic server's {shown} cannot be imported"))?;
            return Ok(ImportSource::Attic(store));
        }
        anyhow::ensure!(
            self.cache.is_none(),
            "{shown} is not the directory of an attic server, so --cache names nothing"
        );
        let cache = FileCache::open(dir, store_dir, keys);
        Ok(ImportSource::Files(cache.with_context(|| format!("{shown} cannot be imported"))?))
    }
}

fn print(
    output: OutputArgs,
    is_dry: bool,
    counts: UploadCounts,
    refused: &[RejectedPath],
) -> anyhow::Result<ExitCode> {
    if output.json {
        let refused = refused.iter().map(|RejectedPath { path, reason }| RefusedLine { path, reason });
        let report = ImportReport { counts, refused: refused.collect() };
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for RejectedPath { path, reason } in refused.iter().take(SHOWN_MAX) {
            eprintln!("not imported: {}: {}", Line(path), Line(reason));
        }
        if let Some(more @ 1..) = refused.len().checked_sub(SHOWN_MAX) {
            eprintln!("and {more} more were not imported; --json lists all of them");
        }
        println!("{}", summary(is_dry, counts, refused.len()));
    }
    Ok(if refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(is_dry: bool, counts: UploadCounts, refused: usize) -> String {
    let UploadCounts { paths, sent, bytes } = counts;
    if is_dry {
        let would = paths - refused;
        return format!(
            "would import {would} of {}; {refused} would be refused",
            counted(paths, "path", "paths")
        );
    }
    let others = match paths - sent - refused {
        0 => String::new(),
        others => format!("; the server had {others}"),
    };
    format!(
        "imported {sent} of {} ({}){others}; {refused} refused",
        counted(paths, "path", "paths"),
        size(bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_each_path_once() {
        let counts = UploadCounts { paths: 2, sent: 0, bytes: 0 };
        assert_eq!(summary(false, counts, 2), "imported 0 of 2 paths (0 B); 2 refused");
        assert_eq!(summary(true, counts, 2), "would import 0 of 2 paths; 2 would be refused");
        let counts = UploadCounts { paths: 4, sent: 1, bytes: 1024 };
        assert_eq!(summary(false, counts, 1), "imported 1 of 4 paths (1.0 KiB); the server had 2; 1 refused");
        let one = UploadCounts { paths: 1, ..UploadCounts::default() };
        assert_eq!(summary(true, one, 0), "would import 1 of 1 path; 0 would be refused");
    }
}
