//! `/<hash>.narinfo`: answered at once where the answer is known, else held while the build runs.
//! Once a 200 has begun, failure is said by cutting the body, never by ending it: a complete answer is always a narinfo.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hyper::Version;
use narinfo::StorePathHash;

use super::Service;
use super::answer::{self, Answer};
use super::call::Call;
use super::error::{Error, REMEMBERED};
use super::pipe::{Cut, Pipe, written};
use super::response_future::ResponseFuture;
use super::traffic::Outcome;
use crate::index::Ready;
use crate::substitute::{Answer as Decision, OnMiss, Wait, WaitEnd};

/// Bytes of a line about the wait at least: less than one a second counts as stalled, and some proxies hold back crumbs.
const WAIT_LINE_BYTES_MIN: usize = 64;

/// How long nothing is sent in any case before it is decided what a client waits for: most often that takes a moment, and then it
/// hears of its place in the queue from the start.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);
/// Characters of a line about the wait at most: some of it is what others said.
const WAIT_LINE_CHARS_MAX: usize = 1000;

/// From memory, where nearly all requests end; else through the index, upstreams and the queue.
pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let hash = call.arguments[0].parse().ok()?;
    let (on_miss, reader) = (call.on_miss(), call.reader());
    if let Some(answer) = lookup_cached(call.service, hash, &on_miss, reader) {
        return Some(answer.into());
    }
    // Very many may wait, and the headers of a request are a part of the connection's buffer: they stay behind.
    let asked = Asked { hash, on_miss, head: call.head, reader, version: call.version };
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { answer(&service, asked).await }))
}

/// The answer, if it can be given from memory.
fn lookup_cached(
    service: &Service,
    hash: StorePathHash,
    on_miss: &OnMiss,
    reader: Option<IpAddr>,
) -> Option<Result<Answer, Error>> {
    match service.parts.substitute.lookup_cached(hash, on_miss)? {
        Decision::Ready(ready) => Some(Ok(served(service, &ready, reader))),
        Decision::Missing(reason) => Some(Err(reason.into())),
        // Nobody is made to wait from memory.
        Decision::Wait(_) => None,
    }
}

/// What is asked for, and by whom.
struct Asked {
    hash: StorePathHash,
    on_miss: OnMiss,
    head: bool,
    reader: Option<IpAddr>,
    version: Version,
}

/// Holds the answer for a while, so that it keeps its true status; then sends lines about the wait.
async fn answer(service: &Service, asked: Asked) -> Result<Answer, Error> {
    let Asked { hash, on_miss, head, reader, version } = asked;
    // HTTP/1.0 has no chunks: there a cut cannot be told from an end, so all of the wait is silent.
    let hold = if version == Version::HTTP_10 { Duration::MAX } else { service.parts.settings.hold };
    // In a box, since a future keeps room for what it is given and for what it makes of that: very many may wait.
    let mut waited = Box::new(service.wait(hash, on_miss));
    // In a box, too: the body of the answer takes its place in memory.
    let end = Box::pin(within(hold, &mut waited)).await;
    let queued = waited.ticket().is_some();
    let keep_alive = service.parts.settings.keep_alive;
    Ok(match end {
        Some(WaitEnd::Ready(ready)) if queued => {
            answer::noted(served(service, &ready, reader), Outcome::Built)
        }
        Some(WaitEnd::Ready(ready)) => served(service, &ready, reader),
        Some(WaitEnd::Missing(reason)) => return Err(reason.into()),
        // No body could say that it goes on, or it would only go on to a cut.
        None | Some(WaitEnd::Stopped) if head || waited.is_mere_trouble() => {
            let stage = waited.describe();
            let text = "GET outside /cached/ waits longer";
            return Err(Error::NotFound(format!("not known yet: {stage}; {text}\n{REMEMBERED}")));
        }
        // Still under way, or the server stops: in both cases what follows says so by what it does.
        None | Some(WaitEnd::Stopped) => {
            match waited.ticket().map(|ticket| (ticket.id(), ticket.outlook())) {
                Some((id, outlook)) => {
                    let answer =
                        answer::waiting(written(|pipe| wait(waited, keep_alive, pipe)), id, outlook.as_ref());
                    answer::noted(answer, Outcome::Built)
                }
                None => answer::undecided(written(|pipe| wait(waited, keep_alive, pipe))),
            }
        }
    })
}

/// The end, if it comes while nothing is sent.
async fn within(hold: Duration, waited: &mut Wait) -> Option<WaitEnd> {
    let begun = Instant::now();
    if let Ok(end) = tokio::time::timeout(hold, waited.ended()).await {
        return Some(end);
    }
    let left = DECIDED_WITHIN.saturating_sub(begun.elapsed());
    tokio::time::timeout(left, waited.decided()).await.ok().flatten()
}

/// Every narinfo that was not waited for goes out here, from memory or not.
fn served(service: &Service, ready: &Ready, reader: Option<IpAddr>) -> Answer {
    if let (Some(reader), true) = (reader, ready.to_come) {
        service.parts.packer.told(reader, ready.nar_hash);
    }
    answer::ready(answer::NARINFO, ready.narinfo.clone())
}

/// Sends a line now and then until there is an end, then the narinfo. Whatever else happens cuts the body.
async fn wait(mut waited: Box<Wait>, keep_alive: Duration, mut pipe: Pipe) -> Result<(), Cut> {
    let mut ticks = tokio::time::interval(keep_alive);
    let ready = loop {
        tokio::select! {
            end = waited.ended() => match end {
                WaitEnd::Ready(ready) => break ready,
                WaitEnd::Missing(_) | WaitEnd::Stopped => return Err(Cut),
            },
            _ = ticks.tick() => pipe.send(wait_line(&waited.describe())).await,
        }
    };
    pipe.send(ready.narinfo.clone()).await;
    Ok(())
}

/// A narinfo field that clients ignore.
fn wait_line(state: &str) -> String {
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
