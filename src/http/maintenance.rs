//! Handlers of `ondine gc` and `ondine fsck`: progress is streamed as lines of text.

use tokio::sync::mpsc;

use super::Service;
use super::answer::{self, Answer};
use super::api::{CheckRequest, CollectRequest};
use super::call::Call;
use super::request_body;
use super::response_future::ResponseFuture;
use super::stream_body::{Aborted, stream_body};
use crate::retention::Check;

pub(super) fn collect(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, body) = (call.service.clone(), call.body);
    Some(ResponseFuture::pending(async move {
        let CollectRequest { max_bytes, dry_run } = request_body::json(body).await?;
        Ok(stream_lines(&service, service.state.retention.collect(max_bytes, dry_run)))
    }))
}

pub(super) fn check(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, body) = (call.service.clone(), call.body);
    Some(ResponseFuture::pending(async move {
        let CheckRequest { verify, repair } = request_body::json(body).await?;
        Ok(stream_lines(&service, service.state.retention.check(Check { verify, repair })))
    }))
}

/// Streams each line as it comes.
fn stream_lines(service: &Service, mut lines: mpsc::Receiver<String>) -> Answer {
    let service = service.clone();
    let body = stream_body(|mut writer| async move {
        let sending = async {
            while let Some(line) = lines.recv().await {
                writer.send_line(line).await;
            }
            Ok(())
        };
        tokio::select! {
            sent = sending => sent,
            () = service.stopping() => Err(Aborted),
        }
    });
    answer::streamed(answer::TEXT, body)
}
