//! `/debuginfo/<build-id>`: where the debugging symbols of a program are, as Nix's dwarffs asks; and
//! `/buildid/<build-id>/debuginfo`: the symbols themselves, as clients of debuginfod ask.

use serde::Serialize;

use super::RegularFile;
use crate::contents;
use crate::debug_info::BuildId;
use crate::http::Service;
use crate::http::answer::{self, Answer};
use crate::http::call::Call;
use crate::http::delivery::DeliveryRequest;
use crate::http::error::Error;
use crate::http::response_future::ResponseFuture;
use crate::tail_file::reading;

/// Reason for a program whose symbols nobody has uploaded.
const UNKNOWN: &str = "no debugging symbols of this build id: push their output with \
                       `nix copy --to 'URL?index-debug-info=true'`";

/// Place of symbols, in the format of Nix.
#[derive(Serialize)]
struct SymbolPlace {
    /// Address of the NAR, relative to this one.
    archive: String,
    /// Path of the file in it.
    member: String,
}

pub(in crate::http) fn place(call: Call<'_>) -> Option<ResponseFuture> {
    let (id, service) = (BuildId::parse(call.arguments[0])?, call.service.clone());
    Some(ResponseFuture::pending(async move {
        let (nar, member) = find(&service, id).await?;
        let archive = format!("../nar/{}.nar.zst", nar.to_nixbase32());
        Ok(answer::json(&SymbolPlace { archive, member }))
    }))
}

pub(in crate::http) fn symbols(call: Call<'_>) -> Option<ResponseFuture> {
    let id = BuildId::parse(call.arguments[0])?;
    let asked = DeliveryRequest::of(call);
    Some(ResponseFuture::pending(async move { send(&asked, id).await }))
}

async fn find(service: &Service, id: BuildId) -> Result<(narinfo::NarHash, String), Error> {
    let places = service.state.debug_info.clone();
    let found = reading(move || places.find(&id)).await;
    let found = found.map_err(|error| Error::internal(&error, "the place of the symbols cannot be read"))?;
    found.ok_or_else(|| Error::not_found(UNKNOWN))
}

async fn send(asked: &DeliveryRequest, id: BuildId) -> Result<Answer, Error> {
    let (nar, member) = find(&asked.service, id).await?;
    let listing = match asked.service.state.contents.listing(nar).await {
        Err(contents::Error::Evicted) => return Err(Error::not_found("the symbols were evicted")),
        listing => listing?,
    };
    let entry = listing.root().descend(member.as_bytes());
    let file = entry.and_then(|entry| RegularFile::at(nar, entry.kind()));
    let file = file.ok_or_else(|| Error::not_found("the uploaded NAR does not have the symbols"))?;
    file.answer(asked, answer::BYTES).await
}
