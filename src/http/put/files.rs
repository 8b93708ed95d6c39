//! Uploads beside NARs and narinfos: logs, realisations and the places of debugging symbols are stored,
//! listings are accepted and dropped, since they follow from the NARs.

use std::sync::Arc;

use narinfo::{CacheInfo, DrvOutput, REALISATION_BYTES_MAX, Realisation, StorePath, StorePathHash, json};

use super::{FILE_WITHIN, TAKEN, file, file_of};
use crate::caller::{Action, Caller, may_for};
use crate::debug_info::BuildId;
use crate::http::Service;
use crate::http::answer::{self, Answer};
use crate::http::call::Call;
use crate::http::error::Error;
use crate::http::request_body::BodyBounds;
use crate::http::response_future::ResponseFuture;

/// Bytes of a listing: of the largest packages some ten MiB.
const LISTING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of the other files.
const SMALL_BYTES_MAX: usize = 64 * 1024;
/// Answer to an upload that is not kept.
const DROPPED: &str = "accepted, and not kept: it follows from the NAR\n";

pub(in crate::http) fn listing(call: Call<'_>) -> Option<ResponseFuture> {
    call.arguments[0].parse::<StorePathHash>().ok()?;
    Some(dropped(call, LISTING_BYTES_MAX))
}

/// The place of debugging symbols, in the format of Nix.
#[derive(serde::Deserialize)]
struct UploadedPlace {
    /// Address of the NAR's file, relative to this one.
    archive: String,
    /// Path of the file in the NAR.
    member: String,
}

pub(in crate::http) fn debug_info(call: Call<'_>) -> Option<ResponseFuture> {
    let id = BuildId::parse(call.arguments[0])?;
    let (service, uploader) = (call.service.clone(), call.caller.key());
    let (headers, body) = (call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        let bytes = file(&headers, body, SMALL_BYTES_MAX).await?;
        let place: UploadedPlace = json::from_slice(&bytes).map_err(|error| {
            Error::BadRequest(format!(
                "an index of debugging symbols is JSON with archive and member: {error}"
            ))
        })?;
        if service.state.debug_info.announce(uploader, id, file_of(&place.archive), &place.member) {
            return Ok(answer::ready(answer::TEXT, TAKEN));
        }
        let reason = "expected the address of an uploaded NAR and the path of a file in it, and not too many before \
             their NARs are uploaded";
        Err(Error::BadRequest(reason.to_owned()))
    }))
}

fn dropped(call: Call<'_>, bytes_max: usize) -> ResponseFuture {
    ResponseFuture::pending(async move {
        call.body.discard(BodyBounds { bytes_max, time_max: FILE_WITHIN }).await?;
        Ok(answer::ready(answer::TEXT, DROPPED))
    })
}

/// A client that finds no nix-cache-info uploads one; ours stays.
pub(in crate::http) fn cache_info(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, headers, body) = (call.service.clone(), call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        let sent = CacheInfo::parse(&file(&headers, body, SMALL_BYTES_MAX).await?);
        let sent = sent.map_err(|error| Error::BadRequest(error.to_string()))?;
        let ours = &service.state.store_dir;
        if sent.store_dir != *ours {
            let other = sent.store_dir;
            return Err(Error::BadRequest(format!("this cache is for the store {ours}, not {other}")));
        }
        Ok(answer::ready(answer::TEXT, "accepted, and not kept: the settings of the server tell the rest\n"))
    }))
}

/// The log of a build on another machine; a log of our own or of the Nix daemon is not replaced.
pub(in crate::http) fn log(call: Call<'_>) -> Option<ResponseFuture> {
    let drv = StorePath::parse(call.arguments[0]).ok().filter(StorePath::is_derivation)?;
    if let Err(refusal) = may_for(&call.caller, Action::Push, drv.name()) {
        return Some(ResponseFuture::failed(Error::Refused(refusal)));
    }
    let (service, headers, body) = (call.service.clone(), call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        let bytes_max = usize::try_from(service.state.logs.log_bytes_max()).unwrap_or(usize::MAX);
        let log = file(&headers, body, bytes_max).await?;
        let state = Arc::clone(&service.state);
        let store = move || Ok(state.daemon_logs.open(&drv)?.is_none() && state.logs.store(&drv, &log)?);
        let stored = tokio::task::spawn_blocking(store).await;
        match stored.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked))) {
            Ok(true) => Ok(answer::ready(answer::TEXT, TAKEN)),
            Ok(false) => Ok(answer::ready(answer::TEXT, "not kept: this derivation has a log here\n")),
            Err(error) => Err(Error::internal(&error, "the log cannot be stored")),
        }
    }))
}

pub(in crate::http) fn realisation(call: Call<'_>) -> Option<ResponseFuture> {
    let id = DrvOutput::from_file(call.path.trim_start_matches('/')).ok()?;
    let (service, uploader) = (call.service.clone(), call.caller);
    let (headers, body) = (call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        let bytes = file(&headers, body, REALISATION_BYTES_MAX).await?;
        publish(&service, &id, &bytes, &uploader).await
    }))
}

async fn publish(
    service: &Service,
    id: &DrvOutput,
    bytes: &[u8],
    uploader: &Caller,
) -> Result<Answer, Error> {
    let realisation =
        Realisation::parse(id, bytes).map_err(|error| Error::BadRequest(format!("{id}: {error}")))?;
    service.state.importer.publish_realisation(realisation, uploader).await?;
    Ok(answer::ready(answer::TEXT, TAKEN))
}
