//! `ondine cancel`: ends a request for a build that nobody waits for on a connection.

use std::process::ExitCode;

use clap::Args;

use super::control::{OutputArgs, ServerArgs, WriteMethod};

#[derive(Args, Debug)]
pub(super) struct Cancel {
    /// Number of the request, as `ondine queue` shows it
    number: u64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl Cancel {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let path = format!("/api/v1/builds/{}", self.number);
        self.server.open()?.follow(WriteMethod::Delete, &path, self.output)
    }
}
