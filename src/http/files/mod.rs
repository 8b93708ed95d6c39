//! Plain HTTP for people without Nix: listings and files of store paths, programs, and whole closures.
//! Decides nothing about builds: the hash that is meant is asked for as by any client (`delivery.rs`).

mod closure;
mod directory;
mod file;
mod image;
mod listing;
mod media;
mod owners;
mod program;
mod run;
mod symbols;

use std::io;

use bytes::Bytes;
use hyper::header::HeaderValue;
use narinfo::NarHash;
use narinfo::nar::EntryKind;

use super::Service;
use super::answer::{self, Answer, Part};
use super::body::Body;
use super::delivery::DeliveryRequest;
use super::error::Error;
use super::range::{is_known, part, wanted_range};
use super::stream_body::{Chunks, stream_body};
use crate::contents::{NarSlice, ResolvedFile};

pub(super) use closure::{export, tar};
pub(super) use file::{file, root};
pub(super) use image::image;
pub(super) use listing::listing;
pub(super) use owners::owners;
pub(super) use program::{program, program_of};
pub(super) use run::run;
pub(super) use symbols::{place, symbols};

/// A regular file of a NAR.
struct RegularFile {
    nar: NarHash,
    bytes: u64,
    offset: u64,
}

impl RegularFile {
    /// That of what was resolved, unless it is a directory.
    fn of(resolved: &ResolvedFile) -> Option<Self> {
        Self::at(resolved.nar, resolved.kind())
    }

    /// That of an entry of a NAR.
    fn at(nar: NarHash, entry: EntryKind<'_>) -> Option<Self> {
        match entry {
            EntryKind::Regular { bytes, offset, .. } => Some(Self { nar, bytes, offset }),
            EntryKind::Directory | EntryKind::Symlink(_) => None,
        }
    }

    fn etag(&self) -> String {
        format!("\"{}-{}\"", self.nar.to_nixbase32(), self.offset)
    }

    /// The answer with the file, or the part of it that is wanted.
    async fn answer(&self, asked: &DeliveryRequest, media_type: HeaderValue) -> Result<Answer, Error> {
        let DeliveryRequest { service, headers, head, .. } = asked;
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
