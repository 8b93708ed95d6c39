//! `/nar/…`: the zstd file or the plain NAR in it, whole or a range; or a redirect to an upstream that has
//! it. A body is complete only when every byte of it was verified; a failure on the way aborts it.

use std::io;
use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;
use hyper::HeaderMap;
use narinfo::{Compression, NarHash, StorePathHash};

use super::Service;
use super::answer::{self, Answer, Part};
use super::call::{Call, parameters};
use super::error::Error;
use super::nar_restore;
use super::put::was_uploaded;
use super::range::{is_known, part, wanted_range};
use super::response_future::ResponseFuture;
use super::stream_body::{Chunks, stream_body};
use crate::nar_store::{Form, Nar, NarStream, Small};
use crate::packer::{self, Packer, Served};
use crate::substitute::OnMiss;

/// Reason for a NAR that was evicted during its answer.
const EVICTED: &str = "evicted at this moment; ask again";

/// A request that memory cannot answer.
struct NarRequest {
    hash: NarHash,
    compression: Compression,
    head: bool,
    reader: Option<IpAddr>,
    /// Cost that restoring an evicted NAR may have.
    on_miss: OnMiss,
}

/// From memory, or from a file. Clients remember other forms of the address from other servers: harmonia's is
/// ours with a query, nix-serve's has the store path's hash before the NAR's.
pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    if let Some(answer) = was_uploaded(&call) {
        return Some(ResponseFuture::ready(answer));
    }
    let [name, ending, _] = call.arguments;
    let compression = match ending {
        "" => Compression::None,
        // With its dot.
        _ => Compression::from_file_ending(&call.path[call.path.len() - ending.len() - 1..])?,
    };
    let nar_hash = match name.split_once('-') {
        Some((path_hash, nar_hash)) => {
            path_hash.parse::<StorePathHash>().ok()?;
            nar_hash
        }
        None => name,
    };
    let hash = NarHash::from_nixbase32(nar_hash).ok()?;
    let saved_as = file_name(call.query, compression);
    if let Some(answer) = lookup_cached(call.service, hash, compression, &call.headers) {
        return Some(answer.map(|answer| named(answer, saved_as.as_deref())).into());
    }
    let asked =
        NarRequest { hash, compression, head: call.head, reader: call.reader(), on_miss: call.on_miss() };
    let (service, headers) = (call.service.clone(), call.headers);
    Some(ResponseFuture::pending(async move {
        let answer = answer(&service, asked, &headers).await?;
        Ok(named(answer, saved_as.as_deref()))
    }))
}

/// The name under which a file is saved, where its address has one: the name of a store path.
fn file_name(query: Option<&str>, compression: Compression) -> Option<String> {
    // Clients of Nix have no query, or one of other servers.
    let (_, name) = parameters(Some(query?)).find(|(key, _)| *key == "name")?;
    let is_named = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "+-._?=".contains(c));
    Some(format!("{}.nar{}", name.filter(is_named)?, compression.file_ending()))
}

fn named(answer: Answer, name: Option<&str>) -> Answer {
    match name {
        Some(name) => answer::saved_as(answer, name),
        None => answer,
    }
}

async fn answer(service: &Service, asked: NarRequest, headers: &HeaderMap) -> Result<Answer, Error> {
    if let Some(reader) = asked.reader {
        service.state.packer.read_ahead(reader, asked.hash);
    }
    let (begun, packer, hash) = (Instant::now(), &service.state.packer, asked.hash);
    // The head of an answer needs none of its bytes.
    let form = form(asked.compression).filter(|_| !asked.head);
    if let Some(served) = packer.find(hash, form).await? {
        match give(packer, served, &asked, headers).await {
            // The upstream does not deliver: the path is restored from another source.
            Err(packer::Error::NotToBeHad(_)) if packer.find(hash, None).await?.is_none() => {}
            given => return given?,
        }
    }
    if let Err(reason) = nar_restore::ensure_served(service, hash, asked.on_miss.clone(), begun).await {
        return Err(Error::NotFound(reason));
    }
    match packer.find(hash, form).await? {
        Some(served) => give(packer, served, &asked, headers).await?,
        None => Err(Error::not_found(EVICTED)),
    }
}

/// The answer, if it can be given from memory.
fn lookup_cached(
    service: &Service,
    hash: NarHash,
    compression: Compression,
    headers: &HeaderMap,
) -> Option<Result<Answer, Error>> {
    let form = form(compression)?;
    let small = service.state.packer.in_memory(hash, form)?;
    Some(whole(&small, form, headers))
}

fn form(compression: Compression) -> Option<Form> {
    match compression {
        Compression::Zstd => Some(Form::Zstd),
        Compression::None => Some(Form::Plain),
        _ => None,
    }
}

