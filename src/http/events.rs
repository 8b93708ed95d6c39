//! Life of one request as server-sent events: `state` when it changes, `log` with lines of the build that
//! runs, `end` at its end, and comments in between, so that no proxy takes the silence for an end. The body
//! is complete only after `end`.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use narinfo::StorePath;

use super::Service;
use super::answer::{self, Answer};
use super::api::{BuildLogLines, EnteredPhase, RequestStatus};
use super::build_details::{details, no_such_request};
use super::error::Error;
use super::stream_body::{Aborted, BodyWriter, stream_body};
use crate::build::{Logs, RequestState, RequestView, entered_phase, plain_line};
use crate::caller::CallerKey;
use crate::escape;
use crate::tail_file::TailReader;

/// Interval at which the state is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a line that has not ended; it is sent in pieces of this length.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Time that the rest of a log is given after the end of its request.
const REST_WITHIN: Duration = Duration::from_secs(5);

/// The events of a request until its end.
pub(super) fn answer(service: &Service, id: u64, owner: CallerKey) -> Result<Answer, Error> {
    if service.state.builds.request(id).is_none() {
        return Err(no_such_request(id));
    }
    let service = service.clone();
    let body = stream_body(|writer| async move {
        let mut stopping = service.stopping.clone();
        tokio::select! {
            ended = write(&service, id, &owner, writer) => ended,
            // An error means that the server is gone, which is the same.
            _ = stopping.wait_for(|stopping| *stopping) => Err(Aborted),
        }
    });
    Ok(answer::streamed(answer::EVENTS, body))
}

async fn write(service: &Service, id: u64, owner: &CallerKey, mut writer: BodyWriter) -> Result<(), Aborted> {
    let builds = &service.state.builds;
    let mut end = builds.end_signal(id);
    let ended = async {
        if let Some(end) = &mut end {
            end.ended().await;
        }
    };
    let mut ended = std::pin::pin!(ended);
    let (mut log, mut told, mut told_at) = (LogFollower::default(), String::new(), Instant::now());
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        let event = tokio::select! {
            () = &mut ended => break,
            lines = log.next_lines() => Some(lines),
            _ = ticks.tick() => None,
        };
        if let Some(event) = event {
            writer.send(event).await;
            told_at = Instant::now();
            continue;
        }
        service.state.requests.polled(id, owner, None);
        let Some(request) = builds.request(id) else { break };
        log.follow(&service.state.logs, &request).await;
        let state = event_text("state", &RequestStatus::from(request));
        if state != told {
            writer.send(state.clone()).await;
            (told, told_at) = (state, Instant::now());
        } else if told_at.elapsed() >= service.state.settings.keep_alive {
            writer.send(": nothing new\n\n").await;
            told_at = Instant::now();
        }
    }
    while log.is_following()
        && let Ok(lines) = tokio::time::timeout(REST_WITHIN, log.next_lines()).await
    {
        writer.send(lines).await;
    }
    let Some(request) = builds.request(id) else { return Err(Aborted) };
    writer.send(event_text("end", &details(service, request).await)).await;
    Ok(())
}

pub(super) fn event_text(name: &str, data: &impl serde::Serialize) -> String {
    // Strings, numbers and nothing else: there is nothing in it that JSON could refuse.
    let data = escape::json(serde_json::to_string(data).unwrap_or_default());
    format!("event: {name}\ndata: {data}\n\n")
}

/// A read under way; gives the reader back.
type ChunkRead = dyn Future<Output = (TailReader, io::Result<Option<Bytes>>)> + Send;

/// Follower of the log of one build after the other.
#[derive(Default)]
pub(super) struct LogFollower {
    /// The derivation whose log is followed, or was last.
    drv: Option<StorePath>,
    reading: Option<Pin<Box<ChunkRead>>>,
    /// A line that has not ended.
    partial: Vec<u8>,
}

impl LogFollower {
    pub(super) fn is_following(&self) -> bool {
        self.reading.is_some()
    }

    /// Begins to follow the log of what is being built, where none is followed.
    async fn follow(&mut self, logs: &Logs, request: &RequestView) {
        let RequestState::Building { building } = &request.state else { return };
        let Ok(drv) = StorePath::parse(building) else { return };
        if self.is_following() || self.drv.as_ref() == Some(&drv) {
            return;
        }
        let (logs, of) = (logs.clone(), drv.clone());
        let found = tokio::task::spawn_blocking(move || logs.read(&of)).await;
        // A complete one is of an earlier try: the new one is about to begin.
        if let Ok(Ok(Some(log))) = found
            && log.bytes.is_none()
        {
            self.drv = Some(drv);
            self.read(log.reader);
        }
    }

