//! Upload of a narinfo: its path is verified and published. Once this is answered with 200, it is durable.

use narinfo::{NARINFO_BYTES_MAX, NarInfo};

use super::{TAKEN, file, file_of};
use crate::http::Service;
use crate::http::answer;
use crate::http::call::Call;
use crate::http::response_future::ResponseFuture;
use crate::tail_file::reading;

/// Keeps the places of debugging symbols that were uploaded for the NAR of a narinfo that was published.
async fn publish_debug_info(service: &Service, narinfo: &[u8]) {
    // It was parsed a moment ago.
    let Ok(narinfo) = NarInfo::parse(&service.state.store_dir, narinfo) else { return };
    let (places, file) = (service.state.debug_info.clone(), file_of(&narinfo.url).to_owned());
    if let Err(error) = reading(move || places.publish(&file, narinfo.path_info.nar_hash)).await {
        tracing::warn!(%error, "cannot keep the places of debugging symbols; check the disk, and push the path again");
    }
}

pub(in crate::http) fn narinfo(call: Call<'_>) -> Option<ResponseFuture> {
    let hash = call.arguments[0].parse().ok()?;
    let (service, uploader) = (call.service.clone(), call.caller);
    let (headers, body) = (call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        let narinfo = file(&headers, body, NARINFO_BYTES_MAX).await?;
        service.state.importer.publish(hash, &narinfo, &uploader).await?;
        publish_debug_info(&service, &narinfo).await;
        Ok(answer::ready(answer::TEXT, TAKEN))
    }))
}
