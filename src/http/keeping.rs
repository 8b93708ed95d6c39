//! What is done about keeping through the control socket, told in lines of text.

use tokio::sync::mpsc;

use super::Service;
use super::answer::{self, Answer};
use super::api::{CheckRequest, CollectRequest};
use super::call::Call;
use super::pipe::{Cut, written};
use super::request_body;
use super::response_future::ResponseFuture;
use crate::keep::Check;

pub(super) fn collect(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, body) = (call.service.clone(), call.body);
    Some(ResponseFuture::pending(async move {
        let CollectRequest { max_bytes, dry_run } = request_body::json(body).await?;
        Ok(told(&service, service.parts.keeper.collect(max_bytes, dry_run)))
    }))
}

pub(super) fn check(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, body) = (call.service.clone(), call.body);
    Some(ResponseFuture::pending(async move {
        let CheckRequest { verify, repair } = request_body::json(body).await?;
        Ok(told(&service, service.parts.keeper.check(Check { verify, repair })))
    }))
}

/// Each line as it comes.
fn told(service: &Service, mut lines: mpsc::Receiver<String>) -> Answer {
    let service = service.clone();
    let body = written(|mut pipe| async move {
        let telling = async {
            while let Some(line) = lines.recv().await {
                pipe.send_line(line).await;
            }
            Ok(())
        };
        tokio::select! {
            told = telling => told,
            () = service.stopping() => Err(Cut),
        }
    });
    answer::streamed(answer::TEXT, body)
}
