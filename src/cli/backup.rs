//! `ondine backup`: copies the keys and the index of a server, for a backup program to take.

use std::path::PathBuf;

use clap::Args;

use super::ConfigArgs;
use super::control::OutputArgs;
use super::screen::size;
use crate::plural::counted;
use crate::serve;

#[derive(Args, Debug)]
pub(super) struct Backup {
    /// Directory for the copy, which is made where it is not there; one that is there is brought up to date
    #[arg(value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Backup {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let settings = self.config.resolve()?;
        // Keys are copied: nobody else may read them.
        super::create_private_files();
        let report = serve::backup(&settings, &self.to)?;
        let mut text = format!(
            "copied {} ({}) to {}",
            counted(report.files.len(), "file", "files"),
            size(report.bytes),
            self.to.display()
        );
        if report.index_is_elsewhere {
            text += "; the index is in PostgreSQL, whose own tools back it up";
        }
        println!("{}", self.output.text(&report, text)?);
        Ok(())
    }
}
