//! `/<hash>.narinfo`: answered at once where the answer is known, else held while the build runs.
//! Once a 200 has begun, failure is said by cutting the body, never by ending it: a complete answer is always a narinfo.

use std::net::IpAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use hyper::Version;
use narinfo::StorePathHash;

use super::answer::{self, Answer};
use super::pipe::{Cut, Pipe, written};
use super::{Method, Service};
use crate::build::Ticket;
use crate::index::Ready;
use crate::substitute::{Answer as Decision, Missing, OnMiss};

/// Bytes of a line about the wait at least: less than one a second counts as stalled, and some proxies hold back crumbs.
const WAIT_LINE_BYTES_MIN: usize = 64;

/// How long nothing is sent in any case before it is decided what a client waits for: most often that takes a moment, and then it
/// hears of its place in the queue from the start.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);

/// The answer, if it can be given from memory.
pub(super) fn at_hand(
    service: &Service,
    hash: StorePathHash,
    on_miss: &OnMiss,
    reader: Option<IpAddr>,
) -> Option<Answer> {
    match service.parts.substitute.at_hand(hash, on_miss)? {
        Decision::Ready(ready) => Some(served(service, &ready, reader)),
        Decision::Missing(unknown @ Missing::Unknown) => Some(answer::unknown_path(unknown)),
        Decision::Missing(reason) => Some(answer::missing_path(reason)),
        // Nobody is made to wait from memory.
        Decision::Wait(_) => None,
    }
}

/// What is asked for, and by whom.
pub(super) struct Asked {
    pub(super) hash: StorePathHash,
    pub(super) on_miss: OnMiss,
    pub(super) method: Method,
    pub(super) reader: Option<IpAddr>,
    pub(super) version: Version,
}

pub(super) async fn get(service: &Service, asked: Asked) -> Answer {
    let Asked { hash, on_miss, method, reader, version } = asked;
    let begun = Instant::now();
    // HTTP/1.0 has no chunks: there a cut cannot be told from an end, so all of the wait is silent.
    let hold = if version == Version::HTTP_10 { Duration::MAX } else { service.parts.settings.hold };
    // In a box, so that nothing of it is kept while the client waits.
    let mut asking = Box::pin({
        let service = service.clone();
        async move { service.parts.substitute.ask(hash, on_miss).await }
    });
    match tokio::time::timeout(hold.max(DECIDED_WITHIN), &mut asking).await {
        Ok(Decision::Ready(ready)) => served(service, &ready, reader),
        Ok(Decision::Missing(reason)) => answer::missing_path(reason),
        Ok(Decision::Wait(ticket)) => {
            // So that nothing of it is kept while it is not known whether the client waits.
            drop(asking);
            Box::pin(wait(service, hash, ticket, hold.saturating_sub(begun.elapsed()))).await
        }
        Err(_) if method == Method::Head => {
            answer::missing_path(format_args!("not known yet: {}", service.parts.substitute.describe()))
        }
        Err(_) => {
            let undecided = Undecided { hash, asking, service: service.clone() };
            answer::undecided(written(|pipe| undecided.run(pipe)))
        }
    }
}

/// Every narinfo that was not waited for goes out here, from memory or not.
fn served(service: &Service, ready: &Ready, reader: Option<IpAddr>) -> Answer {
    if let (Some(reader), true) = (reader, ready.to_come) {
        service.parts.packer.told(reader, ready.nar_hash);
    }
    answer::ready(answer::NARINFO, ready.narinfo.clone())
}

/// Holds the answer for a while, so that it keeps its true status; then sends lines about the wait.
async fn wait(service: &Service, hash: StorePathHash, mut ticket: Ticket, hold: Duration) -> Answer {
    let parts = &service.parts;
    let ended = tokio::select! {
        ended = tokio::time::timeout(hold, ticket.ended()) => ended,
        () = service.stopping() => Ok(None),
    };
    match ended {
        Ok(Some(Ok(()))) => match parts.substitute.after_build(hash).await {
            Ok(ready) => served(service, &ready, None),
            Err(reason) => answer::missing_path(reason),
        },
        Ok(Some(Err(failure))) => answer::missing_path(Missing::Failed(failure)),
        // Still building, or the server stops: in both cases what follows says so by what it does.
        Err(_) | Ok(None) => {
            let (id, outlook) = (ticket.id(), ticket.outlook());
            let waiting = Waiting { hash, ticket, service: service.clone() };
            answer::waiting(written(|pipe| waiting.run(pipe)), id, outlook.as_ref())
        }
    }
}

/// A client that is kept waiting while nobody knows whether anything is built for it.
struct Undecided<F> {
    hash: StorePathHash,
    asking: Pin<Box<F>>,
    service: Service,
}

impl<F: Future<Output = Decision>> Undecided<F> {
    /// Sends a line now and then until that is decided, then the narinfo, or more lines. Whatever else happens cuts the body.
    async fn run(mut self, mut pipe: Pipe) -> Result<(), Cut> {
        let parts = &self.service.parts;
        let mut ticks = tokio::time::interval(parts.settings.keep_alive);
        let decision = loop {
            tokio::select! {
                decision = &mut self.asking => break decision,
                () = self.service.stopping() => return Err(Cut),
                _ = ticks.tick() => pipe.send(wait_line(&parts.substitute.describe())).await,
            }
        };
        match decision {
            Decision::Ready(ready) => {
                pipe.send(ready.narinfo.clone()).await;
                Ok(())
            }
            Decision::Missing(_) => Err(Cut),
            Decision::Wait(ticket) => {
                Waiting { hash: self.hash, ticket, service: self.service }.run(pipe).await
            }
        }
    }
}

/// A client that is kept waiting.
struct Waiting {
    hash: StorePathHash,
    ticket: Ticket,
    service: Service,
}

impl Waiting {
    /// Sends a line now and then until the build has ended, then the narinfo. Whatever else happens cuts the body.
    async fn run(mut self, mut pipe: Pipe) -> Result<(), Cut> {
        let parts = &self.service.parts;
        let mut ticks = tokio::time::interval(parts.settings.keep_alive);
        loop {
            tokio::select! {
                ending = self.ticket.ended() => match ending {
                    Some(Ok(())) => break,
                    _ => return Err(Cut),
                },
                () = self.service.stopping() => return Err(Cut),
                _ = ticks.tick() => pipe.send(wait_line(&self.ticket.describe())).await,
            }
        }
        // In a box, so that no room is kept for it while the client waits.
        let ready = Box::pin(parts.substitute.after_build(self.hash)).await.map_err(|_| Cut)?;
        pipe.send(ready.narinfo.clone()).await;
        Ok(())
    }
}

/// A narinfo field that clients ignore.
fn wait_line(state: &str) -> String {
    let state: String = state.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect();
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
