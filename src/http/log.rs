//! `/log/…`: the log of a build as the builder wrote it, escape codes included: `nix log` shows their colours.
//! The log of a build that runs is followed to its end; a body is complete only when the log is.

use std::io;

use bytes::Bytes;
use narinfo::StorePath;

use super::answer::{self, Answer};
use super::pipe::{Pieces, pipe};
use super::{Method, Service};
use crate::growing::Reader;

pub(super) fn get(service: &Service, drv: &StorePath, method: Method) -> Answer {
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
    let (pipe, body) = pipe();
    let (answer, follows) = match log.bytes {
        Some(bytes) => (answer::measured(answer::TEXT, bytes, body), false),
        None => (answer::streamed(answer::TEXT, body), true),
    };
    if method == Method::Get {
        let service = service.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = pipe.send_all(log.reader) => {}
                // The build ends with the server, and its log with it. What is whole is given its time.
                () = service.stopping(), if follows => {}
            }
        });
    }
    answer
}

impl Pieces for Reader {
    async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        self.next_chunk().await
    }
}
