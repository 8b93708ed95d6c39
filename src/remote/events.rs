//! Events of a request for a build, as the server sends them while it goes on.

use serde::Deserialize;

use super::builds::RemoteRequest;
use super::connection::{ANSWER_BYTES_MAX, Remote, ServerReply};
use super::error::Error;

/// Something that has happened to a request.
#[derive(Clone, Debug)]
pub enum RequestEvent {
    /// Its state has changed.
    State(RemoteRequest),
    /// A build for it has printed lines.
    Log {
        /// Base name of the derivation.
        derivation: String,
        /// The lines, without escape codes.
        lines: Vec<String>,
    },
    /// A build for it enters a phase.
    Phase {
        /// Base name of the derivation.
        derivation: String,
        /// Name of the phase.
        phase: String,
    },
    /// The request has ended, with the end of the log.
    End(RemoteRequest),
}

/// Events as they arrive.
#[derive(Debug)]
pub struct RequestEvents {
    reply: ServerReply,
    /// Text that is no whole event yet.
    partial: Vec<u8>,
}

#[derive(Deserialize)]
struct LogData {
    derivation: String,
    lines: Vec<String>,
}

#[derive(Deserialize)]
struct PhaseData {
    derivation: String,
    phase: String,
}

impl Remote {
    /// The events of a request from now on.
    ///
    /// # Errors
    /// The server does not say, or knows no such request.
    pub async fn events(&self, request: u64) -> Result<RequestEvents, Error> {
        let reply = self.get_events(&format!("api/v1/builds/{request}")).await?;
        Ok(RequestEvents { reply, partial: Vec::new() })
    }
}

impl RequestEvents {
    /// The next event; `None` where the server has closed the connection before the last one.
    ///
    /// # Errors
    /// The connection is cut, or an event is not understood.
    pub async fn next(&mut self) -> Result<Option<RequestEvent>, Error> {
        loop {
            while let Some(end) = self.partial.windows(2).position(|two| two == b"\n\n") {
                let text: Vec<u8> = self.partial.drain(..end + 2).collect();
                if let Some(event) = parse(&String::from_utf8_lossy(&text))? {
                    return Ok(Some(event));
                }
            }
            let Some(chunk) = self.reply.next_chunk().await? else { return Ok(None) };
            self.partial.extend_from_slice(&chunk);
            if self.partial.len() > ANSWER_BYTES_MAX {
                return Err(Error::OtherVersion("one of its events has no end".to_owned()));
            }
        }
    }
}

/// An event; `None` for comments, and for kinds that other versions may have.
fn parse(text: &str) -> Result<Option<RequestEvent>, Error> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let (Some(kind), Some(data)) = (field("event: "), field("data: ")) else { return Ok(None) };
    let malformed = |error: serde_json::Error| Error::OtherVersion(error.to_string());
    Ok(match kind {
        "state" => Some(RequestEvent::State(narinfo::json::from_str(data).map_err(malformed)?)),
        "end" => Some(RequestEvent::End(narinfo::json::from_str(data).map_err(malformed)?)),
        "log" => {
            let LogData { derivation, lines } = narinfo::json::from_str(data).map_err(malformed)?;
            Some(RequestEvent::Log { derivation, lines })
        }
        "phase" => {
            let PhaseData { derivation, phase } = narinfo::json::from_str(data).map_err(malformed)?;
            Some(RequestEvent::Phase { derivation, phase })
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_and_other_kinds_are_passed_over() {
        let log = "event: log\ndata: {\"derivation\":\"a.drv\",\"lines\":[\"x\",\"\"]}\n\n";
        let Ok(Some(RequestEvent::Log { derivation, lines })) = parse(log) else { panic!("no log") };
        assert_eq!((&*derivation, lines), ("a.drv", vec!["x".to_owned(), String::new()]));
        let phase = "event: phase\ndata: {\"derivation\":\"a.drv\",\"phase\":\"p\"}\n\n";
        let Ok(Some(RequestEvent::Phase { derivation, phase })) = parse(phase) else { panic!("no phase") };
        assert_eq!((&*derivation, &*phase), ("a.drv", "p"));
        let end = "event: end\ndata: {\"state\":\"served\",\"derivation\":\"a.drv\"}\n\n";
        assert!(matches!(parse(end), Ok(Some(RequestEvent::End(request))) if request.has_ended()));
        assert!(matches!(parse(": nothing new\n\n"), Ok(None)));
        assert!(matches!(parse("event: other\ndata: 1\n\n"), Ok(None)));
        assert!(parse("event: state\ndata: {}\n\n").is_err());
    }
}
