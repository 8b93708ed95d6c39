//! Upload of a narinfo: its path is verified and published. Once this is answered with 200, it is durable.

use narinfo::NARINFO_BYTES_MAX;

use super::{TAKEN, file};
use crate::http::answer;
use crate::http::call::Call;
use crate::http::response_future::ResponseFuture;

pub(in crate::http) fn narinfo(call: Call<'_>) -> Option<ResponseFuture> {
    let hash = call.arguments[0].parse().ok()?;
    let (service, uploader) = (call.service.clone(), call.caller);
    let (headers, body) = (call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        let narinfo = file(&headers, body, NARINFO_BYTES_MAX).await?;
        service.state.importer.publish(hash, &narinfo, &uploader).await?;
        Ok(answer::ready(answer::TEXT, TAKEN))
    }))
}
