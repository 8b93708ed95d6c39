//! `/log/…`: the log of a build as the builder wrote it, escape codes included: `nix log` shows their colours. Ours, else the Nix
//! daemon's own; of a derivation, or of what makes an output. That of a build of ours that runs is followed to its end; a body is
//! complete only when the log is.

use std::io;

use bytes::Bytes;
use narinfo::StorePath;

use super::Service;
use super::answer::{self, Answer};
use super::call::Call;
use super::error::Error;
use super::pipe::{Cut, Pieces, written};
use super::response_future::ResponseFuture;
use crate::build::Log;
use crate::nix::DaemonLog;
use crate::tail_file::{TailReader, reading};

/// A log that was found.
enum Found {
    Ours(Log),
    Daemons(DaemonLog),
}

pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let path = StorePath::parse(call.arguments[0]).ok()?;
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { answer(&service, path).await }))
}

async fn answer(service: &Service, path: StorePath) -> Result<Answer, Error> {
    let drvs = if path.is_derivation() {
        vec![path.clone()]
    } else {
        match service.parts.substitute.makers_of(&path).await {
            Ok(drvs) if drvs.is_empty() => {
                return Err(Error::NotFound(format!("no log: it is not known what makes {path}")));
            }
            Ok(drvs) => drvs,
            Err(reason) => return Err(Error::not_found(reason)),
        }
    };
    let parts = std::sync::Arc::clone(&service.parts);
    let found = reading(move || {
        for drv in drvs {
            if let Some(log) = parts.logs.read(&drv)? {
                return Ok(Some(Found::Ours(log)));
            }
            if let Some(log) = parts.daemon_logs.open(&drv)? {
                return Ok(Some(Found::Daemons(log)));
            }
        }
        Ok(None)
    });
    match found.await {
        Ok(Some(Found::Ours(log))) => Ok(ours(service, log)),
        Ok(Some(Found::Daemons(log))) => {
            Ok(answer::streamed(answer::TEXT, written(|pipe| pipe.send_all(log))))
        }
        Ok(None) => Err(Error::NotFound(format!(
            "no log: {path} was not built by this machine's Nix, or so long ago that its log was deleted"
        ))),
        Err(error) => {
            tracing::error!(%path, %error, "cannot read a build log; check its file and its permissions");
            Err(Error::not_found("this log cannot be read at the moment; the server's log has the details"))
        }
    }
}

fn ours(service: &Service, log: Log) -> Answer {
    let (service, bytes) = (service.clone(), log.bytes);
    let body = written(|pipe| async move {
        tokio::select! {
            ended = pipe.send_all(log.reader) => ended,
            // The build ends with the server, and its log with it. What is whole is given its time.
            () = service.stopping(), if bytes.is_none() => Err(Cut),
        }
    });
    match bytes {
        Some(bytes) => answer::measured(answer::TEXT, bytes, body),
        None => answer::streamed(answer::TEXT, body),
    }
}

impl Pieces for TailReader {
    async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        self.next_chunk().await
    }
}

impl Pieces for DaemonLog {
    async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        self.next_chunk().await
    }
}
