//! `/closure/…`: a path and all that it refers to, as one archive.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::HeaderValue;
use narinfo::StorePathHash;

use crate::contents::{self, Archive, ArchiveForm, ArchiveParts, ArchivePlan};
use crate::http::answer::{self, Answer, Part};
use crate::http::by_name::{NamedOutput, PackageAddress};
use crate::http::call::Call;
use crate::http::delivery::{Delivery, DeliveryRequest};
use crate::http::error::Error;
use crate::http::range::{is_known, part, wanted_range};
use crate::http::response_future::ResponseFuture;
use crate::http::stream_body::{Chunks, stream_body};
use crate::index::CachedNarInfo;

/// The path that an address names.
pub(super) enum NamedPath {
    Hash(StorePathHash),
    Package(PackageAddress),
}

impl NamedPath {
    /// The path of a hash, or of a set and an attribute.
    pub(super) fn parse(call: &Call<'_>) -> Option<Self> {
        let [first, second, ..] = call.arguments;
        if second.is_empty() {
            return first.parse().ok().map(Self::Hash);
        }
        PackageAddress::parse([first, second], call.query, &["system"]).map(Self::Package)
    }

    /// The package that is named.
    pub(super) async fn package(&self, asked: &DeliveryRequest) -> Result<Option<NamedOutput>, Error> {
        match self {
            Self::Hash(_) => Ok(None),
            Self::Package(package) => Ok(Some(package.find(&asked.service).await?)),
        }
    }

    /// The path, once it is served.
    pub(super) async fn delivered(&self, asked: &DeliveryRequest) -> Result<Delivery, Error> {
        match self {
            Self::Hash(hash) => asked.path(*hash, asked.on_miss.clone()).await,
            Self::Package(package) => package.find(&asked.service).await?.delivered(asked).await,
        }
    }
}

/// A tar file that is unpacked at the root of a file system.
pub(in crate::http) fn tar(call: Call<'_>) -> Option<ResponseFuture> {
    let form = if call.path.ends_with(".zst") { ArchiveForm::TarZstd } else { ArchiveForm::Tar };
    give(call, form)
}

/// Nix's export stream.
pub(in crate::http) fn export(call: Call<'_>) -> Option<ResponseFuture> {
    give(call, ArchiveForm::Export)
}

fn give(call: Call<'_>, form: ArchiveForm) -> Option<ResponseFuture> {
    let path = NamedPath::parse(&call)?;
    let asked = DeliveryRequest::of(call);
    Some(ResponseFuture::pending(async move {
        match path.delivered(&asked).await? {
            Delivery::Ready(ready) => answer(&asked, &ready, form).await,
            Delivery::Pending(answer) => Ok(answer),
        }
    }))
}

async fn answer(asked: &DeliveryRequest, ready: &CachedNarInfo, form: ArchiveForm) -> Result<Answer, Error> {
    let contents = &asked.service.state.contents;
    let rows = contents.closure(ready.path.hash()).await?;
    let (ending, media_type) = match form {
        ArchiveForm::TarZstd => ("tar.zst", answer::ZSTD),
        ArchiveForm::Tar => ("tar", answer::TAR),
        ArchiveForm::Export => ("closure", HeaderValue::from_static("application/x-nix-export")),
    };
    let plan = ArchivePlan::new(rows, form);
    let etag = format!("\"{}-{ending}\"", plan.digest());
    if is_known(&asked.headers, &etag) {
        return Ok(answer::still_the_same(&etag));
    }
    let answer = match parts(asked, &plan, &etag).await? {
        Some(parts) => part_of(asked, &plan, &parts, media_type, &etag)?,
        None => {
            let body =
                if asked.head { answer::empty() } else { archive_body(contents.archive(&plan, None)?) };
            answer::made_anew(media_type, &etag, body)
        }
    };
    Ok(asked.counted(answer::saved_as(answer, &format!("{}.{ending}", ready.path.name()))))
}

/// The parts of the archive, where they are known or needed for a range of it.
async fn parts(
    asked: &DeliveryRequest,
    plan: &ArchivePlan,
    etag: &str,
) -> Result<Option<Arc<ArchiveParts>>, Error> {
    let contents = &asked.service.state.contents;
    if asked.head || wanted_range(&asked.headers, Some(etag)).is_none() {
        return Ok(contents.known_parts(plan));
    }
    match contents.parts(plan).await {
        Ok(parts) => Ok(Some(parts)),
        // It may be sent whole.
        Err(contents::Error::Unmeasured) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The archive, or the range of it that is wanted.
fn part_of(
    asked: &DeliveryRequest,
    plan: &ArchivePlan,
    parts: &ArchiveParts,
    media_type: HeaderValue,
    etag: &str,
) -> Result<Answer, Error> {
    let (contents, length) = (&asked.service.state.contents, parts.bytes());
    let range = wanted_range(&asked.headers, Some(etag)).filter(|_| !asked.head);
    let part = part(range, Some(length)).ok_or(Error::RangeNotSatisfiable(length))?;
    let body = match part {
        _ if asked.head => answer::empty(),
        Part::Whole(_) => archive_body(contents.archive(plan, None)?),
        Part::Slice { start, end, .. } => archive_body(contents.archive(plan, Some((parts, start..end)))?),
    };
    Ok(answer::contents(media_type, etag, &part, body))
}

/// The body with an archive.
pub(super) fn archive_body(archive: Archive) -> crate::http::body::Body {
    stream_body(|writer| writer.send_all(archive))
}

impl Chunks for Archive {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.next_piece().await
    }
}