/// The answer for a NAR of a served path.
async fn give(
    packer: &Packer,
    mut served: Served,
    asked: &NarRequest,
    headers: &HeaderMap,
) -> Result<Result<Answer, Error>, packer::Error> {
    let &NarRequest { hash, compression, head, .. } = asked;
    let form = form(compression);
    if let (Some(form), Some(small)) = (form, served.small.take()) {
        return Ok(whole(&small, form, headers));
    }
    if let Some(address) = packer.redirect(&served, compression, asked.reader).await? {
        return Ok(Ok(answer::redirect(&address)));
    }
    let Some(form) = form else {
        return Ok(Err(Error::not_found("not in this form: there is .nar.zst, and .nar")));
    };
    let etag = etag(hash, form, &served);
    if let Some(etag) = etag.as_deref().filter(|etag| is_known(headers, etag)) {
        return Ok(Ok(answer::not_modified(etag)));
    }
    if head {
        let length = match form {
            Form::Plain => Some(served.nar_size()),
            Form::Zstd => served.packed.map(|nar| nar.file_size),
        };
        let part = Part::Whole(length);
        return Ok(Ok(answer::file(media_type(form), etag.as_deref(), &part, answer::empty())));
    }
    body(packer, served, hash, form, wanted_range(headers, etag.as_deref())).await
}

/// The answer from memory.
fn whole(small: &Small, form: Form, headers: &HeaderMap) -> Result<Answer, Error> {
    let etag = tag(small.hash);
    if is_known(headers, &etag) {
        return Ok(answer::not_modified(&etag));
    }
    let length = small.bytes.len() as u64;
    let Some(part) = part(wanted_range(headers, Some(&etag)), Some(length)) else {
        return Err(Error::RangeNotSatisfiable(length));
    };
    let body = match part {
        Part::Whole(_) => small.bytes.clone(),
        // A range of a buffer fits a usize.
        Part::Slice { start, end, .. } => small.bytes.slice(start as usize..end as usize),
    };
    Ok(answer::file(media_type(form), Some(&etag), &part, answer::full(body)))
}

async fn body(
    packer: &Packer,
    mut served: Served,
    hash: NarHash,
    form: Form,
    range: Option<&str>,
) -> Result<Result<Answer, Error>, packer::Error> {
    let (mut nar, mut given) = packer.open(&mut served, form).await?;
    // A range of a zstd file can be given once its length is known.
    if let (Form::Zstd, Some(_), Nar::Growing(growing)) = (form, range, &mut nar)
        && served.packed.is_none()
    {
        growing.finished().await.map_err(packer::Error::NotToBeHad)?;
        let Some(complete) = packer.find(hash, None).await? else {
            return Ok(Err(Error::not_found(EVICTED)));
        };
        served = complete;
        (nar, given) = packer.open(&mut served, form).await?;
    }
    let length = match (form, &nar) {
        (Form::Plain, _) => Some(served.nar_size()),
        (Form::Zstd, Nar::Stored(stored)) => Some(stored.bytes()),
        // Of a copy it is known.
        (Form::Zstd, Nar::Growing(_)) => served.packed.map(|nar| nar.file_size),
    };
    let Some(part) = part(range, length) else {
        return Ok(Err(Error::RangeNotSatisfiable(length.unwrap_or_default())));
    };
    let wanted = match part {
        Part::Whole(length) => 0..length.unwrap_or(u64::MAX),
        Part::Slice { start, end, .. } => start..end,
    };
    let etag = etag(hash, form, &served);
    let stream = if given == form {
        NarStream::as_it_is(nar, wanted)
    } else {
        NarStream::decoded(nar, wanted).map_err(packer::Error::Store)?
    };
    let (packed, packer) = (served.packed.is_some(), packer.clone());
    let body = stream_body(|writer| async move {
        let sent = writer.send_all(stream).await;
        if sent.is_err() && packed {
            packer.suspect(hash);
        }
        sent
    });
    Ok(Ok(answer::file(media_type(form), etag.as_deref(), &part, body)))
}

impl Chunks for NarStream {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.next_piece().await
    }
}

/// Each form is named by the hash of its own bytes; that of the zstd file is known once it is packed.
fn etag(hash: NarHash, form: Form, served: &Served) -> Option<String> {
    let bytes = match form {
        Form::Plain => Some(hash),
        Form::Zstd => served.packed.map(|nar| nar.file_hash),
    };
    bytes.map(tag)
}

fn tag(hash: NarHash) -> String {
    format!("\"{}\"", hash.to_nixbase32())
}

fn media_type(form: Form) -> hyper::header::HeaderValue {
    match form {
        Form::Zstd => answer::ZSTD,
        Form::Plain => answer::NAR,
    }
}
