//! What is kept: the pins as JSON, and what is done about keeping through the control socket, told in lines of text.

use std::fmt::Write;
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::Service;
use super::answer::{self, Answer};
use super::api::json;
use super::pipe::{Cut, written};
use crate::index::PinRow;
use crate::keep::{Check, PinError, Pinned};

/// A pin, in the list at `GET /api/v1/pins`.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub struct PinView {
    /// What was named: an attribute, or the path.
    pub name: String,
    /// The hash of the path.
    pub hash: String,
    /// The path; null while it is not served.
    pub path: Option<String>,
    /// Unix seconds.
    pub pinned_at: u64,
}

impl From<PinRow> for PinView {
    fn from(row: PinRow) -> Self {
        let pinned_at = row.pinned_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let path = row.path.map(|path| path.to_string());
        Self { name: row.name, hash: row.hash.to_string(), path, pinned_at }
    }
}

pub(super) async fn pins(service: &Service) -> Answer {
    match service.parts.keeper.pins().await {
        Ok(pins) => json(&pins.into_iter().map(PinView::from).collect::<Vec<_>>()),
        Err(error) => failed(&error, "the pins cannot be told of"),
    }
}

pub(super) async fn pin(service: &Service, what: Pinned) -> Answer {
    match service.parts.keeper.pin(what).await {
        Ok(pinnings) => {
            let mut text = String::new();
            for pinning in pinnings {
                // Writing to a string does not fail.
                let _ = writeln!(text, "pinned: {pinning}");
            }
            answer::ready(answer::TEXT, text)
        }
        Err(error) => not_pinned(&error),
    }
}

pub(super) async fn unpin(service: &Service, what: Pinned) -> Answer {
    match service.parts.keeper.unpin(what).await {
        Ok(0) => answer::missing("there is no such pin; /api/v1/pins lists all"),
        Ok(count) => answer::ready(answer::TEXT, format!("unpinned: {count}\n")),
        Err(error) => not_pinned(&error),
    }
}

fn not_pinned(error: &PinError) -> Answer {
    match error {
        PinError::Index(error) => failed(error, "the pins cannot be changed"),
        reason => answer::missing(reason),
    }
}

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
                pipe.send(line + "\n").await;
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

fn failed(error: &(dyn std::error::Error + 'static), what: &'static str) -> Answer {
    tracing::error!(error, "{what}");
    answer::missing(format_args!("{what}; the server's log has the details"))
}
