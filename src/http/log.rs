//! `/log/…`: the log of a build as the builder wrote it, escape codes included, since `nix log` shows their
//! colours. Our log, else the Nix daemon's own, else one that a client has uploaded. The log of a running
//! build is followed to its end; a body is complete only when its log is.

use std::io;

use bytes::Bytes;
use narinfo::StorePath;

use super::Service;
use super::answer::{self, Answer};
use super::call::Call;
use super::error::Error;
use super::response_future::ResponseFuture;
use super::stream_body::{Aborted, Chunks, stream_body};
use crate::build::Log;
use crate::nix::DaemonLog;
use crate::tail_file::{TailReader, reading};

/// The log that was found.
enum LogSource {
    /// In our folders.
    Ours(Log),
    Daemons(DaemonLog),
}

/// A log as far as it is there now.
pub(super) enum LogSnapshot {
    Ours(TailReader),
    Daemons(DaemonLog),
}

impl LogSnapshot {
    /// The log of a derivation, and true beside it while it is being written. One that cannot be read is as
    /// none.
    pub(super) async fn of(service: &Service, drv: &StorePath) -> Option<(Self, bool)> {
        let (state, drv) = (std::sync::Arc::clone(&service.state), drv.clone());
        let found = reading(move || {
            Ok(match state.logs.snapshot(&drv)? {
                Some((reader, is_running)) => Some((Self::Ours(reader), is_running)),
                None => match state.daemon_logs.open(&drv)? {
                    Some(log) => Some((Self::Daemons(log), false)),
                    None => state.logs.read_uploaded(&drv)?.map(|log| (Self::Ours(log.reader), false)),
                },
            })
        });
        found.await.ok().flatten()
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Ours(reader) => reader.next_chunk().await,
            Self::Daemons(log) => log.next_chunk().await,
        }
    }
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
        match service.state.substitute.makers_of(&path).await {
            Ok(drvs) if drvs.is_empty() => {
                return Err(Error::NotFound(format!("no log: it is not known what makes {path}")));
            }
            Ok(drvs) => drvs,
            Err(reason) => return Err(Error::not_found(reason)),
        }
    };
    let (state, failures) = (std::sync::Arc::clone(&service.state), service.state.failures.clone());
    let makers = drvs.clone();
    let found = reading(move || {
        for drv in &makers {
            if let Some(log) = state.logs.read(drv)? {
                return Ok(Some(LogSource::Ours(log)));
            }
            if let Some(log) = state.daemon_logs.open(drv)? {
                return Ok(Some(LogSource::Daemons(log)));
            }
        }
        // Whoever may push can write anything into one.
        for drv in &makers {
            if let Some(log) = state.logs.read_uploaded(drv)? {
                return Ok(Some(LogSource::Ours(log)));
            }
        }
        Ok(None)
    });
    match found.await {
        Ok(Some(LogSource::Ours(log))) => Ok(ours(service, log)),
        Ok(Some(LogSource::Daemons(log))) => {
            Ok(answer::streamed(answer::TEXT, stream_body(|writer| writer.send_all(log))))
        }
        Ok(None) => {
            for drv in &drvs {
                if let Ok(Some(failure)) = failures.of(drv).await
                    && failure.cause != *drv
                {
                    let cause = failure.cause;
                    return Err(Error::NotFound(format!(
                        "no log: {drv} was not begun, since {cause} failed, whose log is at /log/{cause} (`ondine log {cause}`)"
                    )));
                }
            }
            Err(Error::NotFound(format!(
                "no log: {path} was not built by this server, or so long ago that its log was deleted"
            )))
        }
        Err(error) => {
            tracing::error!(%path, %error, "cannot read a build log; check its file and its permissions");
            Err(Error::not_found("this log cannot be read at the moment; the server's log has the details"))
        }
    }
}

fn ours(service: &Service, log: Log) -> Answer {
    let (service, bytes) = (service.clone(), log.bytes);
    let body = stream_body(|writer| async move {
        tokio::select! {
            ended = writer.send_all(log.reader) => ended,
            // A running build ends with the server, and its log with it. A complete log has the drain time.
            () = service.stopping(), if bytes.is_none() => Err(Aborted),
        }
    });
    match bytes {
        Some(bytes) => answer::measured(answer::TEXT, bytes, body),
        None => answer::streamed(answer::TEXT, body),
    }
}

impl Chunks for TailReader {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.next_chunk().await
    }
}

impl Chunks for DaemonLog {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.next_chunk().await
    }
}
