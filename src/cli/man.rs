//! `ondine man`: the man pages, made from the definition of the commands.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

#[derive(Args, Debug)]
pub(super) struct Man {
    /// Folder that the pages are written to; it is created if need be
    dir: PathBuf,
}

impl Man {
    /// Writes a page for the program, and one for each command.
    pub(super) fn run(self) -> anyhow::Result<()> {
        write_pages(&self.dir)
            .with_context(|| format!("cannot write the man pages to {}", self.dir.display()))
    }
}

fn write_pages(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(super::help::command(), dir)
}
