//! `ondine cancel`: ends a request for a build that nobody waits for on a connection.

use std::process::ExitCode;

use clap::Args;

use super::control::{OutputArgs, ServerArgs, WriteMethod};

#[derive(Args, Debug)]
pub(super) struct Cancel {
    /// Number of the request, as `ondine queue` shows it
    #[arg(value_parser = number)]
    number: u64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

fn number(text: &str) -> Result<u64, &'static str> {
    text.parse()
        .map_err(|_| "expected the number of a request, as `ondine queue` and `ondine builds` show it")
}

impl Cancel {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let path = format!("/api/v1/builds/{}", self.number);
        self.server.open()?.follow(WriteMethod::Delete, &path, self.output)
    }
}
