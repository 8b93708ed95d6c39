//! `/file/<hash>/<path>`: one file of a store path, or the entries of a directory.

use narinfo::StorePathHash;
use percent_encoding::percent_decode_str;

use super::RegularFile;
use super::directory;
use super::media::media_type;
use crate::http::answer::Answer;
use crate::http::call::Call;
use crate::http::delivery::{Delivery, DeliveryRequest};
use crate::http::error::Error;
use crate::http::response_future::ResponseFuture;

/// The beginning of the addresses.
const FILE: &str = "/file/";

/// A file below the root of a store path.
pub(in crate::http) fn file(call: Call<'_>) -> Option<ResponseFuture> {
    let path = path_below(call.raw_path)?;
    Some(give(call.arguments[0].parse().ok()?, path, call))
}

/// The root of a store path.
pub(in crate::http) fn root(call: Call<'_>) -> Option<ResponseFuture> {
    let path = if call.path.ends_with('/') { b"/".to_vec() } else { Vec::new() };
    Some(give(call.arguments[0].parse().ok()?, path, call))
}

/// The path behind the hash in an address: names of files are bytes, and need not be UTF-8.
fn path_below(address: &str) -> Option<Vec<u8>> {
    let decoded: Vec<u8> = percent_decode_str(address).collect();
    let (_, path) = decoded.strip_prefix(b"/cached").unwrap_or(&decoded).split_at_checked(FILE.len())?;
    let slash = path.iter().position(|byte| *byte == b'/')?;
    Some(path[slash + 1..].to_vec())
}

fn give(hash: StorePathHash, path: Vec<u8>, call: Call<'_>) -> ResponseFuture {
    if path.split(|byte| *byte == b'/').any(|name| matches!(name, b"." | b"..")) {
        let reason = "a path to a file has neither . nor .. in it";
        return ResponseFuture::failed(Error::BadRequest(reason.to_owned()));
    }
    let asked = DeliveryRequest::of(call);
    ResponseFuture::pending(async move { answer(&asked, hash, &path).await })
}

async fn answer(asked: &DeliveryRequest, hash: StorePathHash, path: &[u8]) -> Result<Answer, Error> {
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
