//! `ondine cancel`: ends a request for a build that nobody waits for on a connection.

use std::process::ExitCode;

use clap::Args;

use super::StateDir;
use super::control::{self, WriteMethod};

#[derive(Args, Debug)]
pub(super) struct Cancel {
    /// Number of the request, as `ondine status` shows it
    number: u64,
    #[command(flatten)]
    state_dir: StateDir,
}

impl Cancel {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let path = format!("/api/v1/builds/{}", self.number);
        control::follow(WriteMethod::Delete, &self.state_dir.path()?, &path)
    }
}