    /// Follower of the log that is being written of a derivation, from so many bytes before its end.
    pub(super) async fn of_running(logs: &Logs, drv: &StorePath, bytes_max: u64) -> Option<Self> {
        let (logs, of) = (logs.clone(), drv.clone());
        let found = tokio::task::spawn_blocking(move || logs.follow(&of, bytes_max)).await;
        let mut follower = Self { drv: Some(drv.clone()), ..Self::default() };
        follower.read(found.ok()??);
        Some(follower)
    }

    /// True for the follower of this derivation's log.
    pub(super) fn is_of(&self, drv: &StorePath) -> bool {
        self.drv.as_ref() == Some(drv)
    }

    fn read(&mut self, mut reader: TailReader) {
        self.reading = Some(Box::pin(async move {
            let chunk = reader.next_chunk().await;
            (reader, chunk)
        }));
    }

    /// Events with the next lines, once there are some. May be dropped and called again.
    pub(super) async fn next_lines(&mut self) -> String {
        loop {
            let Some(reading) = &mut self.reading else { return pending().await };
            let (reader, chunk) = reading.await;
            self.reading = None;
            match chunk {
                Ok(Some(bytes)) => {
                    self.partial.extend_from_slice(&bytes);
                    self.read(reader);
                }
                // The line that was not ended is the last one.
                Ok(None) | Err(_) if !self.partial.is_empty() => self.partial.push(b'\n'),
                Ok(None) | Err(_) => continue,
            }
            let lines = take_lines(&mut self.partial);
            if !lines.is_empty() {
                return log_events(&self.drv.as_ref().map(ToString::to_string).unwrap_or_default(), lines);
            }
        }
    }
}

/// The events of lines of a log: the lines, and the phases between them.
fn log_events(derivation: &str, lines: Vec<String>) -> String {
    let (derivation, mut text, mut of_builder) = (derivation.to_owned(), String::new(), Vec::new());
    let told = |lines: Vec<String>| match lines.is_empty() {
        true => String::new(),
        false => event_text("log", &BuildLogLines { derivation: derivation.clone(), lines }),
    };
    for line in lines {
        let Some(phase) = entered_phase(&line) else {
            of_builder.push(line);
            continue;
        };
        text += &told(std::mem::take(&mut of_builder));
        text += &event_text("phase", &EnteredPhase { derivation: derivation.clone(), phase });
    }
    text + &told(of_builder)
}

/// Takes the lines that have ended, and pieces of one that is too long.
fn take_lines(partial: &mut Vec<u8>) -> Vec<String> {
    let mut lines = Vec::new();
    let end = partial.iter().rposition(|byte| *byte == b'\n');
    if let Some(end) = end {
        lines.extend(partial[..end].split(|byte| *byte == b'\n').map(plain_line));
        partial.drain(..=end);
    }
    while partial.len() > LINE_BYTES_MAX {
        lines.push(plain_line(&partial[..LINE_BYTES_MAX]));
        partial.drain(..LINE_BYTES_MAX);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_once_they_have_ended_and_a_long_one_in_pieces() {
        let mut partial = b"one\ntwo\n\nthr".to_vec();
        assert_eq!(take_lines(&mut partial), ["one", "two", ""]);
        assert_eq!(take_lines(&mut partial), [""; 0]);
        partial.extend_from_slice(b"ee\n");
        assert_eq!(take_lines(&mut partial), ["three"]);
        partial = vec![b'x'; 2 * LINE_BYTES_MAX + 1];
        assert_eq!(take_lines(&mut partial).len(), 2);
        assert_eq!(partial, b"x");
    }

    #[test]
    fn phases_are_told_between_the_lines() {
        let lines = ["a", "@nix {\"action\":\"setPhase\",\"phase\":\"p\"}", "b", "c"].map(str::to_owned);
        let text = log_events("x.drv", lines.to_vec());
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(
            events,
            [
                "event: log\ndata: {\"derivation\":\"x.drv\",\"lines\":[\"a\"]}",
                "event: phase\ndata: {\"derivation\":\"x.drv\",\"phase\":\"p\"}",
                "event: log\ndata: {\"derivation\":\"x.drv\",\"lines\":[\"b\",\"c\"]}",
            ]
        );
    }

    #[test]
    fn an_event_is_one_line_of_data_whatever_is_in_it() {
        let lines = BuildLogLines { derivation: "a.drv".to_owned(), lines: vec!["x\n\u{2028}y".to_owned()] };
        let text = event_text("log", &lines);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.starts_with("event: log\ndata: {") && text.ends_with("}\n\n"), "{text}");
    }
}
