//! `ondine migrate`: copies the index to another database, with its progress on the terminal.

use std::path::PathBuf;

use clap::Args;

use super::ConfigArgs;

#[derive(Args, Debug)]
pub(super) struct Migrate {
    /// Database to copy to: the URL of a PostgreSQL, or sqlite:FILE
    #[arg(long, value_name = "DATABASE")]
    to: String,
    /// File with the password for the database to copy to
    #[arg(long, value_name = "FILE")]
    to_password_file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Migrate {
    #[cfg(not(feature = "postgres"))]
    pub(super) fn run(self) -> anyhow::Result<()> {
        let _ = (self.to, self.to_password_file, self.config);
        anyhow::bail!("this program was built without PostgreSQL; build it with the feature `postgres`")
    }

    #[cfg(feature = "postgres")]
    pub(super) fn run(self) -> anyhow::Result<()> {
        use anyhow::Context;

        use crate::index::{CopyPlace, CopyProgress};
        let settings = self.config.resolve()?;
        // A password may stand in it: it is not repeated.
        let to = CopyPlace::parse(&self.to, self.to_password_file)
            .context("--to takes the URL of a PostgreSQL, or sqlite:FILE")?;
        let mut last = String::new();
        let mut told = |progress: CopyProgress| {
            let CopyProgress { table, done, all, is_compared } = progress;
            let verb = if is_compared { "compared" } else { "copied" };
            let percent = (done * 100).checked_div(all).unwrap_or(100);
            let line = format!("{verb} {table}: {percent} %");
            if line != last {
                eprintln!("{line}");
                last = line;
            }
        };
        super::create_private_files();
        let rows = super::runtime()?.block_on(crate::serve::migrate(&settings, &to, &mut told))?;
        println!("copied and compared: {rows} rows, to {to}");
        println!("set index to that database, and start the server");
        Ok(())
    }
}
