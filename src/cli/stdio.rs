//! `ondine stdio`: a server as a remote builder of Nix, for sshd to start.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Args;
use tokio::fs::File;
use tokio::task::LocalSet;

use super::control::ServerArgs;
use crate::remote_builder;

#[derive(Args, Debug)]
pub(super) struct Stdio {
    #[command(flatten)]
    server: ServerArgs,
}

impl Stdio {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let remote = self.server.connect()?;
        let (input, output) = (io::stdin(), io::stdout());
        let stream = tokio::io::join(opened(input.as_fd())?, opened(output.as_fd())?);
        let runtime = super::runtime()?;
        let served = LocalSet::new().block_on(&runtime, remote_builder::serve(remote, stream));
        // A client that has not closed its end would hold the thread that reads from it.
        runtime.shutdown_background();
        served.map(|()| ExitCode::SUCCESS).map_err(|reason| anyhow!(reason))
    }
}

/// A stream that is read or written on threads that may wait: sshd gives pipes or sockets.
fn opened(stream: BorrowedFd<'_>) -> anyhow::Result<File> {
    let owned = stream.try_clone_to_owned().context("cannot use the standard input and output")?;
    Ok(File::from_std(owned.into()))
}
