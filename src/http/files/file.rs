//! `/file/<hash>/<path>`: one file of a store path, or the entries of a directory.

use narinfo::StorePathHash;

use super::RegularFile;
use super::directory;
use super::media::media_type;
use crate::http::answer::Answer;
use crate::http::call::Call;
use crate::http::delivery::{Delivery, DeliveryRequest};
use crate::http::error::Error;
use crate::http::response_future::ResponseFuture;

/// A file below the root of a store path.
pub(in crate::http) fn file(call: Call<'_>) -> Option<ResponseFuture> {
    let path = call.arguments[1].to_owned();
    Some(give(call.arguments[0].parse().ok()?, path, call))
}

/// The root of a store path.
pub(in crate::http) fn root(call: Call<'_>) -> Option<ResponseFuture> {
    let path = if call.path.ends_with('/') { "/".to_owned() } else { String::new() };
    Some(give(call.arguments[0].parse().ok()?, path, call))
}

fn give(hash: StorePathHash, path: String, call: Call<'_>) -> ResponseFuture {
    if path.split('/').any(|name| matches!(name, "." | "..")) {
        let reason = "a path to a file has neither . nor .. in it";
        return ResponseFuture::failed(Error::BadRequest(reason.to_owned()));
    }
    let asked = DeliveryRequest::of(call);
    ResponseFuture::pending(async move { answer(&asked, hash, &path).await })
}

async fn answer(asked: &DeliveryRequest, hash: StorePathHash, path: &str) -> Result<Answer, Error> {
    let served = match asked.path(hash, asked.on_miss.clone()).await? {
        Delivery::Ready(ready) => ready,
        Delivery::Pending(answer) => return Ok(answer),
    };
    let contents = &asked.service.state.contents;
    let found = contents.resolve(&served.path, served.nar_hash, path).await?;
    match RegularFile::of(&found) {
        Some(file) => {
            let media_type = media_type(contents, &file, &found.name()).await?;
            Ok(asked.counted(file.answer(asked, media_type).await?))
        }
        None => Ok(directory::answer(asked, hash, path, &found)),
    }
}
