//! Upload of a narinfo: its path is verified and published. Once this is answered with 200, it is durable.

use std::error::Error as StdError;

use narinfo::nar::EntryKind;
use narinfo::{NARINFO_BYTES_MAX, NarInfo};

use super::{TAKEN, file, file_of};
use crate::caller::CallerKey;
use crate::http::Service;
use crate::http::answer;
use crate::http::call::Call;
use crate::http::response_future::ResponseFuture;
use crate::tail_file::reading;

/// Keeps the places of debugging symbols that were uploaded for the NAR of a narinfo that was published, as
/// far as the NAR has them. A place whose NAR is served stays as it is.
async fn publish_debug_info(
    service: &Service,
    uploader: CallerKey,
    narinfo: &[u8],
) -> Result<(), Box<dyn StdError + Send + Sync>> {
    let NarInfo { path_info, url, .. } = NarInfo::parse(&service.state.store_dir, narinfo)?;
    let announced = service.state.debug_info.take_announced(uploader, file_of(&url));
    if announced.is_empty() {
        return Ok(());
    }
    let listing = service.state.contents.listing(path_info.nar_hash).await?;
    for (id, member) in announced {
        let entry = listing.root().descend(member.as_bytes());
        if !entry.is_some_and(|entry| matches!(entry.kind(), EntryKind::Regular { .. })) {
            tracing::warn!(path = %path_info.path, member, "place of debugging symbols not kept: the path has no such file");
            continue;
        }
        let (places, known) = (service.state.debug_info.clone(), id.clone());
        let first = reading(move || places.find(&known)).await?;
        if let Some((first, _)) = first
            && service.state.packer.find(first, None).await?.is_some()
        {
            continue;
        }
        let places = service.state.debug_info.clone();
        reading(move || places.keep(&id, path_info.nar_hash, &member)).await?;
    }
    Ok(())
}

pub(in crate::http) fn narinfo(call: Call<'_>) -> Option<ResponseFuture> {
    let hash = call.arguments[0].parse().ok()?;
    let (service, uploader) = (call.service.clone(), call.caller);
    let (headers, body) = (call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        let narinfo = file(&headers, body, NARINFO_BYTES_MAX).await?;
        let is_new = service.state.importer.publish(hash, &narinfo, &uploader).await?;
        if is_new && let Err(error) = publish_debug_info(&service, uploader.key(), &narinfo).await {
            let error: &(dyn StdError + 'static) = &*error;
            tracing::warn!(error, "cannot keep the places of debugging symbols; check the disk");
        }
        Ok(answer::ready(answer::TEXT, TAKEN))
    }))
}
