//! Plain HTTP for people without Nix: listings, and files of store paths. Decides nothing about builds: the
//! hash that is meant is asked for as by any client, in silence, so that each answer has its true status.

mod directory;
mod file;
mod listing;
mod media;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use narinfo::nar::EntryKind;
use narinfo::{NarHash, StorePathHash};

use super::Service;
use super::answer::{self, Answer, Part};
use super::body::Body;
use super::call::Call;
use super::error::Error;
use super::range::{is_known, part, wanted_range};
use super::stream_body::{Chunks, stream_body};
use crate::contents::{NarSlice, ResolvedFile};
use crate::index::CachedNarInfo;
use crate::substitute::{OnMiss, WaitEnd};

pub(super) use file::{file, root};
pub(super) use listing::listing;

/// Reason for a wait that the stop of the server ends.
const STOPS: &str = "the server stops while this is built; ask again, it keeps its place";

/// A request for contents, without the arguments of its address.
struct ContentsRequest {
    service: Service,
    /// Cost that a miss may have.
    on_miss: OnMiss,
    headers: HeaderMap,
    head: bool,
}

impl ContentsRequest {
    fn of(call: Call<'_>) -> Self {
        let (service, on_miss) = (call.service.clone(), call.on_miss());
        Self { service, on_miss, head: call.head, headers: call.headers }
    }

    /// The path of this hash, once it is served.
    async fn served(&self, hash: StorePathHash) -> Result<Arc<CachedNarInfo>, Error> {
        match self.service.wait(hash, self.on_miss.clone()).ended().await {
            WaitEnd::Ready(ready) => Ok(ready),
            WaitEnd::Missing(reason) => Err(reason.into()),
            WaitEnd::Stopped => Err(Error::unavailable(STOPS)),
        }
    }
}

/// A regular file of a NAR.
struct RegularFile {
    nar: NarHash,
    bytes: u64,
    offset: u64,
}

impl RegularFile {
    /// That of what was resolved, unless it is a directory.
    fn of(resolved: &ResolvedFile) -> Option<Self> {
        match resolved.kind() {
            EntryKind::Regular { bytes, offset, .. } => Some(Self { nar: resolved.nar, bytes, offset }),
            EntryKind::Directory | EntryKind::Symlink(_) => None,
        }
    }

    fn etag(&self) -> String {
        format!("\"{}-{}\"", self.nar.to_nixbase32(), self.offset)
    }

    /// The answer with the file, or the part of it that is wanted.
    async fn answer(&self, asked: &ContentsRequest, media_type: HeaderValue) -> Result<Answer, Error> {
        let ContentsRequest { service, headers, head, .. } = asked;
        let etag = self.etag();
        if is_known(headers, &etag) {
            return Ok(answer::still_the_same(&etag));
        }
        let range = wanted_range(headers, Some(&etag)).filter(|_| !*head);
        let part = part(range, Some(self.bytes)).ok_or(Error::RangeNotSatisfiable(self.bytes))?;
        let (start, end) = match part {
            Part::Whole(_) => (0, self.bytes),
            Part::Slice { start, end, .. } => (start, end),
        };
        let body = if *head || start == end {
            answer::empty()
        } else {
            let slice =
                service.state.contents.slice(self.nar, self.offset + start..self.offset + end).await?;
            body(service, self.nar, slice)
        };
        Ok(answer::contents(media_type, &etag, &part, body))
    }
}

/// The body with a part of a NAR.
fn body(service: &Service, nar: NarHash, slice: NarSlice) -> Body {
    let stream = match slice {
        NarSlice::Memory(bytes) => return answer::full(bytes),
        streamed @ NarSlice::Streamed { .. } => streamed,
    };
    let packed = matches!(stream, NarSlice::Streamed { packed: true, .. });
    let packer = service.state.packer.clone();
    stream_body(|writer| async move {
        let sent = writer.send_all(stream).await;
        if sent.is_err() && packed {
            packer.suspect(nar);
        }
        sent
    })
}

impl Chunks for NarSlice {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.next_piece().await
    }
}
