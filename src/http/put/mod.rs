//! Uploads, as `nix copy --to` sends them: a NAR, then its narinfo; and the smaller files beside them.
//! What may be believed is decided by `import`.

mod files;
mod missing;
mod nar;
mod narinfo;

use std::io::{self, Cursor};
use std::time::Duration;

use ::narinfo::Compression;
use hyper::{HeaderMap, header};

pub(super) use files::{cache_info, debug_info, listing, log, realisation};
pub(super) use missing::missing;
pub(super) use nar::{nar, was_uploaded};
pub(super) use narinfo::narinfo;

use super::body_memory::BodyMemory;
use super::error::Error;
use super::request_body::{BodyBounds, RequestBody, WholeBody};
use crate::decode;

/// Answer to an upload that was taken.
const TAKEN: &str = "uploaded\n";
/// Time in which a file that is read whole must arrive.
const FILE_WITHIN: Duration = Duration::from_secs(120);

/// All of a small file, decoded, with `bytes_max` bytes at most in either form.
async fn file(headers: &HeaderMap, body: RequestBody, bytes_max: usize) -> Result<WholeBody, Error> {
    let encoding = match headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?")) {
        None | Some("" | "identity" | "none") => None,
        Some(name) => Some(Compression::from_name(name.trim_start_matches("x-")).ok_or_else(|| {
            let name: String = name.chars().take(40).collect();
            Error::BadRequest(format!(
                "the Content-Encoding {name:?} is not known: br, bzip2, gzip, xz or zstd are"
            ))
        })?),
    };
    let bounds = BodyBounds { bytes_max, time_max: FILE_WITHIN };
    let Some(encoding) = encoding else { return body.collect(bounds).await };
    let (body, with) = body.with_decoded(bytes_max).collect(bounds).await?.replaced();
    let decoding = tokio::task::spawn_blocking(move || {
        let mut decoded = BodyMemory::new(bytes_max)?;
        let is_whole = decoded.push_all_of(decode::encoded(encoding, Cursor::new(body))?)?;
        io::Result::Ok(is_whole.then(|| decoded.into_bytes()))
    });
    match decoding.await {
        Ok(Ok(None)) => Err(Error::TooLarge(bytes_max)),
        Ok(Ok(Some(decoded))) => Ok(with(decoded)),
        Ok(Err(error)) => {
            Err(Error::BadRequest(format!("the body is not in the Content-Encoding {encoding}: {error}")))
        }
        Err(panicked) => Err(Error::internal(&panicked, "the upload cannot be decoded")),
    }
}

/// The name of a file in the address of an uploaded NAR.
fn file_of(address: &str) -> &str {
    address.rsplit('/').next().unwrap_or_default()
}
