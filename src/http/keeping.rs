//! What is done about keeping through the control socket, told in lines of text.

use tokio::sync::mpsc;

use super::Service;
use super::answer::{self, Answer};
use super::call::{Call, is_given, parameters};
use super::pipe::{Cut, written};
use super::response_future::ResponseFuture;
use crate::keep::Check;

pub(super) fn collect(call: Call<'_>) -> Option<ResponseFuture> {
    let max_bytes = parameters(call.query).find(|(name, _)| *name == "max-bytes");
    let max_bytes = max_bytes.map(|(_, value)| value.unwrap_or_default().parse()).transpose();
    Some(ResponseFuture::ready(match max_bytes {
        Ok(max_bytes) => {
            let lines = call.service.parts.keeper.collect(max_bytes, is_given(call.query, "dry-run"));
            told(call.service, lines)
        }
        Err(_) => answer::bad_request("max-bytes is a number"),
    }))
}

pub(super) fn check(call: Call<'_>) -> Option<ResponseFuture> {
    let check = Check { verify: is_given(call.query, "verify"), repair: is_given(call.query, "repair") };
    Some(ResponseFuture::ready(told(call.service, call.service.parts.keeper.check(check))))
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
