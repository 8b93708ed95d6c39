//! `/<hash>.narinfo`: answered at once where the answer is known, else held while the build runs.
//! Once a 200 has begun, a failure aborts the body and never ends it: a complete answer is always a narinfo.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hyper::Version;
use narinfo::StorePathHash;

use super::Service;
use super::answer::{self, Answer};
use super::call::Call;
use super::delivery::error_of;
use super::error::{Error, REMEMBERED};
use super::response_future::ResponseFuture;
use super::stream_body::{Aborted, BodyWriter, stream_body};
use super::traffic::RequestOutcome;
use crate::index::CachedNarInfo;
use crate::substitute::{Missing, OnMiss, Resolution, Wait, WaitEnd};

/// Bytes of a line about the wait at least: fewer than one a second count as stalled, and some proxies hold
/// back crumbs.
const WAIT_LINE_BYTES_MIN: usize = 64;

/// Longest silence before a request is decided. Most are decided within a moment, and then the headers have
/// the position in the queue.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);
/// Characters of a line about the wait at most: upstreams and daemons wrote some of it.
const WAIT_LINE_CHARS_MAX: usize = 1000;

/// From memory, where nearly all requests end; else through the index, upstreams and the queue.
pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let hash = call.arguments[0].parse().ok()?;
    let (on_miss, reader) = (call.on_miss(), call.reader());
    if let Some(answer) = lookup_cached(call.service, hash, &on_miss, reader) {
        return Some(answer.into());
    }
    // Very many may wait, and the headers of a request are a part of the connection's buffer: they stay
    // behind.
    let asked = NarInfoRequest { hash, on_miss, head: call.head, reader, version: call.version };
    let service = call.service.clone();
    if call.service.state.auth.rates().is_exceeded(&call.caller) {
        let caller = call.caller;
        return Some(ResponseFuture::pending(async move {
            // A client would take a refusal for an hour, or give up: it waits instead.
            service.state.auth.rates().turn(&caller).await;
            answer(&service, asked).await
        }));
    }
    Some(ResponseFuture::pending(async move { answer(&service, asked).await }))
}

/// The answer, if it can be given from memory.
fn lookup_cached(
    service: &Service,
    hash: StorePathHash,
    on_miss: &OnMiss,
    reader: Option<IpAddr>,
) -> Option<Result<Answer, Error>> {
    match service.state.substitute.lookup_cached(hash, on_miss)? {
        Resolution::Ready(ready) => Some(Ok(served(service, &ready, reader))),
        // The end of the log of a build that failed stands in a file, and whoever waits has no answer yet.
        Resolution::Missing(Missing::Failed(_)) | Resolution::Wait(_) => None,
        Resolution::Missing(reason) => Some(Err(reason.into())),
    }
}

/// A request that memory cannot answer.
struct NarInfoRequest {
    hash: StorePathHash,
    on_miss: OnMiss,
    head: bool,
    reader: Option<IpAddr>,
    version: Version,
}

/// Holds the answer for a while, so that it keeps its true status; then sends lines about the wait.
async fn answer(service: &Service, asked: NarInfoRequest) -> Result<Answer, Error> {
    let NarInfoRequest { hash, on_miss, head, reader, version } = asked;
    // HTTP/1.0 has no chunks: an aborted body looks like a complete one there, so all of the wait is silent.
    let hold = if version == Version::HTTP_10 { Duration::MAX } else { service.state.settings.hold };
    // In a box, since a future keeps room for its arguments and for what it makes of them: very many may
    // wait.
    let mut waited = Box::new(service.wait(hash, on_miss));
    // In a box, too: the body of the answer takes its place in memory.
    let end = Box::pin(within(hold, &mut waited)).await;
    let queued = waited.ticket().is_some();
    let keep_alive = service.state.settings.keep_alive;
    Ok(match end {
        Some(WaitEnd::Ready(ready)) if queued => {
            answer::noted(served(service, &ready, reader), RequestOutcome::Built)
        }
        Some(WaitEnd::Ready(ready)) => served(service, &ready, reader),
        Some(WaitEnd::Missing(reason)) => return Err(error_of(service, reason).await),
        // No body could say that the wait goes on, or it would only be aborted.
        None | Some(WaitEnd::Stopped) if head || waited.is_mere_trouble() => {
            let stage = waited.describe();
            let text = "GET outside /cached/ waits longer";
            return Err(Error::NotFound(format!("not known yet: {stage}; {text}\n{REMEMBERED}")));
        }
        // Under way, or the server stops: the body goes on, or is aborted.
        None | Some(WaitEnd::Stopped) => {
            match waited.ticket().map(|ticket| (ticket.id(), ticket.outlook())) {
                Some((id, outlook)) => {
                    let answer = answer::waiting(
                        stream_body(|writer| wait(waited, keep_alive, writer)),
                        id,
                        outlook.as_ref(),
                    );
                    answer::noted(answer, RequestOutcome::Built)
                }
                None => answer::undecided(stream_body(|writer| wait(waited, keep_alive, writer))),
            }
        }
    })
}

/// The end, if it comes while the answer is held.
async fn within(hold: Duration, waited: &mut Wait) -> Option<WaitEnd> {
    let begun = Instant::now();
    if let Ok(end) = tokio::time::timeout(hold, waited.ended()).await {
        return Some(end);
    }
    let left = DECIDED_WITHIN.saturating_sub(begun.elapsed());
    tokio::time::timeout(left, waited.decided()).await.ok().flatten()
}

/// The answer for every narinfo that was not streamed.
fn served(service: &Service, ready: &CachedNarInfo, reader: Option<IpAddr>) -> Answer {
    if let (Some(reader), true) = (reader, ready.to_come) {
        service.state.packer.told(reader, ready.nar_hash);
    }
    answer::ready(answer::NARINFO, ready.narinfo.clone())
}

/// Sends a line now and then until the end, then the narinfo. Anything else aborts the body.
async fn wait(mut waited: Box<Wait>, keep_alive: Duration, mut writer: BodyWriter) -> Result<(), Aborted> {
    let mut ticks = tokio::time::interval(keep_alive);
    let ready = loop {
        tokio::select! {
            end = waited.ended() => match end {
                WaitEnd::Ready(ready) => break ready,
                WaitEnd::Missing(_) | WaitEnd::Stopped => return Err(Aborted),
            },
            _ = ticks.tick() => writer.send(wait_line(&waited.describe())).await,
        }
    };
    writer.send(ready.narinfo.clone()).await;
    Ok(())
}

/// A narinfo field that clients ignore.
pub(super) fn wait_line(state: &str) -> String {
    let state: String = state
        .chars()
        .take(WAIT_LINE_CHARS_MAX)
        .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
        .collect();
    let mut line = format!("X-Ondine-Wait: {state}");
    while line.len() < WAIT_LINE_BYTES_MIN - 1 {
        line.push('.');
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_about_the_wait_is_long_enough_and_one_line() {
        for state in ["", "position 1 of 1", "x\r\ny: \u{1b}[31mé"] {
            let line = wait_line(state);
            assert!(line.len() >= WAIT_LINE_BYTES_MIN && line.starts_with("X-Ondine-Wait: "), "{line:?}");
            assert_eq!(line.bytes().filter(u8::is_ascii_control).count(), 1, "{line:?}");
        }
    }
}
