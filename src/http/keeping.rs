//! What is done about keeping through the control socket, told in lines of text.

use tokio::sync::mpsc;

use super::Service;
use super::answer::{self, Answer};
use super::pipe::{Cut, written};
use crate::keep::Check;

pub(super) fn collect(service: &Service, max_bytes: Option<u64>, dry_run: bool) -> Answer {
    told(service, service.parts.keeper.collect(max_bytes, dry_run))
}

pub(super) fn check(service: &Service, check: Check) -> Answer {
    told(service, service.parts.keeper.check(check))
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
