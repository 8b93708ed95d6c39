//! Upload of a NAR: passed on to be verified and stored while it arrives. A body that stalls or breaks off
//! leaves nothing.

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::{HeaderMap, header};
use narinfo::{Compression, NarHash};

use super::TAKEN;
use crate::caller::Caller;
use crate::http::Service;
use crate::http::answer::{self, Answer};
use crate::http::call::Call;
use crate::http::error::Error;
use crate::http::response_future::ResponseFuture;
use crate::import::{UploadError, UploadFeed, upload_channel};
use crate::nar_store::file_bytes_max;

/// Time that a client may take for so many bytes; the time that we take does not count.
const STALLED_AFTER: Duration = Duration::from_secs(60);
const PROGRESS_BYTES: u64 = 64 * 1024;
/// Rest of a refused body that is read so that its sender hears why it is refused: most send all of it before
/// they listen.
const DRAINED_BYTES_MAX: u64 = 64 * 1024 * 1024;
const DRAINED_WITHIN: Duration = Duration::from_secs(10);

/// A NAR that a client sends.
struct NarUpload {
    /// Name of the file.
    file: String,
    /// The hash that it is named by.
    name: NarHash,
    compression: Compression,
    uploader: Caller,
}

pub(in crate::http) fn nar(call: Call<'_>) -> Option<ResponseFuture> {
    let [name, ending, _] = call.arguments;
    let compression = match ending {
        "" => Compression::None,
        // With its dot.
        _ => Compression::from_file_ending(&call.path[call.path.len() - ending.len() - 1..])?,
    };
    let upload = NarUpload {
        file: call.path.strip_prefix("/nar/")?.to_owned(),
        name: NarHash::from_nixbase32(name).ok()?,
        compression,
        uploader: call.caller,
    };
    let (service, headers, body) = (call.service.clone(), call.headers, call.body.into_stream());
    Some(ResponseFuture::pending(async move {
        let taken = take(&service, upload, &headers, body).await;
        taken.map(|()| answer::ready(answer::TEXT, TAKEN))
    }))
}

/// HEAD of a NAR that was uploaded lately, which an uploader asks for before it uploads it again.
pub(in crate::http) fn was_uploaded(call: &Call<'_>) -> Option<Answer> {
    let file = call.path.strip_prefix("/nar/").filter(|_| call.head)?;
    let received = call.service.state.importer.has_received(file);
    received.then(|| answer::ready(answer::NAR, ""))
}

async fn take(
    service: &Service,
    upload: NarUpload,
    headers: &HeaderMap,
    mut body: Incoming,
) -> Result<(), Error> {
    let importer = &service.state.importer;
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Error::BadRequest(
            "a NAR is uploaded without Content-Encoding: its name tells its compression".to_owned(),
        ));
    }
    let limits = service.state.packer.limits();
    if body.size_hint().lower() > file_bytes_max(limits.nar_bytes_max) {
        if limits.is_by_room {
            drain(&mut body).await;
        }
        return Err(UploadError::too_large(limits).into());
    }
    let NarUpload { file, name, compression, uploader } = upload;
    let mut upload = importer.open(&uploader)?;
    // One that sends nothing has no turn.
    let first = first_bytes(&mut body).await?;
    upload.turn().await?;
    let (feed, reader) = upload_channel();
    let received = {
        let mut receiving = pin!(importer.receive(file, name, compression, reader, &uploader));
        let mut passing = pin!(pass_on(&mut body, first, feed));
        tokio::select! {
            biased;
            received = &mut receiving => received,
            () = &mut passing => receiving.await,
        }
    };
    if received.is_err() {
        drain(&mut body).await;
    }
    Ok(received?)
}

/// The first bytes of a body; none where it is empty.
async fn first_bytes(body: &mut Incoming) -> Result<Bytes, UploadError> {
    let first = async {
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| UploadError::Invalid(format!("the upload broke off: {error}")))?;
            if let Ok(bytes) = frame.into_data()
                && !bytes.is_empty()
            {
                return Ok(bytes);
            }
        }
        Ok(Bytes::new())
    };
    tokio::time::timeout(STALLED_AFTER, first).await.unwrap_or(Err(UploadError::Stalled))
}

/// Passes the body on to its end, beginning with what came first, until it stalls, or until its receiver is
/// gone.
async fn pass_on(body: &mut Incoming, first: Bytes, mut feed: UploadFeed) {
    let (mut bytes_left, mut waited) = (PROGRESS_BYTES.saturating_sub(first.len() as u64), Duration::ZERO);
    if !first.is_empty() && !feed.send(first).await {
        return;
    }
    loop {
        let asked = Instant::now();
        let frame = tokio::time::timeout(STALLED_AFTER.saturating_sub(waited), body.frame()).await;
        waited += asked.elapsed();
        let bytes = match frame {
            Err(_) => return feed.stall().await,
            Ok(None) => return feed.end().await,
            // Dropped, it breaks off.
            Ok(Some(Err(_))) => return,
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        bytes_left = bytes_left.saturating_sub(bytes.len() as u64);
        if bytes_left == 0 {
            (bytes_left, waited) = (PROGRESS_BYTES, Duration::ZERO);
        }
        if !bytes.is_empty() && !feed.send(bytes).await {
            return;
        }
    }
}

/// Reads and drops what is left of a body, within bounds.
async fn drain(body: &mut Incoming) {
    let mut left = DRAINED_BYTES_MAX;
    let draining = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.into_data().map_or(0, |bytes| bytes.len() as u64));
            if left == 0 {
                break;
            }
        }
    };
    // What is left after that is not read.
    let _ = tokio::time::timeout(DRAINED_WITHIN, draining).await;
}
