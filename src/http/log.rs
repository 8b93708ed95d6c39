//! `/log/…`: the log of a build as the builder wrote it, escape codes included: `nix log` shows their colours.
//! The log of a build that runs is followed to its end; a body is complete only when the log is.

use std::io;

use bytes::Bytes;
use narinfo::StorePath;

use super::Service;
use super::answer::{self, Answer};
use super::pipe::{Cut, Pieces, written};
use crate::growing::Reader;

pub(super) fn get(service: &Service, drv: &StorePath) -> Answer {
    let log = match service.parts.logs.read(drv) {
        Ok(Some(log)) => log,
        Ok(None) => {
            return answer::missing(format_args!(
                "no log: {drv} was not built by this server, or so long ago that its log was deleted"
            ));
        }
        Err(error) => {
            tracing::error!(%drv, %error, "a log cannot be read");
            return answer::missing(
                "this log cannot be read at the moment; the server's log has the details",
            );
        }
    };
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

impl Pieces for Reader {
    async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        self.next_chunk().await
    }
}
